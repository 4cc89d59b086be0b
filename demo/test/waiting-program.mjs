// What a program keeps while it waits for the browser: a PKCE pair, a state and the address of its callback. Nothing
// listens there: the scripted browser stops at that address and the program is handed what it was sent.
import { createHash, randomBytes } from 'node:crypto';

export class WaitingProgram {
  received = [];

  constructor({ host = '127.0.0.1', port = 49200, path }) {
    this.verifier = randomBytes(32).toString('base64url');
    this.challenge = createHash('sha256').update(this.verifier).digest('base64url');
    this.state = randomBytes(12).toString('base64url');
    this.redirectUri = `http://${host}:${port}${path}`;
  }

  /** A browser of `demo` whose visits to the callback end here. */
  browser(demo) {
    const browser = demo.browser();
    browser.stopAt = (url) => {
      const mine = `${url.origin}${url.pathname}` === this.redirectUri;
      if (mine) this.received.push(url.searchParams);
      return mine;
    };
    return browser;
  }

  /** Authorization request for `endpoint`, PKCE included unless `pkce` is false. */
  url(endpoint, params = {}, { pkce = true } = {}) {
    const url = new URL(endpoint);
    url.search = new URLSearchParams({
      response_type: 'code', client_id: 'client-1', redirect_uri: this.redirectUri, scope: 'one two', state: this.state,
      ...(pkce && { code_challenge: this.challenge, code_challenge_method: 'S256' }),
      ...params,
    });
    return url.href;
  }

  get last() {
    return this.received.at(-1);
  }
}
