// The pages for trying the live desktop, and what is kept of them.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { DemoProcess } from './demo-process.mjs';

const TYPING = '/polydev-demo/typing';

let demo;
before(async () => {
  demo = await DemoProcess.start();
});
after(() => demo.stop());

const type = (id, json) => demo.request('id.polydev.test', 'POST', `${TYPING}?id=${id}`, { json });
const typed = async (id) => (await demo.control('GET', `/control/typed?id=${id}`)).json;

test('both pages are there under every name, and their scripts are allowed by the policy of their answer', async () => {
  for (const host of ['id.polydev.test', 'github.com']) {
    for (const path of [TYPING, '/polydev-demo/scroll']) {
      const { status, text, headers } = await demo.request(host, 'GET', path);
      assert.equal(status, 200);
      const nonce = /<script nonce="([^"]+)"/.exec(text)?.[1];
      assert.ok(nonce && headers['content-security-policy'].includes(`script-src 'nonce-${nonce}'`));
    }
  }
});

test('the newest text of each page is kept, whatever order the edits arrive in', async () => {
  await type('one', { edit: 0, text: '' });
  await type('one', { edit: 2, text: 'äß' });
  await type('one', { edit: 1, text: 'ä' });
  await type('two', { edit: 0, text: '漢字' });
  assert.deepEqual(await typed('one'), { edit: 2, text: 'äß' });
  assert.deepEqual(await typed('two'), { edit: 0, text: '漢字' });
  await type('one', { edit: 0, text: '' });
  assert.deepEqual(await typed('one'), { edit: 0, text: '' });
});

test('what does not fit is refused, and nobody reads without the token', async () => {
  for (const [id, json] of [['', { edit: 0, text: '' }], ['a b', { edit: 0, text: '' }], ['three', { edit: '1', text: '' }], ['three', { edit: 0 }], ['three', { edit: 0, text: 'x'.repeat(300_000) }]]) {
    assert.equal((await type(encodeURIComponent(id), json)).status, 400);
  }
  assert.equal((await demo.control('GET', '/control/typed?id=three')).status, 404);
  assert.equal((await demo.control('GET', '/control/typed?id=one', undefined, 'wrong')).status, 401);
  assert.equal((await demo.request('id.polydev.test', 'DELETE', TYPING)).status, 405);
});
