// What the input modules produce, and how it becomes messages.

import { encodeInput, type InputEvent, type Place, TEXT_MAX } from "../protocol";
import { keysymOfCharacter } from "./keysyms";

/** Where input goes. `size` and `toDesktop` are in pixels of the desktop. */
export interface InputSink {
  /** Only pointer moves are not `reliable`: the next one makes up for a lost one. */
  send(message: Uint8Array<ArrayBuffer>, reliable: boolean): void;
  size(): { width: number; height: number };
  /** The place of the desktop under a point of the page, or null if the desktop is not there. */
  toDesktop(clientX: number, clientY: number): Place | null;
}

/** Most characters one paste may type; a sign-in form needs far fewer. */
export const PASTE_LIMIT = 16 << 10;

/** Keys and texts on their way out. */
export interface KeyOut {
  key(down: boolean, keysym: number, code: string): void;
  text(text: string): void;
}

/** Sends messages while it is active. */
export class Output implements KeyOut {
  active = true;

  constructor(private readonly sink: InputSink) {}

  emit(event: InputEvent): void {
    if (this.active) this.sink.send(encodeInput(event), event.type !== "move");
  }

  key(down: boolean, keysym: number, code: string): void {
    this.emit({ type: "key", down, keysym, code });
  }

  text(text: string): void {
    for (const piece of pieces(text)) this.emit({ type: "text", text: piece });
  }
}

/** The text as messages carry it: one kind of line end, no control characters, cut between characters. */
export function pieces(text: string, max = TEXT_MAX): string[] {
  const all: string[] = [];
  let piece = "";
  let size = 0;
  for (const character of text.replace(/\r\n?/g, "\n")) {
    // A lone surrogate is half a character and cannot be sent.
    if (keysymOfCharacter(character) === null || /^[\ud800-\udfff]$/.test(character)) continue;
    const bytes = bytesOf(character);
    if (size + bytes > max) {
      all.push(piece);
      piece = "";
      size = 0;
    }
    piece += character;
    size += bytes;
  }
  if (piece !== "") all.push(piece);
  return all;
}

function bytesOf(character: string): number {
  const point = character.codePointAt(0) ?? 0;
  if (point < 0x80) return 1;
  if (point < 0x800) return 2;
  return point < 0x1_0000 ? 3 : 4;
}
