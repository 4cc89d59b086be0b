// A keyboard and its text field without a browser: plays recorded events and writes down what is sent.

import { TypedText, type Field } from "./ime";
import { Keyboard, type KeyLike, type Later } from "./keyboard";
import { Latches } from "./latches";
import { hasSoftKeyboard, type Platform } from "./platform";

type Modifier = "Shift" | "Control" | "Alt" | "Meta" | "AltGraph";

export interface Extra {
  /** Modifiers that are down, joined by "+". */
  mods?: string;
  keyCode?: number;
  repeat?: boolean;
  isComposing?: boolean;
  at?: number;
}

const LATIN_KEYS: Readonly<Record<number, string>> = { 0xff08: "BackSpace", 0xff0d: "Return", 0xffff: "Delete", 0xffe1: "Shift_L", 0xffe2: "Shift_R", 0xffe3: "Control_L", 0xffe4: "Control_R", 0xffe9: "Alt_L", 0xffea: "Alt_R", 0xffeb: "Super_L", 0xfe03: "AltGr", 0xff7e: "Mode_switch" };

export class Rig {
  readonly latches = new Latches();
  readonly keyboard: Keyboard;
  readonly typed: TypedText;
  /** "+x" and "-x" for a key going down and up, "«x»" for text. */
  sent: string[] = [];
  readonly field: Field = { value: "", setSelectionRange: () => {} };
  private readonly timers: { at: number; run: () => void }[] = [];
  private now = 0;

  constructor(platform: Platform, pastes = false) {
    const out = {
      key: (down: boolean, keysym: number) => void this.sent.push(`${down ? "+" : "-"}${name(keysym)}`),
      text: (text: string) => void this.sent.push(`«${text}»`),
    };
    this.keyboard = new Keyboard(out, { platform, latches: this.latches, later: this.later, pastes });
    this.typed = new TypedText(this.field, this.keyboard, hasSoftKeyboard(platform));
  }

  /** What was sent since the last time. */
  take(): string {
    const sent = this.sent.join(" ");
    this.sent = [];
    return sent;
  }

  down(key: string, code: string, extra: Extra = {}): string {
    const event = this.event(key, code, extra);
    if (!event.isComposing) this.typed.idle();
    return this.keyboard.down(event);
  }

  up(key: string, code: string, extra: Extra = {}): string {
    return this.keyboard.up(this.event(key, code, extra));
  }

  /** A key that goes down and up, with the input it makes if the page lets it. */
  tap(key: string, code: string, extra: Extra = {}): void {
    if (this.down(key, code, extra) === "native" && [...key].length === 1) this.input(this.field.value + key);
    this.up(key, code, extra);
  }

  input(value: string, inputType = "insertText"): void {
    this.field.value = value;
    this.typed.input(inputType);
  }

  compose(...values: string[]): void {
    this.typed.compositionStart();
    for (const value of values) this.input(value, "insertCompositionText");
  }

  commit(): void {
    this.typed.compositionEnd();
  }

  pass(ms: number): void {
    this.now += ms;
    for (const timer of [...this.timers].sort((one, other) => one.at - other.at)) {
      if (timer.at > this.now || !this.timers.includes(timer)) continue;
      this.timers.splice(this.timers.indexOf(timer), 1);
      timer.run();
    }
  }

  private readonly later: Later = (run, delayMs) => {
    const timer = { at: this.now + delayMs, run };
    this.timers.push(timer);
    return () => {
      const place = this.timers.indexOf(timer);
      if (place >= 0) this.timers.splice(place, 1);
    };
  };

  private event(key: string, code: string, extra: Extra): KeyLike {
    const mods = (extra.mods ?? "").split("+");
    const has = (modifier: Modifier) => mods.includes(modifier);
    return {
      key,
      code,
      keyCode: extra.keyCode ?? key.toUpperCase().charCodeAt(0),
      repeat: extra.repeat ?? false,
      isComposing: extra.isComposing ?? false,
      ctrlKey: has("Control"),
      altKey: has("Alt"),
      shiftKey: has("Shift"),
      metaKey: has("Meta"),
      timeStamp: extra.at ?? this.now,
      getModifierState: (modifier) => mods.includes(modifier),
    };
  }
}

function name(keysym: number): string {
  const known = LATIN_KEYS[keysym];
  if (known) return known;
  if (keysym >= 0x0100_0000 && keysym < 0x0200_0000) return String.fromCodePoint(keysym & 0xff_ffff);
  return keysym <= 0xff ? String.fromCodePoint(keysym) : `0x${keysym.toString(16)}`;
}
