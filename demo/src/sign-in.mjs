// A person's way through the vendors' sign-in: user name and password, for devices the code, then consent.
//
//   login ──right password──▶ code (devices only) ──known code──▶ consent ──allow/deny──▶ finished
//
// The way is held under a random id that is in the page's address and form; it is finished once.
import { randomBytes } from 'node:crypto';
import { USERS } from './accounts.mjs';
import { consentPage, deviceCodePage, errorPage, signInPage } from './pages.mjs';

export const SIGN_IN_PATH = '/polydev-demo/sign-in';
const LIFETIME_MS = 30 * 60_000;
const MAX_OPEN = 500;

export class SignIn {
  #open = new Map();

  constructor({ passwords, devices, knobs, now = Date.now }) {
    this.passwords = passwords;
    this.devices = devices;
    this.knobs = knobs;
    this.now = now;
  }

  /**
   * Begins a way. `wanted`: brand, client, scopes, vendor, `device` if a code has to be typed, and
   * `finish(x, { user, device })` which answers the last request; `user` is null when access was denied.
   */
  begin(x, wanted) {
    const { outcome } = this.knobs.settings;
    if (outcome !== 'page' && !wanted.device) return wanted.finish(x, { user: outcome === 'allow' ? USERS[0] : null });
    const id = randomBytes(18).toString('base64url');
    if (this.#open.size >= MAX_OPEN) this.#open.delete(this.#open.keys().next().value);
    this.#open.set(id, { ...wanted, id, step: 'login', user: null, found: null, endsAt: this.now() + LIFETIME_MS });
    return x.redirect(this.#address(id));
  }

  /** GET shows the step the person is at, POST takes it. */
  answer(x) {
    const way = this.#open.get(x.query.get('id'));
    if (!way || this.now() >= way.endsAt) {
      return x.html(410, errorPage({ brand: { name: 'this service', accent: '#64748b' }, text: 'This sign-in is finished or has expired. Start again from the program that opened it.' }));
    }
    if (x.method === 'GET') return this.#show(x, way);
    if (x.method !== 'POST') return x.json(405, { error: 'method_not_allowed' });
    const steps = { login: () => this.#login(x, way), code: () => this.#code(x, way), consent: () => this.#consent(x, way) };
    return steps[way.step]();
  }

  #login(x, way) {
    const checked = checkPassword(this.passwords, x, (status, extra, headers) => this.#show(x, way, status, extra, headers));
    if (!checked) return;
    way.user = checked;
    way.step = way.device ? 'code' : 'consent';
    this.#onward(x, way);
  }

  #code(x, way) {
    const found = this.devices.lookup(way.vendor, x.fields.user_code ?? '');
    if (!found) return this.#show(x, way, 400, { wrong: 'That code is not known or no longer valid.' });
    way.found = found;
    way.client = found.client;
    way.scopes = found.scopes;
    way.step = 'consent';
    this.#onward(x, way);
  }

  #consent(x, way) {
    const { decision } = x.fields;
    if (decision !== 'allow' && decision !== 'deny') return this.#show(x, way, 400);
    this.#open.delete(way.id);
    return way.finish(x, { user: decision === 'allow' ? way.user : null, device: way.found });
  }

  #onward(x, way) {
    x.redirect(this.#address(way.id), 303);
  }

  #show(x, way, status = 200, extra = {}, headers = {}) {
    const action = this.#address(way.id);
    const pages = { login: signInPage, code: deviceCodePage, consent: consentPage };
    x.html(status, pages[way.step]({ ...way, action, ...extra }), headers);
  }

  #address(id) {
    return `${SIGN_IN_PATH}?id=${id}`;
  }
}

/** The user whose name and password were sent; otherwise shows why not, through `show(status, pageFields, headers)`. */
export function checkPassword(passwords, x, show) {
  const userName = String(x.fields.username ?? '');
  const result = passwords.check(userName, x.fields.password ?? '');
  if (result.user) return result.user;
  if (result.waitS) {
    show(429, { userName, wrong: `Too many wrong passwords. Try again in ${result.waitS} seconds.` }, { 'retry-after': String(result.waitS) });
  } else {
    show(401, { userName, wrong: 'Wrong user name or password.' });
  }
  return null;
}
