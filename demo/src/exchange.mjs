// One HTTP request and its answer, as the adapters see them.

/** A prompt with a large context fits; a runaway upload does not. */
const MAX_BODY_BYTES = 8 * 1024 * 1024;

export class TooLarge extends Error {}

export class Exchange {
  #fields;

  constructor(req, res, { body, baseHost }) {
    this.req = req;
    this.res = res;
    this.body = body;
    this.tlsName = req.socket.servername || null;
    this.secure = Boolean(req.socket.encrypted);
    this.authority = (req.headers.host ?? '').toLowerCase();
    this.host = baseHost ?? this.authority.replace(/:\d+$/, '');
    const url = new URL(req.url, 'http://request.invalid');
    this.method = req.method;
    this.path = url.pathname;
    this.query = url.searchParams;
    this.rawQuery = url.search.slice(1);
  }

  /** Where the caller thinks this server is, for addresses in answers. */
  get origin() {
    return `${this.secure ? 'https' : 'http'}://${this.authority}`;
  }

  /** Body parameters, form-encoded or JSON, as one flat object. Anything unreadable is an empty one. */
  get fields() {
    this.#fields ??= parseFields(this.body, this.req.headers['content-type'] ?? '');
    return this.#fields;
  }

  get bearer() {
    return /^(?:bearer|token) +(\S+)$/i.exec(this.req.headers.authorization ?? '')?.[1] ?? null;
  }

  json(status, value, headers = {}) {
    this.#send(status, 'application/json', JSON.stringify(value), headers);
  }

  html(status, text, headers = {}) {
    this.#send(status, 'text/html; charset=utf-8', text, {
      // No form-action here: Chromium would apply it to the redirect to the program's loopback listener.
      'content-security-policy': "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
      'referrer-policy': 'no-referrer',
      ...headers,
    });
  }

  form(status, value) {
    this.#send(status, 'application/x-www-form-urlencoded', new URLSearchParams(value).toString());
  }

  empty(status) {
    this.#send(status, null, '');
  }

  redirect(location, status = 302) {
    this.#send(status, null, '', { location: String(location) });
  }

  #send(status, type, text, headers = {}) {
    if (this.res.headersSent || this.res.destroyed) return;
    this.res.writeHead(status, {
      ...(type && { 'content-type': type }),
      'content-length': Buffer.byteLength(text),
      'cache-control': 'no-store',
      'x-content-type-options': 'nosniff',
      ...headers,
    });
    this.res.end(text);
  }
}

/** Reads the whole body, however it is framed. */
export async function readBody(req) {
  const chunks = [];
  let size = 0;
  for await (const chunk of req) {
    size += chunk.length;
    if (size > MAX_BODY_BYTES) throw new TooLarge();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function parseFields(body, type) {
  const text = body.toString('utf8');
  if (!type.includes('json')) return Object.fromEntries(new URLSearchParams(text));
  try {
    const value = JSON.parse(text);
    return value && typeof value === 'object' && !Array.isArray(value) ? value : {};
  } catch {
    return {};
  }
}
