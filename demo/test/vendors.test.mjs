// What is particular to one vendor: claude's paste page, codex' and GitHub's devices, Google's and Cloudflare's answers.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { DemoProcess } from './demo-process.mjs';
import { WaitingProgram } from './waiting-program.mjs';

let demo;
before(async () => {
  demo = await DemoProcess.start();
});
after(() => demo.stop());
const post = (host, path, fields, kind = 'form', headers = {}) => demo.request(host, 'POST', path, { [kind]: fields, headers });
const bearer = (token) => ({ authorization: `Bearer ${token}` });

describe('claude', () => {
  const redeem = (pasted, verifier) => {
    const [code, state] = pasted.split('#');
    return post('platform.claude.com', '/v1/oauth/token', { grant_type: 'authorization_code', client_id: 'c', code, state, redirect_uri: 'https://platform.claude.com/oauth/code/callback', code_verifier: verifier }, 'json');
  };

  test('the short link shows a code that is good for its challenge alone', async () => {
    const program = new WaitingProgram({ path: '/' });
    const { shown } = await demo.browser().signIn(`https://claude.ai/oauth/authorize?1f-${program.challenge}`);
    assert.match(shown, /^code-FAKE-\d{6}-\w+#\S+$/);
    assert.equal((await redeem(shown, 'y'.repeat(43))).status, 400);
    const good = await redeem(shown, program.verifier);
    assert.equal(good.status, 200, good.text);
    assert.equal(good.json.account.email_address, 'demo@polydev.test');
  });

  test('the long paste link shows the program\'s own state', async () => {
    const program = new WaitingProgram({ path: '/' });
    const url = program.url('https://claude.com/cai/oauth/authorize', { client_id: 'c', redirect_uri: 'https://platform.claude.com/oauth/code/callback' });
    const { shown } = await demo.browser().signIn(url);
    assert.equal(shown.split('#')[1], program.state);
    assert.equal((await redeem(`${shown.split('#')[0]}#other`, program.verifier)).status, 400, 'another state');
    assert.equal((await redeem(shown, program.verifier)).status, 200);
  });

  test('the journal does not hold the challenge of a short link', async () => {
    const challenge = 'B'.repeat(43);
    await demo.browser().open(`https://claude.ai/oauth/authorize?1f-${challenge}`);
    const lines = demo.journal();
    assert.ok(lines.some(({ host, path }) => host === 'claude.ai' && path === '/oauth/authorize'));
    assert.ok(!JSON.stringify(lines).includes(challenge));
  });
});

describe('google', () => {
  async function signedIn() {
    const program = new WaitingProgram({ path: '/oauth2callback' });
    await program.browser(demo).signIn(program.url('https://accounts.google.com/o/oauth2/v2/auth', { access_type: 'offline' }, { pkce: false }));
    const fields = { grant_type: 'authorization_code', client_id: 'client-1', client_secret: 's', code: program.last.get('code'), redirect_uri: program.redirectUri };
    return (await post('oauth2.googleapis.com', '/token', fields)).json;
  }
  const refresh = (token, more = { client_secret: 's' }) => post('oauth2.googleapis.com', '/token', { grant_type: 'refresh_token', client_id: 'client-1', refresh_token: token, ...more });

  test('the refresh token stays, is not sent again, and needs the client\'s secret', async () => {
    const tokens = await signedIn();
    for (let i = 0; i < 2; i += 1) {
      const { status, json } = await refresh(tokens.refresh_token);
      assert.equal(status, 200);
      assert.match(json.access_token, /^ya29\.FAKE-/);
      assert.equal(json.refresh_token, undefined);
    }
    assert.equal((await refresh(tokens.refresh_token, {})).status, 401);
  });

  test('userinfo, tokeninfo and loadCodeAssist know a live token and no other', async () => {
    const { access_token: token } = await signedIn();
    const ask = (access) => Promise.all([
      demo.request('www.googleapis.com', 'GET', '/oauth2/v2/userinfo', { headers: bearer(access) }),
      post('cloudcode-pa.googleapis.com', '/v1internal:loadCodeAssist', { metadata: {} }, 'json', bearer(access)),
      post('oauth2.googleapis.com', '/tokeninfo', { access_token: access }),
    ]);
    const [user, assist, info] = await ask(token);
    assert.equal(user.json.email, 'demo@polydev.test');
    assert.equal(assist.json.allowedTiers.find((tier) => tier.isDefault).id, assist.json.currentTier.id);
    assert.equal(info.json.aud, 'client-1');
    assert.deepEqual((await ask('ya29.FAKE-000000-nobody')).map(({ status }) => status), [401, 401, 400]);
  });
});

describe('devices', () => {
  const start = () => post('github.com', '/login/device/code', { client_id: 'gh', scope: 'repo read:org gist' });
  const poll = (deviceCode, client = 'gh') => post('github.com', '/login/oauth/access_token', { client_id: client, device_code: deviceCode, grant_type: 'urn:ietf:params:oauth:grant-type:device_code' }, 'form', { accept: 'application/json' });

  test('github answers in form encoding, waits for the person, and honours the code once', async () => {
    const made = new URLSearchParams((await start()).text);
    assert.match(made.get('user_code'), /^[A-Z]{4}-[A-Z]{4}$/);
    const code = made.get('device_code');
    assert.equal((await poll(code)).json.error, 'authorization_pending');
    const page = await demo.browser().signIn('https://github.com/login/device', { userCode: made.get('user_code').toLowerCase().replace('-', ' ') });
    assert.match(page.title, /Device connected/);
    assert.equal((await poll(code, 'other')).json.error, 'invalid_grant');
    const { access_token: token } = (await poll(code)).json;
    assert.match(token, /^gho_FAKE-/);
    assert.equal((await poll(code)).json.error, 'invalid_grant');
    const viewer = await post('api.github.com', '/graphql', { query: '{viewer{login}}' }, 'json', { authorization: `token ${token}` });
    assert.equal(viewer.json.data.viewer.login, 'demo');
    assert.equal(viewer.headers['x-oauth-scopes'], 'repo, read:org, gist');
  });

  test('an unknown code is told and a denied one ends the polling', async () => {
    const made = new URLSearchParams((await start()).text);
    const browser = demo.browser();
    let page = await browser.submit(await browser.open('https://github.com/login/device'), { username: 'demo', password: 'demo-password' });
    page = await browser.submit(page, { user_code: 'AAAA-AAAA' });
    assert.equal(page.status, 400);
    assert.match(page.alert, /not known/);
    page = await browser.submit(page, { user_code: made.get('user_code') });
    await browser.submit(page, { decision: 'deny' });
    assert.equal((await poll(made.get('device_code'))).json.error, 'access_denied');
  });

  test('codex gets both halves of the PKCE pair, on the plain loopback port too', async () => {
    const host = `127.0.0.1:${demo.httpPort}`;
    const send = (path, json) => demo.request(host, 'POST', path, { json, secure: false });
    const made = (await send('/api/accounts/deviceauth/usercode', { client_id: 'codex' })).json;
    assert.match(made.user_code, /^[A-Z]{4}-[A-Z]{5}$/);
    const ask = () => send('/api/accounts/deviceauth/token', { device_auth_id: made.device_auth_id, user_code: made.user_code });
    assert.equal((await ask()).status, 403);
    await demo.browser().signIn(`http://${host}/codex/device`, { userCode: made.user_code });
    const granted = (await ask()).json;
    const token = await demo.request(host, 'POST', '/oauth/token', { secure: false, form: { grant_type: 'authorization_code', client_id: 'codex', code: granted.authorization_code, code_verifier: granted.code_verifier, redirect_uri: `http://${host}/deviceauth/callback` } });
    assert.equal(token.status, 200, token.text);
  });
});

test('the key exchange of codex takes an id token of its own client and nothing else', async () => {
  const program = new WaitingProgram({ port: 1455, path: '/auth/callback' });
  await program.browser(demo).signIn(program.url('https://auth.openai.com/oauth/authorize'));
  const fields = { grant_type: 'authorization_code', client_id: 'client-1', code: program.last.get('code'), redirect_uri: program.redirectUri, code_verifier: program.verifier };
  const tokens = (await post('auth.openai.com', '/oauth/token', fields)).json;
  const exchange = (subject, client = 'client-1') => post('auth.openai.com', '/oauth/token', { grant_type: 'urn:ietf:params:oauth:grant-type:token-exchange', requested_token: 'openai-api-key', subject_token: subject, client_id: client });
  assert.match((await exchange(tokens.id_token)).json.access_token, /^sk-FAKE-/);
  for (const [subject, client] of [[tokens.access_token], ['x.y.z'], [tokens.id_token, 'other']]) assert.equal((await exchange(subject, client)).status, 400);
  const claims = JSON.parse(Buffer.from(tokens.id_token.split('.')[1], 'base64url'));
  const check = await demo.request('chatgpt.com', 'GET', '/backend-api/wham/accounts/check', { headers: bearer(tokens.access_token) });
  assert.equal(check.json.accounts[0].id, claims['https://api.openai.com/auth'].chatgpt_account_id);
});
