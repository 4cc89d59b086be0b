// The demo users, and the patience this provider has with wrong passwords.
import { createHash, timingSafeEqual } from 'node:crypto';

const WINDOW_MS = 60_000;

const user = (name, password, fullName, uuid) => ({ name, password, fullName, uuid, email: `${name}@polydev.test` });

/** Documented for everybody to use: they open nothing but this demo. */
export const USERS = [
  user('demo', 'demo-password', 'Demo User', '00000000-0000-4000-8000-00000000de30'),
  user('second', 'second-password', 'Second User', '00000000-0000-4000-8000-000000005ec0'),
];

export function findUser(name) {
  return USERS.find((candidate) => candidate.name === name) ?? null;
}

export class PasswordCheck {
  #failures = new Map();

  constructor({ now = Date.now, limit }) {
    this.now = now;
    this.limit = limit;
  }

  /** `{ user }`, `{ wrong: true }`, or `{ waitS }` once a name has had `limit()` wrong passwords within a minute. */
  check(name, password) {
    const now = this.now();
    const key = USERS.some((candidate) => candidate.name === name) ? name : 'unknown name';
    const recent = (this.#failures.get(key) ?? []).filter((at) => now - at < WINDOW_MS);
    if (recent.length >= this.limit()) return { waitS: Math.ceil((recent[0] + WINDOW_MS - now) / 1000) };
    const found = findUser(name);
    if (found && same(password, found.password)) {
      this.#failures.delete(key);
      return { user: found };
    }
    this.#failures.set(key, [...recent, now]);
    return { wrong: true };
  }

  /** Forgets all wrong passwords. */
  reset() {
    this.#failures.clear();
  }
}

function same(given, wanted) {
  const digest = (text) => createHash('sha256').update(String(text)).digest();
  return timingSafeEqual(digest(given), digest(wanted));
}
