// Keys of real layouts as Chromium reports them: the character counts, the place tells which key it is.
import { expect, test } from "vitest";
import type { Platform } from "./platform";
import { Rig } from "./rig.fixture";

const GERMAN: [string, string, string][] = [
  ["z", "KeyY", ""], ["y", "KeyZ", ""], ["ü", "BracketLeft", ""], ["Ö", "Semicolon", "Shift"], ["ß", "Minus", ""],
  ["?", "Minus", "Shift"], ["@", "KeyQ", "AltGraph"], ["€", "KeyE", "AltGraph"], ["{", "Digit7", "AltGraph"],
  ["\\", "Minus", "AltGraph"], ["|", "IntlBackslash", "AltGraph"], ["µ", "KeyM", "AltGraph"], ["ẞ", "Minus", "Shift+AltGraph"],
];
const FRENCH: [string, string, string][] = [
  ["a", "KeyQ", ""], ["q", "KeyA", ""], ["m", "Semicolon", ""], ["é", "Digit2", ""], ["2", "Digit2", "Shift"],
  ["ç", "Digit9", ""], ["à", "Digit0", ""], ["ù", "Quote", ""], ["%", "Quote", "Shift"], ["@", "Digit0", "AltGraph"],
  ["€", "KeyE", "AltGraph"], ["!", "Slash", ""], ["§", "Slash", "Shift"], ["²", "Backquote", ""],
];
const US_INTERNATIONAL: [string, string, string][] = [
  ["á", "KeyA", "AltGraph"], ["Á", "KeyA", "Shift+AltGraph"], ["ñ", "KeyN", "AltGraph"], ["¿", "Slash", "AltGraph"],
  ["ß", "KeyS", "AltGraph"], ["å", "KeyW", "AltGraph"], ["€", "Digit5", "AltGraph"], ["¼", "Digit6", "AltGraph"],
];

for (const [layout, keys] of Object.entries({ GERMAN, FRENCH, US_INTERNATIONAL })) {
  for (const platform of ["linux", "windows", "mac"] as const satisfies readonly Platform[]) {
    test(`${layout} on ${platform}: each key is the character it makes`, () => {
      for (const [key, code, mods] of keys) {
        const rig = new Rig(platform);
        expect(rig.down(key, code, { mods })).toBe("taken");
        expect(rig.up(key, code, { mods })).toBe("taken");
        expect(rig.take()).toBe(`+${key} -${key}`);
      }
    });
  }
}

test("a dead key on Linux: the input method swallows both keys and commits the letter", () => {
  const rig = new Rig("linux");
  expect(rig.down("Process", "Equal", { keyCode: 229 })).toBe("native");
  rig.compose("´");
  rig.up("Dead", "Equal", { keyCode: 187, isComposing: true });
  expect(rig.down("Process", "KeyE", { keyCode: 229, isComposing: true })).toBe("native");
  rig.input("é", "insertCompositionText");
  rig.commit();
  rig.up("e", "KeyE");
  expect(rig.take()).toBe("«é»");
});

test("a dead key that makes nothing with the next letter gives both, as it does in the person's own browser", () => {
  const rig = new Rig("linux");
  rig.down("Process", "Backquote", { keyCode: 229 });
  rig.compose("^");
  rig.down("Process", "KeyX", { keyCode: 229, isComposing: true });
  rig.input("^x", "insertCompositionText");
  rig.commit();
  expect(rig.take()).toBe("«^x»");
});

test("a dead key that is taken back gives nothing, and the next letter is itself", () => {
  const rig = new Rig("linux");
  rig.down("Process", "Equal", { keyCode: 229 });
  rig.compose("´");
  rig.down("Process", "Backspace", { keyCode: 229, isComposing: true });
  rig.input("", "insertCompositionText");
  rig.commit();
  rig.tap("e", "KeyE");
  expect(rig.take()).toBe("+e -e");
});

test("a dead key on Windows: the letter comes with the next key", () => {
  const rig = new Rig("windows");
  expect(rig.down("Dead", "Equal")).toBe("native");
  rig.up("Dead", "Equal");
  expect(rig.down("é", "KeyE")).toBe("native");
  rig.input("é");
  rig.up("é", "KeyE");
  rig.tap("e", "KeyE");
  expect(rig.take()).toBe("«é» +e -e");
});

test("a dead key on Windows that does not go with the letter types both", () => {
  const rig = new Rig("windows");
  rig.down("Dead", "Equal");
  expect(rig.down("x", "KeyX")).toBe("native");
  rig.input("´");
  rig.input(`${rig.field.value}x`);
  expect(rig.take()).toBe("«´» «x»");
});

test("a dead key with Option on a Mac is a composition", () => {
  const rig = new Rig("mac");
  rig.down("Alt", "AltLeft", { mods: "Alt" });
  rig.down("Dead", "KeyU", { mods: "Alt", keyCode: 229 });
  rig.compose("¨");
  rig.up("Alt", "AltLeft");
  rig.down("ü", "KeyU", { keyCode: 229, isComposing: true });
  rig.input("ü", "insertCompositionText");
  rig.commit();
  rig.up("u", "KeyU");
  expect(rig.take()).toBe("+Mode_switch -Mode_switch «ü»");
});

test("another key ends the wait of a dead key", () => {
  const rig = new Rig("windows");
  rig.down("Dead", "Equal");
  rig.tap("Escape", "Escape");
  rig.tap("e", "KeyE");
  expect(rig.take()).toBe("+0xff1b -0xff1b +e -e");
});

test("modifiers whose release a dead key swallowed are let go with the next key", () => {
  const rig = new Rig("linux");
  rig.down("Shift", "ShiftLeft", { mods: "Shift" });
  rig.down("AltGraph", "AltRight", { mods: "Shift+AltGraph" });
  rig.down("Process", "BracketLeft", { keyCode: 229, mods: "Shift+AltGraph" });
  rig.compose("˚");
  rig.down("Process", "KeyU", { keyCode: 229, isComposing: true });
  rig.input("ů", "insertCompositionText");
  rig.commit();
  expect(rig.take()).toBe("+Shift_L +AltGr -Shift_L -AltGr «ů»");
});

test("a layout whose key makes two letters types both", () => {
  const rig = new Rig("linux");
  rig.tap("لا", "KeyB");
  expect(rig.take()).toBe("«لا»");
});
