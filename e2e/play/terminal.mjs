// A web terminal as a back end would use it, without a page.
import WebSocket from "ws";
import { until } from "./until.mjs";

export class Terminal {
  output = "";
  ended = null;

  /** Opens a terminal on the VM. */
  static async open(world, vmId, deadlineMs) {
    const terminal = new Terminal();
    const address = `${world.origin.replace("http", "ws")}/api/vms/${vmId}/terminal?cols=120&rows=30`;
    terminal.socket = new WebSocket(address, { headers: { authorization: `Bearer ${world.apiToken}` } });
    terminal.socket.on("message", (data, isBinary) => {
      if (isBinary) terminal.output += data.toString("utf8");
    });
    let opened = false;
    terminal.socket.on("open", () => (opened = true));
    terminal.socket.on("error", (error) => (terminal.ended ??= error.message));
    terminal.socket.on("close", (code) => (terminal.ended ??= `closed with ${code}`));
    await until("the terminal is open", () => opened, { deadlineMs, seen: () => terminal.ended ?? "" });
    return terminal;
  }

  /** Types a command and waits for what it prints. */
  async runs(command, printed, deadlineMs) {
    const from = this.output.length;
    this.socket.send(Buffer.from(`${command}\n`));
    return until(`\`${command}\` prints ${printed}`, () => printed.exec(this.output.slice(from)), {
      deadlineMs,
      seen: () => `${this.ended ?? ""} ${JSON.stringify(this.output.slice(from))}`,
    });
  }

  close() {
    this.socket.terminate();
  }
}
