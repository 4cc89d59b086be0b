import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { reachSignInPage, seesSignedIn, signInByHand, story } from "../play/sign-in.mjs";
import { limitsOf } from "../play/settings.mjs";
import { World } from "../play/world.mjs";

const limits = limitsOf("container");
/** Chosen for the person's window; a VM that waits has a desktop for nobody's in particular. */
const MARGIN_PX = 2;
let world;

before(async () => {
  world = await World.start({ env: { POLYDEV_WARM_BROWSER_VMS_HIGH: "1" } });
});

after(async () => {
  assert.deepEqual(await world?.stop(), [], "nothing is left on the machine, not even the VM that waited for the next person");
}, { timeout: limits.finish });

test("a person is given a VM that waited, its desktop gets the window's size, and the sign-in succeeds in it", { timeout: limits.test }, () =>
  story(world, "warm-vm", async (person) => {
    const [, warm] = await world.controller.says(/VM is warm .*?vm\.id=([0-9a-f-]{36})/, limits.page);
    world.vmIds.add(warm);
    await person.page.setViewportSize({ width: 1000, height: 1100 });
    await reachSignInPage(person, { provider: "codex", user: "wanda" });
    const session = await world.session(person.sessionId);
    assert.equal(session.browserVmId, warm, "it is the one that was there before");
    const box = await person.screen.boundingBox();
    const fits = ({ width, height }) => Math.abs(width - box.width) <= MARGIN_PX && Math.abs(height - box.height) <= MARGIN_PX;
    const { width } = await person.seesPicture("a desktop as large as its place in the page", fits, limits.input);
    assert.ok(width < 1000, "the window is narrower than the desktop was");
    await signInByHand(person);
    await seesSignedIn(person, { status: "codex login status", signedIn: /Logged in/ });
    await world.controller.says(/(VM is warm [^]*){2}/, limits.page);
  }),
);
