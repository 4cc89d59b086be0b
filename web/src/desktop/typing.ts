// Text as key presses: what a paste into the live browser is made of. The VM's clipboard is not involved.

const RETURN = 0xff0d;
const TAB = 0xff09;
const UNICODE_KEYSYM = 0x0100_0000;

/** X keysym of one character, or null for a control character that no key stands for (X.Org, keysymdef.h: Unicode keysyms). */
export function keysymOf(character: string): number | null {
  const point = character.codePointAt(0);
  if (point === undefined) return null;
  if (character === "\n") return RETURN;
  if (character === "\t") return TAB;
  if (point < 0x20 || (point >= 0x7f && point < 0xa0)) return null;
  return point <= 0xff ? point : UNICODE_KEYSYM | point;
}

/** Key presses for a text; Windows line ends count once. */
export function keysymsOf(text: string): number[] {
  return [...text.replace(/\r\n?/g, "\n")].map(keysymOf).filter((keysym) => keysym !== null);
}

/** Most characters one paste may type; a sign-in form needs far fewer. */
export const PASTE_LIMIT = 4096;

/** Presses the keys one after another with a pause, since a desktop under load drops bursts. Ends early when `alive` says no. */
export async function typeText(text: string, press: (keysym: number) => void, pauseMs = 12, alive: () => boolean = () => true): Promise<void> {
  for (const keysym of keysymsOf(text.slice(0, PASTE_LIMIT))) {
    if (!alive()) return;
    press(keysym);
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
}
