// A started program: its output is kept, its end is waited for.
import { spawn } from "node:child_process";
import { Hopeless, until } from "./until.mjs";

const KILL_AFTER_MS = 30_000;

export class Program {
  output = "";
  ended = null;

  constructor(name, command, args, options = {}) {
    this.name = name;
    this.child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], ...options });
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream.setEncoding("utf8");
      stream.on("data", (text) => (this.output += text));
    }
    this.child.on("error", (error) => (this.ended = { error: error.message }));
    this.child.on("exit", (code, signal) => (this.ended ??= { code, signal }));
  }

  get pid() {
    return this.child.pid;
  }

  /** The first match of `pattern` in what the program has printed. */
  says(pattern, deadlineMs) {
    return until(
      `${this.name} prints ${pattern}`,
      () => {
        const match = pattern.exec(this.output);
        if (!match && this.ended) throw new Hopeless(`${this.name} ended (${JSON.stringify(this.ended)}):\n${this.output.slice(-4000)}`);
        return match;
      },
      { deadlineMs, seen: () => this.output.slice(-4000) },
    );
  }

  /** Ends it in the orderly way; by force, and with an error, if it does not follow. */
  async stop(signal = "SIGTERM") {
    if (this.ended) return;
    this.child.kill(signal);
    try {
      await until(`${this.name} ends after ${signal}`, () => this.ended, { deadlineMs: KILL_AFTER_MS, seen: () => this.output.slice(-2000) });
    } catch (error) {
      this.child.kill("SIGKILL");
      throw error;
    }
  }
}
