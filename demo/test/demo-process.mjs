// The real server as a child process with a state directory of its own.
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { ScriptedBrowser } from './scripted-browser.mjs';

const SERVER = fileURLToPath(new URL('../server.mjs', import.meta.url));
const START_LIMIT_MS = 20_000;

export class DemoProcess {
  static async start({ stateDir = mkdtempSync(join(tmpdir(), 'polydev-demo-')), args = [] } = {}) {
    const demo = new DemoProcess();
    demo.stateDir = stateDir;
    demo.child = spawn(process.execPath, [SERVER, '--state', stateDir, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
    const lines = createInterface({ input: demo.child.stdout });
    const ready = new Promise((resolve, reject) => {
      lines.once('line', resolve);
      demo.child.once('exit', (code) => reject(new Error(`the demo ended with ${code}`)));
      setTimeout(() => reject(new Error('the demo did not get ready')), START_LIMIT_MS).unref();
    });
    Object.assign(demo, JSON.parse(await ready));
    return demo;
  }

  browser() {
    return new ScriptedBrowser(this);
  }

  /** One request to a demo host, as a program makes it: `{ status, headers, text, json }`. */
  request(host, method, path, { form, json, headers = {}, chunked = false, secure = true, servername = host, signal } = {}) {
    const body = form ? new URLSearchParams(form).toString() : json === undefined ? '' : JSON.stringify(json);
    const type = form ? 'application/x-www-form-urlencoded' : 'application/json';
    const options = {
      method, path, host: '127.0.0.1', port: secure ? this.httpsPort : this.httpPort, servername,
      ca: secure ? readFileSync(join(this.stateDir, 'ca.pem')) : undefined,
      signal,
      // A connection kept open would be closed by the server while a test is busy elsewhere.
      agent: false,
      headers: { host, ...(body && { 'content-type': type }), ...(body && !chunked && { 'content-length': Buffer.byteLength(body) }), ...headers },
    };
    return new Promise((resolve, reject) => {
      const request = (secure ? https : http).request(options, (response) => {
        const chunks = [];
        response.on('data', (chunk) => chunks.push(chunk));
        response.on('error', reject);
        response.on('end', () => {
          const text = Buffer.concat(chunks).toString();
          const isJson = String(response.headers['content-type']).includes('json') && text !== '';
          resolve({ status: response.statusCode, headers: response.headers, text, json: isJson ? JSON.parse(text) : null });
        });
      });
      request.on('error', reject);
      // Two writes without a length make a chunked body.
      if (chunked) request.write(body.slice(0, 1));
      request.end(chunked ? body.slice(1) : body);
    });
  }

  /** Talks to the control endpoint. */
  control(method, path, json, token = readFileSync(join(this.stateDir, 'control-token'), 'utf8')) {
    return this.request(`127.0.0.1:${this.httpPort}`, method, path, { json, secure: false, headers: { authorization: `Bearer ${token}` } });
  }

  journal() {
    return readFileSync(join(this.stateDir, 'requests.jsonl'), 'utf8').trim().split('\n').filter(Boolean).map((line) => JSON.parse(line));
  }

  async stop({ keep = false } = {}) {
    if (this.child.exitCode === null) {
      this.child.kill('SIGTERM');
      await new Promise((resolve) => this.child.once('exit', resolve));
    }
    if (!keep) rmSync(this.stateDir, { recursive: true, force: true });
  }
}
