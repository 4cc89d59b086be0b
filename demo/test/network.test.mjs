// The network itself: names, certificates, framing, the journal, the knobs, and what is on disk.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { HOSTS } from '../src/hosts.mjs';
import { DemoProcess } from './demo-process.mjs';

let demo;
before(async () => {
  demo = await DemoProcess.start();
});
after(() => demo.stop());
afterEach(() => demo.control('DELETE', '/control'));
const inState = (path) => join(demo.stateDir, path);

describe('names', () => {
  test('every host has its routes for both ports and answers under its name', async () => {
    const routes = readFileSync(inState('routes.toml'), 'utf8');
    for (const host of HOSTS) {
      assert.ok(routes.includes(`host = "${host}"\nport = 443\nto = "127.0.0.1:${demo.httpsPort}"`), host);
      assert.ok(routes.includes(`host = "${host}"\nport = 80\nto = "127.0.0.1:${demo.httpPort}"`), host);
      const { status } = await demo.request(host, 'GET', '/nothing-here');
      assert.equal(status, 404, host);
    }
  });

  test('a name that is not served, or differs from the TLS name, is misdirected', async () => {
    assert.equal((await demo.request('example.test', 'GET', '/', { servername: 'github.com' })).status, 421);
    assert.equal((await demo.request('github.com', 'GET', '/', { servername: 'claude.ai' })).status, 421);
    assert.equal((await demo.request('example.test', 'GET', '/', { secure: false })).status, 421);
  });

  test('plain http sends a browser on to https', async () => {
    const { status, headers } = await demo.request('claude.com', 'GET', '/cai/oauth/authorize?x=1', { secure: false });
    assert.deepEqual([status, headers.location], [308, 'https://claude.com/cai/oauth/authorize?x=1']);
  });

  test('HEAD and chunked bodies are taken', async () => {
    const head = await demo.request('api.anthropic.com', 'HEAD', '/api/hello');
    assert.deepEqual([head.status, head.text], [200, '']);
    for (const [host, secret] of [['oauth2.googleapis.com', { client_secret: 's' }], ['id.polydev.test', {}]]) {
      const { status, json } = await demo.request(host, 'POST', '/token', { form: { grant_type: 'refresh_token', client_id: 'polydev-demo-cli', ...secret, refresh_token: 'FAKE' }, chunked: true });
      assert.deepEqual([status, json.error], [400, 'invalid_grant'], host);
    }
  });

  test('a body beyond the limit is refused', async () => {
    const answer = demo.request('api.anthropic.com', 'POST', '/v1/messages', { json: { text: 'x'.repeat(9 * 1024 * 1024) } });
    const status = await answer.then(({ status: seen }) => seen, (error) => error.code);
    assert.ok([413, 'EPIPE', 'ECONNRESET'].includes(status), String(status));
  });
});

describe('the authority', () => {
  test('is short-lived, and constrained to the demo hosts', () => {
    const ca = new X509Certificate(readFileSync(inState('ca.pem')));
    assert.ok(ca.ca);
    const days = (Date.parse(ca.validTo) - Date.now()) / 86_400_000;
    assert.ok(days > 29 && days < 31, `${days} days`);
    const text = execFileSync('openssl', ['x509', '-in', inState('ca.pem'), '-noout', '-text'], { encoding: 'utf8' });
    assert.deepEqual([...text.matchAll(/DNS:(\S+)/g)].map(([, name]) => name), HOSTS);
    assert.match(text, /Name Constraints: critical/);
    assert.match(text, /CA:TRUE, pathlen:0/);
  });

  test('cannot vouch for another name', () => {
    const dir = mkdtempSync(join(tmpdir(), 'polydev-ca-'));
    const leaf = (name) => {
      const key = join(dir, 'key.pem');
      const file = (ending) => join(dir, `${name}.${ending}`);
      execFileSync('openssl', ['req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', key, '-subj', '/O=x', '-out', file('csr')], { stdio: 'ignore' });
      writeFileSync(file('ext'), `subjectAltName=DNS:${name}\n`);
      execFileSync('openssl', ['x509', '-req', '-in', file('csr'), '-CA', inState('ca.pem'), '-CAkey', inState('ca-key.pem'), '-extfile', file('ext'), '-out', file('pem'), '-days', '1'], { stdio: 'ignore' });
      return file('pem');
    };
    const verify = (file) => execFileSync('openssl', ['verify', '-CAfile', inState('ca.pem'), file], { stdio: 'pipe' });
    verify(leaf('github.com'));
    assert.throws(() => verify(leaf('example.com')), /permitted subtree violation/);
    rmSync(dir, { recursive: true });
  });
});

describe('the disk', () => {
  test('secrets are for the owner, and the overlay holds no key', () => {
    for (const file of ['ca-key.pem', 'control-token', 'state.json', 'requests.jsonl']) assert.equal(statSync(inState(file)).mode & 0o777, 0o600, file);
    const files = readdirSync(inState('overlay'), { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
    assert.deepEqual(files.map(({ name }) => name).sort(), ['ca-certificates.crt', 'environment', 'polydev-demo', 'polydev-demo-ca.json', 'polydev-demo-ca.pem', 'polydev-demo-ca.sh']);
    for (const { parentPath, path, name } of files) assert.doesNotMatch(readFileSync(join(parentPath ?? path, name), 'utf8'), /PRIVATE KEY/, name);
  });

  test('the bundle, the policy and the environment all hold the same certificate', () => {
    const overlay = (path) => readFileSync(inState(`overlay/${path}`), 'utf8');
    const ca = readFileSync(inState('ca.pem'), 'utf8').trim();
    const bundle = overlay('etc/ssl/certs/ca-certificates.crt');
    assert.ok(bundle.includes(ca));
    assert.ok(bundle.split('BEGIN CERTIFICATE').length > 100, 'the public roots are in it too');
    const [policy] = JSON.parse(overlay('etc/chromium/policies/managed/polydev-demo-ca.json')).CACertificates;
    assert.equal(policy, new X509Certificate(ca).raw.toString('base64'));
    const [, pem] = /^NODE_EXTRA_CA_CERTS=\/(\S+)$/m.exec(overlay('etc/polydev/environment'));
    assert.equal(overlay(pem).trim(), ca);
  });

  test('a restart keeps the authority, the tokens and the codes already spent', async () => {
    const stateDir = mkdtempSync(join(tmpdir(), 'polydev-demo-'));
    const first = await DemoProcess.start({ stateDir });
    const ca = readFileSync(join(stateDir, 'ca.pem'), 'utf8');
    const start = await first.request('github.com', 'POST', '/login/device/code', { form: { client_id: 'gh', scope: 'repo' } });
    const made = new URLSearchParams(start.text);
    await first.browser().signIn('https://github.com/login/device', { userCode: made.get('user_code') });
    const granted = await first.request('github.com', 'POST', '/login/oauth/access_token', { form: { client_id: 'gh', device_code: made.get('device_code'), grant_type: 'urn:ietf:params:oauth:grant-type:device_code' } });
    const token = new URLSearchParams(granted.text).get('access_token');
    await first.stop({ keep: true });
    const second = await DemoProcess.start({ stateDir });
    assert.equal(readFileSync(join(stateDir, 'ca.pem'), 'utf8'), ca);
    assert.equal((await second.request('api.github.com', 'GET', '/user', { headers: { authorization: `token ${token}` } })).json.login, 'demo');
    await second.stop();
  });
});

describe('the knobs', () => {
  const refresh = () => demo.request('platform.claude.com', 'POST', '/v1/oauth/token', { json: { grant_type: 'refresh_token', refresh_token: 'FAKE', client_id: 'c' } });

  test('need the token', async () => {
    assert.equal((await demo.control('GET', '/control', undefined, 'guess')).status, 401);
    assert.equal((await demo.control('GET', '/control')).status, 200);
  });

  test('make one endpoint fail for one grant, as often as asked', async () => {
    await demo.control('POST', '/control/rules', { host: 'platform.claude.com', path: '/v1/oauth/token', grant: 'refresh_token', status: 500, times: 2 });
    const other = await demo.request('platform.claude.com', 'POST', '/v1/oauth/token', { json: { grant_type: 'authorization_code' } });
    assert.equal(other.status, 400);
    assert.deepEqual([(await refresh()).status, (await refresh()).status, (await refresh()).status], [500, 500, 400]);
  });

  test('make an endpoint late, or never answer', async () => {
    await demo.control('POST', '/control/rules', { host: 'api.anthropic.com', path: '/api/hello', delayMs: 300, times: 1 });
    const startedAt = Date.now();
    assert.equal((await demo.request('api.anthropic.com', 'GET', '/api/hello')).status, 200);
    assert.ok(Date.now() - startedAt >= 299);
    await demo.control('POST', '/control/rules', { host: 'api.anthropic.com', hang: true, times: 1 });
    const answer = demo.request('api.anthropic.com', 'GET', '/api/hello', { signal: AbortSignal.timeout(500) });
    await assert.rejects(answer, { name: 'AbortError' });
  });

  test('can send the browser back with another state', async () => {
    await demo.control('PUT', '/control/settings', { wrongState: true, outcome: 'allow' });
    const browser = demo.browser();
    browser.stopAt = ({ hostname }) => hostname === 'localhost';
    const query = new URLSearchParams({ response_type: 'code', client_id: 'c', redirect_uri: 'http://localhost:5/callback', state: 'mine', code_challenge: 'A'.repeat(43), code_challenge_method: 'S256' });
    const { url } = await browser.open(`https://claude.com/cai/oauth/authorize?${query}`);
    assert.ok(url.searchParams.get('code'));
    assert.notEqual(url.searchParams.get('state'), 'mine');
  });

  test('refuse what they do not know and change nothing', async () => {
    for (const bad of [{ outcom: 'deny' }, { outcome: 'maybe' }, { devicePending: -1 }, { wrongState: 'yes' }]) {
      assert.equal((await demo.control('PUT', '/control/settings', bad)).status, 400, JSON.stringify(bad));
    }
    for (const bad of [{}, { path: '/x' }, { status: 42 }, { staus: 500 }]) assert.equal((await demo.control('POST', '/control/rules', bad)).status, 400, JSON.stringify(bad));
    const { json } = await demo.control('GET', '/control');
    assert.deepEqual([json.settings.outcome, json.rules], ['page', []]);
  });
});

test('the journal tells names and never values', async () => {
  const secret = 'FAKE-secret-value';
  await demo.request('auth.openai.com', 'POST', '/oauth/token', { form: { grant_type: 'refresh_token', refresh_token: secret, client_id: secret } });
  await demo.request('auth.openai.com', 'GET', `/oauth/authorize?state=${secret}&code=${secret}`, { headers: { authorization: `Bearer ${secret}` } });
  const lines = demo.journal();
  assert.ok(!JSON.stringify(lines).includes(secret));
  const { time, from, ms, ...rest } = lines.at(-2);
  assert.ok(Date.parse(time) && ms >= 0 && from === '127.0.0.1');
  assert.deepEqual(rest, { host: 'auth.openai.com', method: 'POST', path: '/oauth/token', query: [], body: ['grant_type', 'refresh_token', 'client_id'], grant: 'refresh_token', status: 401, tls: 'auth.openai.com', agent: null });
});

test('the server says what is wrong with its arguments and ends', () => {
  const server = fileURLToPath(new URL('../server.mjs', import.meta.url));
  for (const args of [[], ['--state', '/tmp/x', '--https-port', 'ten'], ['--state', '/tmp/x', '--nonsense']]) {
    const { status, stderr } = spawnSync(process.execPath, [server, ...args], { encoding: 'utf8' });
    assert.match(stderr, /usage:/);
    assert.equal(status, 2);
  }
});
