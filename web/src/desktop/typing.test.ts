import { expect, test } from "vitest";
import { keysymsOf, PASTE_LIMIT, typeText } from "./typing";

test("Latin letters are their own key symbols, others carry the Unicode mark", () => {
  expect(keysymsOf("aÄ€😀")).toEqual([0x61, 0xc4, 0x0100_20ac, 0x0101_f600]);
});

test("line ends and tabs are keys, a Windows line end is one", () => {
  expect(keysymsOf("a\r\nb\tc\n")).toEqual([0x61, 0xff0d, 0x62, 0xff09, 0x63, 0xff0d]);
});

test("other control characters press nothing", () => {
  expect(keysymsOf("a\u0000\u001b\u007f\u009fb")).toEqual([0x61, 0x62]);
});

test("characters arrive in order and a lost connection ends the typing", async () => {
  const pressed: number[] = [];
  await typeText(
    "abcdef",
    (keysym) => pressed.push(keysym),
    0,
    () => pressed.length < 4,
  );
  expect(pressed).toEqual([0x61, 0x62, 0x63, 0x64]);
});

test("a huge paste is cut", async () => {
  let count = 0;
  await typeText("x".repeat(PASTE_LIMIT), () => (count += 1), 0, () => count < 50);
  expect(count).toBe(50);
  expect(keysymsOf("x".repeat(PASTE_LIMIT + 10).slice(0, PASTE_LIMIT))).toHaveLength(PASTE_LIMIT);
});
