// What dead keys make of letters, and which characters the names of keysyms stand for: both are in X11's own Compose file
// (libx11-data), which every machine with an X client has.
import { readFileSync } from "node:fs";

const COMPOSE_FILE = "/usr/share/X11/locale/en_US.UTF-8/Compose";
const LINE = /^((?:<\w+>\s*)+):\s*"((?:[^"\\]|\\.)+)"\s*(\w+)?/;

/** Names that no line of the Compose file has as its result. */
const MORE_NAMES = {
  ENG: "Ŋ",
  Greek_OMEGA: "Ω",
  Hstroke: "Ħ",
  Lstroke: "Ł",
  Tslash: "Ŧ",
  space: " ",
  ampersand: "&",
  asterisk: "*",
  colon: ":",
  comma: ",",
  dollar: "$",
  doublelowquotemark: "„",
  downarrow: "↓",
  emdash: "—",
  endash: "–",
  eng: "ŋ",
  equal: "=",
  exclam: "!",
  fiveeighths: "⅝",
  hstroke: "ħ",
  idotless: "ı",
  kra: "ĸ",
  leftarrow: "←",
  leftdoublequotemark: "“",
  leftsinglequotemark: "‘",
  lstroke: "ł",
  minus: "-",
  oneeighth: "⅛",
  parenleft: "(",
  parenright: ")",
  percent: "%",
  period: ".",
  plus: "+",
  question: "?",
  quotedbl: '"',
  rightarrow: "→",
  rightdoublequotemark: "”",
  rightsinglequotemark: "’",
  semicolon: ";",
  seveneighths: "⅞",
  singlelowquotemark: "‚",
  slash: "/",
  threeeighths: "⅜",
  trademark: "™",
  tslash: "ŧ",
  underscore: "_",
  uparrow: "↑",
};

export class Compose {
  /** Name of a keysym to its character. */
  #names = new Map(Object.entries(MORE_NAMES));
  /** "dead_acute e" to what the two make. */
  #pairs = new Map();

  constructor(text = readFileSync(COMPOSE_FILE, "utf8")) {
    for (const line of text.split("\n")) {
      const found = LINE.exec(line);
      if (!found) continue;
      const [, left, quoted, name] = found;
      const result = quoted.replace(/\\(.)/g, "$1");
      const keys = [...left.matchAll(/<(\w+)>/g)].map(([, key]) => key);
      if (name && [...result].length === 1 && !this.#names.has(name)) this.#names.set(name, result);
      if (keys.length === 2 && keys[0].startsWith("dead_")) this.#pairs.set(keys.join(" "), result);
    }
  }

  /** The character of a keysym, or null for a key that makes none. */
  character(keysym) {
    if (keysym.length === 1) return keysym;
    const code = /^(?:U|0x100)([0-9A-Fa-f]{4,6})$/.exec(keysym)?.[1];
    return code ? String.fromCodePoint(Number.parseInt(code, 16)) : (this.#names.get(keysym) ?? null);
  }

  /** What a dead key followed by another key makes, or null. */
  pair(dead, next) {
    return this.#pairs.get(`${dead} ${next}`) ?? null;
  }
}
