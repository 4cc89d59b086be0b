import { expect, test } from "vitest";
import { decodeFromDesktop, decodeInput, encodeInput, parseWords, type InputEvent } from "./protocol";

// The same list is in crates/polydev-core/src/desktop/input.rs.
const CASES: [InputEvent, number[]][] = [
  [{ type: "move", x: 1, y: 258 }, [0x31, 0, 1, 1, 2]],
  [{ type: "button", button: 3, down: true, x: 1, y: 2 }, [0x32, 3, 1, 0, 1, 0, 2]],
  [{ type: "wheel", dx: -120, dy: 120, x: 1, y: 2 }, [0x33, 0xff, 0x88, 0, 0x78, 0, 1, 0, 2]],
  [{ type: "key", down: false, keysym: 0x0100_20ac, code: "KeyE" }, [0x34, 0, 1, 0, 0x20, 0xac, 0x4b, 0x65, 0x79, 0x45]],
  [{ type: "text", text: "ä" }, [0x35, 0xc3, 0xa4]],
  [{ type: "releaseAll" }, [0x36]],
];

test.each(CASES)("%o has the bytes that the controller reads", (event, bytes) => {
  expect([...encodeInput(event)]).toEqual(bytes);
  expect(decodeInput(Uint8Array.from(bytes))).toEqual(event);
});

test("a place outside the range is cut to it, and an odd name of a key is left out", () => {
  expect([...encodeInput({ type: "move", x: -3.4, y: 70_000 })]).toEqual([0x31, 0, 0, 0xff, 0xff]);
  expect([...encodeInput({ type: "wheel", dx: -40_000, dy: 40_000, x: 0, y: 0 })]).toEqual([0x33, 0x80, 0, 0x7f, 0xff, 0, 0, 0, 0]);
  expect([...encodeInput({ type: "key", down: true, keysym: 0x61, code: "Key-A" })]).toEqual([0x34, 1, 0, 0, 0, 0x61]);
});

test("a frame is read with its head", () => {
  const head = [0x02, 0x03, 0, 0, 0, 7, 0, 5, 0xe1, 0x3f, 0x7a, 0x2b, 0xc0, 0, 0, 0, 0x13, 0x88, 0, 0, 0, 9, 5, 0, 2, 0xd0];
  const message = decodeFromDesktop(Uint8Array.from([...head, 1, 2, 3]).buffer);
  expect(message).toEqual({
    type: "frame",
    key: true,
    keepAlive: true,
    seq: 7,
    capturedUs: 0x0005_e13f_7a2b_c000,
    workUs: 5000,
    inputSeq: 9,
    width: 1280,
    height: 720,
    data: Uint8Array.of(1, 2, 3),
  });
});

test("a cursor is read with its pixels, one without all of them is not", () => {
  const bytes = [0x03, 0, 1, 0, 1, 0, 0, 0, 0, 10, 20, 30, 255];
  expect(decodeFromDesktop(Uint8Array.from(bytes).buffer)).toMatchObject({ width: 1, height: 1, rgba: Uint8Array.of(10, 20, 30, 255) });
  expect(decodeFromDesktop(Uint8Array.from(bytes.slice(0, -1)).buffer)).toBeNull();
  expect(decodeFromDesktop(Uint8Array.of(0x04, 0xff, 0xff, 0, 2).buffer)).toEqual({ type: "cursorMoved", x: -1, y: 2 });
});

test("what is not understood is skipped", () => {
  for (const bytes of [[], [0x99, 1], [0x02, 0], [0x04, 1]]) expect(decodeFromDesktop(Uint8Array.from(bytes).buffer)).toBeNull();
  for (const bytes of [[], [0x31, 0], [0x34, 1]]) expect(decodeInput(Uint8Array.from(bytes))).toBeNull();
  for (const text of ["", "[", "3", "null", "{}"]) expect(parseWords(text)).toBeNull();
  expect(parseWords('{"type":"pong","at":1.5}')).toEqual({ type: "pong", at: 1.5 });
});
