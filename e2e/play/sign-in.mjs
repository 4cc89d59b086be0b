// The ways a person goes through a sign-in, from the tool's card to its status command in the terminal.
import assert from "node:assert/strict";
import { Hopeless, until } from "./until.mjs";

export const SIGN_IN_PATH = "/polydev-demo/sign-in";
const USER = "demo";
const PASSWORD = "demo-password";
const WRONG_PASSWORD = "Not-My_Pa$$word!";

/** Opens the live browser of `provider` and waits for the sign-in page in it. `page` is what the demo network is asked for then. */
export async function reachSignInPage(person, { provider, user, page = { method: "GET", path: SIGN_IN_PATH, status: 200 } }) {
  const { world } = person;
  const skip = world.requests().length;
  await person.choose(provider, user);
  await person.keepScreenshot("waiting");
  await person.sees("awaiting_user", world.limits.page);
  await world.request("the sign-in page was asked for", page, world.limits.page, skip);
  await person.seesPicture("a painted page", ({ white, width, height }) => white > width * height * 0.05, world.limits.input);
  await person.seesStillPicture(world.limits.input);
}

/** Types user name and password into the live browser: a wrong password first, then the right one; then consents. */
export async function signInByHand(person, { post = { method: "POST", path: SIGN_IN_PATH } } = {}) {
  const { world } = person;
  const { input } = world.limits;
  const skip = world.requests().length;
  const before = await person.picture();

  await person.focusLiveBrowser();
  await person.type(USER);
  await person.press("Tab");
  await person.type(WRONG_PASSWORD);
  await person.seesStillPicture(input);
  await person.keepScreenshot("live-browser");
  await person.press("Enter");
  await world.request("the wrong password was sent", { ...post, status: 401 }, input, skip);
  const refused = await person.seesPicture("that the password was wrong", ({ warning }) => warning > before.warning + 400, input);
  await person.seesStillPicture(input);

  await person.type(PASSWORD);
  await person.press("Enter");
  await world.request("the right password was sent", { ...post, status: 303 }, input, skip);
  await person.seesPicture("the consent page", ({ warning }) => warning < refused.warning / 2, input);
  await person.seesStillPicture(input);
  await person.press("Enter");
}

/** Waits for the result and asks the tool itself, in the web terminal, whether it is signed in. */
export async function seesSignedIn(person, { status, signedIn }) {
  const { world } = person;
  await person.sees("succeeded", world.limits.finish);
  await person.runs(status, signedIn, world.limits.terminal);
  await person.seesStep("closed", world.limits.finish);
  const session = await world.session(person.sessionId);
  assert.equal(session.error, null);
  const vms = (await world.api("GET", "/api/vms")).json.vms;
  assert.ok(!vms.some((vm) => vm.id === session.browserVmId), "the browser VM is gone");
  assert.ok(vms.some((vm) => vm.id === session.cliVmId), "the CLI VM stays");
  const times = session.steps.map((entry) => entry.atMs);
  assert.deepEqual(times, [...times].sort((a, b) => a - b), "the steps' times never go back");
  return session;
}

/** Approves a device code on the person's own device: another browser, which reaches the demo network under the real name. */
export async function approveDeviceCode(person, { host }) {
  const { world } = person;
  const { page } = person;
  const code = (await page.getByTestId("device-code").innerText()).trim();
  const address = await page.getByTestId("device-url").getAttribute("href");
  const device = await world.launchBrowser([`--host-resolver-rules=MAP ${host} 127.0.0.1:${world.demoPorts.httpsPort}`]);
  const own = await (await device.newContext({ ignoreHTTPSErrors: true })).newPage();
  await own.goto(address);
  await own.locator("input[name=username]").fill(USER);
  await own.locator("input[name=password]").fill(PASSWORD);
  await own.locator("button[type=submit]").click();
  await own.locator("input[name=user_code]").fill(code);
  await own.locator("button[type=submit]").click();
  await own.getByRole("button", { name: "Allow" }).click();
  await until("the device is connected", async () => !(await own.getByRole("button", { name: "Allow" }).isVisible()), { deadlineMs: world.limits.input });
  return { code, address };
}

/** Runs a test's story; if it fails, keeps what helps to understand it. */
export async function story(world, name, tell) {
  const person = await world.person();
  try {
    return await tell(person);
  } catch (error) {
    const dir = await world.keepRemains(name, person).catch((cause) => `(nothing kept: ${cause.message})`);
    const Kind = error instanceof Hopeless ? Hopeless : Error;
    throw new Kind(`${error.message}\nWhat is left of it: ${dir}`, { cause: error });
  } finally {
    await person.page.close();
  }
}
