import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { existsSync, readdirSync } from "node:fs";
import { findLeaks } from "../play/leaks.mjs";
import { limitsOf } from "../play/settings.mjs";
import { Terminal } from "../play/terminal.mjs";
import { until } from "../play/until.mjs";
import { World } from "../play/world.mjs";

const limits = limitsOf("container");
const NOTE = "FAKE-note-from-before-the-crash";
const SIGNED_IN = /Logged in using/;
let world;
/** Somebody who signed in before all crashes: must never lose anything. */
let keeper;

before(async () => {
  // With network devices: what is adopted here is more than what the other tests' VMs have.
  world = await World.start({ browser: false, env: { POLYDEV_SLOTS: "10", POLYDEV_NETWORK: "auto" } });
  // The sign-in page sends everybody on by itself: no person is needed.
  await world.setDemo({ outcome: "allow" });
  const session = await closed(await start("e2e-keeper"));
  assert.equal(session.state, "succeeded", JSON.stringify(session.error));
  assert.match(world.controller.output, /network chosen.*network="tap"/);
  keeper = { vm: session.cliVmId, credentials: await credentials("e2e-keeper") };
  assert.equal(keeper.credentials.length, 1);
  await inTerminal(keeper.vm, async (terminal) => {
    await terminal.runs("codex login status", SIGNED_IN, limits.terminal);
    await terminal.runs(`echo ${NOTE} > note; echo kept-$?`, /^kept-0/m, limits.terminal);
  });
}, { timeout: limits.test });

after(async () => {
  assert.deepEqual(await world?.stop(), [], "nothing is left on the machine");
}, { timeout: limits.finish });

for (const step of ["vm_requested", "vm_ready", "url_captured", "desktop_ready"]) {
  test(`a controller killed at ${step}: the sign-in is over as interrupted, all else goes on`, { timeout: limits.test }, async () => {
    const user = `e2e-${step.replace("_", "-")}`;
    const id = await start(user);
    await reaches(id, step);
    await world.crashController();
    await world.startController();
    const session = await closed(id);
    assert.deepEqual([session.state, session.error?.code], ["failed", "interrupted"], JSON.stringify(session));
    assert.ok(session.steps.some((entry) => entry.step === step), "what was reached before is still known");
    assert.deepEqual(await credentials(user), []);
    await browserVmIsGone(session);
    await keeperHasLostNothing();
  });
}

for (const step of ["sealed", "transferred"]) {
  test(`a controller killed at ${step}: the sign-in succeeds after the restart`, { timeout: limits.test }, async () => {
    const user = `e2e-${step}`;
    const id = await start(user);
    await reaches(id, step);
    await world.crashController();
    await succeedsAfterRestart(id, user);
  });
}

test("a controller killed while it makes the CLI VM: the sign-in succeeds after the restart, in a VM made anew", { timeout: limits.test }, async () => {
  const user = "e2e-cli-vm";
  const id = await start(user);
  const { browserVmId } = await reaches(id, "vm_requested");
  const before = new Set([...machineVms(), browserVmId]);
  const halfMade = await until("a CLI VM is being made", () => machineVms().find((vm) => !before.has(vm)), { deadlineMs: limits.page, everyMs: 2 });
  world.vmIds.add(halfMade);
  await world.crashController();
  const session = await succeedsAfterRestart(id, user);
  if (session.cliVmId !== halfMade) await goneFromTheMachine(halfMade);
});

test("a controller told to end during a sign-in leaves nothing but CLI VMs", { timeout: limits.test }, async () => {
  const user = "e2e-term";
  const id = await start(user);
  const { browserVmId } = await reaches(id, "vm_ready");
  const wanted = machineVms().filter((vm) => vm !== browserVmId).sort();
  await world.controller.stop("SIGTERM");
  assert.deepEqual(world.controller.ended, { code: 0, signal: null });
  assert.deepEqual(machineVms().sort(), wanted, "only CLI VMs are left");
  await goneFromTheMachine(browserVmId);
  await world.startController();
  const session = await closed(id);
  assert.deepEqual([session.state, session.error?.code], ["failed", "interrupted"], JSON.stringify(session));
  await keeperHasLostNothing();
});

async function start(user) {
  const { status, json, text } = await world.api("POST", "/api/auth/start", { userId: user, provider: "codex" });
  assert.equal(status, 200, text);
  return json.sessionId;
}

/** Follows the session's events, so that the step is seen as soon as it is there. */
async function reaches(id, step) {
  const response = await fetch(`${world.origin}/api/auth/session/${id}/events`, {
    headers: { authorization: `Bearer ${world.apiToken}` },
    signal: AbortSignal.timeout(limits.page),
  });
  let text = "";
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = /^data: ?(.*)$/m.exec(event)?.[1];
      if (!data) continue;
      const session = JSON.parse(data);
      if (session.browserVmId) world.vmIds.add(session.browserVmId);
      if (session.steps.some((entry) => entry.step === step)) return session;
      assert.ok(!session.closed, `the sign-in ended before ${step}: ${data}`);
    }
  }
  throw new Error(`the events ended before ${step}`);
}

function closed(id) {
  return until("the sign-in is closed", async () => {
    const session = await world.session(id);
    return session?.closed ? session : null;
  }, { deadlineMs: limits.page, seen: async () => JSON.stringify(await world.session(id)) });
}

async function credentials(user) {
  return (await world.api("GET", `/api/credentials?userId=${user}`)).json.credentials;
}

async function succeedsAfterRestart(id, user) {
  await world.startController();
  const session = await closed(id);
  assert.deepEqual([session.state, session.error], ["succeeded", null], JSON.stringify(session));
  assert.equal((await credentials(user)).length, 1);
  await inTerminal(session.cliVmId, (terminal) => terminal.runs("codex login status", SIGNED_IN, limits.terminal));
  await browserVmIsGone(session);
  await keeperHasLostNothing();
  return session;
}

async function keeperHasLostNothing() {
  assert.deepEqual(await credentials("e2e-keeper"), keeper.credentials);
  const vm = (await world.api("GET", `/api/vms/${keeper.vm}`)).json;
  assert.equal(vm.state, "running", "the CLI VM was taken over");
  await inTerminal(keeper.vm, (terminal) => terminal.runs("cat note; codex login status", new RegExp(`${NOTE}[^]*${SIGNED_IN.source}`), limits.terminal));
}

async function inTerminal(vmId, what) {
  const terminal = await Terminal.open(world, vmId, limits.terminal);
  try {
    return await what(terminal);
  } finally {
    terminal.close();
  }
}

async function browserVmIsGone(session) {
  const { vms } = (await world.api("GET", "/api/vms")).json;
  assert.ok(vms.every((vm) => vm.kind === "cli"), JSON.stringify(vms));
  assert.deepEqual(vms.map((vm) => vm.id).sort(), machineVms().sort(), "the machine has the VMs that are listed, and no others");
  if (session.browserVmId) await goneFromTheMachine(session.browserVmId);
}

async function goneFromTheMachine(vmId) {
  const look = () => findLeaks(world.before, { dir: vmId, vmIds: new Set([vmId]) });
  await until("nothing of the VM is left", () => look().length === 0, { deadlineMs: limits.finish, seen: () => look().join("\n") });
}

/** VMs that the machine has something of. */
function machineVms() {
  const dir = world.path("run/vm");
  return existsSync(dir) ? readdirSync(dir) : [];
}
