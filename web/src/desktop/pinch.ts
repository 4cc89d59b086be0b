// Two fingers that move apart or together enlarge the picture. Everything else that fingers do is input.

import type { Place } from "./protocol";

/** Change of the distance that makes it a pinch; the same as in input/touch.ts, which then stays out of it. */
const PINCH_PX = 24;

export interface PinchStep {
  factor: number;
  around: Place;
  moved: Place;
}

export class Pinch {
  private readonly fingers = new Map<number, Place>();
  private start: number | null = null;
  private last: { apart: number; middle: Place } | null = null;

  down(id: number, at: Place): void {
    this.fingers.set(id, at);
    this.last = null;
    this.start = this.fingers.size === 2 ? this.pair().apart : null;
  }

  up(id: number): void {
    this.fingers.delete(id);
    this.start = this.last = null;
  }

  /** What the picture is to do, or null while it is no pinch. */
  move(id: number, at: Place): PinchStep | null {
    if (!this.fingers.has(id)) return null;
    this.fingers.set(id, at);
    if (this.fingers.size !== 2 || this.start === null) return null;
    const now = this.pair();
    const { last } = this;
    if (!last) {
      if (Math.abs(now.apart - this.start) > PINCH_PX) this.last = now;
      return null;
    }
    this.last = now;
    const factor = last.apart > 0 ? now.apart / last.apart : 1;
    return { factor, around: last.middle, moved: { x: now.middle.x - last.middle.x, y: now.middle.y - last.middle.y } };
  }

  private pair(): { apart: number; middle: Place } {
    const [one = { x: 0, y: 0 }, other = one] = this.fingers.values();
    return { apart: Math.hypot(one.x - other.x, one.y - other.y), middle: { x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 } };
  }
}
