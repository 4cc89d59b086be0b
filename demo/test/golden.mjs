// The recorded requests of each CLI. A difference after a version bump is the first sign that something changed.
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { AGENT } from './scripted-browser.mjs';

/**
 * Compares journal lines with `golden/NAME.json`. What the program and what the browser asked are told apart, as
 * their order against each other is chance; each in itself has to be equal, repeats in a row told once. What the demo
 * answers with 404 (telemetry and the like) is listed apart and may only shrink.
 */
export function assertGolden(name, lines) {
  const file = new URL(`./golden/${name}.json`, import.meta.url);
  const text = ({ method, host, path, grant, status }) => `${method} ${host}${path}${grant ? ` [${grant}]` : ''} -> ${status}`
    // A key of the vendor's feature flags, another one in each build.
    .replace(/\/sdk-\w+/, '/sdk-*');
  const sorted = lines.toSorted((a, b) => a.time.localeCompare(b.time));
  const once = (list) => list.map(text).filter((line, i, all) => line !== all[i - 1]);
  const known = sorted.filter(({ status }) => status !== 404);
  const seen = {
    program: once(known.filter(({ agent }) => agent !== AGENT)),
    browser: once(known.filter(({ agent }) => agent === AGENT)),
    ignored: [...new Set(sorted.filter(({ status }) => status === 404).map(text))].sort(),
  };
  if (process.env.UPDATE_GOLDEN) writeFileSync(file, `${JSON.stringify(seen, null, 2)}\n`);
  assert.ok(existsSync(file), `no golden file for ${name}; run once with UPDATE_GOLDEN=1`);
  const golden = JSON.parse(readFileSync(file, 'utf8'));
  assert.deepEqual(seen.program, golden.program);
  assert.deepEqual(seen.browser, golden.browser);
  assert.deepEqual(seen.ignored.filter((line) => !golden.ignored.includes(line)), [], 'requests never seen before');
}
