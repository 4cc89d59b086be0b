// What codex asks of auth.openai.com and chatgpt.com.
import { createHash, randomBytes } from 'node:crypto';
import { CodeFlow, tokenEndpoint } from '../code-flow.mjs';
import { beginDevice } from '../devices.mjs';
import { fakeJwt, OAuthError } from '../ledger.mjs';

const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const POLL_SECONDS = 1;
/** Where codex looks for the account in both of its tokens. */
const AUTH_CLAIM = 'https://api.openai.com/auth';

export const openai = {
  id: 'openai',
  brand: { name: 'OpenAI', accent: '#0d7a5f' },
  client: 'Codex CLI',
  redirectUris: [/^http:\/\/(127\.0\.0\.1|localhost):(1455|1457)\/auth\/callback$/],
  pkce: true,
  rotates: true,
  answer({ user, family, lifetimeS, mint, access, refresh, id }) {
    const nowS = Math.floor(Date.now() / 1000);
    const common = {
      iss: 'https://auth.openai.com',
      sub: `user-${user.name}`,
      iat: nowS,
      exp: nowS + lifetimeS,
      [AUTH_CLAIM]: {
        chatgpt_account_id: accountId(user),
        chatgpt_plan_type: 'plus',
        chatgpt_user_id: `user-${user.name}`,
        user_id: `user-${user.name}`,
        organization_id: `org-${user.name}`,
      },
    };
    const identity = { email: user.email, email_verified: true, name: user.fullName };
    return {
      id_token: id(fakeJwt({ ...common, ...identity, aud: [family.clientId] }, mint())),
      access_token: access(fakeJwt({ ...common, 'https://api.openai.com/profile': { email: user.email, email_verified: true }, aud: ['https://api.openai.com/v1'], scp: family.scope.split(' ') }, mint())),
      refresh_token: refresh(() => `rt-${mint()}`),
      token_type: 'Bearer',
      expires_in: lifetimeS,
      scope: family.scope,
    };
  },
};

export function openaiHosts(deps) {
  const flow = new CodeFlow(openai, deps);
  const { ledger, devices, signIn } = deps;

  const exchangeForKey = (f) => {
    const found = ledger.find(openai.id, f.subject_token, ['id']);
    if (!found || found.clientId !== f.client_id) throw new OAuthError('invalid_grant', 'the subject token is not good');
    return { access_token: ledger.record(found.id, 'key', `sk-${ledger.mint()}`), issued_token_type: TOKEN_EXCHANGE, token_type: 'Bearer' };
  };

  const refresh = (f) => {
    try {
      return flow.refresh(f);
    } catch (error) {
      // A 401 is what makes codex treat the refusal as final.
      if (error instanceof OAuthError) error.status = 401;
      throw error;
    }
  };

  const auth = {
    'GET /oauth/authorize': (x) => flow.authorize(x),
    'POST /oauth/token': tokenEndpoint({ authorization_code: (f) => flow.exchange(f), refresh_token: refresh, [TOKEN_EXCHANGE]: exchangeForKey }),
    'POST /oauth/revoke': (x) => {
      ledger.revoke(openai.id, x.fields.token);
      x.json(200, {});
    },
    'GET /codex/device': (x) => beginDevice(x, { signIn, devices, vendor: openai }),
    'POST /api/accounts/deviceauth/usercode': (x) => {
      if (typeof x.fields.client_id !== 'string') throw new OAuthError('invalid_request', 'client_id is missing');
      const device = devices.start({ vendor: openai.id, clientId: x.fields.client_id, scope: 'openid profile email offline_access', client: openai.client, groups: [4, 5] });
      x.json(200, { device_auth_id: device.deviceCode, user_code: device.userCode, interval: String(POLL_SECONDS), expires_at: new Date(device.endsAt).toISOString() });
    },
    'POST /api/accounts/deviceauth/token': (x) => {
      let device;
      try {
        device = devices.poll({ vendor: openai.id, deviceCode: x.fields.device_auth_id, userCode: x.fields.user_code });
      } catch (error) {
        if (error instanceof OAuthError) error.status = error.code === 'authorization_pending' ? 403 : 400;
        throw error;
      }
      const { verifier, challenge } = serverPkce();
      const redirectUri = `${x.origin}/deviceauth/callback`;
      const code = ledger.issueCode({ vendor: openai.id, clientId: device.clientId, redirectUri, scope: device.scope, challenge, user: device.user });
      x.json(200, { authorization_code: code, code_verifier: verifier, code_challenge: challenge });
    },
  };

  const chatgpt = {
    'GET /backend-api/wham/accounts/check': (x) => {
      const user = flow.user(x);
      if (!user) return x.json(401, { detail: 'unauthorized' });
      return x.json(200, {
        accounts: [{ id: accountId(user), name: user.fullName, structure: 'personal', plan_type: 'plus', workspace_backend_origin: 'https://chatgpt.com', account_routing_override: 'NO_CONSTRAINT' }],
        default_account_id: accountId(user),
      });
    },
  };
  return { 'auth.openai.com': auth, 'chatgpt.com': chatgpt };
}

const accountId = (user) => user.uuid;

/** In this flow the server makes the PKCE pair and hands both halves to the program. */
function serverPkce() {
  const verifier = randomBytes(32).toString('base64url');
  return { verifier, challenge: createHash('sha256').update(verifier).digest('base64url') };
}
