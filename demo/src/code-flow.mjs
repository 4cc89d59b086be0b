// The authorization code flow as all vendors share it (RFC 6749 4.1, RFC 7636). What differs between them is data:
// see the `vendor` objects in vendors/.
import { randomBytes } from 'node:crypto';
import { findUser } from './accounts.mjs';
import { OAuthError } from './ledger.mjs';
import { errorPage } from './pages.mjs';

export class CodeFlow {
  /** `vendor`: id, brand, client, redirectUris (expressions), pkce, rotates, bindState, answer(family, mint...). */
  constructor(vendor, { ledger, signIn, knobs }) {
    this.vendor = vendor;
    this.ledger = ledger;
    this.signIn = signIn;
    this.knobs = knobs;
  }

  /** GET of the authorization endpoint: checks the request, asks the person, sends the browser back. */
  authorize(x) {
    const q = (name) => x.query.get(name) ?? '';
    const { vendor } = this;
    // Before the address to return to is known to be good, faults are shown and not sent there.
    if (!q('client_id')) return this.fault(x, 'client_id is missing.');
    if (!vendor.redirectUris.some((pattern) => pattern.test(q('redirect_uri')))) return this.fault(x, 'redirect_uri is not one of this client.');
    const back = (to, params) => to.redirect(returnAddress(q('redirect_uri'), { ...params, state: this.#state(q('state')) }), 303);
    if (q('response_type') !== 'code') return back(x, { error: 'unsupported_response_type' });
    const pkce = vendor.pkce || q('code_challenge') !== '';
    if (pkce && (q('code_challenge_method') !== 'S256' || !/^[\w-]{43}$/.test(q('code_challenge')))) {
      return back(x, { error: 'invalid_request', error_description: 'an S256 code_challenge is required' });
    }
    const grant = {
      vendor: vendor.id,
      clientId: q('client_id'),
      redirectUri: q('redirect_uri'),
      scope: q('scope'),
      challenge: q('code_challenge') || null,
      state: q('state'),
      bindState: Boolean(vendor.bindState),
    };
    return this.ask(x, grant, (last, code) => back(last, code ? { code, ...(vendor.echoScope && { scope: grant.scope }) } : { error: 'access_denied' }));
  }

  /** Shows the sign-in pages for `grant`, then calls `finish(last, code)` with the last request; the code is null when access was denied. */
  ask(x, grant, finish) {
    const { id, brand, client } = this.vendor;
    return this.signIn.begin(x, {
      vendor: id,
      brand,
      client,
      scopes: grant.scope.split(' ').filter(Boolean),
      finish: (last, { user }) => finish(last, user && this.ledger.issueCode({ ...grant, user: user.name })),
    });
  }

  /** POST of the token endpoint with grant_type authorization_code. */
  exchange(f) {
    const family = this.ledger.redeemCode({
      vendor: this.vendor.id,
      code: f.code,
      clientId: f.client_id,
      redirectUri: f.redirect_uri,
      verifier: f.code_verifier,
      state: f.state,
    });
    return this.issue(family, { refresh: true });
  }

  /** POST of the token endpoint with grant_type refresh_token. */
  refresh(f) {
    const { id, rotates } = this.vendor;
    const family = this.ledger.redeemRefresh({ vendor: id, token: f.refresh_token, clientId: f.client_id, rotate: rotates });
    return this.issue(family, { refresh: rotates });
  }

  /** New tokens of a family, in the vendor's shape; `refresh` says whether there is a refresh token among them. */
  issue(familyId, { refresh }) {
    const lifetimeS = this.knobs.settings.tokenLifetimeS;
    const family = this.ledger.family(familyId);
    const user = findUser(family.user);
    const keep = (kind, token, seconds) => this.ledger.record(familyId, kind, token, seconds);
    return this.vendor.answer({
      user,
      family,
      lifetimeS,
      mint: () => this.ledger.mint(),
      access: (token) => keep('access', token, lifetimeS),
      refresh: (make) => (refresh ? keep('refresh', make(), null) : undefined),
      id: (token) => keep('id', token, lifetimeS),
    });
  }

  /** The user behind the request's access token, or null. */
  user(x) {
    const found = x.bearer && this.ledger.find(this.vendor.id, x.bearer);
    return found ? findUser(found.user) : null;
  }

  fault(x, text) {
    return x.html(400, errorPage({ brand: this.vendor.brand, text }));
  }

  #state(state) {
    return this.knobs.settings.wrongState ? `wrong-${randomBytes(6).toString('hex')}` : state;
  }
}

/** One token endpoint: picks the handler of the grant type and speaks RFC 6749 5.2 when there is none. */
export function tokenEndpoint(handlers, field = 'grant_type') {
  return (x) => {
    const handler = Object.hasOwn(handlers, x.fields[field]) ? handlers[x.fields[field]] : null;
    if (!handler) throw new OAuthError('unsupported_grant_type', 'this grant type is not supported here');
    return x.json(200, handler(x.fields, x));
  };
}

function returnAddress(redirectUri, params) {
  const url = new URL(redirectUri);
  for (const [name, value] of Object.entries(params)) url.searchParams.set(name, value);
  return url;
}
