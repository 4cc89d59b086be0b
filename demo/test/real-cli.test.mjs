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
const SCENARIOS = ['codex', 'codex-device', 'claude', 'claude-paste', 'gemini', 'wrangler', 'gh', 'demo', 'chromium'];

for (const name of SCENARIOS) {
  test(`${name} signs in for real`, { skip: missing() ?? false, timeout: 240_000 }, async () => {
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
