import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { reachSignInPage, seesSignedIn, signInByHand, story } from "../play/sign-in.mjs";
import { limitsOf } from "../play/settings.mjs";
import { Hopeless, until } from "../play/until.mjs";
import { World } from "../play/world.mjs";

const limits = limitsOf("qemu");
let world;

before(async () => {
  world = await World.start({ driver: "qemu" });
  // Each world has a certificate authority of its own in its guests, so no snapshot of an earlier run fits.
  await until("browser VMs start from a snapshot", async () => {
    const { fastStart } = (await world.api("GET", "/health")).json;
    if (fastStart === "failed") throw new Hopeless(`no snapshot could be made:\n${world.controller.output.slice(-4000)}`);
    return fastStart === "ready";
  }, { deadlineMs: limits.snapshot, seen: () => world.controller.output.slice(-4000) });
}, { timeout: limits.snapshot + limits.page });

after(async () => {
  assert.deepEqual(await world?.stop(), [], "nothing is left on the machine");
}, { timeout: limits.finish });

test("a person signs in to codex in a real VM that was restored from a snapshot", { timeout: limits.test }, () =>
  story(world, "qemu-codex", async (person) => {
    await reachSignInPage(person, { provider: "codex", user: "e2e-qemu" });
    await signInByHand(person);
    const session = await seesSignedIn(person, { status: "codex login status", signedIn: /Logged in/ });
    console.log(`steps: ${session.steps.map(({ step, atMs }) => `${step} ${atMs} ms`).join(", ")}`);

    const health = (await world.api("GET", "/health")).json;
    assert.match(health.driver, /^qemu/);
    assert.equal(health.sharedKernel, false);
    assert.ok(session.steps.some((entry) => entry.step === "desktop_ready"));

    const logOf = async (vm, kind) => (await world.api("GET", `/api/vms/${vm}/logs/${kind}`)).text;
    assert.match(await logOf(session.browserVmId, "driver"), /^restored from template [0-9a-f]{16}$/m);
    const agent = await logOf(session.browserVmId, "agent");
    assert.match(agent, /page: handed over$/m, "the browser of the snapshot took the page");
    assert.doesNotMatch(agent, /opened again/, "the page was opened once");
    assert.doesNotMatch(await logOf(session.cliVmId, "driver"), /restored/, "a workspace boots from its own disk");
  }),
);

test("a browser VM that is killed while the person types ends the sign-in with the reason", { timeout: limits.test }, () =>
  story(world, "qemu-killed", async (person) => {
    await reachSignInPage(person, { provider: "codex", user: "e2e-qemu-killed" });
    const { browserVmId } = await world.session(person.sessionId);
    await person.focusLiveBrowser();
    await person.type("de");
    process.kill(qemuOf(browserVmId), "SIGKILL");
    await person.sees("failed", limits.finish);
    const session = await world.session(person.sessionId);
    assert.equal(session.error.code, "vm_lost");
    await person.seesStep("closed", limits.finish);
    const vms = (await world.api("GET", "/api/vms")).json.vms;
    assert.ok(!vms.some((vm) => vm.id === browserVmId), "the VM is gone");
  }),
);

/** The process that runs a VM: named by its environment. */
function qemuOf(vmId) {
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const isQemu = readFileSync(`/proc/${pid}/comm`, "utf8").startsWith("qemu");
      if (isQemu && readFileSync(`/proc/${pid}/environ`, "utf8").includes(vmId)) return Number(pid);
    } catch {
      // It ended while it was looked at.
    }
  }
  throw new Error(`no process of VM ${vmId}`);
}
