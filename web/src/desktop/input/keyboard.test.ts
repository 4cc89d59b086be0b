import { expect, test } from "vitest";
import { Rig } from "./rig.fixture";

test("a release is that of the key that went down, whatever it means by then", () => {
  const rig = new Rig("linux");
  rig.down("Shift", "ShiftLeft", { mods: "Shift" });
  rig.down("A", "KeyA", { mods: "Shift" });
  rig.up("Shift", "ShiftLeft");
  rig.up("a", "KeyA");
  expect(rig.take()).toBe("+Shift_L +A -Shift_L -A");
});

test("a key that is held repeats, and a release that was never seen down is not sent", () => {
  const rig = new Rig("linux");
  rig.down("a", "KeyA");
  rig.down("a", "KeyA", { repeat: true });
  rig.up("a", "KeyA");
  expect(rig.up("b", "KeyB")).toBe("native");
  expect(rig.take()).toBe("+a +a -a");
});

test("a key pressed again with another meaning is let go first", () => {
  const rig = new Rig("linux");
  rig.down("a", "KeyA");
  rig.down("ä", "KeyA");
  expect(rig.take()).toBe("+a -a +ä");
});

test("keys without a place are pressed and released at once", () => {
  const rig = new Rig("ios");
  rig.down("a", "");
  rig.down("Enter", "Unidentified");
  expect(rig.take()).toBe("+a -a +Return -Return");
});

test("AltGr on Windows is one key", () => {
  const rig = new Rig("windows");
  expect(rig.down("Control", "ControlLeft", { mods: "Control", at: 1000 })).toBe("taken");
  rig.down("AltGraph", "AltRight", { mods: "AltGraph", at: 1001 });
  rig.down("@", "KeyQ", { mods: "AltGraph" });
  rig.up("@", "KeyQ", { mods: "AltGraph" });
  rig.up("Control", "ControlLeft", { mods: "AltGraph" });
  rig.up("AltGraph", "AltRight");
  rig.pass(1000);
  expect(rig.take()).toBe("+AltGr +@ -@ -AltGr");
});

test("AltGr held on Windows repeats as Control and AltGr, and stays one key", () => {
  const rig = new Rig("windows");
  rig.down("Control", "ControlLeft", { mods: "Control", at: 0 });
  rig.down("AltGraph", "AltRight", { mods: "AltGraph", at: 1 });
  rig.down("Control", "ControlLeft", { mods: "Control+AltGraph", at: 500, repeat: true });
  rig.down("AltGraph", "AltRight", { mods: "AltGraph", at: 501, repeat: true });
  rig.up("AltGraph", "AltRight");
  rig.pass(1000);
  expect(rig.take()).not.toContain("Control");
});

test("Control on Windows is sent by the next key, by its release or after 100 ms", () => {
  const rig = new Rig("windows");
  rig.down("Control", "ControlLeft", { mods: "Control" });
  rig.down("c", "KeyC", { mods: "Control" });
  rig.up("c", "KeyC", { mods: "Control" });
  rig.up("Control", "ControlLeft");
  expect(rig.take()).toBe("+Control_L +c -c -Control_L");
  rig.down("Control", "ControlLeft", { mods: "Control" });
  rig.up("Control", "ControlLeft");
  expect(rig.take()).toBe("+Control_L -Control_L");
  rig.down("Control", "ControlLeft", { mods: "Control" });
  expect(rig.take()).toBe("");
  rig.pass(100);
  expect(rig.take()).toBe("+Control_L");
});

test("Control and the right Alt pressed by hand stay two keys", () => {
  const rig = new Rig("windows");
  rig.down("Control", "ControlLeft", { mods: "Control", at: 0 });
  rig.down("AltGraph", "AltRight", { mods: "AltGraph", at: 80 });
  expect(rig.take()).toBe("+Control_L +AltGr");
});

test("Control and Alt that make a character on Windows type it", () => {
  const rig = new Rig("windows");
  rig.down("Control", "ControlLeft", { mods: "Control", at: 0 });
  rig.down("Alt", "AltLeft", { mods: "Control+Alt", at: 90 });
  rig.down("@", "KeyQ", { mods: "Control+Alt+AltGraph" });
  expect(rig.take()).toBe("+Control_L +Alt_L -Control_L -Alt_L «@» +Control_L +Alt_L");
});

test("one release of Shift on Windows is that of both", () => {
  const rig = new Rig("windows");
  rig.down("Shift", "ShiftLeft", { mods: "Shift" });
  rig.down("Shift", "ShiftRight", { mods: "Shift" });
  rig.up("Shift", "ShiftRight");
  expect(rig.take().split(" ").sort()).toEqual(["+Shift_L", "+Shift_R", "-Shift_L", "-Shift_R"]);
});

test("mode keys of Japanese keyboards have no release on Windows", () => {
  const rig = new Rig("windows");
  rig.down("Hankaku", "Backquote");
  expect(rig.take()).toBe("+0xff29 -0xff29");
});

test("a Mac reports no release while Cmd is held", () => {
  const rig = new Rig("mac");
  rig.down("x", "KeyX");
  rig.down("Meta", "MetaLeft", { mods: "Meta" });
  rig.down("a", "KeyA", { mods: "Meta" });
  rig.up("Meta", "MetaLeft");
  expect(rig.take()).toBe("+x +Alt_L +a -a -Alt_L -x");
});

test("Option of a Mac chooses characters as AltGr does", () => {
  const rig = new Rig("mac");
  rig.down("Alt", "AltRight", { mods: "Alt" });
  rig.tap("ß", "KeyS", { mods: "Alt" });
  rig.up("Alt", "AltRight");
  rig.down("Alt", "AltLeft", { mods: "Alt" });
  rig.up("Alt", "AltLeft");
  expect(rig.take()).toBe("+AltGr +ß -ß -AltGr +Mode_switch -Mode_switch");
});

test("Alt with Shift is Alt, though X11 calls it Meta", () => {
  const rig = new Rig("linux");
  rig.down("Shift", "ShiftLeft", { mods: "Shift" });
  rig.down("Meta", "AltLeft", { mods: "Shift+Alt" });
  expect(rig.take()).toBe("+Shift_L +Alt_L");
});

test("shortcuts under a layout without Latin letters go by the key's place", () => {
  const rig = new Rig("linux");
  rig.down("Control", "ControlLeft", { mods: "Control" });
  rig.tap("с", "KeyC", { mods: "Control" });
  rig.up("Control", "ControlLeft");
  rig.tap("с", "KeyC");
  expect(rig.take()).toBe("+Control_L +c -c -Control_L +с -с");
});

test("shortcuts of Latin layouts go by the letter", () => {
  const rig = new Rig("linux");
  rig.down("Control", "ControlRight", { mods: "Control" });
  rig.tap("z", "KeyY", { mods: "Control" });
  expect(rig.take()).toBe("+Control_R +z -z");
});

test("CapsLock is not sent and does not turn Ctrl+A into Ctrl+Shift+A", () => {
  const rig = new Rig("linux");
  expect(rig.down("CapsLock", "CapsLock")).toBe("native");
  rig.tap("A", "KeyA");
  rig.down("Control", "ControlLeft", { mods: "Control" });
  rig.tap("A", "KeyA", { mods: "Control" });
  expect(rig.take()).toBe("+A -A +Control_L +a -a");
});

test("the number block types what it shows, and Enter there is its own key", () => {
  const rig = new Rig("linux");
  rig.tap("7", "Numpad7");
  rig.tap(",", "NumpadDecimal");
  rig.tap("Home", "Numpad7");
  rig.tap("Enter", "NumpadEnter");
  expect(rig.take()).toBe("+7 -7 +, -, +0xff50 -0xff50 +0xff8d -0xff8d");
});

test("a modifier whose release was lost is let go when the next key shows it", () => {
  const rig = new Rig("linux");
  rig.down("Alt", "AltLeft", { mods: "Alt" });
  rig.down("a", "KeyA");
  expect(rig.take()).toBe("+Alt_L -Alt_L +a");
});

test("forgetting leaves nothing that a late timer or release could send", () => {
  const rig = new Rig("windows");
  rig.down("a", "KeyA");
  rig.down("Control", "ControlLeft", { mods: "Control" });
  rig.take();
  expect(rig.keyboard.holds).toBe(true);
  rig.keyboard.forget();
  expect(rig.keyboard.holds).toBe(false);
  rig.pass(1000);
  rig.up("Control", "ControlLeft");
  rig.up("a", "KeyA");
  expect(rig.take()).toBe("");
});

test("the key of a paste waits for the paste", () => {
  const rig = new Rig("linux", true);
  rig.down("Control", "ControlLeft", { mods: "Control" });
  expect(rig.down("v", "KeyV", { mods: "Control" })).toBe("native");
  expect(rig.take()).toBe("+Control_L");
  rig.keyboard.pasted(true);
  expect(rig.take()).toBe("+v -v");
  rig.down("v", "KeyV", { mods: "Control" });
  rig.keyboard.pasted(false);
  rig.pass(1000);
  expect(rig.take()).toBe("");
  rig.down("v", "KeyV", { mods: "Control" });
  rig.pass(250);
  expect(rig.take()).toBe("+v -v");
});

test("Cmd+V of a Mac is the VM's Ctrl+V", () => {
  const rig = new Rig("mac", true);
  rig.down("Meta", "MetaLeft", { mods: "Meta" });
  rig.down("v", "KeyV", { mods: "Meta" });
  rig.take();
  rig.keyboard.pasted(true);
  expect(rig.take()).toBe("+Control_L +v -v -Control_L");
});

test("sticky modifiers go with the next key, locked ones with every key, typed or tapped", () => {
  const rig = new Rig("android");
  rig.latches.tap("ctrl");
  rig.keyboard.tap(0x61, "");
  rig.keyboard.tap(0x62, "");
  expect(rig.take()).toBe("+Control_L +a -a -Control_L +b -b");
  rig.latches.tap("alt");
  rig.latches.tap("alt");
  rig.input(`${rig.field.value}x`);
  rig.down("Tab", "Tab");
  expect(rig.take()).toBe("+Alt_L +x -x -Alt_L +Alt_L +0xff09 -0xff09 -Alt_L");
  rig.latches.tap("alt");
  rig.input(`${rig.field.value}x`);
  expect(rig.take()).toBe("«x»");
});
