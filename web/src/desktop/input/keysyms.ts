// X11 keysyms of what `KeyboardEvent.key` can be. Values: X.Org's keysymdef.h and XF86keysym.h; names: W3C UI Events
// KeyboardEvent key and code values.

/** Marks a keysym that is a Unicode code point (X11 protocol, appendix A). */
const UNICODE = 0x0100_0000;

export const KEYSYM = {
  BackSpace: 0xff08,
  Tab: 0xff09,
  Return: 0xff0d,
  Escape: 0xff1b,
  Home: 0xff50,
  Left: 0xff51,
  Up: 0xff52,
  Right: 0xff53,
  Down: 0xff54,
  PageUp: 0xff55,
  PageDown: 0xff56,
  End: 0xff57,
  ModeSwitch: 0xff7e,
  ShiftL: 0xffe1,
  ShiftR: 0xffe2,
  ControlL: 0xffe3,
  ControlR: 0xffe4,
  CapsLock: 0xffe5,
  AltL: 0xffe9,
  AltR: 0xffea,
  SuperL: 0xffeb,
  SuperR: 0xffec,
  Level3Shift: 0xfe03,
  Delete: 0xffff,
} as const;

/** Keys that exist on both sides: keysym of the left and of the right one. */
const TWO_SIDED: Readonly<Record<string, readonly [number, number]>> = {
  Shift: [KEYSYM.ShiftL, KEYSYM.ShiftR],
  Control: [KEYSYM.ControlL, KEYSYM.ControlR],
  Alt: [KEYSYM.AltL, KEYSYM.AltR],
  Meta: [KEYSYM.SuperL, KEYSYM.SuperR],
};

/**
 * Keys with a name and one keysym. Missing on purpose: CapsLock and NumLock, because characters arrive resolved and a
 * lock in the VM could only spoil them; power and sleep keys, which are for the person's own machine.
 */
const NAMED: Readonly<Record<string, number>> = {
  AltGraph: KEYSYM.Level3Shift,
  Backspace: KEYSYM.BackSpace,
  Tab: KEYSYM.Tab,
  Enter: KEYSYM.Return,
  Clear: 0xff0b,
  Pause: 0xff13,
  ScrollLock: 0xff14,
  Escape: KEYSYM.Escape,
  Home: KEYSYM.Home,
  ArrowLeft: KEYSYM.Left,
  ArrowUp: KEYSYM.Up,
  ArrowRight: KEYSYM.Right,
  ArrowDown: KEYSYM.Down,
  PageUp: KEYSYM.PageUp,
  PageDown: KEYSYM.PageDown,
  End: KEYSYM.End,
  Delete: KEYSYM.Delete,
  Select: 0xff60,
  PrintScreen: 0xff61,
  Print: 0xff61,
  Execute: 0xff62,
  Insert: 0xff63,
  Undo: 0xff65,
  Redo: 0xff66,
  ContextMenu: 0xff67,
  Find: 0xff68,
  Cancel: 0xff69,
  Help: 0xff6a,
  // Keys of input methods.
  KanjiMode: 0xff21,
  NonConvert: 0xff22,
  Convert: 0xff23,
  Romaji: 0xff24,
  Hiragana: 0xff25,
  Katakana: 0xff26,
  HiraganaKatakana: 0xff27,
  Zenkaku: 0xff28,
  Hankaku: 0xff29,
  ZenkakuHankaku: 0xff2a,
  KanaMode: 0xff2e,
  Eisu: 0xff30,
  Alphanumeric: 0xff30,
  HangulMode: 0xff31,
  HanjaMode: 0xff34,
  CodeInput: 0xff37,
  JunjaMode: 0xff38,
  SingleCandidate: 0xff3c,
  AllCandidates: 0xff3d,
  PreviousCandidate: 0xff3e,
  GroupNext: 0xfe08,
  GroupPrevious: 0xfe0a,
  GroupFirst: 0xfe0c,
  GroupLast: 0xfe0e,
  // Keys for media, programs and browsers.
  BrightnessUp: 0x1008_ff02,
  BrightnessDown: 0x1008_ff03,
  AudioVolumeDown: 0x1008_ff11,
  AudioVolumeMute: 0x1008_ff12,
  AudioVolumeUp: 0x1008_ff13,
  MediaPlay: 0x1008_ff14,
  MediaPlayPause: 0x1008_ff14,
  MediaStop: 0x1008_ff15,
  MediaTrackPrevious: 0x1008_ff16,
  MediaTrackNext: 0x1008_ff17,
  BrowserHome: 0x1008_ff18,
  LaunchMail: 0x1008_ff19,
  BrowserSearch: 0x1008_ff1b,
  MediaRecord: 0x1008_ff1c,
  LaunchApplication2: 0x1008_ff1d,
  LaunchCalendar: 0x1008_ff20,
  BrowserBack: 0x1008_ff26,
  BrowserForward: 0x1008_ff27,
  BrowserStop: 0x1008_ff28,
  BrowserRefresh: 0x1008_ff29,
  LaunchScreenSaver: 0x1008_ff2d,
  LaunchWebBrowser: 0x1008_ff2e,
  BrowserFavorites: 0x1008_ff30,
  MediaPause: 0x1008_ff31,
  LaunchMediaPlayer: 0x1008_ff32,
  LaunchApplication1: 0x1008_ff33,
  MediaRewind: 0x1008_ff3e,
  Close: 0x1008_ff56,
  Copy: 0x1008_ff57,
  Cut: 0x1008_ff58,
  LaunchSpreadsheet: 0x1008_ff5c,
  New: 0x1008_ff68,
  Open: 0x1008_ff6b,
  Paste: 0x1008_ff6d,
  LaunchPhone: 0x1008_ff6e,
  MailReply: 0x1008_ff72,
  Save: 0x1008_ff77,
  MailSend: 0x1008_ff7b,
  SpellCheck: 0x1008_ff7c,
  LaunchWordProcessor: 0x1008_ff89,
  ZoomIn: 0x1008_ff8b,
  ZoomOut: 0x1008_ff8c,
  MailForward: 0x1008_ff90,
  LaunchMusicPlayer: 0x1008_ff92,
  MediaFastForward: 0x1008_ff97,
  MicrophoneVolumeMute: 0x1008_ffb2,
};

const F1 = 0xffbe;
const FUNCTION_KEYS = 35;
const KP_ENTER = 0xff8d;
const KP_BEGIN = 0xff9d;

/** Keysym of one character, or null for a control character that no key stands for. */
export function keysymOfCharacter(character: string): number | null {
  const point = character.codePointAt(0);
  if (point === undefined) return null;
  if (character === "\n") return KEYSYM.Return;
  if (character === "\t") return KEYSYM.Tab;
  if (point < 0x20 || (point >= 0x7f && point < 0xa0)) return null;
  return point <= 0xff ? point : UNICODE | point;
}

/** Keysym of a key that has a name, or null if `key` is none of them. */
export function keysymOfName(key: string, code: string): number | null {
  const sides = Object.hasOwn(TWO_SIDED, key) ? TWO_SIDED[key] : undefined;
  if (sides) return code.endsWith("Right") ? sides[1] : sides[0];
  if (key === "Enter" && code === "NumpadEnter") return KP_ENTER;
  // Numpad 5 without NumLock: Windows calls it Clear.
  if (key === "Clear" && code === "Numpad5") return KP_BEGIN;
  const number = /^F([1-9]\d?)$/.exec(key)?.[1];
  if (number && Number(number) <= FUNCTION_KEYS) return F1 + Number(number) - 1;
  return Object.hasOwn(NAMED, key) ? (NAMED[key] ?? null) : null;
}

/** Whether `key` is the text that the key makes, not its name. Some layouts have keys that make several letters. */
export function isText(key: string): boolean {
  return [...key].length === 1 || !/^[A-Za-z0-9]+$/.test(key);
}

const PUNCTUATION: Readonly<Record<string, string>> = {
  Backquote: "`~",
  Minus: "-_",
  Equal: "=+",
  BracketLeft: "[{",
  BracketRight: "]}",
  Backslash: "\\|",
  IntlBackslash: "<>",
  Semicolon: ";:",
  Quote: "'\"",
  Comma: ",<",
  Period: ".>",
  Slash: "/?",
  Space: "  ",
};
const SHIFTED_DIGITS = ")!@#$%^&*(";

/** The character that a key makes on a US keyboard: what shortcuts mean under layouts without Latin letters. */
export function latinCharacter(code: string, shift: boolean): string | null {
  const letter = /^Key([A-Z])$/.exec(code)?.[1];
  if (letter) return shift ? letter : letter.toLowerCase();
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(code)?.[1];
  if (digit) return shift && code.startsWith("Digit") ? (SHIFTED_DIGITS[Number(digit)] ?? null) : digit;
  return PUNCTUATION[code]?.[shift ? 1 : 0] ?? null;
}
