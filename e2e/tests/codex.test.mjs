import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { reachSignInPage, seesSignedIn, signInByHand, story } from "../play/sign-in.mjs";
import { limitsOf } from "../play/settings.mjs";
import { World } from "../play/world.mjs";

const limits = limitsOf("container");
let world;

before(async () => {
  world = await World.start();
});

after(async () => {
  assert.deepEqual(await world?.stop(), [], "nothing is left on the machine");
}, { timeout: limits.finish });

test("a person signs in to codex through the live browser and codex says so in the terminal", { timeout: limits.test }, () =>
  story(world, "codex", async (person) => {
    await reachSignInPage(person, { provider: "codex", user: "ada" });
    await signInByHand(person);
    await seesSignedIn(person, { status: "codex login status", signedIn: /Logged in/ });
    await person.keepScreenshot("terminal");
  }),
);
