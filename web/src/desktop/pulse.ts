// Whether the other end still answers, and how fast. Judges by its own pings only, so that a page that was put to sleep
// does not take its own silence for the other end's.

/** A ping goes out this often. */
export const PING_MS = 500;
/** An answer that is missing for so long makes a connection suspicious. */
export const SILENT_MS = 1_500;
const RTT_WINDOW = 8;

export class Pulse {
  /** The oldest ping without an answer. */
  private waiting: number | null = null;
  private lastTick: number | null = null;
  private readonly rtts: number[] = [];

  /** Called every `PING_MS`; says whether to send a ping with this time. */
  tick(now: number): { silentMs: number } {
    // The timer itself was late: whatever is missing may have been held up here.
    if (this.lastTick !== null && now - this.lastTick > 3 * PING_MS) this.waiting = null;
    this.lastTick = now;
    this.waiting ??= now;
    return { silentMs: now - this.waiting };
  }

  /** An answer to the ping of that time. */
  pong(at: number, now: number): void {
    this.waiting = null;
    this.rtts.push(Math.max(0, now - at));
    if (this.rtts.length > RTT_WINDOW) this.rtts.shift();
  }

  /** Something came that is not an answer, but shows that the other end is there. */
  sign(): void {
    this.waiting = null;
  }

  /** The usual round trip: the median of the last ones. */
  get rttMs(): number | null {
    if (this.rtts.length === 0) return null;
    const sorted = [...this.rtts].sort((a, b) => a - b);
    return sorted[Math.floor(sorted.length / 2)] ?? null;
  }
}
