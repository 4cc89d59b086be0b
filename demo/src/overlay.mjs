// The guest layer that makes a VM part of the test network, and the list of names the controller routes here.
// It exists in demo mode only; a golden image never contains any of it. It holds certificates, never a key.
import { chmodSync, copyFileSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { rootCertificates } from 'node:tls';
import { fileURLToPath } from 'node:url';

const DEMO_CLI = fileURLToPath(new URL('../cli/polydev-demo.mjs', import.meta.url));
const CA_PATH = 'etc/ssl/certs/polydev-demo-ca.pem';
/** Programs that look neither at the system bundle nor at a policy file: Node, and Bun before 2026. */
const ENVIRONMENT = { NODE_EXTRA_CA_CERTS: `/${CA_PATH}` };

/** Writes `stateDir/overlay` anew. `etc/polydev/environment` is for whoever starts programs in the guest. */
export function writeOverlay(stateDir, authority) {
  const root = join(stateDir, 'overlay');
  rmSync(root, { recursive: true, force: true });
  const lines = Object.entries(ENVIRONMENT).map(([key, value]) => `${key}=${value}\n`);
  put(root, CA_PATH, authority.pem);
  // The layer replaces the image's bundle, so the public roots have to be in it too; Node's are Mozilla's list.
  put(root, 'etc/ssl/certs/ca-certificates.crt', [...rootCertificates, authority.pem].map((pem) => `${pem.trim()}\n`).join(''));
  put(root, 'etc/chromium/policies/managed/polydev-demo-ca.json', `${JSON.stringify({ CACertificates: [authority.der.toString('base64')] }, null, 2)}\n`);
  put(root, 'etc/polydev/environment', lines.join(''));
  put(root, 'etc/profile.d/polydev-demo-ca.sh', lines.map((line) => `export ${line}`).join(''));
  const cli = join(root, 'usr/local/bin/polydev-demo');
  mkdirSync(dirname(cli), { recursive: true, mode: 0o755 });
  copyFileSync(DEMO_CLI, cli);
  chmodSync(cli, 0o755);
  return root;
}

/** Writes `stateDir/routes.toml`: for each name, where its ports 443 and 80 really are. */
export function writeRoutes(stateDir, hosts, { httpsPort, httpPort }) {
  const route = (host, port, to) => `[[route]]\nhost = "${host}"\nport = ${port}\nto = "127.0.0.1:${to}"\n`;
  const text = hosts.map((host) => `${route(host, 443, httpsPort)}\n${route(host, 80, httpPort)}`).join('\n');
  writeFileSync(join(stateDir, 'routes.toml'), text, { mode: 0o644 });
}

function put(root, path, text) {
  const file = join(root, path);
  mkdirSync(dirname(file), { recursive: true, mode: 0o755 });
  writeFileSync(file, text, { mode: 0o644 });
  chmodSync(file, 0o644);
}
