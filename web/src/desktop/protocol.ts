// The live desktop's messages, as crates/polydev-core/src/desktop defines them. Numbers are in network byte order.

const MOVE = 0x31;
const BUTTON = 0x32;
const WHEEL = 0x33;
const KEY = 0x34;
const TEXT = 0x35;
const RELEASE_ALL = 0x36;

/** Longest text that is typed by one message, in bytes. */
export const TEXT_MAX = 4 << 10;
/** Longest name of a physical key. */
export const CODE_MAX = 32;
/** Highest keysym (X11 protocol, appendix A: 29 bits). */
export const KEYSYM_MAX = 0x1fff_ffff;
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
