// What a program keeps while it waits for the browser: a PKCE pair, a state and a listener for the callback.
import { createHash, randomBytes } from 'node:crypto';
import http from 'node:http';

export class Loopback {
  static async listen({ port = 0, path }) {
    const self = new Loopback();
    self.verifier = randomBytes(32).toString('base64url');
    self.challenge = createHash('sha256').update(self.verifier).digest('base64url');
    self.state = randomBytes(12).toString('base64url');
    self.received = [];
    self.server = http.createServer((req, res) => {
      self.received.push(new URL(req.url, 'http://loopback.invalid').searchParams);
      res.end('<title>back in the program</title>');
    });
    await new Promise((resolve, reject) => self.server.once('error', reject).listen(port, '127.0.0.1', resolve));
    self.redirectUri = `http://127.0.0.1:${self.server.address().port}${path}`;
    return self;
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

  close() {
    this.server.close();
    this.server.closeAllConnections();
  }
}
