// What the viewer and the controller say to each other: binary messages (crates/polydev-core/src/desktop) and words in
// JSON (crates/polydev/src/desktop/talk.rs). Numbers are in network byte order.

/** Subprotocol of the WebSocket lane. */
export const STREAM_PROTOCOL = "polydev.desktop.v1";
/** Subprotocol of the VNC lane: RFB in binary messages, words as text. */
export const VNC_PROTOCOL = "polydev.vnc.v1";
const MOVE = 0x31;
const BUTTON = 0x32;
const WHEEL = 0x33;
const KEY = 0x34;
const TEXT = 0x35;
const RELEASE_ALL = 0x36;
const FRAME = 0x02;
const CURSOR_SHAPE = 0x03;
const CURSOR_MOVED = 0x04;
const FRAME_HEAD = 26;
const CURSOR_HEAD = 9;
const CURSOR_SIDE_MAX = 256;

/** Longest text that is typed by one message, in bytes. */
export const TEXT_MAX = 4 << 10;
/** Longest name of a physical key. */
export const CODE_MAX = 32;
/** Highest keysym (X11 protocol, appendix A: 29 bits). */
export const KEYSYM_MAX = 0x1fff_ffff;
/** Longest clipboard text, in bytes. */
export const CLIPBOARD_MAX = 256 << 10;
/** Sides of a desktop, in pixels. */
export const SIDE_MIN = 320;
export const SIDE_MAX = 4096;
/** One notch of a wheel. */
export const WHEEL_NOTCH = 120;

/** A place on the desktop, in its pixels. */
export interface Place {
  x: number;
  y: number;
}

/** One act of the person in control. */
export type InputEvent =
  | ({ type: "move" } & Place)
  | ({ type: "button"; button: number; down: boolean } & Place)
  | ({ type: "wheel"; dx: number; dy: number } & Place)
  | { type: "key"; down: boolean; keysym: number; code: string }
  | { type: "text"; text: string }
  | { type: "releaseAll" };

/** One encoded picture. */
export interface Frame {
  type: "frame";
  /** Needs no earlier picture. */
  key: boolean;
  /** Nothing changed; it only says that the connection is there. */
  keepAlive: boolean;
  seq: number;
  /** When the screen was read, microseconds of the VM's clock. */
  capturedUs: number;
  /** From the start of reading the screen to the end of encoding. */
  workUs: number;
  inputSeq: number;
  width: number;
  height: number;
  /** H.264, Annex B. */
  data: Uint8Array;
}

/** How the pointer looks; a width of 0 hides it. */
export interface CursorShape {
  type: "cursorShape";
  width: number;
  height: number;
  hotX: number;
  hotY: number;
  /** Rows of red, green, blue, alpha. */
  rgba: Uint8Array;
}

export interface CursorMoved {
  type: "cursorMoved";
  x: number;
  y: number;
}

export type FromDesktop = Frame | CursorShape | CursorMoved;

export type Role = "control" | "view";
export type ClipboardPolicy = "both" | "in" | "out" | "off";

/** What a viewer measured itself; what it does not know is left out. */
export interface ViewerReport {
  rttMs?: number;
  presentMs?: number;
  inputToPictureMs?: number;
  framesShown?: number;
  framesDropped?: number;
  freezes?: number;
}

/** Words of a viewer. */
export type FromViewer =
  | { type: "resize"; width: number; height: number; scale: number }
  | { type: "clipboard"; text: string }
  | { type: "requestControl" }
  | { type: "releaseControl"; to?: number }
  | { type: "keyframe" }
  | { type: "ping"; at: number }
  | ({ type: "report" } & ViewerReport);

/** Figures of the controller and the VM. */
export interface HubStats {
  fps: number;
  kbps: number;
  estimateKbps: number | null;
  dropped: number;
  keyframes: number;
  serverMs: number | null;
  inputServerMs: number | null;
  guestCpu: number | null;
  encodeMs: number | null;
}

/** Words of the controller. `resume` comes on the WebSocket only. */
export type ToViewer =
  | { type: "resume"; token: string }
  | { type: "hello"; viewer: number; role: Role; mayControl: boolean; viewers: number; width: number; height: number; clipboard: ClipboardPolicy }
  | { type: "role"; role: Role }
  | { type: "viewers"; viewers: number }
  | { type: "controlRequested"; viewer: number }
  | { type: "size"; width: number; height: number }
  | { type: "clipboard"; text: string }
  | { type: "pong"; at: number }
  | { type: "interrupted"; interrupted: boolean }
  | ({ type: "stats" } & HubStats)
  | { type: "refused"; code: string }
  | { type: "ended"; reason: string };

const utf8 = new TextEncoder();

/** The message of an input event. Places and turns are cut to what a message can carry. */
export function encodeInput(event: InputEvent): Uint8Array<ArrayBuffer> {
  switch (event.type) {
    case "move":
      return message([MOVE], 4, (view, at) => place(view, at, event));
    case "button":
      return message([BUTTON, event.button, Number(event.down)], 4, (view, at) => place(view, at, event));
    case "wheel":
      return message([WHEEL], 8, (view, at) => {
        view.setInt16(at, cut(event.dx, -0x8000, 0x7fff));
        view.setInt16(at + 2, cut(event.dy, -0x8000, 0x7fff));
        place(view, at + 4, event);
      });
    case "key": {
      const code = /^[A-Za-z0-9]{0,32}$/.test(event.code) ? utf8.encode(event.code) : new Uint8Array();
      return message([KEY, Number(event.down)], 4 + code.length, (view, at) => {
        view.setUint32(at, event.keysym);
        new Uint8Array(view.buffer).set(code, at + 4);
      });
    }
    case "text": {
      const bytes = utf8.encode(event.text);
      return message([TEXT], bytes.length, (view, at) => new Uint8Array(view.buffer).set(bytes, at));
    }
    case "releaseAll":
      return Uint8Array.of(RELEASE_ALL);
  }
}

/** Reads an act back: the last lane speaks another protocol and translates. */
export function decodeInput(bytes: Uint8Array): InputEvent | null {
  const view = viewOf(bytes);
  const need = (length: number): boolean => bytes.length === length;
  switch (bytes[0]) {
    case MOVE:
      return need(5) ? { type: "move", x: view.getUint16(1), y: view.getUint16(3) } : null;
    case BUTTON:
      return need(7) ? { type: "button", button: view.getUint8(1), down: view.getUint8(2) === 1, x: view.getUint16(3), y: view.getUint16(5) } : null;
    case WHEEL:
      return need(9) ? { type: "wheel", dx: view.getInt16(1), dy: view.getInt16(3), x: view.getUint16(5), y: view.getUint16(7) } : null;
    case KEY:
      if (bytes.length < 6) return null;
      return { type: "key", down: view.getUint8(1) === 1, keysym: view.getUint32(2), code: String.fromCharCode(...bytes.subarray(6)) };
    case TEXT:
      return { type: "text", text: new TextDecoder().decode(bytes.subarray(1)) };
    case RELEASE_ALL:
      return need(1) ? { type: "releaseAll" } : null;
    default:
      return null;
  }
}

/** A binary message of the controller; null for one that is not understood, which is skipped. */
export function decodeFromDesktop(buffer: ArrayBuffer): FromDesktop | null {
  const bytes = new Uint8Array(buffer);
  const view = viewOf(bytes);
  switch (bytes[0]) {
    case FRAME: {
      if (bytes.length < FRAME_HEAD) return null;
      const flags = view.getUint8(1);
      return {
        type: "frame",
        key: (flags & 1) !== 0,
        keepAlive: (flags & 2) !== 0,
        seq: view.getUint32(2),
        capturedUs: Number(view.getBigUint64(6)),
        workUs: view.getUint32(14),
        inputSeq: view.getUint32(18),
        width: view.getUint16(22),
        height: view.getUint16(24),
        data: bytes.subarray(FRAME_HEAD),
      };
    }
    case CURSOR_SHAPE: {
      if (bytes.length < CURSOR_HEAD) return null;
      const [width, height] = [view.getUint16(1), view.getUint16(3)];
      const rgba = bytes.subarray(CURSOR_HEAD);
      if (width > CURSOR_SIDE_MAX || height > CURSOR_SIDE_MAX || rgba.length !== width * height * 4) return null;
      return { type: "cursorShape", width, height, hotX: view.getUint16(5), hotY: view.getUint16(7), rgba };
    }
    case CURSOR_MOVED:
      return bytes.length === 5 ? { type: "cursorMoved", x: view.getInt16(1), y: view.getInt16(3) } : null;
    default:
      return null;
  }
}

/** Words of the controller; null for ones that are not understood. */
export function parseWords(text: string): ToViewer | null {
  try {
    const words: unknown = JSON.parse(text);
    return typeof words === "object" && words !== null && typeof (words as { type?: unknown }).type === "string" ? (words as ToViewer) : null;
  } catch {
    return null;
  }
}

function message(head: number[], rest: number, fill: (view: DataView<ArrayBuffer>, at: number) => void): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(head.length + rest);
  bytes.set(head);
  fill(new DataView(bytes.buffer), head.length);
  return bytes;
}

function place(view: DataView, at: number, { x, y }: Place): void {
  view.setUint16(at, cut(x, 0, 0xffff));
  view.setUint16(at + 2, cut(y, 0, 0xffff));
}

function cut(value: number, min: number, max: number): number {
  return Math.min(max, Math.max(min, Math.round(value)));
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
