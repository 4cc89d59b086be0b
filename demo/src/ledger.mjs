// Every code and token that was ever handed out, and the only place that decides whether one is still good.
// Strict on purpose: a lax provider makes a broken client look fine. Pure: the clock is passed in.
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';

/** An answer of the token, revocation and device endpoints (RFC 6749 section 5.2). */
export class OAuthError extends Error {
  constructor(code, description, status = 400) {
    super(description);
    this.code = code;
    this.status = status;
  }
}

const FORGET_CODES_AFTER_MS = 24 * 60 * 60 * 1000;

/** Code and refresh-token rejections are told apart by this text only in the demo's own answers. */
const refuse = (why) => new OAuthError('invalid_grant', why);

export class Ledger {
  #serial = 0;
  #codes = new Map();
  #tokens = new Map();
  #families = new Map();

  /** `lifetimes()` gives `{ code, token }` in seconds; `changed()` is called after every change. */
  constructor({ now = Date.now, lifetimes, changed = () => {} }) {
    this.now = now;
    this.lifetimes = lifetimes;
    this.changed = changed;
  }

  /** A unique text that says what it is. Its length is a multiple of four, so it also passes as base64url. */
  mint() {
    this.#serial += 1;
    return `FAKE-${String(this.#serial).padStart(6, '0')}-${randomBytes(18).toString('hex')}`;
  }

  /** Hands out an authorization code for `grant`: vendor, clientId, redirectUri, scope, user, challenge, state. */
  issueCode(grant) {
    const code = `code-${this.mint()}`;
    this.#codes.set(code, { grant, expiresAt: this.now() + this.lifetimes().code * 1000, family: null });
    this.changed();
    return code;
  }

  /** Turns a code into a family, once. Seen a second time it ends what the first use was given (RFC 6749 10.5). */
  redeemCode({ vendor, code, clientId, redirectUri, verifier, state }) {
    const entry = this.#codes.get(code);
    if (!entry || entry.grant.vendor !== vendor) throw refuse('the code is unknown');
    if (entry.family) {
      this.#endFamily(entry.family);
      throw refuse('the code was used before');
    }
    const { grant } = entry;
    if (this.now() >= entry.expiresAt) throw refuse('the code has expired');
    // A grant without a client (claude's short link) is bound by its challenge and takes the first client that fits.
    if (grant.clientId !== null && grant.clientId !== clientId) throw refuse('the code belongs to another client');
    if (grant.redirectUri !== redirectUri) throw refuse('redirect_uri differs from the authorization request');
    if (grant.challenge && !verifierMatches(verifier, grant.challenge)) throw refuse('code_verifier does not fit the challenge');
    if (grant.bindState && grant.state !== state) throw refuse('state differs from the authorization request');
    entry.family = this.openFamily({ ...grant, clientId });
    this.changed();
    return entry.family;
  }

  /** Starts a family of tokens for a grant that was approved in another way (device). */
  openFamily(grant) {
    const id = `family-${this.mint()}`;
    const { vendor, clientId, scope, user } = grant;
    this.#families.set(id, { vendor, clientId, scope, user, ended: false });
    this.changed();
    return id;
  }

  family(id) {
    return this.#families.get(id);
  }

  /** Records `token` as a member of the family. `kind` is access, refresh, id or key. */
  record(family, kind, token, lifetimeS = null) {
    const expiresAt = lifetimeS === null ? null : this.now() + lifetimeS * 1000;
    this.#tokens.set(token, { family, kind, expiresAt, used: false });
    this.changed();
    return token;
  }

  /** Spends a refresh token. With `rotate`, seen a second time it ends the whole family. */
  redeemRefresh({ vendor, token, clientId, rotate }) {
    const entry = this.#tokens.get(token);
    const family = entry && this.#families.get(entry.family);
    if (!entry || entry.kind !== 'refresh' || family.vendor !== vendor) throw refuse('the refresh token is unknown');
    if (family.ended) throw refuse('the refresh token was revoked');
    if (family.clientId !== clientId) throw refuse('the refresh token belongs to another client');
    if (entry.used) {
      this.#endFamily(entry.family);
      throw refuse('the refresh token was used before; every token of this sign-in is now void');
    }
    if (rotate) entry.used = true;
    this.changed();
    return entry.family;
  }

  /** RFC 7009: an unknown token is no error, a known one takes its family with it. */
  revoke(vendor, token) {
    const entry = this.#tokens.get(token);
    if (entry && this.#families.get(entry.family).vendor === vendor) this.#endFamily(entry.family);
  }

  /** The family a live token belongs to, or null. */
  find(vendor, token, kinds = ['access']) {
    const entry = this.#tokens.get(token);
    const family = entry && this.#families.get(entry.family);
    if (!family || family.ended || family.vendor !== vendor || !kinds.includes(entry.kind)) return null;
    if (entry.expiresAt !== null && this.now() >= entry.expiresAt) return null;
    return { id: entry.family, expiresAt: entry.expiresAt, ...family };
  }

  #endFamily(id) {
    this.#families.get(id).ended = true;
    this.changed();
  }

  toJSON() {
    return { serial: this.#serial, codes: [...this.#codes], tokens: [...this.#tokens], families: [...this.#families] };
  }

  /** Takes up where an earlier process stopped, so that a restart of the demo signs nobody out. */
  restore({ serial, codes, tokens, families }) {
    const recent = this.now() - FORGET_CODES_AFTER_MS;
    this.#serial = serial;
    this.#families = new Map(families.filter(([, family]) => !family.ended));
    this.#tokens = new Map(tokens.filter(([, token]) => this.#families.has(token.family)));
    this.#codes = new Map(codes.filter(([, code]) => code.expiresAt > recent && (!code.family || this.#families.has(code.family))));
  }
}

/** RFC 7636 section 4.6, S256 only. */
function verifierMatches(verifier, challenge) {
  if (typeof verifier !== 'string') return false;
  const made = Buffer.from(createHash('sha256').update(verifier).digest('base64url'));
  const wanted = Buffer.from(challenge);
  return made.length === wanted.length && timingSafeEqual(made, wanted);
}

const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');

/** A token of JWT shape. Its signature part is the serial text: it verifies nowhere and says so to whoever reads it. */
export function fakeJwt(claims, serial) {
  return `${part({ alg: 'ES256', typ: 'JWT', kid: 'polydev-demo-FAKE' })}.${part({ jti: serial, ...claims })}.${serial}`;
}
