// What gh and copilot ask of github.com and api.github.com.
import { CodeFlow } from '../code-flow.mjs';
import { beginDevice } from '../devices.mjs';
import { OAuthError } from '../ledger.mjs';

const DEVICE_GRANT = 'urn:ietf:params:oauth:grant-type:device_code';
const POLL_SECONDS = 1;

export const github = {
  id: 'github',
  brand: { name: 'GitHub', accent: '#1f6f3d' },
  client: 'GitHub CLI',
  redirectUris: [/^http:\/\/127\.0\.0\.1:\d{1,5}\/callback$/],
  pkce: false,
  rotates: false,
  /** These tokens do not expire and cannot be refreshed. */
  answer({ family, mint, access }) {
    return { access_token: access(`gho_${mint()}`), token_type: 'bearer', scope: family.scope };
  },
};

export function githubHosts(deps) {
  const flow = new CodeFlow(github, deps);
  const { ledger, devices, signIn } = deps;
  // Form-encoded unless JSON is asked for; errors of the token endpoint come with status 200.
  const reply = (x, value) => (String(x.req.headers.accept).includes('json') ? x.json(200, value) : x.form(200, value));
  const forUser = (answer) => (x) => {
    const user = flow.user(x);
    return user ? answer(x, user) : x.json(401, { message: 'Bad credentials' });
  };
  const scopesHeader = (x) => ({ 'x-oauth-scopes': ledger.find(github.id, x.bearer).scope.split(/[ ,]+/).join(', ') });

  const device = (f) => {
    const { clientId, scope, user } = devices.poll({ vendor: github.id, deviceCode: f.device_code, clientId: f.client_id });
    return flow.issue(ledger.openFamily({ vendor: github.id, clientId, scope, user }), { refresh: false });
  };

  return {
    'github.com': {
      'GET /login/device': (x) => beginDevice(x, { signIn, devices, vendor: github }),
      'POST /login/device/code': (x) => {
        if (!x.fields.client_id) throw new OAuthError('invalid_request', 'client_id is missing');
        const made = devices.start({ vendor: github.id, clientId: x.fields.client_id, scope: x.fields.scope ?? '', client: github.client, groups: [4, 4] });
        reply(x, { device_code: made.deviceCode, user_code: made.userCode, verification_uri: 'https://github.com/login/device', expires_in: made.lifetimeS, interval: POLL_SECONDS });
      },
      'GET /login/oauth/authorize': (x) => {
        x.query.set('response_type', 'code');
        return flow.authorize(x);
      },
      'POST /login/oauth/access_token': (x) => {
        try {
          reply(x, x.fields.grant_type === DEVICE_GRANT ? device(x.fields) : flow.exchange(x.fields));
        } catch (error) {
          if (!(error instanceof OAuthError)) throw error;
          reply(x, { error: error.code, error_description: error.message });
        }
      },
    },
    'api.github.com': {
      'GET /': forUser((x) => x.json(200, { current_user_url: 'https://api.github.com/user' }, scopesHeader(x))),
      'GET /user': forUser((x, user) => x.json(200, { login: user.name, name: user.fullName, email: user.email }, scopesHeader(x))),
      'POST /graphql': forUser((x, user) => x.json(200, { data: { viewer: { login: user.name } } }, scopesHeader(x))),
      'GET /copilot_internal/user': forUser((x, user) => x.json(200, { login: user.name })),
      'GET /copilot_internal/managed_settings': forUser((x, user) => x.json(200, { login: user.name })),
    },
  };
}
