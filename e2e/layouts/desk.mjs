// A person at a desk of its own: an X display with real keys and a Chromium on it, in front of the live browser.
import { existsSync } from "node:fs";
import { TooLate, until } from "../play/until.mjs";
import { World } from "../play/world.mjs";
import { Compose } from "./compose.mjs";
import { X_PROGRAMS, XServer } from "./xserver.mjs";

const WINDOW_CLASS = "chromium";
const TYPING_PATH = "/polydev-demo/typing";
/** 100 strokes a second are more than anybody types. */
const STROKE_PAUSE_MS = 8;
/** An address that is marked changes more pixels than a caret. */
const ADDRESS_PX = 400;

export class Desk {
  static async start() {
    const missing = X_PROGRAMS.filter((path) => !existsSync(path));
    if (missing.length > 0) throw new Error(`missing: ${missing.join(", ")}; \`make setup\` brings them`);
    const desk = new Desk();
    desk.compose = new Compose();
    desk.display = await XServer.start();
    try {
      desk.world = await World.start({ browser: false });
      const flags = ["--window-position=0,0", "--window-size=1280,900"];
      desk.world.browser = await desk.world.launchBrowser(flags, { headless: false, env: desk.display.env });
      desk.world.context = await desk.world.browser.newContext({ viewport: null });
    } catch (error) {
      await desk.world?.stop().catch(() => {});
      await desk.display.close();
      throw error;
    }
    return desk;
  }

  /** What is left on the machine. */
  async stop() {
    try {
      return await this.world.stop();
    } finally {
      await this.display.close();
    }
  }

  /** Puts a keyboard of that layout on the desk. */
  async layout(name) {
    this.keymap = await this.display.layout(name, this.compose);
    return this.keymap;
  }

  /** Types with the keys of the layout into whatever has the focus on the desk. */
  async type(characters) {
    const strokes = characters.flatMap((character) => this.keymap.ways.get(character));
    await this.display.focus(WINDOW_CLASS);
    await this.display.type(strokes, STROKE_PAUSE_MS);
  }

  /** Types into the typing page in the desk's own browser: what that browser makes of the keys. */
  async typedAtHome(id, characters) {
    const page = await this.world.context.newPage();
    try {
      await page.goto(`http://127.0.0.1:${this.world.demoPorts.httpPort}${TYPING_PATH}?id=${id}`);
      await page.locator("textarea").focus();
      await this.type(characters);
      return await this.#arrived(id, characters.join(""));
    } finally {
      await page.close();
    }
  }

  /** Opens a typing page in the live browser, by its address bar. */
  async openTypingPage(person, id) {
    const { input } = this.world.limits;
    await this.#sitBefore(person);
    await person.seesStillPicture(input);
    await person.press("Control+l");
    // The page is asked before the shortcut acts: what is typed at once still goes to the page.
    await person.seesPicture("the address bar", ({ changed }) => changed > ADDRESS_PX, input);
    await person.type(`https://id.polydev.test${TYPING_PATH}?id=${id}`);
    await person.press("Enter");
    await until("the typing page is open in the live browser", async () => (await this.world.typed(id)) !== null, { deadlineMs: input });
  }

  /** Takes away everything that is in the typing page in the live browser, and gets ready to type. */
  async emptyTypingPage(person, id) {
    await this.#sitBefore(person);
    await person.press("Control+a");
    await person.press("Delete");
    await until("the typing page is empty", async () => (await this.world.typed(id)) === "", { deadlineMs: this.world.limits.input });
  }

  /** Gives the keyboard to the person's window: one that loses it between two keys lets go of everything. */
  async #sitBefore(person) {
    await person.page.bringToFront();
    await this.display.focus(WINDOW_CLASS);
    await until("the person's page has the focus", () => person.page.evaluate(() => document.hasFocus()), { deadlineMs: this.world.limits.input });
    await person.focusLiveBrowser();
  }

  /** What the page in the live browser has: `wanted`, or what was there when waiting was of no more use. */
  typedInVm(id, wanted) {
    return this.#arrived(id, wanted);
  }

  async #arrived(id, wanted) {
    const { world } = this;
    let last = "";
    let changed = performance.now();
    // A slow machine takes its time for hundreds of keys: what counts is that there is one more.
    const settled = async () => {
      const typed = await world.typed(id);
      if (typed !== last) [last, changed] = [typed, performance.now()];
      return last === wanted || performance.now() - changed > world.limits.input;
    };
    await until("the typed text arrives", settled, { deadlineMs: world.limits.test }).catch((error) => {
      if (!(error instanceof TooLate)) throw error;
    });
    return last;
  }
}
