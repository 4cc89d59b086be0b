// Codes, tokens and grants on disk, so that restarting the demo does not sign anybody out. Everything in it is FAKE,
// but it is kept like a secret all the same.
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export class StateFile {
  #parts = {};
  #timer = null;

  constructor(stateDir) {
    this.file = join(stateDir, 'state.json');
    this.read = existsSync(this.file) ? JSON.parse(readFileSync(this.file, 'utf8')) : {};
  }

  /** Keeps `part` (anything JSON can write) under `name`; gives what an earlier process left under it, or null. */
  keep(name, part) {
    this.#parts[name] = part;
    return this.read[name] ?? null;
  }

  /** Writes soon; many changes in one turn are one write. */
  changed() {
    this.#timer ??= setImmediate(() => this.flush());
  }

  flush() {
    clearImmediate(this.#timer);
    this.#timer = null;
    const fresh = `${this.file}.new`;
    writeFileSync(fresh, JSON.stringify(this.#parts), { mode: 0o600 });
    renameSync(fresh, this.file);
  }
}
