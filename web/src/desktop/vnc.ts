// The last lane: noVNC draws, the viewer's own input is translated to RFB (RFC 6143, section 7.5). Words go beside RFB,
// as text messages of the same WebSocket.

import type RFB from "@novnc/novnc";
import { NARROWEST } from "./geometry";
import { onceFailed, type Lane, type LaneContext, type LaneHandlers } from "./lane";
import type { Figures } from "./meter";
import { decodeInput, parseWords, VNC_PROTOCOL, WHEEL_NOTCH, type FromViewer, type InputEvent } from "./protocol";
import { vncUrl } from "./routes";
import { typeText } from "./typing";

/** Bits of RFB's button mask: a wheel's notch is a press of one of the last four. */
const BUTTON_BITS: Readonly<Record<number, number>> = { 1: 1, 2: 2, 3: 4, 8: 128 };
const WHEEL_BITS = { up: 8, down: 16, left: 32, right: 64 } as const;
/** Most notches of one message; more is a hand gone wild. */
const NOTCHES_MAX = 20;

export class VncLane implements Lane {
  readonly kind = "vnc";
  readonly view = document.createElement("div");
  private readonly handlers: LaneHandlers;
  private rfb: RFB | undefined;
  private socket: WebSocket | undefined;
  private controls = false;
  private messages: typeof RFB.messages | undefined;
  private mask = 0;
  private readonly held = new Set<number>();
  private readonly turned = { x: 0, y: 0 };
  private cursor: MutationObserver | undefined;
  private stopped = false;
  /** A text that is being typed, and what waits behind it. */
  private typing: Promise<void> | null = null;

  constructor(
    private readonly context: LaneContext,
    handlers: LaneHandlers,
  ) {
    this.handlers = onceFailed(handlers);
    // noVNC must not listen: the viewer does.
    this.view.style.pointerEvents = "none";
  }

  start(): void {
    this.connect().catch(() => this.fail("refused"));
  }

  send(message: Uint8Array<ArrayBuffer>): void {
    const event = decodeInput(message);
    const { rfb } = this;
    if (!event || !rfb) return;
    if (!this.typing && event.type !== "text") return this.act(rfb, event);
    // Nothing overtakes a text: the Enter after a paste is meant to come after it.
    const turn = (this.typing ?? Promise.resolve()).then(() => {
      if (event.type !== "text") return this.act(rfb, event);
      return typeText(event.text, (keysym) => rfb.sendKey(keysym, null), undefined, () => this.rfb === rfb);
    });
    this.typing = turn;
    void turn.finally(() => {
      if (this.typing === turn) this.typing = null;
    });
  }

  say(words: FromViewer): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(words));
  }

  async figures(): Promise<Figures> {
    return { fps: 0, kbps: 0, rttMs: null, presentMs: null, bufferMs: null, framesShown: 0, framesDropped: 0, freezes: 0, path: "TCP" };
  }

  ownPlacement(): Element | null {
    return this.view.querySelector("canvas");
  }

  refit(): void {
    if (this.rfb) this.rfb.resizeSession = this.controls && this.view.clientWidth >= NARROWEST;
  }

  stop(): void {
    this.stopped = true;
    this.cursor?.disconnect();
    const rfb = this.rfb;
    this.rfb = undefined;
    rfb?.disconnect();
    this.socket?.close();
    this.socket = undefined;
  }

  private async connect(): Promise<void> {
    const { default: Rfb } = await import("@novnc/novnc");
    if (this.stopped) return;
    const socket = new WebSocket(vncUrl(this.context), VNC_PROTOCOL);
    this.socket = socket;
    // Comes before noVNC's own listener, which takes every message for RFB.
    socket.addEventListener("message", (event) => {
      if (typeof event.data !== "string") return;
      event.stopImmediatePropagation();
      if (this.socket === socket) this.hear(event.data);
    });
    const rfb = new Rfb(this.view, socket, { shared: true });
    this.rfb = rfb;
    this.messages = Rfb.messages;
    rfb.background = "transparent";
    rfb.scaleViewport = true;
    rfb.focusOnClick = false;
    rfb.showDotCursor = true;
    rfb.qualityLevel = 7;
    rfb.compressionLevel = 2;
    let open = false;
    rfb.addEventListener("connect", () => {
      open = true;
      this.refit();
      this.handlers.connected();
      this.watchCanvas();
      this.handlers.picture();
    });
    rfb.addEventListener("disconnect", () => {
      if (this.rfb === rfb) this.fail(open ? "lost" : "refused");
    });
  }

  private hear(text: string): void {
    const words = parseWords(text);
    if (!words) return;
    if (words.type === "resume") return this.handlers.resume(words.token);
    if (words.type === "hello" || words.type === "role") {
      this.controls = words.role === "control";
      // The controller has let go what was held.
      if (!this.controls) this.forget();
      this.refit();
    }
    this.handlers.words(words);
  }

  private forget(): void {
    this.held.clear();
    this.mask = 0;
  }

  private watchCanvas(): void {
    const canvas = this.view.querySelector("canvas");
    if (!canvas) return;
    const look = (): void => {
      if (canvas.width > 0 && canvas.height > 0) this.handlers.size(canvas.width, canvas.height);
      this.handlers.cursorStyle(canvas.style.cursor);
    };
    this.cursor = new MutationObserver(look);
    this.cursor.observe(canvas, { attributes: true, attributeFilter: ["style", "width", "height"] });
    look();
  }

  private act(rfb: RFB, event: Exclude<InputEvent, { type: "text" }>): void {
    switch (event.type) {
      case "move":
        return this.point(rfb, event.x, event.y, this.mask);
      case "button": {
        const bit = BUTTON_BITS[event.button] ?? 0;
        this.mask = event.down ? this.mask | bit : this.mask & ~bit;
        return this.point(rfb, event.x, event.y, this.mask);
      }
      case "wheel": {
        this.turn(rfb, event, "x", event.dx, WHEEL_BITS.left, WHEEL_BITS.right);
        return this.turn(rfb, event, "y", event.dy, WHEEL_BITS.up, WHEEL_BITS.down);
      }
      case "key":
        if (event.down) this.held.add(event.keysym);
        else this.held.delete(event.keysym);
        // By what the key means, not by where it is: the VM's layout is not the person's.
        return rfb.sendKey(event.keysym, null, event.down);
      case "releaseAll":
        for (const keysym of this.held) rfb.sendKey(keysym, null, false);
        this.forget();
    }
  }

  private turn(rfb: RFB, at: { x: number; y: number }, axis: "x" | "y", by: number, less: number, more: number): void {
    this.turned[axis] += by;
    let left = NOTCHES_MAX;
    while (Math.abs(this.turned[axis]) >= WHEEL_NOTCH && left > 0) {
      const bit = this.turned[axis] > 0 ? more : less;
      this.turned[axis] -= Math.sign(this.turned[axis]) * WHEEL_NOTCH;
      this.point(rfb, at.x, at.y, this.mask | bit);
      this.point(rfb, at.x, at.y, this.mask);
      left -= 1;
    }
  }

  private point(rfb: RFB, x: number, y: number, mask: number): void {
    this.messages?.pointerEvent(rfb._sock, x, y, mask);
  }

  private fail(why: "lost" | "refused"): void {
    this.stop();
    this.handlers.failed(why);
  }
}
