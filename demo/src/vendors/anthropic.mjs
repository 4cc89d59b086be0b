// What claude asks of claude.com, claude.ai, platform.claude.com and api.anthropic.com.
import { CodeFlow, tokenEndpoint } from '../code-flow.mjs';
import { donePage, pasteCodePage } from '../pages.mjs';

const PASTE_REDIRECT = 'https://platform.claude.com/oauth/code/callback';
/** The short link carries nothing but a few bits and the challenge. */
const SHORT_LINK = /^[\w]{1,20}-([\w-]{43})$/;
const SHORT_LINK_SCOPE = 'user:profile user:inference';

export const anthropic = {
  id: 'anthropic',
  brand: { name: 'Claude', accent: '#b4552d' },
  client: 'Claude Code',
  redirectUris: [/^http:\/\/localhost:\d{1,5}\/callback$/, /^https:\/\/platform\.claude\.com\/oauth\/code\/callback$/],
  pkce: true,
  rotates: true,
  bindState: true,
  answer({ user, family, lifetimeS, mint, access, refresh }) {
    return {
      token_type: 'Bearer',
      access_token: access(`sk-ant-oat01-${mint()}`),
      refresh_token: refresh(() => `sk-ant-ort01-${mint()}`),
      expires_in: lifetimeS,
      scope: family.scope,
      organization: { uuid: organizationId(user), name: `${user.fullName}'s organization` },
      account: { uuid: user.uuid, email_address: user.email },
    };
  },
};

export function anthropicHosts(deps) {
  const flow = new CodeFlow(anthropic, deps);
  const { ledger } = deps;
  const forUser = (answer) => (x) => {
    const user = flow.user(x);
    if (user) return answer(x, user);
    return x.json(401, { type: 'error', error: { type: 'authentication_error', message: 'the access token is not good' } });
  };
  const paste = (x, code, state) => x.html(200, pasteCodePage({ brand: anthropic.brand, code: `${code}#${state}` }));

  const authorize = (x) => {
    const short = SHORT_LINK.exec(x.rawQuery);
    if (!short) return flow.authorize(x);
    // Client and state are known to the program alone, so the code is bound to the challenge instead.
    const grant = { vendor: anthropic.id, clientId: null, redirectUri: PASTE_REDIRECT, scope: SHORT_LINK_SCOPE, challenge: short[1], state: null, bindState: false };
    return flow.ask(x, grant, (last, code) => (code ? paste(last, code, 'short-link') : last.html(200, donePage({ brand: anthropic.brand, heading: 'Access denied', text: 'Nothing was handed out.' }))));
  };

  return {
    'claude.com': { 'GET /cai/oauth/authorize': authorize },
    'claude.ai': { 'GET /oauth/authorize': authorize },
    'platform.claude.com': {
      'GET /oauth/authorize': authorize,
      'GET /oauth/code/callback': (x) => paste(x, x.query.get('code') ?? '', x.query.get('state') ?? ''),
      'GET /oauth/code/success': (x) => x.html(200, donePage({ brand: anthropic.brand, heading: 'Signed in', text: 'You can go back to your terminal and close this page.' })),
      'POST /v1/oauth/token': tokenEndpoint({ authorization_code: (f) => flow.exchange(f), refresh_token: (f) => flow.refresh(f) }),
      'POST /v1/oauth/token/revoke': (x) => {
        ledger.revoke(anthropic.id, x.fields.token);
        x.json(200, {});
      },
    },
    'api.anthropic.com': {
      'GET /api/hello': (x) => x.json(200, { message: 'hello' }),
      'GET /api/oauth/profile': forUser((x, user) => x.json(200, profile(user))),
      'GET /api/oauth/claude_cli/roles': forUser((x, user) => x.json(200, {
        organization_role: 'admin', organization_uuid: organizationId(user), organization_name: `${user.fullName}'s organization`, workspace_role: null, workspace_uuid: null, workspace_name: null,
      })),
      'POST /v1/messages': forUser((x) => x.json(200, {
        id: `msg_${ledger.mint()}`, type: 'message', role: 'assistant', model: String(x.fields.model ?? 'demo'),
        content: [{ type: 'text', text: "Hello from polydev's demo network." }],
        stop_reason: 'end_turn', stop_sequence: null, usage: { input_tokens: 1, output_tokens: 1 },
      })),
    },
  };
}

const organizationId = (user) => user.uuid.replace(/^0{8}/, '11111111');

function profile(user) {
  return {
    account: { uuid: user.uuid, email: user.email, full_name: user.fullName, display_name: user.fullName, has_claude_max: false, has_claude_pro: true },
    organization: { uuid: organizationId(user), name: `${user.fullName}'s organization`, organization_type: 'claude_pro', rate_limit_tier: 'default_claude_ai', billing_type: null, has_extra_usage_enabled: false },
  };
}
