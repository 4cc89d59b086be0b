// What gemini asks of accounts.google.com, the two googleapis.com hosts and developers.google.com.
import { CodeFlow, tokenEndpoint } from '../code-flow.mjs';
import { fakeJwt, OAuthError } from '../ledger.mjs';
import { donePage, pasteCodePage } from '../pages.mjs';

const TIER = { id: 'free-tier', name: 'Demo tier', description: 'The only tier of the demo network' };

export const google = {
  id: 'google',
  brand: { name: 'Google', accent: '#1a63d8' },
  client: 'Gemini CLI',
  redirectUris: [/^http:\/\/(127\.0\.0\.1|localhost):\d{1,5}\/oauth2callback$/, /^https:\/\/codeassist\.google\.com\/authcode$/],
  pkce: false,
  rotates: false,
  echoScope: true,
  answer({ user, family, lifetimeS, mint, access, refresh, id }) {
    const nowS = Math.floor(Date.now() / 1000);
    const claims = { iss: 'https://accounts.google.com', aud: family.clientId, azp: family.clientId, sub: user.uuid, email: user.email, email_verified: true, name: user.fullName, iat: nowS, exp: nowS + lifetimeS };
    return {
      access_token: access(`ya29.${mint()}`),
      refresh_token: refresh(() => `1//${mint()}`),
      expires_in: lifetimeS,
      scope: family.scope,
      token_type: 'Bearer',
      id_token: id(fakeJwt(claims, mint())),
    };
  },
};

export function googleHosts(deps) {
  const flow = new CodeFlow(google, deps);
  const { ledger } = deps;
  const forUser = (answer) => (x) => {
    const user = flow.user(x);
    if (user) return answer(x, user);
    return x.json(401, { error: { code: 401, message: 'the access token is not good', status: 'UNAUTHENTICATED' } });
  };
  // The program is a "desktop" client: it has a secret that is no secret, but it has to send one.
  const withSecret = (handler) => (f) => {
    if (!f.client_secret) throw new OAuthError('invalid_client', 'client_secret is missing', 401);
    return handler(f);
  };

  return {
    'accounts.google.com': { 'GET /o/oauth2/v2/auth': (x) => flow.authorize(x) },
    'oauth2.googleapis.com': {
      'POST /token': tokenEndpoint({ authorization_code: withSecret((f) => flow.exchange(f)), refresh_token: withSecret((f) => flow.refresh(f)) }),
      'POST /revoke': (x) => {
        ledger.revoke(google.id, x.fields.token ?? x.query.get('token'));
        x.json(200, {});
      },
      'POST /tokeninfo': (x) => {
        const token = x.fields.access_token ?? x.query.get('access_token') ?? x.bearer;
        const found = ledger.find(google.id, token);
        if (!found) throw new OAuthError('invalid_token', 'the access token is not good');
        x.json(200, { aud: found.clientId, azp: found.clientId, scope: found.scope, expires_in: Math.floor((found.expiresAt - ledger.now()) / 1000) });
      },
    },
    'www.googleapis.com': {
      'GET /oauth2/v2/userinfo': forUser((x, user) => x.json(200, { id: user.uuid, email: user.email, verified_email: true, name: user.fullName })),
    },
    'developers.google.com': {
      'GET /gemini-code-assist/auth_success_gemini': (x) => x.html(200, donePage({ brand: google.brand, heading: 'Signed in', text: 'You can go back to your terminal and close this page.' })),
      'GET /gemini-code-assist/auth_failure_gemini': (x) => x.html(200, donePage({ brand: google.brand, heading: 'Sign-in failed', text: 'The program in your terminal says why.' })),
    },
    'codeassist.google.com': { 'GET /authcode': (x) => x.html(200, pasteCodePage({ brand: google.brand, code: x.query.get('code') ?? '' })) },
    'cloudcode-pa.googleapis.com': {
      'POST /v1internal:loadCodeAssist': forUser((x) => x.json(200, { currentTier: TIER, allowedTiers: [{ ...TIER, isDefault: true }], cloudaicompanionProject: 'polydev-demo-project' })),
      'POST /v1internal:retrieveUserQuota': forUser((x) => x.json(200, {})),
      'POST /v1internal:listExperiments': forUser((x) => x.json(200, {})),
    },
  };
}
