// What a lane measures of its own picture.

/** A picture this much later than the ones before it, seen from when the screen was read, is a freeze. */
export const FREEZE_MS = 500;
/** How many pictures the usual delay is taken from. */
const WINDOW = 64;
/** A delay that jumps by more was not waited for: a clock was set, or a counter turned over. */
const JUMP_MS = 60_000;

/** Figures of one second, and counts since the start. */
export interface Figures {
  fps: number;
  kbps: number;
  rttMs: number | null;
  /** From the arrival of a picture to its presentation. */
  presentMs: number | null;
  /** Mean wait in the receiver's buffer. */
  bufferMs: number | null;
  framesShown: number;
  framesDropped: number;
  freezes: number;
  /** How packets travel: "UDP", "TCP", "relay", or empty. */
  path: string;
}

/** Counts pictures; times are milliseconds of any clock, one for reading the screen and one for showing. */
export class Meter {
  private shown = 0;
  private dropped = 0;
  private freezes = 0;
  private frozen = false;
  private bytes = 0;
  private readonly delays: number[] = [];
  private presents: number[] = [];
  private lastShown = 0;
  private lastBytes = 0;
  private lastAt: number | null = null;

  /** A picture was shown. */
  show(readMs: number, shownMs: number, presentMs: number | null): void {
    this.shown += 1;
    if (presentMs !== null) this.presents.push(presentMs);
    const delay = shownMs - readMs;
    if (Math.abs(delay - (this.delays[0] ?? delay)) > JUMP_MS) this.delays.length = 0;
    const usual = this.delays.length > 0 ? Math.min(...this.delays) : delay;
    const late = delay - usual > FREEZE_MS;
    if (late && !this.frozen) this.freezes += 1;
    this.frozen = late;
    this.delays.push(delay);
    if (this.delays.length > WINDOW) this.delays.shift();
  }

  drop(count = 1): void {
    this.dropped += count;
  }

  /** How many were left out so far, where the receiver counts itself. */
  setDropped(count: number): void {
    this.dropped = count;
  }

  receive(bytes: number): void {
    this.bytes += bytes;
  }

  /** The figures since the last call. */
  take(now: number): Pick<Figures, "fps" | "kbps" | "presentMs" | "framesShown" | "framesDropped" | "freezes"> {
    const seconds = this.lastAt === null ? 0 : (now - this.lastAt) / 1000;
    const per = (count: number): number => (seconds > 0 ? count / seconds : 0);
    const fps = per(this.shown - this.lastShown);
    const kbps = per((this.bytes - this.lastBytes) * 8) / 1000;
    const presentMs = mean(this.presents);
    this.presents = [];
    this.lastAt = now;
    this.lastShown = this.shown;
    this.lastBytes = this.bytes;
    return { fps, kbps, presentMs, framesShown: this.shown, framesDropped: this.dropped, freezes: this.freezes };
  }
}

export function mean(values: readonly number[]): number | null {
  return values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** From an act to the picture that can show it: the way there and back, the controller and the VM, and the presentation. */
export function inputToPicture(figures: Pick<Figures, "rttMs" | "presentMs">, inputServerMs: number | null): number | null {
  if (inputServerMs === null || figures.rttMs === null || figures.presentMs === null) return null;
  return inputServerMs + figures.rttMs + figures.presentMs;
}
