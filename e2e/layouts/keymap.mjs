// Which keys of a real X keymap make which character: the map is the one that the X server itself uses (xkbcomp).

/** Modifiers of each level of the key types that letters, digits and signs have. */
const LEVELS = [[], ["shift"], ["altgr"], ["shift", "altgr"]];
const TYPES = /^(?:ONE_LEVEL|TWO_LEVEL|ALPHABETIC|FOUR_LEVEL|FOUR_LEVEL_ALPHABETIC|FOUR_LEVEL_SEMIALPHABETIC|FOUR_LEVEL_PLUS_LOCK)$/;

/** One key to press: its X keycode and the keycodes held with it. */
function stroke(keycode, modifiers) {
  return { keycode, modifiers };
}

export class Keymap {
  /** Character to the strokes that make it, the shortest way. */
  ways = new Map();

  /** `text` is what `xkbcomp -xkb DISPLAY -` prints. */
  constructor(text, compose) {
    const codes = new Map([...text.matchAll(/^\s*<(\w+)> = (\d+);/gm)].map(([, name, code]) => [name, Number(code)]));
    const held = { shift: codes.get("LFSH"), altgr: codes.get("RALT") };
    const keys = levelsOf(text).flatMap(({ name, symbols }) =>
      symbols.flatMap((keysym, level) => (level < LEVELS.length ? [{ keysym, stroke: stroke(codes.get(name), LEVELS[level].map((modifier) => held[modifier])) }] : [])),
    );
    for (const { keysym, stroke: one } of keys) this.#add(compose.character(keysym), [one]);
    const dead = keys.filter(({ keysym }) => keysym.startsWith("dead_"));
    for (const first of dead) {
      for (const second of keys) this.#add(compose.pair(first.keysym, second.keysym), [first.stroke, second.stroke]);
    }
  }

  #add(character, strokes) {
    if (character === null || [...character].length !== 1) return;
    const known = this.ways.get(character);
    if (!known || effort(strokes) < effort(known)) this.ways.set(character, strokes);
  }
}

function effort(strokes) {
  return strokes.reduce((sum, { modifiers }) => sum + 10 + modifiers.length, 0);
}

/** Keys of the writing block with the names of their keysyms by level. */
function levelsOf(text) {
  const symbols = text.slice(text.indexOf("xkb_symbols"), text.indexOf("xkb_geometry") >>> 0);
  const keys = symbols.matchAll(/key\s+<(A[BCDE]\d\d|TLDE|BKSL|LSGT|SPCE)>\s*\{(?:\s*type= "([^"]+)",\s*symbols\[Group1\]=)?\s*\[([^\]]*)\]/g);
  return [...keys].filter(([, , type]) => type === undefined || TYPES.test(type)).map(([, name, , list]) => ({ name, symbols: list.split(",").map((symbol) => symbol.trim()) }));
}
