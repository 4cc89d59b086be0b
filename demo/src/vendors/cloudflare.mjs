// What wrangler asks of dash.cloudflare.com, api.cloudflare.com and its page of thanks.
import { CodeFlow, tokenEndpoint } from '../code-flow.mjs';
import { donePage } from '../pages.mjs';

export const cloudflare = {
  id: 'cloudflare',
  brand: { name: 'Cloudflare', accent: '#c2570c' },
  client: 'Wrangler',
  redirectUris: [/^http:\/\/(localhost|127\.0\.0\.1):\d{1,5}\/oauth\/callback$/],
  pkce: true,
  rotates: true,
  echoScope: true,
  answer({ family, lifetimeS, mint, access, refresh }) {
    return { access_token: access(`cfoat-${mint()}`), refresh_token: refresh(() => `cfort-${mint()}`), expires_in: lifetimeS, scope: family.scope, token_type: 'bearer' };
  },
};

export function cloudflareHosts(deps) {
  const flow = new CodeFlow(cloudflare, deps);
  const { ledger } = deps;
  const forUser = (result) => (x) => {
    const user = flow.user(x);
    if (!user) return x.json(401, { success: false, errors: [{ code: 10000, message: 'Authentication error' }], messages: [], result: null });
    const value = result(user);
    const info = Array.isArray(value) ? { result_info: { page: 1, per_page: 20, total_pages: 1, count: value.length, total_count: value.length } } : {};
    return x.json(200, { success: true, errors: [], messages: [], result: value, ...info });
  };
  const account = (user) => ({ id: user.uuid.replaceAll('-', ''), name: `${user.fullName}'s account`, type: 'standard' });
  const thanks = (x) => x.html(200, donePage({ brand: cloudflare.brand, heading: 'Signed in', text: 'You can go back to your terminal and close this page.' }));

  return {
    'dash.cloudflare.com': {
      'GET /': (x) => x.html(200, donePage({ brand: cloudflare.brand, heading: 'Dashboard', text: 'There is nothing here in the demo.' })),
      'GET /oauth2/auth': (x) => flow.authorize(x),
      'POST /oauth2/token': tokenEndpoint({ authorization_code: (f) => flow.exchange(f), refresh_token: (f) => flow.refresh(f) }),
      'POST /oauth2/revoke': (x) => {
        ledger.revoke(cloudflare.id, x.fields.token);
        x.empty(200);
      },
    },
    'api.cloudflare.com': {
      'GET /client/v4/user': forUser((user) => ({ id: account(user).id, email: user.email, username: user.name })),
      'GET /client/v4/accounts': forUser((user) => [account(user)]),
      'GET /client/v4/memberships': forUser((user) => [{ id: account(user).id, status: 'accepted', account: account(user), roles: ['Administrator'] }]),
    },
    'welcome.developers.workers.dev': {
      'GET /wrangler-oauth-consent-granted': thanks,
      'GET /wrangler-oauth-consent-denied': (x) => x.html(200, donePage({ brand: cloudflare.brand, heading: 'Access denied', text: 'Nothing was handed out.' })),
    },
  };
}
