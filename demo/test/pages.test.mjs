// What a person meets: the pages themselves and the ways to get them wrong.
import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { DemoProcess } from './demo-process.mjs';
import { WaitingProgram } from './waiting-program.mjs';

const WAYS = [
  { name: 'a vendor', authorize: 'https://auth.openai.com/oauth/authorize', callback: { port: 1455, path: '/auth/callback' }, params: {}, brand: 'OpenAI' },
  { name: 'the demo provider', authorize: 'https://id.polydev.test/auth', callback: { path: '/callback' }, params: { client_id: 'polydev-demo-cli', scope: 'openid profile' }, brand: 'polydev demo' },
];

let demo;
before(async () => {
  demo = await DemoProcess.start();
});
after(() => demo.stop());

for (const way of WAYS) {
  describe(`the pages of ${way.name}`, () => {
    let program;
    let browser;
    beforeEach(async () => {
      program = new WaitingProgram(way.callback);
      browser = program.browser(demo);
    });
    afterEach(async () => {
      await demo.control('DELETE', '/control');
    });
    const start = () => browser.open(program.url(way.authorize, way.params));

    test('the sign-in page says whom it stands in for and has the focus on the user name', async () => {
      const page = await start();
      assert.equal(page.status, 200);
      assert.equal(page.title, `Sign in - ${way.brand} (polydev demo)`);
      assert.match(page.text, /polydev(&#39;|')s demo identity provider, standing in for/);
      assert.match(page.text, /<input name="username"[^>]* autofocus/);
      assert.doesNotMatch(page.text, /<script/);
      assert.doesNotMatch(page.headers['content-security-policy'], /form-action/);
    });

    test('a wrong password is told, keeps the name, and the right one still works', async () => {
      let page = await browser.submit(await start(), { username: 'demo', password: 'wrong' });
      assert.equal(page.status, 401);
      assert.equal(page.alert, 'Wrong user name or password.');
      assert.equal(page.form.fields.username, 'demo');
      assert.match(page.text, /type="password"[^>]* autofocus/);
      page = await browser.submit(page, { password: 'demo-password' });
      assert.equal(page.title, `Allow access - ${way.brand} (polydev demo)`);
      assert.match(page.text, /value="allow" autofocus/);
      await browser.submit(page, { decision: 'allow' });
      assert.ok(program.last.get('code'));
    });

    test('after too many wrong passwords even the right one has to wait', async () => {
      await demo.control('PUT', '/control/settings', { wrongPasswordLimit: 2 });
      let page = await start();
      for (let i = 0; i < 2; i += 1) page = await browser.submit(page, { username: 'demo', password: `wrong ${i}` });
      page = await browser.submit(page, { username: 'demo', password: 'demo-password' });
      assert.equal(page.status, 429);
      assert.ok(Number(page.headers['retry-after']) > 0);
      assert.match(page.alert, /Too many wrong passwords/);
      const other = await browser.submit(page, { username: 'second', password: 'second-password' });
      assert.match(other.title, /Allow access/, 'another name is not held up');
    });

    test('what is typed as a name is shown as text', async () => {
      const page = await browser.submit(await start(), { username: '"><b>x', password: 'wrong' });
      assert.equal(page.form.fields.username, '"><b>x');
      assert.doesNotMatch(page.text, /<b>x/);
    });

    test('a finished sign-in cannot be finished again', async () => {
      const consent = await browser.submit(await start(), { username: 'demo', password: 'demo-password' });
      await browser.submit(consent, { decision: 'allow' });
      assert.equal((await browser.submit(consent, { decision: 'allow' })).status, 410);
      assert.equal(program.received.length, 1);
    });
  });
}

describe('the authorization endpoint', () => {
  const url = (change) => {
    const address = new URL('https://auth.openai.com/oauth/authorize');
    address.search = new URLSearchParams({ response_type: 'code', client_id: 'c', redirect_uri: 'http://127.0.0.1:1455/auth/callback', state: 's', code_challenge: 'A'.repeat(43), code_challenge_method: 'S256', ...change });
    return address.href;
  };

  test('never sends a browser to an address that is not the client\'s', async () => {
    for (const redirect of ['https://example.test/auth/callback', 'http://127.0.0.1:9/auth/callback', 'http://127.0.0.1:1455@example.test/auth/callback', '']) {
      const page = await demo.browser().open(url({ redirect_uri: redirect }));
      assert.equal(page.status, 400, redirect);
      assert.equal(page.headers.location, undefined);
    }
  });

  test('tells the client when PKCE is missing or plain', async () => {
    for (const change of [{ code_challenge: '' }, { code_challenge_method: 'plain' }]) {
      const browser = demo.browser();
      browser.stopAt = (to) => to.hostname === '127.0.0.1';
      const { url: back } = await browser.open(url(change));
      assert.equal(back.searchParams.get('error'), 'invalid_request');
      assert.equal(back.searchParams.get('state'), 's');
    }
  });
});
