#!/usr/bin/env node
// polydev-demo: a small command-line program with a real sign-in, for trying polydev without any vendor account.
// OpenID Connect authorization code flow with PKCE and a loopback callback (RFC 8252) against the demo issuer.
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { homedir } from 'node:os';
import { join } from 'node:path';

const ISSUER = 'https://id.polydev.test';
const CLIENT_ID = 'polydev-demo-cli';
const SCOPE = 'openid profile email offline_access';
const DIRECTORY = join(homedir(), '.polydev-demo');
const FILE = join(DIRECTORY, 'credentials.json');
const LOGIN_LIMIT_MS = 15 * 60_000;

class Failure extends Error {}

async function login() {
  const { authorization_endpoint: authorize, token_endpoint: token, userinfo_endpoint: userinfo } = await discover();
  const verifier = random();
  const [state, nonce] = [random(), random()];
  const listener = createServer();
  const port = await new Promise((resolve, reject) => {
    listener.once('error', reject);
    listener.listen(0, '127.0.0.1', () => resolve(listener.address().port));
  });
  const redirectUri = `http://127.0.0.1:${port}/callback`;
  const url = new URL(authorize);
  url.search = new URLSearchParams({
    response_type: 'code', client_id: CLIENT_ID, redirect_uri: redirectUri, scope: SCOPE, state, nonce, prompt: 'consent',
    code_challenge: createHash('sha256').update(verifier).digest('base64url'), code_challenge_method: 'S256',
  });
  console.log(`Open this page to sign in:\n\n${url}\n`);
  openBrowser(url.href);
  try {
    const { code, finish } = await callback(listener, state);
    try {
      const answer = await post(token, { grant_type: 'authorization_code', code, redirect_uri: redirectUri, client_id: CLIENT_ID, code_verifier: verifier });
      const subject = checkIdToken(answer.id_token, nonce);
      const account = await whoIs(userinfo, answer.access_token, subject);
      save({ ...tokens(answer), account });
      finish(200, 'Signed in', 'You can go back to your terminal and close this page.');
      console.log(`Signed in as ${account.name}`);
    } catch (error) {
      finish(502, 'Sign-in failed', 'The program in your terminal says why.');
      throw error;
    }
  } finally {
    listener.close();
    listener.closeAllConnections();
  }
}

/** Waits for the browser to come back with our state; anything else is answered and ignored. */
function callback(listener, state) {
  return new Promise((resolve, reject) => {
    const limit = setTimeout(() => reject(new Failure('nobody signed in within 15 minutes')), LOGIN_LIMIT_MS);
    listener.on('request', (req, res) => {
      const url = new URL(req.url, 'http://127.0.0.1');
      const finish = (status, title, text) => res.writeHead(status, { 'content-type': 'text/html; charset=utf-8', connection: 'close' })
        .end(`<!doctype html><title>${title} - polydev demo CLI</title><link rel="icon" href="data:,"><body style="font:18px sans-serif;padding:3em"><h1>${title}</h1><p>${text}</p>`);
      if (url.pathname !== '/callback') return finish(404, 'Not found', 'There is nothing here.');
      if (url.searchParams.get('state') !== state) return finish(400, 'Wrong state', 'This answer belongs to another sign-in.');
      clearTimeout(limit);
      if (url.searchParams.has('code')) return resolve({ code: url.searchParams.get('code'), finish });
      finish(200, 'Access denied', 'You can close this page.');
      return res.once('close', () => reject(new Failure(`sign-in refused: ${url.searchParams.get('error') ?? 'no code'}`)));
    });
  });
}

async function status() {
  let credentials = load();
  const { userinfo_endpoint: userinfo } = await discover();
  const ask = () => fetch(userinfo, { headers: { authorization: `Bearer ${credentials.access_token}` } });
  let answer = await ask();
  if (answer.status === 401) {
    credentials = await renew(credentials);
    answer = await ask();
  }
  if (!answer.ok) throw new Failure(`Not signed in: the issuer answered ${answer.status}`);
  console.log(`Signed in as ${(await answer.json()).name}`);
}

async function refresh() {
  await renew(load());
  console.log('Refreshed');
}

/** Spends the refresh token; the new one has to be stored before anything else happens. */
async function renew(credentials) {
  const { token_endpoint: token } = await discover();
  const answer = await post(token, { grant_type: 'refresh_token', refresh_token: credentials.refresh_token, client_id: CLIENT_ID });
  const renewed = { ...credentials, ...tokens(answer) };
  save(renewed);
  return renewed;
}

async function logout() {
  const { refresh_token: token } = load();
  const { revocation_endpoint: revoke } = await discover();
  const answer = await fetch(revoke, { method: 'POST', body: new URLSearchParams({ token, client_id: CLIENT_ID }) });
  rmSync(FILE);
  console.log(answer.ok ? 'Signed out' : `Signed out here; the issuer answered ${answer.status}`);
}

async function discover() {
  const answer = await fetch(`${ISSUER}/.well-known/openid-configuration`);
  if (!answer.ok) throw new Failure(`the issuer answered ${answer.status}`);
  const found = await answer.json();
  if (found.issuer !== ISSUER) throw new Failure('the issuer does not say its own name');
  return found;
}

async function post(endpoint, parameters) {
  const answer = await fetch(endpoint, { method: 'POST', body: new URLSearchParams(parameters) });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Failure(`Not signed in: ${body.error ?? answer.status}${body.error_description ? ` (${body.error_description})` : ''}`);
  return body;
}

/** Gives the subject. OpenID Connect Core 3.1.3.7; the signature may be left out as the token came straight from the issuer over TLS. */
function checkIdToken(idToken, nonce) {
  const claims = JSON.parse(Buffer.from(idToken.split('.')[1], 'base64url'));
  const good = claims.iss === ISSUER && [claims.aud].flat().includes(CLIENT_ID) && claims.exp * 1000 > Date.now() && claims.nonce === nonce;
  if (!good) throw new Failure('the id token is not for this sign-in');
  return claims.sub;
}

async function whoIs(userinfo, accessToken, subject) {
  const answer = await fetch(userinfo, { headers: { authorization: `Bearer ${accessToken}` } });
  const claims = answer.ok ? await answer.json() : {};
  if (claims.sub !== subject) throw new Failure('the issuer does not say who signed in');
  return { id: claims.sub, name: claims.name ?? claims.sub, email: claims.email ?? null };
}

function tokens({ access_token, refresh_token, expires_in }) {
  return { access_token, refresh_token, expires_at: new Date(Date.now() + expires_in * 1000).toISOString() };
}

function save(credentials) {
  mkdirSync(DIRECTORY, { recursive: true, mode: 0o700 });
  const fresh = `${FILE}.new`;
  writeFileSync(fresh, `${JSON.stringify({ issuer: ISSUER, ...credentials }, null, 2)}\n`, { mode: 0o600 });
  renameSync(fresh, FILE);
}

function load() {
  try {
    return JSON.parse(readFileSync(FILE, 'utf8'));
  } catch {
    throw new Failure('Not signed in');
  }
}

function openBrowser(url) {
  const child = spawn(process.env.BROWSER || 'xdg-open', [url], { stdio: 'ignore', detached: true });
  child.on('error', () => console.error('No browser could be opened; use the address above.'));
  child.unref();
}

const random = () => randomBytes(32).toString('base64url');

const COMMANDS = { login, status, refresh, logout };
const command = COMMANDS[process.argv[2]];
if (!command || process.argv.length !== 3) {
  console.error('usage: polydev-demo login | status | refresh | logout');
  process.exit(2);
}
try {
  await command();
} catch (error) {
  // fetch hides what went wrong one level down.
  console.error(error instanceof Failure ? error.message : `polydev-demo: ${error.cause?.message ?? error.message}`);
  process.exitCode = 1;
}
