// Puts the parts together: `startDemo` is the whole demo network of one state directory.
import { chmodSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { PasswordCheck } from './accounts.mjs';
import { openAuthority } from './authority.mjs';
import { Control } from './control.mjs';
import { Devices } from './devices.mjs';
import { HOSTS } from './hosts.mjs';
import { Journal } from './journal.mjs';
import { Knobs } from './knobs.mjs';
import { Ledger } from './ledger.mjs';
import { Network } from './network.mjs';
import { DemoIssuer } from './oidc.mjs';
import { OidcStore } from './oidc-store.mjs';
import { writeOverlay, writeRoutes } from './overlay.mjs';
import { SignIn } from './sign-in.mjs';
import { StateFile } from './state-file.mjs';
import { TrialPages } from './trial-pages.mjs';
import { anthropicHosts } from './vendors/anthropic.mjs';
import { cloudflareHosts } from './vendors/cloudflare.mjs';
import { githubHosts } from './vendors/github.mjs';
import { googleHosts } from './vendors/google.mjs';
import { openaiHosts } from './vendors/openai.mjs';

/** Starts everything; gives `{ httpsPort, httpPort, close() }` once both ports answer. */
export async function startDemo({ stateDir, httpsPort = 0, httpPort = 0 }) {
  mkdirSync(stateDir, { recursive: true, mode: 0o755 });
  chmodSync(stateDir, 0o755);
  const authority = await openAuthority(stateDir, HOSTS);
  const stateFile = new StateFile(stateDir);
  const knobs = new Knobs();
  const changed = () => stateFile.changed();

  const ledger = new Ledger({ changed, lifetimes: () => ({ code: knobs.settings.codeLifetimeS }) });
  const store = new OidcStore({ changed });
  for (const [name, part] of Object.entries({ ledger, store })) {
    const left = stateFile.keep(name, part);
    if (left) part.restore(left);
  }
  stateFile.flush();

  const passwords = new PasswordCheck({ limit: () => knobs.settings.wrongPasswordLimit });
  const devices = new Devices({ ledger, knobs });
  const signIn = new SignIn({ passwords, devices, knobs });
  const trials = new TrialPages();
  const deps = { ledger, devices, signIn, knobs };
  const openai = openaiHosts(deps);
  const cloudflare = cloudflareHosts(deps);
  const network = new Network({
    authority,
    routes: { ...openai, ...anthropicHosts(deps), ...googleHosts(deps), ...githubHosts(deps), ...cloudflare },
    // Programs that can be told another address than the vendor's need no name and no certificate.
    loopbackRoutes: { ...cloudflare['dash.cloudflare.com'], ...openai['auth.openai.com'] },
    issuer: new DemoIssuer({ store, knobs, passwords, ledger }),
    signIn,
    trials,
    control: new Control({ stateDir, knobs, passwords, trials }),
    knobs,
    journal: new Journal(join(stateDir, 'requests.jsonl')),
  });
  const ports = await network.listen({ httpsPort, httpPort });
  writeOverlay(stateDir, authority);
  writeRoutes(stateDir, HOSTS, ports);
  const close = () => {
    network.close();
    stateFile.flush();
  };
  return { ...ports, close };
}
