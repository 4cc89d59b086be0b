// Moves and buttons of a mouse or pen. Only the newest place counts, and it goes out once per frame or before a button.

import type { Place } from "../protocol";
import type { InputEvent } from "../protocol";

/** What is used of a PointerEvent. */
export interface PointerLike {
  readonly clientX: number;
  readonly clientY: number;
  /** Bits of `MouseEvent.buttons`. */
  readonly buttons: number;
}

export interface PointerOptions {
  emit(event: InputEvent): void;
  toDesktop(clientX: number, clientY: number): Place | null;
  /** Asks for a call of `frame` with the next animation frame. */
  requestFrame(): void;
}

/** Bits of `MouseEvent.buttons` and X11's numbers. */
const BUTTONS: readonly [bit: number, button: number][] = [
  [1, 1],
  [4, 2],
  [2, 3],
  [8, 8],
  [16, 9],
];

export class Pointer {
  /** Where the pointer was last, if it was ever over the desktop. */
  place: Place | null = null;
  private sent: Place | null = null;
  private buttons = 0;

  constructor(private readonly options: PointerOptions) {}

  get holds(): boolean {
    return this.buttons !== 0;
  }

  /** Any event of a mouse or pen: buttons are found by comparing, since only the first of several has its own event. */
  event(event: PointerLike): void {
    const place = this.options.toDesktop(event.clientX, event.clientY);
    if (place) this.place = place;
    const changed = event.buttons ^ this.buttons;
    for (const [bit, button] of BUTTONS) {
      if ((changed & bit) === 0) continue;
      const down = (event.buttons & bit) !== 0;
      // What begins beside the desktop is not for it; what began on it ends anywhere.
      if (down && !place) continue;
      this.press(bit, button, down);
    }
    if (place && !same(place, this.sent)) this.options.requestFrame();
  }

  /** The animation frame that was asked for. */
  frame(): void {
    if (!this.place || same(this.place, this.sent)) return;
    this.sent = this.place;
    this.options.emit({ type: "move", ...this.place });
  }

  /** A button at a place at once, as a touch does it. */
  click(button: number, place: Place): void {
    this.place = place;
    this.frame();
    this.options.emit({ type: "button", button, down: true, ...place });
    this.options.emit({ type: "button", button, down: false, ...place });
  }

  /** Lets every button go where the pointer is. */
  release(): void {
    for (const [bit, button] of BUTTONS) if ((this.buttons & bit) !== 0) this.press(bit, button, false);
  }

  /** Forgets the buttons: the VM has let them go. */
  forget(): void {
    this.buttons = 0;
    this.sent = null;
  }

  private press(bit: number, button: number, down: boolean): void {
    if (!this.place || ((this.buttons & bit) !== 0) === down) return;
    this.buttons ^= bit;
    this.frame();
    this.options.emit({ type: "button", button, down, ...this.place });
  }
}

function same(one: Place, other: Place | null): boolean {
  return one.x === other?.x && one.y === other.y;
}
