// Turns of wheels and strokes on touchpads, gathered into parts of a notch.

import { WHEEL_NOTCH } from "../protocol";

/** What is used of a WheelEvent. */
export interface WheelLike {
  readonly deltaX: number;
  readonly deltaY: number;
  readonly deltaMode: number;
}

const PIXELS_PER_NOTCH = 100;
const LINES_PER_NOTCH = 3;
const BY_LINES = 1;
const BY_PAGES = 2;

export class Wheel {
  private x = 0;
  private y = 0;

  /** `page`: width and height that a turn by a page covers, in CSS pixels. */
  turn(event: WheelLike, page: { width: number; height: number }): void {
    this.x += notches(event.deltaX, event.deltaMode, page.width) * WHEEL_NOTCH;
    this.y += notches(event.deltaY, event.deltaMode, page.height) * WHEEL_NOTCH;
  }

  /** Whole units since the last time, or null if there are none; what is left of one is kept. */
  take(): { dx: number; dy: number } | null {
    const dx = whole(this.x);
    const dy = whole(this.y);
    if (dx === 0 && dy === 0) return null;
    this.x -= dx;
    this.y -= dy;
    return { dx, dy };
  }

  clear(): void {
    this.x = this.y = 0;
  }
}

/** Sums of fractions miss a whole number by a hair. */
function whole(units: number): number {
  return Math.trunc(units + Math.sign(units) * 1e-6);
}

function notches(delta: number, mode: number, page: number): number {
  if (mode === BY_LINES) return delta / LINES_PER_NOTCH;
  return (mode === BY_PAGES ? delta * page : delta) / PIXELS_PER_NOTCH;
}
