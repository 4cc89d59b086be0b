// What hands do while the control goes from one lane of a viewer to the next: the lane before has it no more, the next
// one does not have it yet, so whatever is sent then is refused. It waits here instead.

/** Messages that may wait: a second of fast typing, several times over. */
export const HELD_MAX = 256;

export class HeldInput {
  private waiting: Uint8Array<ArrayBuffer>[] | null = null;

  /** The control is on its way. */
  begin(): void {
    this.waiting ??= [];
  }

  /** Whether the message waits, or is left out: the next move makes up for one that is. */
  take(message: Uint8Array<ArrayBuffer>, reliable: boolean): boolean {
    if (this.waiting === null) return false;
    if (reliable && this.waiting.length < HELD_MAX) this.waiting.push(message);
    return true;
  }

  /** The control has arrived, or does not come: gives what waited, in order. */
  end(): Uint8Array<ArrayBuffer>[] {
    const waiting = this.waiting ?? [];
    this.waiting = null;
    return waiting;
  }
}
