// The `demo` provider: a complete OpenID Connect server (oidc-provider) with our sign-in pages in front.
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { IncomingMessage } from 'node:http';
import Provider from 'oidc-provider';
import { USERS, findUser } from './accounts.mjs';
import { DEMO_ISSUER } from './hosts.mjs';
import { consentPage, errorPage, signInPage } from './pages.mjs';
import { checkPassword } from './sign-in.mjs';

export const DEMO_CLIENT_ID = 'polydev-demo-cli';
const BRAND = { name: 'polydev demo', accent: '#4a3fb0' };
const CLIENT_NAME = 'the polydev demo CLI';

export class DemoIssuer {
  constructor({ store, knobs, passwords, ledger }) {
    this.knobs = knobs;
    this.passwords = passwords;
    this.provider = new Provider(DEMO_ISSUER, {
      adapter: (kind) => store.adapter(kind),
      clients: [{
        client_id: DEMO_CLIENT_ID,
        client_name: CLIENT_NAME,
        application_type: 'native',
        token_endpoint_auth_method: 'none',
        id_token_signed_response_alg: 'ES256',
        grant_types: ['authorization_code', 'refresh_token'],
        response_types: ['code'],
        // A native client's loopback address is good with any port (RFC 8252 7.3).
        redirect_uris: ['http://127.0.0.1/callback'],
      }],
      jwks: { keys: [{ ...generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'ES256' }] },
      cookies: { keys: [randomBytes(32).toString('base64url')] },
      claims: { openid: ['sub'], profile: ['name', 'preferred_username'], email: ['email', 'email_verified'] },
      scopes: ['openid', 'offline_access', 'profile', 'email'],
      features: { devInteractions: { enabled: false }, revocation: { enabled: true }, rpInitiatedLogout: { enabled: false } },
      interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
      pkce: { required: () => true },
      rotateRefreshToken: true,
      ttl: {
        AccessToken: () => knobs.settings.tokenLifetimeS,
        AuthorizationCode: () => knobs.settings.codeLifetimeS,
        IdToken: 3600,
        Interaction: 1800,
        Grant: 30 * 86400,
        RefreshToken: 30 * 86400,
        Session: 3600,
      },
      findAccount: (ctx, id) => {
        const user = findUser(id);
        return user && { accountId: id, claims: () => ({ sub: id, name: user.fullName, preferred_username: user.name, email: user.email, email_verified: true }) };
      },
      renderError: (ctx, out) => {
        ctx.type = 'html';
        ctx.body = errorPage({ brand: BRAND, text: out.error_description ?? out.error });
      },
    });
    // Tokens of this server carry the same marks as all others of the demo: unique, numbered, FAKE.
    for (const kind of ['AccessToken', 'RefreshToken', 'AuthorizationCode']) {
      const { prototype } = this.provider[kind];
      const generate = prototype.generateTokenId;
      prototype.generateTokenId = function marked() {
        return `polydev-demo-${ledger.mint()}-${generate.call(this)}`;
      };
    }
    this.provider.on('server_error', (ctx, error) => console.error(`demo: ${ctx.method} ${ctx.path}: ${error.stack}`));
    this.callback = this.provider.callback();
  }

  async answer(x) {
    if (!x.path.startsWith('/interaction/')) return this.callback(unread(x), x.res);
    const { prompt, params, session, grantId } = await this.provider.interactionDetails(x.req, x.res);
    return prompt.name === 'login' ? this.#login(x) : this.#consent(x, { prompt, params, session, grantId });
  }

  #login(x) {
    const { outcome } = this.knobs.settings;
    const show = (status, extra = {}, headers = {}) => x.html(status, signInPage({ brand: BRAND, action: x.path, client: CLIENT_NAME, ...extra }), headers);
    if (outcome === 'deny') return this.#deny(x);
    if (outcome === 'page' && x.method !== 'POST') return show(200);
    const user = outcome === 'allow' ? USERS[0] : checkPassword(this.passwords, x, show);
    return user && this.#finish(x, { login: { accountId: user.name } });
  }

  async #consent(x, { prompt, params, session, grantId }) {
    if (this.knobs.settings.outcome === 'page') {
      if (x.method === 'POST' && x.fields.decision === 'deny') return this.#deny(x);
      if (x.method !== 'POST' || x.fields.decision !== 'allow') {
        const scopes = params.scope.split(' ').filter((scope) => scope !== 'openid');
        return x.html(200, consentPage({ brand: BRAND, action: x.path, client: CLIENT_NAME, user: findUser(session.accountId), scopes }));
      }
    }
    const { Grant } = this.provider;
    const grant = (grantId && (await Grant.find(grantId))) || new Grant({ accountId: session.accountId, clientId: params.client_id });
    if (prompt.details.missingOIDCScope) grant.addOIDCScope(prompt.details.missingOIDCScope.join(' '));
    if (prompt.details.missingOIDCClaims) grant.addOIDCClaims(prompt.details.missingOIDCClaims);
    return this.#finish(x, { consent: { grantId: await grant.save() } });
  }

  #deny(x) {
    return this.#finish(x, { error: 'access_denied', error_description: 'the person denied access' });
  }

  #finish(x, result) {
    return this.provider.interactionFinished(x.req, x.res, result, { mergeWithLastSubmission: true });
  }
}

/** The request with its body still to be read, as oidc-provider expects it. */
function unread(x) {
  const copy = new IncomingMessage(x.req.socket);
  const { method, url, headers, rawHeaders, httpVersion, httpVersionMajor, httpVersionMinor } = x.req;
  Object.assign(copy, { method, url, rawHeaders, httpVersion, httpVersionMajor, httpVersionMinor });
  // Framing headers described the bytes on the wire; what follows has this length.
  copy.headers = { ...headers, 'content-length': String(x.body.length) };
  delete copy.headers['transfer-encoding'];
  copy.push(x.body.length ? x.body : null);
  if (x.body.length) copy.push(null);
  // Without this Node takes the end of reading for an aborted request and closes the connection.
  copy.complete = true;
  return copy;
}
