// The unmodified CLIs of the golden image sign in against the demo network. Their file system is the image's, their
// network is a namespace with nothing but loopback: what reaches anybody reached the demo.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { missing } from './guest.mjs';

const INSIDE = fileURLToPath(new URL('./inside/real-cli.mjs', import.meta.url));
const NAMESPACES = ['--mount', '--net', '--pid', '--fork', '--kill-child', '--propagation', 'private'];
const SCENARIOS = {
  codex: 'codex signs in, says so, and signs out',
  'codex-device': 'codex signs in with a device code',
  claude: 'claude signs in, says so, and signs out',
  'claude-paste': 'claude signs in with a pasted code',
  gemini: 'gemini signs in',
  wrangler: 'wrangler signs in, refreshes, and signs out',
  gh: 'gh signs in with a device code',
  demo: 'polydev-demo signs in, refreshes, and signs out',
  chromium: 'the image\'s Chromium opens a sign-in page without a warning',
  faults: 'refusals and faults reach the programs',
};

for (const [name, sentence] of Object.entries(SCENARIOS)) {
  test(sentence, { skip: missing() ?? false, timeout: 240_000 }, async () => {
    const work = mkdtempSync(join(tmpdir(), 'polydev-real-cli-'));
    const child = spawn('unshare', [...NAMESPACES, process.execPath, INSIDE, name, work], { stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => { output += chunk; });
    const code = await new Promise((resolve) => child.once('close', resolve));
    // Only here, with the namespaces and their mounts gone, is it safe to remove the directory.
    rmSync(work, { recursive: true, force: true });
    assert.equal(code, 0, output);
  });
}
