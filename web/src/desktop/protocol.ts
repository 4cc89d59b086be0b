// What the viewer and the controller say to each other: binary messages (crates/polydev-core/src/desktop) and words in
// JSON (crates/polydev/src/desktop/talk.rs). Numbers are in network byte order.

/** Subprotocol of the WebSocket lane. */
export const STREAM_PROTOCOL = "polydev.desktop.v1";
/** Longest text one message types, in bytes. */
export const TEXT_MAX_BYTES = 4 << 10;
/** Longest clipboard text, in bytes. */
export const CLIPBOARD_MAX_BYTES = 256 << 10;
/** One notch of a wheel. */
export const WHEEL_NOTCH = 120;
/** Sides of a desktop, in pixels. */
export const SIDE_MIN = 320;
export const SIDE_MAX = 4096;

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

/** One act of a hand. Places are pixels of the desktop. */
export type InputEvent =
  | { type: "move"; x: number; y: number }
  | { type: "button"; button: number; down: boolean; x: number; y: number }
  | { type: "wheel"; dx: number; dy: number; x: number; y: number }
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

/** The bytes of an act. Places outside the desktop are moved to its edge. */
export function encodeInput(event: InputEvent): Uint8Array {
  switch (event.type) {
    case "move": {
      const out = message(MOVE, 5);
      place(out, 1, event);
      return out.bytes;
    }
    case "button": {
      const out = message(BUTTON, 7);
      out.view.setUint8(1, event.button);
      out.view.setUint8(2, event.down ? 1 : 0);
      place(out, 3, event);
      return out.bytes;
    }
    case "wheel": {
      const out = message(WHEEL, 9);
      out.view.setInt16(1, clamp(event.dx, -0x8000, 0x7fff));
      out.view.setInt16(3, clamp(event.dy, -0x8000, 0x7fff));
      place(out, 5, event);
      return out.bytes;
    }
    case "key": {
      const out = message(KEY, 6 + event.code.length);
      out.view.setUint8(1, event.down ? 1 : 0);
      out.view.setUint32(2, event.keysym);
      for (let at = 0; at < event.code.length; at += 1) out.view.setUint8(6 + at, event.code.charCodeAt(at) & 0x7f);
      return out.bytes;
    }
    case "text": {
      const text = new TextEncoder().encode(event.text);
      const out = message(TEXT, 1 + text.length);
      out.bytes.set(text, 1);
      return out.bytes;
    }
    case "releaseAll":
      return message(RELEASE_ALL, 1).bytes;
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

/** The text cut into pieces that one message each can carry; no character is torn. */
export function textPieces(text: string, maxBytes = TEXT_MAX_BYTES): string[] {
  const pieces: string[] = [];
  let piece = "";
  let size = 0;
  for (const character of text) {
    const bytes = new TextEncoder().encode(character).length;
    if (size + bytes > maxBytes) {
      pieces.push(piece);
      piece = "";
      size = 0;
    }
    piece += character;
    size += bytes;
  }
  if (piece !== "") pieces.push(piece);
  return pieces;
}

interface Message {
  bytes: Uint8Array;
  view: DataView;
}

function message(kind: number, length: number): Message {
  const bytes = new Uint8Array(length);
  bytes[0] = kind;
  return { bytes, view: viewOf(bytes) };
}

function place(out: Message, at: number, { x, y }: { x: number; y: number }): void {
  out.view.setUint16(at, clamp(x, 0, 0xffff));
  out.view.setUint16(at + 2, clamp(y, 0, 0xffff));
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function clamp(value: number, least: number, most: number): number {
  return Math.min(Math.max(Math.round(value), least), most);
}
