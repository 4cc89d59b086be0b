// A second, independent implementation of WebRTC (aiortc, Python) watches and controls the live desktop.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { limitsOf } from "../play/settings.mjs";
import { SIGN_IN_PATH } from "../play/sign-in.mjs";
import { until } from "../play/until.mjs";
import { World } from "../play/world.mjs";

const PAGE = fileURLToPath(new URL("../aiortc/page.py", import.meta.url));
const TYPING_PAGE = "https://auth.openai.com/polydev-demo/typing";
const ID = "aiortc";
const TEXT = "aiortc: Grüße, 5 € & FAKE~secret";
/** An address that was not asked for within this time was not taken. */
const ASKED_MS = 15_000;
const python = process.env.POLYDEV_E2E_PYTHON ?? "";
const limits = limitsOf("container");
let world;

before(async () => {
  assert.ok(existsSync(python), "POLYDEV_E2E_PYTHON must name a Python with e2e/aiortc/requirements.txt: use cargo xtask e2e");
  world = await World.start({ browser: false });
});

after(async () => {
  assert.deepEqual(await world?.stop(), [], "nothing is left on the machine");
}, { timeout: limits.finish });

/** The program in Python: one order at a time, one answer to each. */
class Page {
  #errors = "";

  constructor(wish) {
    this.child = spawn(python, [PAGE], { stdio: ["pipe", "pipe", "pipe"] });
    this.child.stderr.on("data", (data) => (this.#errors += data));
    this.child.stdin.on("error", () => {});
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
    this.ended = new Promise((resolve) => {
      this.child.on("close", (code) => resolve(code));
      this.child.on("error", (error) => resolve(error.message));
    });
    this.#say(wish);
  }

  #say(what) {
    this.child.stdin.write(`${JSON.stringify(what)}\n`);
  }

  /** What the page answers next. */
  async answer() {
    const { value, done } = await this.lines.next();
    if (done) throw new Error(`the aiortc page ended with ${await this.ended}: ${this.#errors}`);
    const answer = JSON.parse(value);
    if (answer.error) throw new Error(answer.error);
    return answer;
  }

  async does(what, more = {}) {
    this.#say({ do: what, seconds: limits.input / 1000, ...more });
    return this.answer();
  }

  /** Ends the connection as a page that is left does; gives what went wrong with that. */
  async leave() {
    this.child.stdin.end();
    const late = setTimeout(() => this.child.kill("SIGKILL"), limits.finish);
    const code = await this.ended;
    clearTimeout(late);
    return code === 0 ? null : `it ended with ${code}: ${this.#errors}`;
  }
}

/** Leads the browser in the VM to a page that tells what is typed into it. */
async function openTypingPage(page) {
  const isOpen = async () => (await world.typed(ID)) !== null;
  // The browser may still be busy with another page and forget what was typed into its address bar.
  await until("the typing page is open", async () => {
    await page.does("press", { keys: ["Control", "l"] });
    await page.does("still");
    await page.does("type", { text: `${TYPING_PAGE}?id=${ID}` });
    await page.does("still");
    await page.does("press", { keys: ["Enter"] });
    return until("the address is asked for", isOpen, { deadlineMs: ASKED_MS }).catch(() => false);
  }, { deadlineMs: 2 * limits.input, seen: async () => JSON.stringify(await page.does("look")) });
  // Nothing but the empty field, which fills the window.
  await until("the typing page is shown", async () => {
    const { white, width, height } = await page.does("still");
    return white > width * height * 0.7;
  }, { deadlineMs: limits.input, seen: async () => JSON.stringify(await page.does("look")) });
}

test("aiortc plays the live desktop, and what is typed by it arrives in the VM", { timeout: limits.test }, async (t) => {
  const start = await world.api("POST", "/api/auth/start", { userId: "ada", provider: "codex" });
  assert.equal(start.status, 200, start.text);
  const id = start.json.sessionId;
  const session = () => world.session(id);
  await until("it is the person's turn", async () => (await session()).state === "awaiting_user", { deadlineMs: limits.page, seen: async () => JSON.stringify(await session()) });
  await world.request("the sign-in page was asked for", { method: "GET", path: SIGN_IN_PATH, status: 200 }, limits.page);

  const page = new Page({ origin: world.origin, token: world.apiToken, session: id });
  try {
    const first = await page.answer();
    t.diagnostic(`first picture: ${JSON.stringify(first)}`);
    assert.equal(first.hello.role, "control");
    assert.deepEqual([first.width, first.height], [first.hello.width, first.hello.height], "the picture has the desktop's size");
    assert.ok(first.width >= 320 && first.height >= 200, "a whole desktop");

    const { width, height } = first;
    await until("a painted page is shown", async () => (await page.does("still")).white > width * height * 0.05, { deadlineMs: limits.input, seen: async () => JSON.stringify(await page.does("look")) });
    await openTypingPage(page);
    await page.does("click", { x: 0.5, y: 0.6 });
    await page.does("still");
    const seen = await page.does("typeAndSee", { text: TEXT });
    t.diagnostic(`after typing: ${JSON.stringify(seen)}`);
    await until("exactly that has arrived", async () => (await world.typed(ID)) === TEXT, { deadlineMs: limits.input, seen: async () => JSON.stringify(await world.typed(ID)) });
    assert.ok(seen.changed > 0 && seen.changed < width * height * 0.2, "a line of text, not another page");
    assert.ok(seen.frames > first.frames, "more pictures");
    assert.equal(seen.refused, null, "nothing was refused");
    await until("typing counts as activity", async () => (await session()).steps.some(({ step }) => step === "user_active"), { deadlineMs: limits.input, seen: async () => JSON.stringify(await session()) });
  } catch (error) {
    const dir = await world.keepRemains("desktop-aiortc").catch((cause) => `(nothing kept: ${cause.message})`);
    const ended = await page.leave();
    throw new Error(`${error.message}\n${ended ?? ""}\nWhat is left of it: ${dir}`, { cause: error });
  }
  assert.equal(await page.leave(), null);
  await world.api("POST", `/api/auth/session/${id}/cancel`, {});
  await until("the sign-in is closed", async () => (await session()).closed, { deadlineMs: limits.finish });
});
