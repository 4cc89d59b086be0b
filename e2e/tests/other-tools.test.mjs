import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { approveDeviceCode, reachSignInPage, seesSignedIn, signInByHand, story } from "../play/sign-in.mjs";
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

test("claude is signed in through the live browser", { timeout: limits.test }, () =>
  story(world, "claude", async (person) => {
    await reachSignInPage(person, { provider: "claude", user: "e2e-claude" });
    await signInByHand(person);
    await seesSignedIn(person, { status: "claude auth status", signedIn: /"loggedIn":\s*true/ });
  }),
);

test("gemini is signed in through the live browser", { timeout: limits.test }, () =>
  story(world, "gemini", async (person) => {
    await reachSignInPage(person, { provider: "gemini", user: "e2e-gemini" });
    await signInByHand(person);
    await seesSignedIn(person, { status: "grep -c refresh_token ~/.gemini/oauth_creds.json", signedIn: /^1$/m });
  }),
);

test("wrangler is signed in through the live browser", { timeout: limits.test }, () =>
  story(world, "wrangler", async (person) => {
    await reachSignInPage(person, { provider: "wrangler", user: "e2e-wrangler" });
    await signInByHand(person);
    // The account is what stays on the screen: the sentence above it may have scrolled away under the scopes.
    await seesSignedIn(person, { status: "wrangler whoami", signedIn: /Demo User's account/ });
  }),
);

test("gh shows its page and code, and is signed in once the code is approved on another device", { timeout: limits.test }, () =>
  story(world, "gh", async (person) => {
    await person.choose("gh", "e2e-gh");
    await person.sees("awaiting_user", limits.page);
    const { code, address } = await approveDeviceCode(person, { host: "github.com" });
    assert.match(code, /^[A-Z0-9]{4}-[A-Z0-9]{4}$/);
    assert.equal(address, "https://github.com/login/device");
    await seesSignedIn(person, { status: "gh auth status", signedIn: /Logged in to github\.com/ });
  }),
);

test("the demo tool is signed in through the live browser", { timeout: limits.test }, () =>
  story(world, "demo", async (person) => {
    const page = { method: "GET", host: "id.polydev.test", path: /^\/interaction\//, status: 200 };
    await reachSignInPage(person, { provider: "demo", user: "e2e-demo", page });
    await signInByHand(person, { post: { method: "POST", host: "id.polydev.test", path: /^\/interaction\// } });
    await seesSignedIn(person, { status: "polydev-demo status", signedIn: /Signed in as/ });
  }),
);
