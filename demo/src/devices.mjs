// Device codes (RFC 8628): what the program polls with, what the person types, and what became of it.
import { randomInt } from 'node:crypto';
import { OAuthError } from './ledger.mjs';
import { donePage } from './pages.mjs';

/** No vowels, nothing that looks like something else. */
const LETTERS = 'BCDFGHJKLMNPQRSTVWXZ';

export class Devices {
  #byCode = new Map();

  constructor({ ledger, knobs, now = Date.now }) {
    this.ledger = ledger;
    this.knobs = knobs;
    this.now = now;
  }

  /** `groups` are the lengths of the parts of the user code, for example [4, 4]. */
  start({ vendor, clientId, scope, client, groups }) {
    const { deviceLifetimeS, devicePending, outcome } = this.knobs.settings;
    for (const [code, old] of this.#byCode) if (this.now() >= old.endsAt) this.#byCode.delete(code);
    const device = {
      vendor, clientId, scope, client,
      scopes: scope.split(/[ ,]+/).filter(Boolean),
      deviceCode: `device-${this.ledger.mint()}`,
      userCode: groups.map(letters).join('-'),
      endsAt: this.now() + deviceLifetimeS * 1000,
      lifetimeS: deviceLifetimeS,
      pendingLeft: devicePending,
      // Decided by the person, unless a test decides beforehand.
      state: { page: 'pending', allow: 'allowed', deny: 'denied' }[outcome],
      user: outcome === 'allow' ? 'demo' : null,
    };
    this.#byCode.set(device.deviceCode, device);
    return device;
  }

  /** The open device code that shows `typed`, written in any of the usual ways. */
  lookup(vendor, typed) {
    const plain = (text) => text.toUpperCase().replace(/[^A-Z0-9]/g, '');
    for (const device of this.#byCode.values()) {
      const open = device.vendor === vendor && device.state === 'pending' && this.now() < device.endsAt;
      if (open && plain(device.userCode) === plain(String(typed))) return device;
    }
    return null;
  }

  decide(device, user) {
    device.state = user ? 'allowed' : 'denied';
    device.user = user?.name ?? null;
  }

  /** One poll: throws as RFC 8628 section 3.5 names it, or gives the device, once. */
  poll({ vendor, deviceCode, clientId, userCode }) {
    const device = this.#byCode.get(deviceCode);
    const fits = device && device.vendor === vendor
      && (clientId === undefined || device.clientId === clientId)
      && (userCode === undefined || device.userCode === userCode);
    if (!fits || device.state === 'spent') throw new OAuthError('invalid_grant', 'the device code is unknown or was used before');
    if (this.now() >= device.endsAt) throw new OAuthError('expired_token', 'the device code has expired');
    if (device.state === 'denied') throw new OAuthError('access_denied', 'access was denied');
    if (device.state === 'pending' || device.pendingLeft > 0) {
      if (device.state !== 'pending') device.pendingLeft -= 1;
      throw new OAuthError('authorization_pending', 'the person has not answered yet');
    }
    device.state = 'spent';
    return device;
  }
}

const letters = (count) => Array.from({ length: count }, () => LETTERS[randomInt(LETTERS.length)]).join('');

/** GET of the page where a code is typed: sign in, type it, allow or deny. */
export function beginDevice(x, { signIn, devices, vendor }) {
  const { id, brand } = vendor;
  return signIn.begin(x, {
    vendor: id,
    brand,
    client: `${brand.name} on another device`,
    scopes: [],
    device: true,
    finish: (last, { user, device }) => {
      devices.decide(device, user);
      const heading = user ? 'Device connected' : 'Access denied';
      last.html(200, donePage({ brand, heading, text: 'You can go back to your terminal and close this page.' }));
    },
  });
}
