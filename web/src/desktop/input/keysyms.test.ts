import { expect, test } from "vitest";
import { isText, keysymOfCharacter, keysymOfName, latinCharacter } from "./keysyms";

test("Latin-1 is its own keysym, everything else carries the Unicode mark, control characters have none", () => {
  expect(["a", "ÿ", "€", "ß", "ẞ", "漢", "😀"].map(keysymOfCharacter)).toEqual([0x61, 0xff, 0x0100_20ac, 0xdf, 0x0100_1e9e, 0x0100_6f22, 0x0101_f600]);
  expect(["\n", "\t", "\u0000", "\u001b", "\u007f", "\u009f"].map(keysymOfCharacter)).toEqual([0xff0d, 0xff09, null, null, null, null]);
});

test("keys with a name have the keysym of X11", () => {
  const cases: [string, string, number][] = [
    ["Enter", "Enter", 0xff0d],
    ["Enter", "NumpadEnter", 0xff8d],
    ["Clear", "Numpad5", 0xff9d],
    ["F1", "F1", 0xffbe],
    ["F12", "F12", 0xffc9],
    ["F35", "F35", 0xffe0],
    ["Shift", "ShiftLeft", 0xffe1],
    ["Shift", "ShiftRight", 0xffe2],
    ["Control", "ControlRight", 0xffe4],
    ["Meta", "MetaLeft", 0xffeb],
    ["AltGraph", "AltRight", 0xfe03],
    ["ArrowUp", "ArrowUp", 0xff52],
    ["ArrowUp", "Numpad8", 0xff52],
    ["ContextMenu", "ContextMenu", 0xff67],
    ["ZenkakuHankaku", "Backquote", 0xff2a],
    ["AudioVolumeUp", "AudioVolumeUp", 0x1008_ff13],
  ];
  for (const [key, code, keysym] of cases) expect(keysymOfName(key, code), `${key} ${code}`).toBe(keysym);
});

test("locks, power keys and keys that X11 does not know are the person's own", () => {
  for (const key of ["CapsLock", "NumLock", "Power", "Sleep", "Hibernate", "Fn", "F36", "Process", "Unidentified", "constructor"]) expect(keysymOfName(key, key), key).toBeNull();
});

test("the text a key makes is told from its name", () => {
  expect(["a", "€", "😀", "لا", " "].map(isText)).toEqual([true, true, true, true, true]);
  expect(["Enter", "F5", "Dead", "AltGraph"].map(isText)).toEqual([false, false, false, false]);
});

test("a key's place gives its Latin character", () => {
  expect(latinCharacter("KeyC", false)).toBe("c");
  expect(latinCharacter("KeyC", true)).toBe("C");
  expect(latinCharacter("Digit2", true)).toBe("@");
  expect(latinCharacter("Numpad7", true)).toBe("7");
  expect(latinCharacter("Slash", true)).toBe("?");
  expect(latinCharacter("IntlRo", false)).toBeNull();
});
