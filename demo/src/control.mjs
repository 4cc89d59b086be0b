// The control endpoint: plain http on the loopback port only, for whoever can read `control-token` in the state directory.
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { BadKnob } from './knobs.mjs';

export class Control {
  #token = randomBytes(32).toString('base64url');

  constructor({ stateDir, knobs, passwords, trials }) {
    this.knobs = knobs;
    this.passwords = passwords;
    this.trials = trials;
    writeFileSync(join(stateDir, 'control-token'), this.#token, { mode: 0o600 });
  }

  static handles(x) {
    return x.path === '/control' || x.path.startsWith('/control/');
  }

  answer(x) {
    if (!this.#allowed(x.bearer)) return x.json(401, { error: 'unauthorized' });
    try {
      this.#apply(x);
    } catch (error) {
      if (!(error instanceof BadKnob)) throw error;
      x.json(400, { error: 'bad_request', error_description: error.message });
    }
  }

  #apply(x) {
    const { settings, rules } = this.knobs;
    switch (`${x.method} ${x.path}`) {
      case 'GET /control':
        return x.json(200, { settings, rules });
      case 'DELETE /control':
        this.knobs.reset();
        this.passwords.reset();
        return x.json(200, { settings: this.knobs.settings, rules: this.knobs.rules });
      case 'PUT /control/settings':
        this.knobs.set(x.fields);
        return x.json(200, this.knobs.settings);
      case 'POST /control/rules':
        this.knobs.add(x.fields);
        return x.json(201, { rules: this.knobs.rules });
      case 'GET /control/typed': {
        const typed = this.trials.typed(x.query.get('id'));
        return typed ? x.json(200, typed) : x.json(404, { error: 'not_found' });
      }
      default:
        return x.json(404, { error: 'not_found' });
    }
  }

  #allowed(given) {
    const wanted = Buffer.from(this.#token);
    const got = Buffer.from(given ?? '');
    return got.length === wanted.length && timingSafeEqual(got, wanted);
  }
}
