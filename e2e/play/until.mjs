// Waiting for a state, never for a time.
import { setTimeout as pause } from "node:timers/promises";

const EVERY_MS = 150;

/** What was waited for did not come in time. */
export class TooLate extends Error {}

/**
 * Asks `probe` until it answers something true, and gives that answer. A probe that throws counts as "not yet", except
 * for a Hopeless error: that one says that waiting is of no use. `seen` words what was there instead.
 */
export async function until(what, probe, { deadlineMs, everyMs = EVERY_MS, seen = () => "" }) {
  const end = performance.now() + deadlineMs;
  let last = null;
  for (;;) {
    try {
      const answer = await probe();
      if (answer) return answer;
      last = null;
    } catch (error) {
      if (error instanceof Hopeless) throw error;
      last = error;
    }
    if (performance.now() >= end) {
      const there = await Promise.resolve(seen()).catch((error) => `(${error.message})`);
      throw new TooLate(`${what}: not within ${deadlineMs} ms. ${there}`, { cause: last });
    }
    await pause(everyMs);
  }
}

/** Waiting longer cannot help. */
export class Hopeless extends Error {}
