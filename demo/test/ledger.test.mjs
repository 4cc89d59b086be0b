// The rules about codes and tokens that depend on time, with a clock of our own.
import assert from 'node:assert/strict';
import test from 'node:test';
import { PasswordCheck } from '../src/accounts.mjs';
import { Devices } from '../src/devices.mjs';
import { Knobs } from '../src/knobs.mjs';
import { Ledger, fakeJwt } from '../src/ledger.mjs';

function world() {
  const clock = { ms: 1_000_000 };
  const now = () => clock.ms;
  const ledger = new Ledger({ now, lifetimes: () => ({ code: 60 }) });
  return { clock, now, ledger };
}
const grant = { vendor: 'v', clientId: 'c', redirectUri: 'http://localhost/cb', scope: '', user: 'demo', challenge: null };
const redeem = (ledger, code) => ledger.redeemCode({ vendor: 'v', code, clientId: 'c', redirectUri: 'http://localhost/cb' });

test('a code is good until its time is up and not a moment longer', () => {
  const { clock, ledger } = world();
  const [early, late] = [ledger.issueCode(grant), ledger.issueCode(grant)];
  clock.ms += 59_999;
  assert.ok(redeem(ledger, early));
  clock.ms += 1;
  assert.throws(() => redeem(ledger, late), /expired/);
});

test('a code of one vendor is unknown to another', () => {
  const { ledger } = world();
  const code = ledger.issueCode({ ...grant, vendor: 'other' });
  assert.throws(() => redeem(ledger, code), /unknown/);
});

test('an access token dies with its time, its revocation or its family', () => {
  const { clock, ledger } = world();
  const family = ledger.openFamily(grant);
  const [short, long] = [ledger.record(family, 'access', 'a1', 10), ledger.record(family, 'access', 'a2', 100)];
  assert.equal(ledger.find('v', short).user, 'demo');
  assert.equal(ledger.find('other', short), null);
  clock.ms += 10_000;
  assert.equal(ledger.find('v', short), null);
  assert.ok(ledger.find('v', long));
  ledger.revoke('other', long);
  assert.ok(ledger.find('v', long), 'another vendor cannot revoke it');
  ledger.revoke('v', long);
  assert.equal(ledger.find('v', long), null);
});

test('what is written to disk and read again decides the same', () => {
  const { ledger, now } = world();
  const code = ledger.issueCode(grant);
  redeem(ledger, code);
  const again = new Ledger({ now, lifetimes: () => ({ code: 60 }) });
  again.restore(JSON.parse(JSON.stringify(ledger)));
  assert.throws(() => redeem(again, code), /used before/);
  assert.equal(again.mint().slice(0, 11), ledger.mint().slice(0, 11), 'numbers go on');
});

test('a restart forgets what can no longer matter', () => {
  const { clock, ledger, now } = world();
  redeem(ledger, ledger.issueCode(grant));
  const family = ledger.openFamily(grant);
  ledger.record(family, 'access', 'a1');
  ledger.revoke('v', 'a1');
  clock.ms += 2 * 86_400_000;
  const again = new Ledger({ now, lifetimes: () => ({ code: 60 }) });
  again.restore(JSON.parse(JSON.stringify(ledger)));
  const { codes, tokens, families } = again.toJSON();
  assert.deepEqual([codes.length, tokens.length, families.length], [0, 0, 1]);
});

test('every minted text is unique, numbered, FAKE, and good as a part of a token', () => {
  const { ledger } = world();
  const minted = Array.from({ length: 50 }, () => ledger.mint());
  assert.equal(new Set(minted).size, 50);
  minted.forEach((text, i) => assert.ok(text.startsWith(`FAKE-${String(i + 1).padStart(6, '0')}-`)));
  const parts = fakeJwt({ sub: 'x' }, minted[0]).split('.');
  assert.equal(parts.length, 3);
  for (const part of parts) assert.equal(Buffer.from(part, 'base64url').toString('base64url'), part);
});

test('a device code that was approved stays pending as often as asked, and expires', () => {
  const { clock, now, ledger } = world();
  const knobs = new Knobs();
  knobs.set({ devicePending: 2, deviceLifetimeS: 30 });
  const devices = new Devices({ ledger, knobs, now });
  const start = () => devices.start({ vendor: 'v', clientId: 'c', scope: '', client: 'x', groups: [4, 4] });
  const poll = (device) => () => devices.poll({ vendor: 'v', deviceCode: device.deviceCode, clientId: 'c' });
  const [one, two] = [start(), start()];
  assert.throws(poll(one), { code: 'authorization_pending' });
  devices.decide(one, { name: 'demo' });
  assert.throws(poll(one), { code: 'authorization_pending' });
  assert.throws(poll(one), { code: 'authorization_pending' });
  assert.equal(poll(one)().user, 'demo');
  assert.throws(poll(one), { code: 'invalid_grant' });
  clock.ms += 30_000;
  assert.throws(poll(two), { code: 'expired_token' });
  assert.equal(devices.lookup('v', two.userCode), null);
});

test('wrong passwords are forgotten after a minute or a right one', () => {
  const clock = { ms: 0 };
  const passwords = new PasswordCheck({ now: () => clock.ms, limit: () => 3 });
  const wrong = () => passwords.check('demo', 'x');
  for (let i = 0; i < 3; i += 1) assert.ok(wrong().wrong);
  assert.equal(wrong().waitS, 60);
  clock.ms = 60_000;
  assert.ok(wrong().wrong);
  assert.equal(passwords.check('demo', 'demo-password').user.name, 'demo');
  for (let i = 0; i < 3; i += 1) assert.ok(wrong().wrong, 'the right one started the count anew');
});
