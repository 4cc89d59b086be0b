// The golden image's own file system with the demo overlay on top, in this process's mount and network namespace:
// what a program finds in a VM, without the VM. Runs as root inside `unshare`; everything ends with the namespace.
import { execFileSync, spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { HOSTS } from '../src/hosts.mjs';

export const IMAGE = '/var/cache/polydev/images/current';
const SHIM_DIR = '/run/polydev/shim';
const SHIM_NAMES = ['xdg-open', 'x-www-browser', 'sensible-browser', 'www-browser'];
const DEV = { uid: 1000, home: '/home/dev' };
const WAIT_LIMIT_MS = 90_000;
/** Colours; codex prints them without a terminal too. */
const ESCAPES = /\u001b\[[0-9;]*m/g;

/** Why no guest can be made here, or null. */
export function missing() {
  if (process.getuid() !== 0) return 'needs root for namespaces and mounts';
  if (!existsSync(join(IMAGE, 'image.json'))) return `no golden image in ${IMAGE}`;
  return null;
}

export class Guest {
  /** Mounts `layers` (topmost first) below the overlay of the demo at `stateDir`; `work` is a directory to mount in. */
  constructor({ stateDir, work, layers }) {
    mkdir(work);
    mount('-t', 'tmpfs', 'tmpfs', work);
    const image = JSON.parse(readFileSync(join(IMAGE, 'image.json'), 'utf8'));
    const lowers = layers.map((name) => {
      const at = mkdir(join(work, name));
      mount('-t', 'erofs', '-o', 'loop,ro', join(IMAGE, image.layers.find((layer) => layer.name === name).path), at);
      return at;
    });
    this.root = mkdir(join(work, 'root'));
    const upper = `upperdir=${mkdir(join(work, 'upper'))},workdir=${mkdir(join(work, 'work'))}`;
    mount('-t', 'overlay', 'overlay', '-o', `lowerdir=${[join(stateDir, 'overlay'), ...lowers].join(':')},${upper}`, this.root);
    mount('-t', 'proc', 'proc', join(this.root, 'proc'));
    mount('--rbind', '/dev', join(this.root, 'dev'));
    for (const place of ['tmp', 'run']) mount('-t', 'tmpfs', '-o', 'mode=1777', 'tmpfs', join(this.root, place));
    this.write('etc/hosts', `127.0.0.1 localhost\n::1 localhost\n127.0.0.1 ${HOSTS.join(' ')}\n`);
    this.write('etc/resolv.conf', 'nameserver 127.0.0.53\n');
    this.write('run/urls', '', 0o666);
    this.write(join(SHIM_DIR, 'open'), '#!/bin/sh\nprintf \'%s\\n\' "$1" >> /run/urls\n', 0o755);
    for (const name of SHIM_NAMES) symlinkSync('open', join(this.root, SHIM_DIR, name));
    mkdir(join(this.root, DEV.home));
    execFileSync('chown', [`${DEV.uid}:${DEV.uid}`, join(this.root, DEV.home)]);
    this.environment = {
      HOME: DEV.home, USER: 'dev', LANG: 'C.UTF-8', TERM: 'dumb', DISPLAY: ':1',
      PATH: `${SHIM_DIR}:/usr/local/bin:/usr/bin:/bin:/usr/sbin`, BROWSER: `${SHIM_DIR}/xdg-open`,
      ...Object.fromEntries(this.read('etc/polydev/environment').trim().split('\n').map((line) => line.split('='))),
    };
  }

  read(path) {
    return readFileSync(join(this.root, path), 'utf8');
  }

  write(path, text, mode = 0o644) {
    mkdir(dirname(join(this.root, path)));
    writeFileSync(join(this.root, path), text);
    chmodSync(join(this.root, path), mode);
  }

  /** Starts a program as an ordinary user of the guest. */
  start(argv, { env = {}, uid = DEV.uid } = {}) {
    const all = Object.entries({ ...this.environment, ...env }).map(([key, value]) => `${key}=${value}`);
    const child = spawn('chroot', [`--userspec=${uid}:${uid}`, this.root, '/usr/bin/env', '-i', ...all, 'sh', '-c', 'cd "$HOME" && exec "$@"', 'sh', ...argv], { stdio: 'pipe' });
    return new Running(child, argv);
  }

  /** Runs a program to its end: `{ code, output }`. */
  run(argv, options) {
    const running = this.start(argv, options);
    running.child.stdin.end();
    return running.end();
  }

  /** The next address a program hands to the browser. */
  async nextUrl(running) {
    return waitFor(`${running.argv[0]} to open a browser`, () => {
      const url = this.read('run/urls').trim();
      if (!url && running.child.exitCode !== null) throw new Error(`${running.argv.join(' ')} ended early: ${running.output}`);
      if (url) this.write('run/urls', '', 0o666);
      return url || null;
    });
  }
}

class Running {
  output = '';

  constructor(child, argv) {
    Object.assign(this, { child, argv });
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => { this.output += chunk; });
    child.stdin.on('error', () => {});
    this.ended = new Promise((resolve) => child.once('close', (code) => resolve({ code, output: this.output })));
  }

  async end() {
    const limit = setTimeout(() => this.child.kill('SIGKILL'), WAIT_LIMIT_MS);
    const end = await this.ended;
    clearTimeout(limit);
    return end;
  }

  /** The groups of the first match in the output so far. */
  match(pattern) {
    return waitFor(`${this.argv[0]} to print ${pattern}`, () => pattern.exec(this.output.replace(ESCAPES, '')));
  }

  send(line) {
    this.child.stdin.write(`${line}\n`);
  }
}

/** Asks until there is an answer; the limit is generous because CI machines are slow and shared. */
export async function waitFor(what, ask) {
  const endsAt = Date.now() + WAIT_LIMIT_MS;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (Date.now() > endsAt) throw new Error(`waited too long for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}

function mkdir(path) {
  mkdirSync(path, { recursive: true, mode: 0o755 });
  return path;
}

function mount(...args) {
  execFileSync('mount', args, { stdio: ['ignore', 'inherit', 'inherit'] });
}
