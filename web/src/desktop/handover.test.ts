import { expect, test } from "vitest";
import { HELD_MAX, HeldInput } from "./handover";
import { encodeInput } from "./protocol";

const text = (typed: string): Uint8Array<ArrayBuffer> => encodeInput({ type: "text", text: typed });

test("nothing waits while the control rests", () => {
  const held = new HeldInput();
  expect(held.take(text("a"), true)).toBe(false);
  expect(held.end()).toEqual([]);
});

test("keys wait in order until the control has arrived, and moves are left out", () => {
  const held = new HeldInput();
  held.begin();
  const [a, b] = [text("a"), text("b")];
  expect(held.take(a, true)).toBe(true);
  held.begin();
  expect(held.take(encodeInput({ type: "move", x: 1, y: 2 }), false)).toBe(true);
  expect(held.take(b, true)).toBe(true);
  expect(held.end()).toEqual([a, b]);
  expect(held.take(a, true)).toBe(false);
});

test("no more than a bound waits", () => {
  const held = new HeldInput();
  held.begin();
  for (let count = 0; count < 2 * HELD_MAX; count += 1) held.take(text("x"), true);
  expect(held.end()).toHaveLength(HELD_MAX);
});
