// Input events as bytes (crates/polydev-core/src/desktop/input.rs).
const BUTTON = 0x32;
const KEY = 0x34;
const TEXT = 0x35;
const utf8 = new TextEncoder();
const two = (number) => [number >> 8, number & 0xff];

export const button = (down, x, y) => Uint8Array.from([BUTTON, 1, Number(down), ...two(x), ...two(y)]);

export const key = (down, keysym, code) => Uint8Array.from([KEY, Number(down), ...two(keysym >>> 16), ...two(keysym & 0xffff), ...utf8.encode(code)]);

export const text = (text) => Uint8Array.from([TEXT, ...utf8.encode(text)]);

/** What a person does to open a page in the browser of the desktop. */
export const openPage = (url) => [
  key(true, 0xffe3, "ControlLeft"),
  key(true, 0x6c, "KeyL"),
  key(false, 0x6c, "KeyL"),
  key(false, 0xffe3, "ControlLeft"),
  text(url),
  key(true, 0xff0d, "Enter"),
  key(false, 0xff0d, "Enter"),
];
