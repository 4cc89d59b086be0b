// A person at the page: looks at what is shown, clicks, types. Knows nothing the page does not show.
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { settings } from "./settings.mjs";
import { Hopeless, until } from "./until.mjs";

/** People type slower than machines; the pause keeps the key events apart as a person's fingers do. */
const KEY_PAUSE_MS = 25;
/** More pixels than a caret has, fewer than a letter. */
const CARET_PX = 80;
const UI_MS = 15_000;
const FINAL = ["succeeded", "failed", "expired", "cancelled"];

export class Person {
  sessionId = null;
  /** What the page complained about. */
  messages = [];

  constructor(world, page) {
    this.world = world;
    this.page = page;
    page.on("console", (message) => {
      if (message.type() === "error") this.messages.push(message.text());
    });
    page.on("pageerror", (error) => this.messages.push(`uncaught: ${error.message}`));
  }

  async openLink(link) {
    await this.page.goto(link);
    await this.page.getByRole("heading", { name: "Choose a tool" }).waitFor({ timeout: UI_MS });
  }

  /** Chooses a tool on the start page as `user`; the page of the session opens. */
  async choose(provider, user) {
    const field = this.page.getByLabel("Sign in as workspace user");
    await field.fill(user);
    await this.page.locator(`[data-provider="${provider}"]`).click();
    await this.page.waitForURL(/\/session\//, { timeout: UI_MS });
    this.sessionId = new URL(this.page.url()).pathname.split("/").at(-1);
  }

  /** Waits until the page shows that state; any other final state makes waiting hopeless. */
  async sees(state, deadlineMs) {
    const shown = () => this.page.getByTestId("session").getAttribute("data-state", { timeout: 2_000 });
    await until(
      `the page shows "${state}"`,
      async () => {
        const now = await shown();
        if (now !== state && FINAL.includes(now)) throw new Hopeless(`the sign-in ended as ${now}: ${JSON.stringify((await this.world.session(this.sessionId))?.error)}`);
        return now === state;
      },
      { deadlineMs, seen: async () => `It shows: ${await this.advice()}. ${JSON.stringify((await this.world.session(this.sessionId))?.steps)}` },
    );
    await this.world.session(this.sessionId);
  }

  /** Waits until the step has a tick. */
  async seesStep(step, deadlineMs) {
    await this.page.locator(`[data-step="${step}"].done`).waitFor({ timeout: deadlineMs });
  }

  advice() {
    return this.page.getByTestId("spoken").innerText({ timeout: 2_000 });
  }

  // -- the live browser ---------------------------------------------------------------------------------------------

  /** The live browser's element; what is in its shadow tree is the viewer's own. */
  get screen() {
    return this.page.getByTestId("screen");
  }

  /** A few figures of the streamed picture, whichever lane brings it: its size, how many pixels are white, how many of a warning's pale red, and how many changed since the last look. Video is not exact: colours are taken with some tolerance. */
  picture() {
    return this.screen.evaluate((screen) => {
      const front = screen.shadowRoot.querySelector("[data-front]");
      const source = front.matches("video, canvas") ? front : front.querySelector("canvas");
      const [width, height] = source.matches("video") ? [source.videoWidth, source.videoHeight] : [source.width, source.height];
      const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
      copy.drawImage(source, 0, 0);
      const { data } = copy.getImageData(0, 0, width, height);
      const TOLERANCE = 24;
      let white = 0;
      let warning = 0;
      let changed = 0;
      const last = window.lastPicture?.length === data.length ? window.lastPicture : null;
      window.lastPicture = data;
      for (let at = 0; at < data.length; at += 4) {
        const [red, green, blue] = [data[at], data[at + 1], data[at + 2]];
        if (red > 246 && green > 246 && blue > 246) white += 1;
        // The pale red box of the sign-in page's error.
        if (red > 240 && green > 222 && green < 245 && Math.abs(green - blue) < 10 && red - green > 9) warning += 1;
        const near = (other, value) => Math.abs(other - value) <= TOLERANCE;
        if (last === null || !near(last[at], red) || !near(last[at + 1], green) || !near(last[at + 2], blue)) changed += 1;
      }
      return { width, height, white, warning, changed };
    });
  }

  /** Waits until the picture fits; `what` words it. */
  seesPicture(what, fits, deadlineMs) {
    return until(`the picture shows ${what}`, async () => {
      const picture = await this.picture();
      return fits(picture) ? picture : null;
    }, { deadlineMs, seen: async () => JSON.stringify(await this.picture()) });
  }

  /** Waits until nothing but a blinking caret moves in the picture: a page that still builds up drops keys. */
  async seesStillPicture(deadlineMs) {
    let still = 0;
    await until("the picture stands still", async () => {
      const { changed } = await this.picture();
      still = changed <= CARET_PX ? still + 1 : 0;
      return still >= this.world.limits.stillLooks;
    }, { deadlineMs, seen: async () => JSON.stringify(await this.picture()) });
  }

  /** Gives the live browser the keyboard, without clicking anything in it. */
  async focusLiveBrowser() {
    await this.screen.evaluate((screen) => screen.focus());
  }

  /** Waits until the live browser comes by that lane. */
  async seesLane(lane, deadlineMs) {
    const shown = () => this.screen.evaluate((screen) => ({ ...screen.dataset }));
    await until(`the live browser comes by ${lane}`, async () => {
      const { lane: now, phase } = await shown();
      return now === lane && phase === "live";
    }, { deadlineMs, seen: async () => JSON.stringify(await shown()) });
  }

  /** Clicks a place of the desktop, given as a share of its width and height. */
  async clickAt(x, y, options) {
    const box = await this.screen.evaluate((screen) => {
      const front = screen.shadowRoot.querySelector("[data-front]");
      const { left, top, width, height } = (front.matches("video, canvas") ? front : front.querySelector("canvas")).getBoundingClientRect();
      return { left, top, width, height };
    });
    await this.page.mouse.click(box.left + x * box.width, box.top + y * box.height, options);
  }

  async type(text) {
    await this.page.keyboard.type(text, { delay: KEY_PAUSE_MS });
  }

  async press(key) {
    await this.page.keyboard.press(key, { delay: KEY_PAUSE_MS });
  }

  // -- the terminal -------------------------------------------------------------------------------------------------

  terminalText() {
    return this.page.locator("[data-testid=terminal] .xterm-rows").evaluate((rows) => [...rows.children].map((row) => row.textContent.replaceAll("\u00a0", " ").trimEnd()).join("\n"));
  }

  /** Types a command and waits for `expected` below it. */
  async runs(command, expected, deadlineMs) {
    const seen = () => this.terminalText();
    await until("the terminal shows a prompt", async () => /[$#>] ?$/m.test(await seen()), { deadlineMs, seen });
    await this.page.locator("[data-testid=terminal] textarea").focus();
    await this.type(command);
    await until("the terminal shows the command", async () => (await seen()).replaceAll("\n", "").includes(command), { deadlineMs, seen });
    await this.press("Enter");
    return until(`${command} prints ${expected}`, async () => expected.exec((await seen()).split(command).at(-1)), { deadlineMs, seen });
  }

  /** Keeps a picture of the page for the documentation, if one is asked for; the first of each name stays. */
  async keepScreenshot(name) {
    if (settings.screenshots === "" || existsSync(join(settings.screenshots, `${name}.png`))) return;
    mkdirSync(settings.screenshots, { recursive: true });
    await this.page.screenshot({ path: join(settings.screenshots, `${name}.png`) });
  }
}
