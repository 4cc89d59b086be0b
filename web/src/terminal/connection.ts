// A web terminal: xterm.js on one side, a shell in a VM on the other.

import type { FitAddon } from "@xterm/addon-fit";
import type { Terminal } from "@xterm/xterm";
import { socketUrl } from "../api/client";
import { Reconnector, wakeOnReturn, type LinkState } from "../net/reconnector";
import { readMessage, resizeMessage, terminalPath, type VmMotion } from "./protocol";
import { themeFor } from "./theme";

export interface TerminalHandlers {
  link: (state: LinkState) => void;
  /** The shell ended; the connection is not opened again by itself. */
  ended: (code: number | null) => void;
  /** The VM stands still, or goes on; `null`: nobody knows, as the connection is lost. */
  motion: (motion: VmMotion | null) => void;
}

export class TerminalConnection {
  private socket: WebSocket | undefined;
  private link: Reconnector | undefined;
  private readonly undo: (() => void)[] = [];

  private constructor(
    private readonly vmId: string,
    private readonly terminal: Terminal,
    private readonly fitAddon: FitAddon,
    private readonly handlers: TerminalHandlers,
  ) {}

  /** Puts a terminal into `host` and connects it. */
  static async open(host: HTMLElement, vmId: string, handlers: TerminalHandlers): Promise<TerminalConnection> {
    const [{ Terminal }, { FitAddon }] = await Promise.all([import("@xterm/xterm"), import("@xterm/addon-fit"), import("@xterm/xterm/css/xterm.css")]);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const still = matchMedia("(prefers-reduced-motion: reduce)");
    const terminal = new Terminal({
      fontFamily: 'ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace',
      fontSize: 14,
      lineHeight: 1.2,
      cursorBlink: !still.matches,
      scrollback: 5000,
      screenReaderMode: true,
      theme: themeFor(dark.matches),
      allowProposedApi: false,
    });
    const fitAddon = new FitAddon();
    terminal.loadAddon(fitAddon);
    terminal.open(host);
    const connection = new TerminalConnection(vmId, terminal, fitAddon, handlers);
    const recolour = (): void => {
      terminal.options.theme = themeFor(dark.matches);
    };
    dark.addEventListener("change", recolour);
    const observer = new ResizeObserver(() => connection.fit());
    observer.observe(host);
    connection.undo.push(
      () => dark.removeEventListener("change", recolour),
      () => observer.disconnect(),
    );
    connection.start();
    return connection;
  }

  focus(): void {
    this.terminal.focus();
  }

  /** Starts a new shell after the last one ended. */
  start(): void {
    this.fit();
    const link = new Reconnector({ connect: () => this.connect(link), changed: this.handlers.link });
    this.link = link;
    this.undo.push(wakeOnReturn(link));
    link.start();
  }

  stop(): void {
    this.link?.stop();
    for (const step of this.undo.splice(0)) step();
    this.socket?.close();
    this.terminal.dispose();
  }

  private fit(): void {
    this.fitAddon.fit();
  }

  private connect(link: Reconnector): void {
    const { terminal } = this;
    const socket = new WebSocket(socketUrl(terminalPath(this.vmId, terminal.cols, terminal.rows)));
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    const encoder = new TextEncoder();
    const send = (data: string | Uint8Array<ArrayBuffer>): void => {
      if (socket.readyState === WebSocket.OPEN) socket.send(data);
    };
    const listeners = [
      terminal.onData((text) => send(encoder.encode(text))),
      terminal.onBinary((text) => send(Uint8Array.from(text, (character) => character.charCodeAt(0)))),
      terminal.onResize(({ cols, rows }) => send(resizeMessage(cols, rows))),
    ];
    socket.addEventListener("open", () => {
      link.opened();
      send(resizeMessage(terminal.cols, terminal.rows));
    });
    socket.addEventListener("message", (event) => {
      const message = readMessage(event.data);
      if (message.kind === "output") terminal.write(message.bytes);
      if (message.kind === "state") this.handlers.motion(message.state);
      if (message.kind === "exit") {
        link.stop();
        this.handlers.ended(message.code);
      }
    });
    socket.addEventListener("close", () => {
      for (const listener of listeners) listener.dispose();
      this.handlers.motion(null);
      link.lost();
    });
  }
}
