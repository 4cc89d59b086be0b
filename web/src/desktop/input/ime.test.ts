// Traces of input methods and soft keyboards.
import { expect, test } from "vitest";
import { Rig } from "./rig.fixture";
import { editOf } from "./text";

const BY_METHOD = { keyCode: 229 };
const COMPOSING = { keyCode: 229, isComposing: true };

test("an edit is what changed at the end, in whole characters", () => {
  expect(editOf("", "日本")).toEqual({ removed: 0, inserted: "日本" });
  expect(editOf("hel", "help ")).toEqual({ removed: 0, inserted: "p " });
  expect(editOf("teh", "the")).toEqual({ removed: 2, inserted: "he" });
  expect(editOf("a😀", "a😁")).toEqual({ removed: 1, inserted: "😁" });
});

test("Japanese in Chromium on Windows and macOS: the commit is sent once, its keys are not", () => {
  for (const platform of ["windows", "mac"] as const) {
    const rig = new Rig(platform);
    expect(rig.down("Process", "KeyN", BY_METHOD)).toBe("native");
    rig.compose("n", "に", "にほん", "日本");
    rig.down("Process", "Enter", COMPOSING);
    rig.input("日本", "insertCompositionText");
    rig.commit();
    rig.up("Enter", "Enter");
    expect(rig.take()).toBe("«日本»");
  }
});

test("IBus in Chromium on Linux: the composition ends empty, the text follows as plain input", () => {
  const rig = new Rig("linux");
  rig.down("Process", "KeyN", BY_METHOD);
  rig.compose("n", "に");
  rig.input("", "insertCompositionText");
  rig.commit();
  expect(rig.take()).toBe("");
  rig.input("に", "insertText");
  expect(rig.take()).toBe("«に»");
  rig.pass(1000);
  rig.tap("a", "KeyA");
  expect(rig.take()).toBe("+a -a");
});

test("Safari: the key that ended the composition comes after it and is not a key", () => {
  const rig = new Rig("mac");
  rig.compose("かんじ", "漢字");
  rig.commit();
  expect(rig.down("Enter", "Enter", BY_METHOD)).toBe("native");
  expect(rig.take()).toBe("«漢字»");
});

test("Firefox: the input that follows the end of the composition is not a second text", () => {
  const rig = new Rig("linux");
  rig.compose("か");
  rig.commit();
  rig.input("か", "insertCompositionText");
  expect(rig.take()).toBe("«か»");
});

test("two words one after another are two texts", () => {
  const rig = new Rig("windows");
  rig.compose("日本");
  rig.commit();
  rig.down("Process", "KeyG", BY_METHOD);
  expect(rig.field.value).toBe("");
  rig.compose("語");
  rig.commit();
  expect(rig.take()).toBe("«日本» «語»");
});

test("a composition that is given up sends nothing", () => {
  const rig = new Rig("windows");
  rig.compose("k", "か");
  rig.down("Process", "Escape", COMPOSING);
  rig.input("", "insertCompositionText");
  rig.commit();
  rig.pass(1000);
  expect(rig.take()).toBe("");
});

test("a Korean syllable and the shortcut that ended it: first the commit, then the shortcut", () => {
  const rig = new Rig("windows");
  rig.compose("ㅎ", "하", "한");
  rig.down("Control", "ControlLeft", { isComposing: true, mods: "Control" });
  rig.down("Process", "KeyA", COMPOSING);
  expect(rig.take()).toBe("");
  rig.commit();
  expect(rig.take()).toBe("«한» +Control_L +a -a");
  rig.up("Control", "ControlLeft");
  expect(rig.take()).toBe("-Control_L");
});

test("a shortcut during a composition without a commit is dropped", () => {
  const rig = new Rig("windows");
  rig.compose("ㅎ");
  rig.down("Control", "ControlLeft", { isComposing: true, mods: "Control" });
  rig.down("Process", "KeyA", COMPOSING);
  rig.input("", "insertCompositionText");
  rig.commit();
  rig.up("Control", "ControlLeft");
  rig.pass(1000);
  expect(rig.take()).toBe("");
});

test("a Korean input method that hides a shortcut while it composes nothing", () => {
  const rig = new Rig("windows");
  rig.down("Control", "ControlLeft", { mods: "Control" });
  rig.pass(100);
  rig.down("Process", "KeyA", BY_METHOD);
  expect(rig.take()).toBe("+Control_L +a -a");
});

test("a shortcut of the input method itself is not the VM's", () => {
  const rig = new Rig("linux");
  rig.down("Control", "ControlLeft", { mods: "Control" });
  rig.down("Process", "Space", { ...BY_METHOD, mods: "Control" });
  rig.up("Control", "ControlLeft");
  expect(rig.take()).toBe("+Control_L -Control_L");
});

test("text is typed as if Shift were not held", () => {
  const rig = new Rig("windows");
  rig.down("Shift", "ShiftLeft", { mods: "Shift" });
  rig.input("Ê");
  expect(rig.take()).toBe("+Shift_L -Shift_L «Ê» +Shift_L");
});

const soft = (rig: Rig, text: string) => rig.field.value.replace(/\S.*$/u, "") + text;

test("GBoard: letters are typed while their word is composed, and a correction takes back what it changes", () => {
  const rig = new Rig("android");
  rig.down("Unidentified", "", BY_METHOD);
  rig.compose(soft(rig, "t"), soft(rig, "te"), soft(rig, "teh"));
  rig.input(soft(rig, "the"), "insertCompositionText");
  rig.commit();
  rig.input(`${rig.field.value} `);
  expect(rig.take()).toBe("«t» «e» «h» +BackSpace -BackSpace +BackSpace -BackSpace «he» « »");
});

test("GBoard: a backspace with nothing typed is a key", () => {
  const rig = new Rig("android");
  rig.down("Unidentified", "", BY_METHOD);
  rig.input(rig.field.value.slice(0, -1), "deleteContentBackward");
  expect(rig.take()).toBe("+BackSpace -BackSpace");
  for (let i = 0; i < 200; i += 1) rig.input(rig.field.value.slice(0, -1), "deleteContentBackward");
  expect(rig.take().split(" ")).toHaveLength(400);
});

test("Android: Japanese waits for the commit", () => {
  const rig = new Rig("android");
  rig.compose(soft(rig, "か"), soft(rig, "かん"), soft(rig, "漢"));
  expect(rig.take()).toBe("");
  rig.commit();
  expect(rig.take()).toBe("«漢»");
});

test("Android: Enter of the soft keyboard is a key, however it comes", () => {
  const rig = new Rig("android");
  expect(rig.down("Enter", "", { keyCode: 13 })).toBe("taken");
  rig.input(`${rig.field.value}\n`, "insertLineBreak");
  expect(rig.take()).toBe("+Return -Return +Return -Return");
});

test("iOS: letters of the soft keyboard are keys without a place, a replaced word is edited", () => {
  const rig = new Rig("ios");
  expect(rig.down("h", "Unidentified")).toBe("taken");
  rig.input(soft(rig, "dictated words"), "insertText");
  rig.input(soft(rig, "dictated word."), "insertReplacementText");
  expect(rig.take()).toBe("+h -h «dictated words» +BackSpace -BackSpace «.»");
});

test("delete forward is its own key", () => {
  const rig = new Rig("android");
  rig.input(rig.field.value, "deleteContentForward");
  expect(rig.take()).toBe("+Delete -Delete");
});

test("the field does not grow without end", () => {
  const rig = new Rig("android");
  for (let i = 0; i < 2000; i += 1) rig.input(`${rig.field.value}a`);
  expect(rig.take().split(" ")).toHaveLength(2000);
  expect(rig.field.value.length).toBeLessThan(600);
});
