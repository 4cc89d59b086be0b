// Host and controller as two processes, the controller without any privilege.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { copyFileSync, readFileSync } from "node:fs";
import { reachSignInPage, seesSignedIn, signInByHand, story } from "../play/sign-in.mjs";
import { limitsOf, settings } from "../play/settings.mjs";
import { Terminal } from "../play/terminal.mjs";
import { until } from "../play/until.mjs";
import { World } from "../play/world.mjs";

const limits = limitsOf("container");
const SIGNED_IN = /Logged in using/;
const NOTE = "FAKE-note-of-before";
let world;

before(async () => {
  world = await World.start({ apart: true });
}, { timeout: limits.test });

after(async () => {
  assert.deepEqual(await world?.stop(), [], "nothing is left on the machine");
}, { timeout: limits.finish });

test("a person signs in through a controller that may do nothing but talk", { timeout: limits.test }, async () => {
  const status = readFileSync(`/proc/${world.controller.pid}/status`, "utf8");
  assert.match(status, /^Uid:\t65534\t65534\t65534\t65534$/m);
  assert.match(status, /^CapEff:\t0+$/m);
  assert.match(status, /^CapPrm:\t0+$/m);
  await story(world, "codex", async (person) => {
    await reachSignInPage(person, { provider: "codex", user: "ada" });
    await signInByHand(person);
    await seesSignedIn(person, { status: "codex login status", signedIn: /Logged in/ });
  });
});

test("a host process killed during a sign-in: terminals go on, and so does the sign-in", { timeout: limits.test }, async () => {
  const cli = await cliVm();
  const terminal = await Terminal.open(world, cli.id, limits.terminal);
  try {
    await terminal.runs(`echo ${NOTE} > note; echo kept-$?`, /^kept-0/m, limits.terminal);
    // From here on the sign-in page sends everybody on by itself.
    await world.setDemo({ outcome: "allow" });
    const id = await start("ada");
    await until("the browser VM answers", async () => (await world.session(id)).steps.some(({ step }) => step === "vm_ready"), { deadlineMs: limits.page });
    await world.crashHost();
    await terminal.runs("cat note", new RegExp(NOTE), limits.terminal);
    const away = await world.api("POST", "/api/vms", { userId: "e2e-somebody-else" });
    assert.deepEqual([away.status, away.json?.code], [503, "host_unavailable"], away.text);
    assert.ok(Number(away.headers.get("retry-after")) > 0);
    assert.equal((await world.api("GET", "/api/vms")).status, 200, "what is there is still told");
    await world.startHost();
    const session = await closed(id);
    assert.deepEqual([session.state, session.error], ["succeeded", null], JSON.stringify(session));
    await terminal.runs("codex login status", SIGNED_IN, limits.terminal);
  } finally {
    terminal.close();
  }
});

test("a controller that is killed: the host process goes on and the next controller takes its VMs over", { timeout: limits.test }, async () => {
  const cli = await cliVm();
  await world.crashController();
  await world.startController();
  assert.equal(world.host.ended, null);
  const vm = (await world.api("GET", `/api/vms/${cli.id}`)).json;
  assert.equal(vm.state, "running");
  const terminal = await Terminal.open(world, cli.id, limits.terminal);
  await terminal.runs("cat note; codex login status", new RegExp(`${NOTE}[^]*${SIGNED_IN.source}`), limits.terminal);
  terminal.close();
});

test("an upgrade: the host process is told to end, a new program takes its place, VMs do not notice", { timeout: limits.test }, async () => {
  const cli = await cliVm();
  const terminal = await Terminal.open(world, cli.id, limits.terminal);
  try {
    await terminal.runs("(sleep 600; echo FAKE) & echo began-$?", /^began-0/m, limits.terminal);
    const next = world.path("polydev-next");
    copyFileSync(settings.polydev, next);
    await world.host.stop("SIGTERM");
    assert.deepEqual(world.host.ended, { code: 0, signal: null }, "it ends by itself, in order");
    await terminal.runs("cat note", new RegExp(NOTE), limits.terminal);
    await world.startHost(next);
    await terminal.runs("jobs", /Running/, limits.terminal);
    const vm = (await world.api("GET", `/api/vms/${cli.id}`)).json;
    assert.equal(vm.state, "running");
    const other = await until("the new one makes VMs", async () => {
      const made = await world.api("POST", "/api/vms", { userId: "e2e-after-upgrade" });
      return made.status === 503 ? null : made;
    }, { deadlineMs: limits.page });
    assert.equal(other.status, 200, other.text);
  } finally {
    terminal.close();
  }
});

async function cliVm() {
  const { json } = await world.api("GET", "/api/vms");
  return json.vms.find((vm) => vm.kind === "cli" && vm.userId === "ada");
}

async function start(user) {
  const { status, json, text } = await world.api("POST", "/api/auth/start", { userId: user, provider: "codex" });
  assert.equal(status, 200, text);
  return json.sessionId;
}

function closed(id) {
  return until("the sign-in is closed", async () => {
    const session = await world.session(id);
    return session?.closed ? session : null;
  }, { deadlineMs: limits.page, seen: async () => JSON.stringify(await world.session(id)) });
}
