import { expect, test } from "vitest";
import { encodeInput, type InputEvent } from "./protocol";

test("input messages are the bytes the controller reads", () => {
  // The same list is in crates/polydev-core/src/desktop/input.rs.
  const cases: [InputEvent, number[]][] = [
    [{ type: "move", x: 1, y: 258 }, [0x31, 0, 1, 1, 2]],
    [{ type: "button", button: 3, down: true, x: 1, y: 2 }, [0x32, 3, 1, 0, 1, 0, 2]],
    [{ type: "wheel", dx: -120, dy: 120, x: 1, y: 2 }, [0x33, 0xff, 0x88, 0, 0x78, 0, 1, 0, 2]],
    [{ type: "key", down: false, keysym: 0x0100_20ac, code: "KeyE" }, [0x34, 0, 1, 0, 0x20, 0xac, 0x4b, 0x65, 0x79, 0x45]],
    [{ type: "text", text: "ä" }, [0x35, 0xc3, 0xa4]],
    [{ type: "releaseAll" }, [0x36]],
  ];
  for (const [event, bytes] of cases) expect([...encodeInput(event)]).toEqual(bytes);
});

test("a place outside the desktop's range is cut to it, and an odd name of a key is left out", () => {
  expect([...encodeInput({ type: "move", x: -4, y: 70_000 })]).toEqual([0x31, 0, 0, 0xff, 0xff]);
  expect([...encodeInput({ type: "wheel", dx: -40_000, dy: 40_000, x: 0, y: 0 })]).toEqual([0x33, 0x80, 0, 0x7f, 0xff, 0, 0, 0, 0]);
  expect([...encodeInput({ type: "key", down: true, keysym: 0x61, code: "Key-A" })]).toEqual([0x34, 1, 0, 0, 0, 0x61]);
});
