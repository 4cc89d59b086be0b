// The listeners: one TLS port and one plain port on 127.0.0.1, all names on both, told apart by the Host header.
import http from 'node:http';
import https from 'node:https';
import { Control } from './control.mjs';
import { Exchange, TooLarge, readBody } from './exchange.mjs';
import { DEMO_HOST } from './hosts.mjs';
import { grantOf } from './journal.mjs';
import { OAuthError } from './ledger.mjs';
import { SIGN_IN_PATH } from './sign-in.mjs';
import { TrialPages } from './trial-pages.mjs';

const ADDRESS = '127.0.0.1';

export class Network {
  /** `routes`: host name to "METHOD /path" to handler. `loopbackRoutes`: the same for the plain loopback port. */
  constructor({ authority, routes, loopbackRoutes, issuer, signIn, trials, control, knobs, journal }) {
    Object.assign(this, { routes, loopbackRoutes, issuer, signIn, trials, control, knobs, journal });
    const handle = (req, res) => this.#handle(req, res);
    this.https = https.createServer({ key: authority.leafKeyPem, cert: authority.leafPem, ALPNProtocols: ['http/1.1'] }, handle);
    this.http = http.createServer(handle);
  }

  /** Binds both ports (0 = any free one) and gives their numbers. */
  async listen({ httpsPort, httpPort }) {
    const bind = (server, port) => new Promise((resolve, reject) => {
      server.once('error', reject);
      server.listen(port, ADDRESS, () => resolve(server.address().port));
    });
    this.httpPort = await bind(this.http, httpPort);
    return { httpsPort: await bind(this.https, httpsPort), httpPort: this.httpPort };
  }

  close() {
    for (const server of [this.https, this.http]) {
      server.close();
      server.closeAllConnections();
    }
  }

  async #handle(req, res) {
    const startedAt = Date.now();
    let x;
    try {
      x = new Exchange(req, res, { body: await readBody(req) });
    } catch (error) {
      if (!res.destroyed) res.writeHead(error instanceof TooLarge ? 413 : 400, { connection: 'close' }).end();
      return;
    }
    const loopback = !x.secure && [`127.0.0.1:${this.httpPort}`, `localhost:${this.httpPort}`].includes(x.authority);
    // What a test says to this server is no part of what a program was seen doing.
    if (loopback && Control.handles(x)) return this.control.answer(x);
    this.#keepRecord(x, startedAt);
    try {
      if (await this.#misbehave(x)) return;
      await this.#dispatch(x, loopback);
    } catch (error) {
      this.#fail(x, error);
    }
  }

  /** Writes the journal line before the answer leaves: who has the answer can rely on the line. */
  #keepRecord(x, startedAt) {
    const { res } = x;
    const record = (status) => this.journal.record(x, { status, startedAt, now: Date.now() });
    const end = res.end;
    const gone = () => record(null);
    res.once('close', gone);
    res.end = function recorded(...args) {
      res.off('close', gone);
      res.end = end;
      record(res.statusCode);
      return end.apply(res, args);
    };
  }

  async #misbehave(x) {
    const rule = this.knobs.take({ host: x.host, method: x.method, path: x.path, grant: grantOf(x) });
    if (!rule) return false;
    if (rule.hang) return true;
    if (rule.delayMs) await new Promise((resolve) => setTimeout(resolve, rule.delayMs));
    if (rule.status === undefined) return false;
    x.json(rule.status, rule.body ?? { error: 'asked_for_by_a_test' });
    return true;
  }

  #dispatch(x, loopback) {
    const wrongName = x.secure && x.tlsName !== null && x.tlsName !== x.host;
    const routes = loopback ? this.loopbackRoutes : this.routes[x.host];
    if (wrongName || (!routes && x.host !== DEMO_HOST)) return x.json(421, { error: 'misdirected_request' });
    if (!x.secure && !loopback) return x.redirect(`https://${x.host}${x.req.url}`, 308);
    if (TrialPages.handles(x)) return this.trials.answer(x);
    if (x.host === DEMO_HOST) return this.issuer.answer(x);
    if (x.path === SIGN_IN_PATH) return this.signIn.answer(x);
    const method = x.method === 'HEAD' ? 'GET' : x.method;
    const key = `${method} ${x.path}`;
    return Object.hasOwn(routes, key) ? routes[key](x) : x.json(404, { error: 'not_found' });
  }

  #fail(x, error) {
    if (error instanceof OAuthError) return x.json(error.status, { error: error.code, error_description: error.message });
    // oidc-provider's own errors of the interaction pages: an unknown or finished sign-in.
    if (error.name === 'SessionNotFound') return x.json(410, { error: 'finished', error_description: 'This sign-in is finished or has expired.' });
    console.error(`demo: ${x.method} ${x.host}${x.path}: ${error.stack}`);
    return x.json(500, { error: 'server_error' });
  }
}
