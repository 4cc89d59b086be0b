import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { reachSignInPage, seesSignedIn, signInByHand, story } from "../play/sign-in.mjs";
import { limitsOf } from "../play/settings.mjs";
import { World } from "../play/world.mjs";

const limits = limitsOf("qemu");
let world;

before(async () => {
  world = await World.start({ driver: "qemu" });
}, { timeout: limits.page });

after(async () => {
  assert.deepEqual(await world?.stop(), [], "nothing is left on the machine");
}, { timeout: limits.finish });

test("a person signs in to codex in a real VM that was restored from a snapshot", { timeout: limits.test }, () =>
  story(world, "qemu-codex", async (person) => {
    await reachSignInPage(person, { provider: "codex", user: "e2e-qemu" });
    await signInByHand(person);
    const session = await seesSignedIn(person, { status: "codex login status", signedIn: /Logged in/ });
    const health = (await world.api("GET", "/health")).json;
    assert.match(health.driver, /^qemu/);
    assert.equal(health.sharedKernel, false);
    assert.ok(session.steps.some((entry) => entry.step === "desktop_ready"));
  }),
);
