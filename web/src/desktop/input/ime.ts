// The hidden text field: where input methods, dead keys and soft keyboards write, and what becomes of it.

import { KEYSYM } from "./keysyms";
import { editOf, isDirect } from "./text";

/** The part of a text field that is used. */
export interface Field {
  value: string;
  setSelectionRange(start: number, end: number): void;
}

export interface TypedOut {
  text(text: string): void;
  tap(keysym: number, code: string): void;
  compositionStarted(): void;
  compositionEnded(): void;
}

/**
 * Soft keyboards say a backspace only where there is something to take away. Spaces, so that they take it for the
 * beginning of a text and not for a word to complete.
 */
const PADDING = " ".repeat(64);
/** The field is emptied when it is longer than this, even while its text is of use to a soft keyboard. */
const FIELD_MAX = 512;

export class TypedText {
  private readonly padding: string;
  private seen: string;
  private composing = false;

  /** `soft`: the system's soft keyboard writes here, and people expect to see letters before the word is complete. */
  constructor(
    private readonly field: Field,
    private readonly out: TypedOut,
    private readonly soft: boolean,
  ) {
    this.padding = soft ? PADDING : "";
    this.seen = "";
    this.reset();
  }

  compositionStart(): void {
    this.composing = true;
    this.out.compositionStarted();
  }

  /** The composed text changed; the field already shows it. */
  compositionUpdate(): void {
    if (this.soft && isDirect(this.field.value)) this.take();
  }

  compositionEnd(): void {
    this.composing = false;
    this.out.compositionEnded();
    this.take();
  }

  /** The field changed. */
  input(inputType: string): void {
    if (this.composing) return this.compositionUpdate();
    if (inputType === "deleteContentForward" || inputType === "deleteWordForward") this.out.tap(KEYSYM.Delete, "");
    this.take();
    if (!this.soft || this.field.value.length > FIELD_MAX || !this.field.value.startsWith(this.padding)) this.reset();
  }

  /** A key goes down while nothing is composed: what was typed before is of no use any more. */
  idle(): void {
    if (!this.composing && !this.soft && this.field.value !== "") this.reset();
  }

  /** Empties the field: what was begun is given up. */
  reset(): void {
    this.composing = false;
    this.field.value = this.padding;
    this.seen = this.padding;
    this.field.setSelectionRange(this.padding.length, this.padding.length);
  }

  private take(): void {
    const edit = editOf(this.seen, this.field.value);
    this.seen = this.field.value;
    for (let i = 0; i < edit.removed; i += 1) this.out.tap(KEYSYM.BackSpace, "Backspace");
    if (edit.inserted === "") return;
    const lines = edit.inserted.split("\n");
    lines.forEach((line, i) => {
      if (line !== "") this.out.text(line);
      if (i < lines.length - 1) this.out.tap(KEYSYM.Return, "Enter");
    });
  }
}
