// A browser without a screen: keeps cookies, follows redirects, fills in forms the way a person would. It reaches
// the demo hosts through the demo's ports and trusts only the demo's authority.
import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { join } from 'node:path';

/** Tells its requests from those of the program in the journal. */
export const AGENT = 'polydev-scripted-browser';
const MAX_HOPS = 20;
const ANSWER_LIMIT_MS = 20_000;

export class ScriptedBrowser {
  #cookies = [];
  /** `METHOD url-without-query` of every hop. */
  visited = [];

  constructor({ stateDir, httpsPort, httpPort }) {
    this.ca = readFileSync(join(stateDir, 'ca.pem'));
    this.ports = { 'https:': httpsPort, 'http:': httpPort };
  }

  /** Opens an address and follows redirects to a page: `{ url, status, title, text, form, headers }`. */
  async open(url, { method = 'GET', form = null } = {}) {
    let next = { url: new URL(url), method, form };
    for (let hop = 0; hop < MAX_HOPS; hop += 1) {
      this.visited.push(`${next.method} ${next.url.origin}${next.url.pathname}`);
      const answer = await this.#send(next);
      const { location } = answer.headers;
      if (answer.status < 300 || answer.status > 399 || !location) return { ...answer, url: next.url, ...readPage(answer.text) };
      next = { url: new URL(location, next.url), method: 'GET', form: null };
      if (this.stopAt?.(next.url)) return { ...answer, url: next.url, stopped: true };
    }
    throw new Error(`more than ${MAX_HOPS} redirects`);
  }

  /** Sends the page's form with `values` filled in. */
  submit(page, values) {
    const form = { ...page.form.fields, ...values };
    return this.open(new URL(page.form.action, page.url), { method: page.form.method, form });
  }

  /** Goes the whole way: user name, password, code if one is asked for, consent. Ends on the page after it. */
  async signIn(url, { username = 'demo', password = 'demo-password', decision = 'allow', userCode } = {}) {
    let page = await this.open(url);
    if (page.form?.fields.password === undefined) throw new Error(`no sign-in page at ${page.url.host}: ${page.status} ${page.title}`);
    page = await this.submit(page, { username, password });
    if (page.form && 'user_code' in page.form.fields) page = await this.submit(page, { user_code: userCode });
    if (page.status >= 400) throw new Error(`sign-in failed: ${page.status} ${page.text}`);
    return this.submit(page, { decision });
  }

  #send({ url, method, form }) {
    const local = ['127.0.0.1', 'localhost', '[::1]'].includes(url.hostname);
    const body = form ? new URLSearchParams(form).toString() : '';
    const options = {
      method,
      host: local ? url.hostname.replace(/[[\]]/g, '') : '127.0.0.1',
      port: local ? url.port : this.ports[url.protocol],
      path: url.pathname + url.search,
      headers: {
        host: url.host,
        'user-agent': AGENT,
        ...(this.#cookieHeader(url) && { cookie: this.#cookieHeader(url) }),
        ...(form && { 'content-type': 'application/x-www-form-urlencoded', 'content-length': Buffer.byteLength(body) }),
      },
      ...(url.hostname === 'localhost' && { lookup: bothLoopbacks, autoSelectFamily: true }),
      agent: false,
      ...(url.protocol === 'https:' && { ca: this.ca, servername: url.hostname }),
      timeout: ANSWER_LIMIT_MS,
    };
    return new Promise((resolve, reject) => {
      const request = (url.protocol === 'https:' ? https : http).request(options, (response) => {
        this.#keepCookies(url, response.headers['set-cookie'] ?? []);
        const chunks = [];
        response.on('data', (chunk) => chunks.push(chunk));
        response.on('error', reject);
        response.on('end', () => resolve({ status: response.statusCode, headers: response.headers, text: Buffer.concat(chunks).toString() }));
      });
      request.on('timeout', () => request.destroy(new Error(`no answer from ${url.host}${url.pathname}`)));
      request.on('error', reject);
      request.end(body);
    });
  }

  #cookieHeader(url) {
    return this.#cookies.filter((c) => c.host === url.host && url.pathname.startsWith(c.path)).map((c) => `${c.name}=${c.value}`).join('; ');
  }

  #keepCookies(url, lines) {
    for (const line of lines) {
      const [pair, ...attributes] = line.split(';').map((part) => part.trim());
      const [name, value] = [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)];
      const path = attributes.find((a) => /^path=/i.test(a))?.slice(5) ?? '/';
      this.#cookies = this.#cookies.filter((c) => !(c.host === url.host && c.name === name && c.path === path));
      const expires = attributes.find((a) => /^expires=/i.test(a));
      if (!expires || Date.parse(expires.slice(8)) > Date.now()) this.#cookies.push({ host: url.host, name, value, path });
    }
  }
}

/** Programs listen on one of the two; a browser tries both. */
function bothLoopbacks(hostname, options, found) {
  found(null, [{ address: '127.0.0.1', family: 4 }, { address: '::1', family: 6 }]);
}

const unescape = (text) => text.replace(/&#(\d+);/g, (_, code) => String.fromCharCode(code)).replaceAll('&amp;', '&');

function readPage(text) {
  const form = /<form method="(\w+)" action="([^"]*)">([\s\S]*?)<\/form>/.exec(text);
  const fields = {};
  for (const [tag] of form?.[3].matchAll(/<input [^>]*>/g) ?? []) {
    fields[/ name="([^"]*)"/.exec(tag)[1]] = unescape(/ value="([^"]*)"/.exec(tag)?.[1] ?? '');
  }
  return {
    title: unescape(/<title>([^<]*)<\/title>/.exec(text)?.[1] ?? ''),
    alert: unescape(/role="alert">([^<]*)</.exec(text)?.[1] ?? ''),
    shown: unescape(/<output[^>]*>([^<]*)</.exec(text)?.[1] ?? ''),
    form: form && { method: form[1].toUpperCase(), action: unescape(form[2]), fields },
  };
}
