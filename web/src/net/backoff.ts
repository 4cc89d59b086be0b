// How long to wait before the next attempt to connect.

export interface BackoffOptions {
  firstMs: number;
  mostMs: number;
  /** Random number in [0, 1); spreads clients that lost the same server. */
  random: () => number;
}

const DEFAULTS: BackoffOptions = { firstMs: 400, mostMs: 10_000, random: Math.random };

/** Doubling waits with up to 25 % jitter, capped; `reset` after a connection that worked. */
export class Backoff {
  private attempts = 0;
  private readonly options: BackoffOptions;

  constructor(options: Partial<BackoffOptions> = {}) {
    this.options = { ...DEFAULTS, ...options };
  }

  /** Wait before the next attempt, in milliseconds. */
  next(): number {
    const { firstMs, mostMs, random } = this.options;
    const base = Math.min(firstMs * 2 ** this.attempts, mostMs);
    this.attempts += 1;
    return Math.round(base * (1 - 0.25 * random()));
  }

  reset(): void {
    this.attempts = 0;
  }
}
