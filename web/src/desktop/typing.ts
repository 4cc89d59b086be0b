// Text as key presses: what a paste into the live browser is made of. The VM's clipboard is not involved.

import { keysymOfCharacter } from "./input/keysyms";

/** Key presses for a text; Windows line ends count once. */
export function keysymsOf(text: string): number[] {
  return [...text.replace(/\r\n?/g, "\n")].map(keysymOfCharacter).filter((keysym) => keysym !== null);
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
