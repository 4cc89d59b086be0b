// What was asked of the demo network, one JSON line per request. Names of parameters are kept, values are not:
// codes and tokens travel in both the query and the body.
import { appendFileSync, chmodSync, existsSync, statSync, writeFileSync } from 'node:fs';

/** Longer or stranger names are values in disguise (claude's short link puts its challenge there). */
const PLAIN_NAME = /^[A-Za-z][A-Za-z0-9_.-]{0,39}$/;
const MAX_AGENT = 80;
/** A journal longer than this is begun anew at the next start. */
const MAX_BYTES = 8 * 1024 * 1024;
const GRANT_NAME = /^[a-z0-9:_-]{1,80}$/;

export class Journal {
  constructor(file) {
    this.file = file;
    const full = existsSync(file) && statSync(file).size > MAX_BYTES;
    writeFileSync(file, '', { mode: 0o600, flag: full ? 'w' : 'a' });
    chmodSync(file, 0o600);
  }

  /** `status` is null when the caller went away without an answer. */
  record(x, { status, startedAt, now }) {
    const line = {
      time: new Date(startedAt).toISOString(),
      host: x.host,
      method: x.method,
      path: x.path.replace(/^\/(interaction|auth)\/[^/]+/, '/$1/*'),
      query: names([...x.query.keys()]),
      body: names(Object.keys(x.fields)),
      grant: grantOf(x),
      status,
      tls: x.tlsName,
      agent: x.req.headers['user-agent']?.slice(0, MAX_AGENT) ?? null,
      from: x.req.socket.remoteAddress ?? null,
      ms: now - startedAt,
    };
    appendFileSync(this.file, `${JSON.stringify(line)}\n`);
  }
}

/** The grant type asked for, if it has the shape of one. */
export function grantOf(x) {
  const grant = x.fields.grant_type;
  return typeof grant === 'string' && GRANT_NAME.test(grant) ? grant : null;
}

const names = (list) => list.map((name) => (PLAIN_NAME.test(name) ? name : '(redacted)'));
