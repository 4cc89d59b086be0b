// An X display of its own with a real keyboard layout, and hands at its keyboard.
import { execFile, spawn } from "node:child_process";
import { promisify } from "node:util";
import { until } from "../play/until.mjs";
import { Keymap } from "./keymap.mjs";

const exec = promisify(execFile);
const START_MS = 15_000;
const FIRST_DISPLAY = 60;
const LAST_DISPLAY = 69;
/** Strokes of one xdotool call: its arguments have to fit into a command line. */
const STROKES_AT_ONCE = 200;

/** Programs that have to be there, all from Debian's xvfb, xdotool, x11-xkb-utils and libx11-data. */
export const X_PROGRAMS = ["/usr/bin/Xvfb", "/usr/bin/xdotool", "/usr/bin/setxkbmap", "/usr/bin/xkbcomp", "/usr/share/X11/locale/en_US.UTF-8/Compose"];

export class XServer {
  static async start({ width = 1280, height = 900 } = {}) {
    for (let number = FIRST_DISPLAY; number <= LAST_DISPLAY; number += 1) {
      const server = new XServer(number, width, height);
      if (await server.#ready()) return server;
    }
    throw new Error(`no free X display from :${FIRST_DISPLAY} to :${LAST_DISPLAY}`);
  }

  constructor(number, width, height) {
    this.display = `:${number}`;
    this.env = { ...process.env, DISPLAY: this.display };
    const size = `${width}x${height}x24`;
    this.child = spawn("Xvfb", [this.display, "-screen", "0", size, "-nolisten", "tcp", "-noreset"], { stdio: "ignore" });
    this.ended = new Promise((resolve) => this.child.once("exit", resolve));
  }

  /** False if another server has this display: then ours ends at once. */
  async #ready() {
    let ended = false;
    this.ended.then(() => (ended = true));
    const answers = () => exec("setxkbmap", ["-query"], { env: this.env }).then(() => true);
    // A server of somebody else on this display would answer too, but ours is gone by then.
    await until("the X server answers", async () => ended || (await answers()), { deadlineMs: START_MS });
    return !ended && this.child.exitCode === null;
  }

  async close() {
    this.child.kill("SIGTERM");
    await this.ended;
  }

  /** Sets a layout such as "de" or "us(intl)", and learns its keys. */
  async layout(name, compose) {
    const [, layout, variant = ""] = /^(\w+)(?:\((\w+)\))?$/.exec(name);
    await exec("setxkbmap", ["-model", "pc105", "-layout", layout, "-variant", variant], { env: this.env });
    const { stdout } = await exec("xkbcomp", ["-xkb", this.display, "-"], { env: this.env, maxBuffer: 1 << 20 });
    return new Keymap(stdout, compose);
  }

  /** Gives the keyboard to the newest window of a class. Without a window manager nobody else does. */
  async focus(windowClass) {
    const windows = async () => (await exec("xdotool", ["search", "--onlyvisible", "--class", windowClass], { env: this.env })).stdout.trim().split("\n");
    const all = await until(`a window of ${windowClass}`, windows, { deadlineMs: START_MS });
    await exec("xdotool", ["windowfocus", "--sync", all.at(-1)], { env: this.env });
  }

  /** Presses real keys, one after another as a person does: modifiers down, key, modifiers up. */
  async type(strokes, pauseMs) {
    for (let at = 0; at < strokes.length; at += STROKES_AT_ONCE) {
      const words = strokes.slice(at, at + STROKES_AT_ONCE).flatMap(({ keycode, modifiers }) => [
        ...modifiers.flatMap((modifier) => key("down", modifier)),
        ...key("down", keycode),
        ...key("up", keycode),
        ...[...modifiers].reverse().flatMap((modifier) => key("up", modifier)),
        ...["sleep", String(pauseMs / 1000)],
      ]);
      await exec("xdotool", words, { env: this.env });
    }
  }
}

/** xdotool's own pause after each event would make 300 characters take half a minute. */
function key(way, keycode) {
  return [`key${way}`, "--delay", "0", String(keycode)];
}
