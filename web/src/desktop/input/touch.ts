// Fingers: a tap clicks, a long press clicks right, two fingers scroll, one finger scrolls or drags. Two fingers that
// move apart or together are the viewer's zoom and cause nothing here.
//
//   idle ──down──▶ one ──still, up──▶ tap
//                   ├──still for long──▶ held (right click)
//                   ├──moves──▶ moving (scroll or drag)
//                   └──second down──▶ two ──both move along──▶ scrolling
//                                      └──distance changes──▶ pinching

import type { Later } from "./keyboard";

/** A point of the page, in CSS pixels. */
export interface Point {
  x: number;
  y: number;
}

export interface TouchOptions {
  /** What one moving finger does. */
  oneFinger: "scroll" | "drag";
  later: Later;
  tap(at: Point): void;
  longPress(at: Point): void;
  /** The content follows the finger: positive is to the right and down. */
  scroll(by: Point, at: Point): void;
  drag(phase: "start" | "move" | "end", at: Point): void;
}

const LONG_PRESS_MS = 500;
const SLACK_PX = 10;
/** Change of the distance of two fingers that makes it a pinch. */
const PINCH_PX = 24;

type State =
  | { is: "idle" }
  | { is: "one"; id: number; from: Point; cancel: () => void }
  | { is: "moving"; id: number; last: Point }
  | { is: "held"; id: number }
  | { is: "two"; from: Point; apart: number }
  | { is: "scrolling"; last: Point }
  | { is: "pinching" };

export class Touch {
  private readonly fingers = new Map<number, Point>();
  private state: State = { is: "idle" };

  constructor(private readonly options: TouchOptions) {}

  down(id: number, at: Point): void {
    this.fingers.set(id, at);
    this.leave();
    if (this.fingers.size === 1) {
      const cancel = this.options.later(() => this.longPress(id, at), LONG_PRESS_MS);
      this.state = { is: "one", id, from: at, cancel };
    } else if (this.fingers.size === 2) {
      this.state = { is: "two", ...this.pair() };
    } else {
      this.state = { is: "pinching" };
    }
  }

  move(id: number, at: Point): void {
    if (!this.fingers.has(id)) return;
    this.fingers.set(id, at);
    const { state } = this;
    switch (state.is) {
      case "one":
        if (distance(state.from, at) > SLACK_PX) this.startMoving(state, at);
        return;
      case "moving":
        this.goOn(state, at);
        return;
      case "two": {
        const { from, apart } = this.pair();
        if (Math.abs(apart - state.apart) > PINCH_PX) this.state = { is: "pinching" };
        else if (distance(from, state.from) > SLACK_PX) this.state = { is: "scrolling", last: from };
        return;
      }
      case "scrolling": {
        const { from } = this.pair();
        this.options.scroll({ x: from.x - state.last.x, y: from.y - state.last.y }, from);
        this.state = { is: "scrolling", last: from };
        return;
      }
      case "idle":
      case "held":
      case "pinching":
        return;
    }
  }

  up(id: number): void {
    const at = this.fingers.get(id);
    this.fingers.delete(id);
    if (!at) return;
    const { state } = this;
    this.leave();
    if (state.is === "one" && state.id === id) this.options.tap(state.from);
    this.state = this.fingers.size === 0 ? { is: "idle" } : { is: "pinching" };
  }

  /** The browser took the fingers away. */
  cancel(id: number): void {
    this.fingers.delete(id);
    this.leave();
    this.state = this.fingers.size === 0 ? { is: "idle" } : { is: "pinching" };
  }

  forget(): void {
    this.fingers.clear();
    this.leave();
    this.state = { is: "idle" };
  }

  private startMoving(state: { id: number; from: Point; cancel: () => void }, at: Point): void {
    state.cancel();
    if (this.options.oneFinger === "drag") this.options.drag("start", state.from);
    const moving = { is: "moving", id: state.id, last: state.from } as const;
    this.state = moving;
    this.goOn(moving, at);
  }

  private goOn(state: { id: number; last: Point }, at: Point): void {
    if (this.options.oneFinger === "drag") this.options.drag("move", at);
    else this.options.scroll({ x: at.x - state.last.x, y: at.y - state.last.y }, at);
    this.state = { is: "moving", id: state.id, last: at };
  }

  private longPress(id: number, at: Point): void {
    this.state = { is: "held", id };
    this.options.longPress(at);
  }

  /** Ends what the state had begun. */
  private leave(): void {
    const { state } = this;
    if (state.is === "one") state.cancel();
    if (state.is === "moving" && this.options.oneFinger === "drag") this.options.drag("end", state.last);
  }

  private pair(): { from: Point; apart: number } {
    const [one = { x: 0, y: 0 }, other = one] = this.fingers.values();
    return { from: { x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 }, apart: distance(one, other) };
  }
}

function distance(one: Point, other: Point): number {
  return Math.hypot(one.x - other.x, one.y - other.y);
}
