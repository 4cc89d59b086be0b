// One scenario inside the namespaces; `real-cli.test.mjs` starts it. Ends with 0 when everything held.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { DemoProcess } from '../demo-process.mjs';
import { assertGolden } from '../golden.mjs';
import { Guest, waitFor } from '../guest.mjs';

const ACP_INITIALIZE = { jsonrpc: '2.0', id: 0, method: 'initialize', params: { protocolVersion: 1, clientCapabilities: { fs: { readTextFile: false, writeTextFile: false } } } };
const ACP_AUTHENTICATE = { jsonrpc: '2.0', id: 1, method: 'authenticate', params: { methodId: 'oauth-personal' } };

const scenarios = {
  async codex({ guest, browser }) {
    const login = guest.start(['codex', 'login']);
    await browser.signIn(await guest.nextUrl(login));
    const { code, output } = await login.end();
    assert.equal(code, 0, output);
    assert.match(output, /Successfully logged in/);
    const auth = JSON.parse(credential(guest, '.codex/auth.json', 0o600));
    for (const token of [auth.OPENAI_API_KEY, ...['id_token', 'access_token', 'refresh_token'].map((key) => auth.tokens[key])]) assert.match(token, /FAKE-\d{6}/);
    assert.equal(auth.tokens.account_id, '00000000-0000-4000-8000-00000000de30');
    await expectRun(guest, ['codex', 'login', 'status'], 0, /Logged in using ChatGPT/);
    await expectRun(guest, ['codex', 'logout'], 0, /./);
    await expectRun(guest, ['codex', 'login', 'status'], 1, /Not logged in/);
  },

  async 'codex-device'({ demo, guest, browser }) {
    await demo.control('PUT', '/control/settings', { devicePending: 1 });
    const login = guest.start(['codex', 'login', '--device-auth']);
    const [userCode] = await login.match(/\b[A-Z]{4}-[A-Z]{5}\b/);
    await browser.signIn('https://auth.openai.com/codex/device', { userCode });
    const { code, output } = await login.end();
    assert.equal(code, 0, output);
    await expectRun(guest, ['codex', 'login', 'status'], 0, /Logged in using ChatGPT/);
  },

  async claude({ guest, browser }) {
    const login = guest.start(['claude', 'auth', 'login']);
    await browser.signIn(await guest.nextUrl(login));
    const { code, output } = await login.end();
    assert.equal(code, 0, output);
    assert.match(output, /Login successful/);
    const { claudeAiOauth: oauth } = JSON.parse(credential(guest, '.claude/.credentials.json', 0o600));
    for (const token of [oauth.accessToken, oauth.refreshToken]) assert.match(token, /FAKE-\d{6}/);
    assert.equal(oauth.subscriptionType, 'pro');
    await expectRun(guest, ['claude', 'auth', 'status', '--json'], 0, /"loggedIn": ?true/);
    await expectRun(guest, ['claude', 'auth', 'logout'], 0, /./);
    await expectRun(guest, ['claude', 'auth', 'status', '--json'], 1, /"loggedIn": ?false/);
  },

  async 'claude-paste'({ guest, browser }) {
    const login = guest.start(['claude', 'auth', 'login']);
    const [url] = await login.match(/https:\/\/claude\.ai\/oauth\/authorize\?\S+-[\w-]{43}/);
    const page = await browser.signIn(url);
    assert.match(page.title, /Copy your code/);
    login.send(page.shown);
    const { code, output } = await login.end();
    assert.equal(code, 0, output);
    await expectRun(guest, ['claude', 'auth', 'status', '--json'], 0, /"loggedIn": ?true/);
  },

  async gemini({ demo, guest, browser }) {
    const acp = guest.start(['gemini', '--acp'], { env: { GEMINI_CLI_NO_RELAUNCH: 'true' } });
    acp.send(JSON.stringify(ACP_INITIALIZE));
    await acp.match(/"id":0,"result"/);
    acp.send(JSON.stringify(ACP_AUTHENTICATE));
    await browser.signIn(await guest.nextUrl(acp));
    const [, answer] = await acp.match(/"id":1,"(result|error)"/);
    assert.equal(answer, 'result', acp.output);
    // It asks for the quota after it has answered; ending it before that would leave the order to chance.
    await waitFor('the quota request', () => demo.journal().some(({ path }) => path === '/v1internal:retrieveUserQuota'));
    acp.child.stdin.end();
    acp.child.kill('SIGTERM');
    await acp.end();
    const file = JSON.parse(credential(guest, '.gemini/oauth_creds.json', 0o600));
    for (const token of [file.access_token, file.refresh_token]) assert.match(token, /FAKE-\d{6}/);
  },

  async wrangler({ guest, browser }) {
    const env = { WRANGLER_SEND_METRICS: 'false' };
    const login = guest.start(['wrangler', 'login'], { env });
    login.child.stdin.end();
    await browser.signIn(await guest.nextUrl(login));
    const { code, output } = await login.end();
    assert.equal(code, 0, output);
    assert.match(output, /Successfully logged in/);
    const path = '.config/.wrangler/config/default.toml';
    const first = credential(guest, path, 0o644);
    assert.match(first, /oauth_token = "cfoat-FAKE-\d{6}/);
    await expectRun(guest, ['wrangler', 'whoami'], 0, /demo@polydev\.test/, env);
    // Out of date: the next command has to refresh, and gets a new pair.
    guest.write(join('home/dev', path), first.replace(/expiration_time = "[^"]*"/, 'expiration_time = "2020-01-01T00:00:00.000Z"'));
    await expectRun(guest, ['wrangler', 'whoami'], 0, /demo@polydev\.test/, env);
    assert.notEqual(/refresh_token = "([^"]*)"/.exec(credential(guest, path, 0o644))[1], /refresh_token = "([^"]*)"/.exec(first)[1]);
    await expectRun(guest, ['wrangler', 'logout'], 0, /Successfully logged out/, env);
  },

  async gh({ demo, guest, browser }) {
    await demo.control('PUT', '/control/settings', { devicePending: 1 });
    const login = guest.start(['gh', 'auth', 'login', '--hostname', 'github.com', '--git-protocol', 'https', '--web']);
    login.child.stdin.end();
    const [, userCode] = await login.match(/one-time code: ([A-Z0-9]{4}-[A-Z0-9]{4})/);
    await browser.signIn('https://github.com/login/device', { userCode });
    const { code, output } = await login.end();
    assert.equal(code, 0, output);
    assert.match(output, /Logged in as demo/);
    assert.match(credential(guest, '.config/gh/hosts.yml', 0o600), /oauth_token: gho_FAKE-\d{6}/);
    await expectRun(guest, ['gh', 'auth', 'status', '--hostname', 'github.com'], 0, /Logged in to github\.com as demo/);
  },

  async demo({ guest, browser }) {
    await expectRun(guest, ['polydev-demo', 'status'], 1, /Not signed in/);
    const login = guest.start(['polydev-demo', 'login']);
    await browser.signIn(await guest.nextUrl(login));
    const { code, output } = await login.end();
    assert.equal(code, 0, output);
    const path = '.polydev-demo/credentials.json';
    const first = JSON.parse(credential(guest, path, 0o600));
    assert.deepEqual(first.account, { id: 'demo', name: 'Demo User', email: 'demo@polydev.test' });
    await expectRun(guest, ['polydev-demo', 'status'], 0, /^Signed in as Demo User\n$/);
    await expectRun(guest, ['polydev-demo', 'refresh'], 0, /Refreshed/);
    const second = JSON.parse(credential(guest, path, 0o600));
    assert.notEqual(second.refresh_token, first.refresh_token);
    await expectRun(guest, ['polydev-demo', 'status'], 0, /Signed in as Demo User/);
    await expectRun(guest, ['polydev-demo', 'logout'], 0, /Signed out/);
    await expectRun(guest, ['polydev-demo', 'status'], 1, /Not signed in/);
  },

  /** What the programs do when the provider does not play along: the knobs reach them as they are meant to. */
  async faults({ demo, guest, browser }) {
    await demo.control('PUT', '/control/settings', { outcome: 'deny' });
    for (const argv of [['codex', 'login'], ['claude', 'auth', 'login'], ['wrangler', 'login'], ['polydev-demo', 'login']]) {
      const login = guest.start(argv);
      await browser.open(await guest.nextUrl(login));
      const { code, output } = await login.end();
      assert.equal(code, 1, `${argv[0]}: ${output}`);
    }
    await demo.control('PUT', '/control/settings', { outcome: 'allow' });

    await demo.control('POST', '/control/rules', { host: 'auth.openai.com', path: '/oauth/token', grant: 'urn:ietf:params:oauth:grant-type:token-exchange', status: 403 });
    const codex = guest.start(['codex', 'login']);
    await browser.open(await guest.nextUrl(codex));
    assert.equal((await codex.end()).code, 0, 'codex does without its key');
    assert.equal(JSON.parse(credential(guest, '.codex/auth.json', 0o600)).OPENAI_API_KEY, null);

    await demo.control('POST', '/control/rules', { host: 'api.anthropic.com', path: '/api/oauth/profile', status: 500 });
    const claude = guest.start(['claude', 'auth', 'login']);
    await browser.open(await guest.nextUrl(claude));
    assert.equal((await claude.end()).code, 0, 'claude does without the profile');
    assert.equal(JSON.parse(credential(guest, '.claude/.credentials.json', 0o600)).claudeAiOauth.subscriptionType, null);

    await demo.control('POST', '/control/rules', { path: '/v1internal:loadCodeAssist', status: 403 });
    const acp = guest.start(['gemini', '--acp'], { env: { GEMINI_CLI_NO_RELAUNCH: 'true' } });
    acp.send(JSON.stringify(ACP_INITIALIZE));
    await acp.match(/"id":0,"result"/);
    acp.send(JSON.stringify(ACP_AUTHENTICATE));
    await browser.open(await guest.nextUrl(acp));
    assert.equal((await acp.match(/"id":1,"(result|error)"/))[1], 'error');
    credential(guest, '.gemini/oauth_creds.json', 0o600);
    acp.child.kill('SIGTERM');
    await acp.end();
  },

  /** The image's Chromium trusts the demo through the policy file, and only for the demo's names. */
  async chromium({ guest }) {
    const challenge = 'A'.repeat(43);
    const url = `https://claude.ai/oauth/authorize?x-${challenge}`;
    const { output } = await guest.run(['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--user-data-dir=/tmp/profile', '--dump-dom', url], { uid: 1001, env: { HOME: '/tmp' } });
    assert.match(output, /<title>Sign in - Claude \(polydev demo\)<\/title>/);
    assert.match(output, /name="username"[^>]* autofocus/);
  },
};

function credential(guest, path, mode) {
  const file = join(guest.root, 'home/dev', path);
  assert.equal(statSync(file).mode & 0o777, mode);
  return guest.read(join('home/dev', path));
}

async function expectRun(guest, argv, code, pattern, env = {}) {
  const end = await guest.run(argv, { env });
  assert.equal(end.code, code, `${argv.join(' ')}: ${end.output}`);
  assert.match(end.output, pattern, argv.join(' '));
}

const [name, work] = process.argv.slice(2);
execFileSync('ip', ['link', 'set', 'lo', 'up']);
const stateDir = join(work, 'state');
const demo = await DemoProcess.start({ stateDir, args: ['--https-port', '443', '--http-port', '80'] });
const guest = new Guest({ stateDir, work: join(work, 'guest'), layers: ['tools', 'desktop', 'base'] });
await scenarios[name]({ demo, guest, browser: demo.browser() });
// Those two assert what they are about themselves.
if (!['chromium', 'faults'].includes(name)) assertGolden(name, demo.journal());
process.exit(0);
