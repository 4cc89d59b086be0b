// What every vendor with rotating tokens must be strict about, run against each of them.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { DemoProcess } from './demo-process.mjs';
import { WaitingProgram } from './waiting-program.mjs';

const VENDORS = [
  {
    name: 'openai', callback: { port: 1455, path: '/auth/callback' }, authorize: 'https://auth.openai.com/oauth/authorize',
    token: ['auth.openai.com', '/oauth/token', 'form'], revoke: ['auth.openai.com', '/oauth/revoke'],
    use: ['chatgpt.com', '/backend-api/wham/accounts/check'], refusal: 401,
  },
  {
    name: 'anthropic', callback: { host: 'localhost', path: '/callback' }, authorize: 'https://claude.com/cai/oauth/authorize',
    token: ['platform.claude.com', '/v1/oauth/token', 'json'], revoke: ['platform.claude.com', '/v1/oauth/token/revoke'],
    use: ['api.anthropic.com', '/api/oauth/profile'], refusal: 400,
  },
  {
    name: 'cloudflare', callback: { path: '/oauth/callback' }, authorize: 'https://dash.cloudflare.com/oauth2/auth',
    token: ['dash.cloudflare.com', '/oauth2/token', 'form'], revoke: ['dash.cloudflare.com', '/oauth2/revoke'],
    use: ['api.cloudflare.com', '/client/v4/user'], refusal: 400,
  },
  {
    name: 'demo', callback: { path: '/callback' }, authorize: 'https://id.polydev.test/auth', client: 'polydev-demo-cli', scope: 'openid profile email offline_access',
    token: ['id.polydev.test', '/token', 'form'], revoke: ['id.polydev.test', '/token/revocation'], use: ['id.polydev.test', '/me'], refusal: 400,
  },
];

for (const vendor of VENDORS) {
  describe(vendor.name, () => {
    let demo;
    before(async () => {
      demo = await DemoProcess.start();
    });
    after(() => demo.stop());

    const client = vendor.client ?? 'client-1';
    const send = ([host, path, kind = 'form'], fields) => demo.request(host, 'POST', path, { [kind]: { client_id: client, ...fields } });
    const use = (token) => demo.request(vendor.use[0], 'GET', vendor.use[1], { headers: { authorization: `Bearer ${token}` } });

    async function approve(answers = {}) {
      const program = new WaitingProgram(vendor.callback);
      const extra = vendor.scope ? { scope: vendor.scope, prompt: 'consent', nonce: 'n' } : {};
      await program.browser(demo).signIn(program.url(vendor.authorize, { client_id: client, ...extra }), answers);
      const fields = {
        grant_type: 'authorization_code', code: program.last.get('code'), redirect_uri: program.redirectUri,
        code_verifier: program.verifier, state: program.state,
      };
      return { program, fields };
    }

    async function signedIn() {
      const { fields } = await approve();
      const answer = await send(vendor.token, fields);
      assert.equal(answer.status, 200, answer.text);
      return answer.json;
    }

    const refresh = (token) => send(vendor.token, { grant_type: 'refresh_token', refresh_token: token });

    test('a code is good once and brings tokens that work', async () => {
      const { program, fields } = await approve();
      assert.equal(program.last.get('state'), program.state);
      const first = await send(vendor.token, fields);
      assert.equal(first.status, 200, first.text);
      for (const token of [first.json.access_token, first.json.refresh_token]) assert.match(token, /FAKE-\d{6}-/);
      assert.equal((await use(first.json.access_token)).status, 200);
      const second = await send(vendor.token, fields);
      assert.deepEqual([second.status, second.json.error], [400, 'invalid_grant']);
      assert.equal((await use(first.json.access_token)).status, 401, 'a code used twice ends what it brought');
    });

    test('an unknown code, another verifier and another redirect_uri are refused', async () => {
      const { fields } = await approve();
      for (const change of [{ code: 'code-FAKE-nobody-knows' }, { code_verifier: 'x'.repeat(43) }, { code_verifier: undefined }, { redirect_uri: `${fields.redirect_uri}x` }]) {
        const changed = JSON.parse(JSON.stringify({ ...fields, ...change }));
        assert.equal((await send(vendor.token, changed)).status, 400, JSON.stringify(Object.keys(change)));
      }
    });

    test('a denied consent comes back as access_denied', async () => {
      const { program } = await approve({ decision: 'deny' });
      assert.equal(program.last.get('error'), 'access_denied');
      assert.equal(program.last.get('code'), null);
      assert.equal(program.last.get('state'), program.state);
    });

    test('refresh tokens rotate and a replay ends the whole family', async () => {
      const first = await signedIn();
      const second = await refresh(first.refresh_token);
      assert.equal(second.status, 200, second.text);
      assert.notEqual(second.json.refresh_token, first.refresh_token);
      assert.equal((await use(second.json.access_token)).status, 200);
      assert.equal((await refresh(first.refresh_token)).status, vendor.refusal);
      assert.equal((await refresh(second.json.refresh_token)).status, vendor.refusal);
      assert.equal((await use(second.json.access_token)).status, 401);
    });

    test('revoking the refresh token ends the access token, and no other sign-in', async () => {
      const [one, other] = [await signedIn(), await signedIn()];
      assert.equal((await send(vendor.revoke, { token: one.refresh_token, token_type_hint: 'refresh_token' })).status, 200);
      assert.equal((await use(one.access_token)).status, 401);
      assert.equal((await refresh(one.refresh_token)).status, vendor.refusal);
      assert.equal((await use(other.access_token)).status, 200);
    });

    test('a short token lifetime is kept', async () => {
      await demo.control('PUT', '/control/settings', { tokenLifetimeS: 1 });
      const { access_token: token } = await signedIn();
      await until(async () => (await use(token)).status === 401);
      await demo.control('DELETE', '/control');
    });

    test('a decision made beforehand needs no page', async () => {
      await demo.control('PUT', '/control/settings', { outcome: 'deny' });
      const program = new WaitingProgram(vendor.callback);
      await program.browser(demo).open(program.url(vendor.authorize, { client_id: client, ...(vendor.scope && { scope: vendor.scope }) }));
      assert.equal(program.last.get('error'), 'access_denied');
      await demo.control('DELETE', '/control');
    });
  });
}

/** Asks again until it holds; a token of one second cannot outlive the limit. */
async function until(holds) {
  const endsAt = Date.now() + 5_000;
  while (!(await holds())) {
    if (Date.now() > endsAt) assert.fail('did not happen in time');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
