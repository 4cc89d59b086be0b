// Key events become keys of the desktop: which key it is by its code, what it means by the character it made.
//
// An event is "taken" (the page must prevent its default) or left "native": then the browser goes on with it, and what
// it types into the hidden text field is sent as text. That is the way of input methods, dead keys and soft keyboards.

import { isText, KEYSYM, keysymOfCharacter, keysymOfName, latinCharacter } from "./keysyms";
import type { Latches } from "./latches";
import type { KeyOut } from "./output";
import type { Platform } from "./platform";

/** What any event of a keyboard or pointer says about the modifiers. */
export interface ModifierState {
  readonly ctrlKey: boolean;
  readonly altKey: boolean;
  readonly shiftKey: boolean;
  readonly metaKey: boolean;
  getModifierState(name: string): boolean;
}

/** What is used of a KeyboardEvent. */
export interface KeyLike extends ModifierState {
  readonly key: string;
  readonly code: string;
  readonly keyCode: number;
  readonly repeat: boolean;
  readonly isComposing: boolean;
  readonly timeStamp: number;
}

export type Verdict = "taken" | "native";

/** Runs something later; gives what takes it back. */
export type Later = (run: () => void, delayMs: number) => () => void;

export interface KeyboardOptions {
  platform: Platform;
  latches: Latches;
  later: Later;
  /** Whether pastes are wanted: then the keys of a paste wait for the paste event. */
  pastes?: boolean;
}

/** Windows says AltGr as Control and, at once, AltRight. */
const ALTGR_WITHIN_MS = 50;
const CONTROL_WAITS_MS = 100;
/** A shortcut that ended a composition waits this long for the commit, and is dropped if none comes. */
const COMMIT_WITHIN_MS = 100;
/** No paste event within this time: nothing can be pasted, so it is a key like any other. */
const PASTE_WITHIN_MS = 250;
const BY_INPUT_METHOD = 229;
const MODIFIER_NAMES = new Set(["Shift", "Control", "Alt", "Meta", "AltGraph"]);
const MODIFIERS: ReadonlySet<number> = new Set([
  KEYSYM.ShiftL, KEYSYM.ShiftR, KEYSYM.ControlL, KEYSYM.ControlR, KEYSYM.AltL, KEYSYM.AltR,
  KEYSYM.SuperL, KEYSYM.SuperR, KEYSYM.Level3Shift, KEYSYM.ModeSwitch,
]);
/** Mode keys of Japanese keyboards, of which Windows reports no release. */
const MODE_KEYS = new Set(["Zenkaku", "Hankaku", "ZenkakuHankaku", "KanjiMode", "Romaji", "Hiragana", "Katakana", "HiraganaKatakana", "Alphanumeric", "Eisu", "KanaMode"]);

interface Chord {
  modifiers: number[];
  keysym: number;
  code: string;
}

export class Keyboard {
  /** Keys that are down in the VM, by code. */
  private readonly held = new Map<string, number>();
  /** Modifiers that went down while a text was composed: they must not be held while its commit is typed. */
  private readonly deferred = new Map<string, number>();
  private composing = false;
  /** A dead key is waiting for its letter, which the browser makes. */
  private dead = false;
  private control: { at: number; cancel: () => void } | undefined;
  private afterCommit: { chord: Chord | undefined; cancel: (() => void) | undefined } | undefined;
  private paste: { chord: Chord; cancel: () => void } | undefined;
  private readonly apple: boolean;

  constructor(
    private readonly out: KeyOut,
    private readonly options: KeyboardOptions,
  ) {
    this.apple = options.platform === "mac" || options.platform === "ios";
  }

  /** Whether any key is down. */
  get holds(): boolean {
    return this.held.size > 0;
  }

  down(event: KeyLike): Verdict {
    this.settleControl(event);
    const composed = event.isComposing || event.keyCode === BY_INPUT_METHOD || event.key === "Process";
    // On Windows an input method's keys do not tell which modifiers are down.
    if (!composed || this.options.platform === "linux") this.releaseLost(event, event.code);
    if (composed) return this.downInComposition(event);
    if (event.key === "Dead" || event.key === "Compose") {
      this.dead = true;
      return "native";
    }
    if (isText(event.key)) return this.character(event);
    const keysym = this.named(event);
    if (keysym === null) return "native";
    if (MODIFIERS.has(keysym)) return this.modifier(event, keysym);
    this.dead = false;
    if (event.key === "Insert" && event.shiftKey && !event.ctrlKey && this.awaitPaste({ modifiers: [], keysym, code: event.code })) return "native";
    const once = this.withoutRelease(event) || (this.options.platform === "windows" && MODE_KEYS.has(event.key));
    this.press(event.code, keysym, once);
    return "taken";
  }

  up(event: KeyLike): Verdict {
    this.flushControl();
    this.releaseLost(event, event.code);
    this.deferred.delete(event.code);
    const was = this.held.get(event.code);
    if (was === undefined) return "native";
    this.release(event.code);
    if (this.options.platform === "windows" && event.key === "Shift") this.releaseWhere((keysym) => keysym === KEYSYM.ShiftL || keysym === KEYSYM.ShiftR);
    // Releases that happened while Cmd was down were never reported.
    if (this.apple && event.key === "Meta") this.releaseWhere((keysym) => !MODIFIERS.has(keysym));
    return "taken";
  }

  compositionStarted(): void {
    this.composing = true;
  }

  compositionEnded(): void {
    this.composing = false;
    this.afterCommit ??= { chord: undefined, cancel: undefined };
    this.afterCommit.cancel?.();
    // The commit may come after the end of the composition.
    this.afterCommit.cancel = this.options.later(() => this.settleCommit(false), COMMIT_WITHIN_MS);
  }

  /** Text that the browser made. One letter goes with the sticky modifiers. */
  text(text: string): void {
    this.dead = false;
    const keysym = [...text].length === 1 ? keysymOfCharacter(text) : null;
    if (keysym !== null && this.options.latches.held().length > 0) this.tap(keysym, "");
    else this.withoutModifiers(() => this.out.text(text));
    if (!this.composing && this.afterCommit) this.settleCommit(true);
  }

  /** One key press with the sticky modifiers. */
  tap(keysym: number, code: string): void {
    this.chord({ modifiers: this.options.latches.held(), keysym, code });
    this.options.latches.used();
  }

  /** The awaited paste came. `asKey`: its keys are to be pressed after all, as a paste within the VM. */
  pasted(asKey: boolean): void {
    const { paste } = this;
    this.paste = undefined;
    paste?.cancel();
    if (paste && asKey) this.chord(paste.chord);
  }

  /** Forgets what is held; the caller tells the VM to let everything go. */
  forget(): void {
    this.control?.cancel();
    this.afterCommit?.cancel?.();
    this.paste?.cancel();
    this.control = this.afterCommit = this.paste = undefined;
    this.held.clear();
    this.deferred.clear();
    this.dead = false;
  }

  private character(event: KeyLike): Verdict {
    const altGraph = event.getModifierState("AltGraph");
    const shortcut = !altGraph && (event.ctrlKey || event.metaKey || (event.altKey && !this.apple));
    if (shortcut) return this.shortcut(event);
    if (this.dead) return "native";
    const keysym = [...event.key].length === 1 ? keysymOfCharacter(event.key) : null;
    const mixed = altGraph && this.holdsAny([KEYSYM.ControlL, KEYSYM.ControlR, KEYSYM.AltL]);
    // Control and Alt together are AltGr on Windows: the character is meant, not a shortcut.
    if (keysym === null || mixed) this.withoutModifiers(() => this.out.text(event.key));
    else this.press(event.code, keysym, this.withoutRelease(event));
    return "taken";
  }

  private shortcut(event: KeyLike): Verdict {
    this.dead = false;
    const ascii = /^[ -~]$/.test(event.key) ? event.key : (latinCharacter(event.code, event.shiftKey) ?? event.key);
    // CapsLock does not make Ctrl+A to Ctrl+Shift+A.
    const character = event.shiftKey ? ascii.toUpperCase() : ascii.toLowerCase();
    const keysym = keysymOfCharacter(character);
    if (keysym === null) return "native";
    const pasting = character.toLowerCase() === "v" && !event.altKey && (this.apple ? event.metaKey : event.ctrlKey);
    // Within the VM a paste is Control's, whatever it is on the person's machine.
    const modifiers = this.holdsAny([KEYSYM.ControlL, KEYSYM.ControlR]) ? [] : [KEYSYM.ControlL];
    if (pasting && this.awaitPaste({ modifiers, keysym, code: event.code })) return "native";
    this.press(event.code, keysym, this.withoutRelease(event));
    return "taken";
  }

  private awaitPaste(chord: Chord): boolean {
    if (!this.options.pastes) return false;
    this.paste?.cancel();
    this.paste = { chord, cancel: this.options.later(() => this.pasted(true), PASTE_WITHIN_MS) };
    return true;
  }

  private modifier(event: KeyLike, keysym: number): Verdict {
    const isControl = this.options.platform === "windows" && event.key === "Control" && event.code === "ControlLeft";
    // The half of an AltGr that repeats.
    if (isControl && this.held.get("AltRight") === KEYSYM.Level3Shift) return "taken";
    if (isControl && !event.repeat && !this.held.has(event.code)) {
      this.control = { at: event.timeStamp, cancel: this.options.later(() => this.flushControl(), CONTROL_WAITS_MS) };
      return "taken";
    }
    this.press(event.code, keysym, false);
    return "taken";
  }

  private named(event: KeyLike): number | null {
    const { key, code } = event;
    if (this.apple && key === "Alt") return code === "AltRight" ? KEYSYM.Level3Shift : KEYSYM.ModeSwitch;
    if (this.apple && key === "Meta") return code === "MetaRight" ? KEYSYM.SuperR : KEYSYM.AltL;
    // X11 calls Alt with Shift Meta.
    if (key === "Meta" && code.startsWith("Alt")) return keysymOfName("Alt", code);
    return keysymOfName(key, code);
  }

  private downInComposition(event: KeyLike): Verdict {
    if (MODIFIER_NAMES.has(event.key)) {
      const keysym = this.named(event);
      if (keysym !== null && !this.held.has(event.code)) {
        if (this.composing) this.deferred.set(event.code, keysym);
        else this.press(event.code, keysym, false);
      }
      return "native";
    }
    const modifiers = [...new Set([...this.deferred.values(), ...this.held.values()])].filter((keysym) => MODIFIERS.has(keysym));
    const latin = latinCharacter(event.code, false);
    const shortcut = modifiers.some((keysym) => keysym !== KEYSYM.ShiftL && keysym !== KEYSYM.ShiftR && keysym !== KEYSYM.Level3Shift && keysym !== KEYSYM.ModeSwitch);
    const keysym = latin === null ? null : keysymOfCharacter(latin);
    if (!shortcut || keysym === null || event.repeat) return "native";
    const chord = { modifiers, keysym, code: event.code };
    if (this.composing) this.afterCommit = { chord, cancel: this.afterCommit?.cancel };
    // A Korean input method on Windows hides shortcuts from the page even when it composes nothing.
    else if (this.options.platform === "windows") this.chord(chord);
    return "native";
  }

  private settleCommit(committed: boolean): void {
    const chord = this.afterCommit?.chord;
    this.afterCommit?.cancel?.();
    this.afterCommit = undefined;
    const late = [...this.deferred];
    this.deferred.clear();
    for (const [code, keysym] of late) this.press(code, keysym, false);
    if (chord && committed) this.chord(chord);
  }

  /** Decides about a Control that was held back: with the right event after it, it was half of an AltGr. */
  private settleControl(event: KeyLike): void {
    const { control } = this;
    if (!control || event.code === "ControlLeft") return;
    const altGr = event.code === "AltRight" && (event.key === "AltGraph" || event.getModifierState("AltGraph")) && event.timeStamp - control.at < ALTGR_WITHIN_MS;
    if (!altGr) return this.flushControl();
    control.cancel();
    this.control = undefined;
  }

  private flushControl(): void {
    if (!this.control) return;
    this.control.cancel();
    this.control = undefined;
    this.press("ControlLeft", KEYSYM.ControlL, false);
  }

  private withoutRelease(event: KeyLike): boolean {
    return event.code === "" || event.code === "Unidentified" || (this.apple && event.metaKey);
  }

  private press(code: string, keysym: number, once: boolean): void {
    const known = code !== "" && code !== "Unidentified";
    if (!MODIFIERS.has(keysym) && this.options.latches.held().length > 0) return this.tap(keysym, known ? code : "");
    if (once) return this.chord({ modifiers: [], keysym, code: known ? code : "" });
    const was = this.held.get(code);
    // A repeated press keeps its meaning; a new press of a key whose release was lost gets a new one.
    if (was !== undefined && was !== keysym) this.release(code);
    this.held.set(code, keysym);
    this.out.key(true, keysym, code);
  }

  private chord({ modifiers, keysym, code }: Chord): void {
    const missing = modifiers.filter((modifier) => !this.holdsAny([modifier]));
    for (const modifier of missing) this.out.key(true, modifier, "");
    this.out.key(true, keysym, code);
    this.out.key(false, keysym, code);
    for (const modifier of missing.reverse()) this.out.key(false, modifier, "");
  }

  /** Does something as if no modifier were held. */
  withoutModifiers(act: () => void): void {
    const held = [...this.held].filter(([, keysym]) => MODIFIERS.has(keysym));
    for (const [code, keysym] of held) this.out.key(false, keysym, code);
    act();
    for (const [code, keysym] of held) this.out.key(true, keysym, code);
  }

  private release(code: string): void {
    const keysym = this.held.get(code);
    this.held.delete(code);
    if (keysym !== undefined) this.out.key(false, keysym, code);
  }

  private releaseWhere(wanted: (keysym: number) => boolean): void {
    for (const [code, keysym] of [...this.held]) if (wanted(keysym)) this.release(code);
  }

  private holdsAny(keysyms: readonly number[]): boolean {
    return [...this.held.values()].some((keysym) => keysyms.includes(keysym));
  }

  /**
   * Lets modifiers go of which an event says that they are up, though their release was never reported: input methods
   * and dead keys swallow it. `except` is the key that the event is about.
   */
  releaseLost(event: ModifierState, except = ""): void {
    if (this.apple) return;
    const altGraph = event.getModifierState("AltGraph");
    const up: number[] = [];
    if (!event.shiftKey) up.push(KEYSYM.ShiftL, KEYSYM.ShiftR);
    // With AltGr Windows does not tell about Control and Alt.
    if (!event.ctrlKey && !altGraph) up.push(KEYSYM.ControlL, KEYSYM.ControlR);
    if (!event.altKey && !altGraph) up.push(KEYSYM.AltL, KEYSYM.AltR);
    if (!event.metaKey) up.push(KEYSYM.SuperL, KEYSYM.SuperR);
    if (!altGraph) up.push(KEYSYM.Level3Shift);
    for (const [code, keysym] of [...this.deferred]) if (code !== except && up.includes(keysym)) this.deferred.delete(code);
    for (const [code, keysym] of [...this.held]) if (code !== except && up.includes(keysym)) this.release(code);
  }
}
