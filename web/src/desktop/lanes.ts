// Which way the picture takes: WebRTC, else a WebSocket, else VNC, and back up again. Decides, does nothing itself:
// events and times go in, actions come out.
//
//   open the first lane ── picture ──▶ shown ── lost ──▶ the next lane (WebSocket and VNC: the same once more)
//        │ too slow, failed                 │
//        ▼                                  └── now and then: open a better lane behind the picture, with more time, then show that
//   the next lane … after the last one: wait, then from the first again

import { Backoff } from "../net/backoff";

export type LaneKind = "webrtc" | "websocket" | "vnc";
/** What the person wants: the best that works, or one lane before all others. */
export type Wish = "auto" | LaneKind;
/** Why a lane is not in use. */
export type Why = "unsupported" | "slow" | "refused" | "no_picture" | "decoder" | "lost";

export type LaneAction = { do: "open" | "show" | "close"; lane: LaneKind };

/** Best first. */
export const LANES: readonly LaneKind[] = ["webrtc", "websocket", "vnc"];
/** A lane that is not connected by then is given up. VNC has no other one after it and is slow to start on a busy machine. */
export const CONNECT_MS: Record<LaneKind, number> = { webrtc: 2_000, websocket: 3_000, vnc: 10_000 };
/** The same behind a picture: nobody waits, and a way over a relay far away takes a dozen round trips. */
export const BEHIND_MS = 10_000;
/** From the connection to the first picture. */
export const PICTURE_MS = 4_000;
/** A lane that lived this long was good; its loss is not its own fault. */
export const STABLE_MS = 3_000;
/** From a lane's start until a better one is tried behind it; doubled after each failure. */
export const CLIMB_MS = 8_000;
export const CLIMB_MOST_MS = 300_000;

interface Attempt {
  lane: LaneKind;
  until: number;
}

export class LanePlan {
  private wish: Wish;
  private shown: { lane: LaneKind; since: number } | null = null;
  /** What is being opened: in front if nothing is shown, else behind the picture. */
  private attempt: Attempt | null = null;
  private rest: LaneKind[] = [];
  private waitUntil: number | null = null;
  private climbAt: number | null = null;
  private climbs = 0;
  private stopped = false;
  private readonly backoff: Backoff;
  private readonly failures = new Map<LaneKind, Why>();

  constructor(
    private readonly supported: ReadonlySet<LaneKind>,
    wish: Wish = "auto",
    backoff: Backoff = new Backoff(),
  ) {
    this.wish = wish;
    this.backoff = backoff;
    for (const lane of LANES) if (!supported.has(lane)) this.failures.set(lane, "unsupported");
  }

  /** The lane whose picture is shown, or was last. */
  get lane(): LaneKind | null {
    return this.shown?.lane ?? null;
  }

  /** Why each lane that was tried is not in use. */
  get reasons(): ReadonlyMap<LaneKind, Why> {
    return this.failures;
  }

  /** No lane is open and none is being opened: the plan waits. */
  get isWaiting(): boolean {
    return this.waitUntil !== null;
  }

  /** When to call `tick`. */
  get nextAt(): number | null {
    const times = [this.attempt?.until, this.waitUntil, this.attempt ? null : this.climbAt].filter((time) => typeof time === "number");
    return this.stopped || times.length === 0 ? null : Math.min(...times);
  }

  start(now: number): LaneAction[] {
    this.rest = this.order();
    return this.openNext(now);
  }

  /** The transport of a lane is up; its first picture may take a little. */
  connected(lane: LaneKind, now: number): LaneAction[] {
    if (this.attempt?.lane === lane) this.attempt.until = now + PICTURE_MS;
    return [];
  }

  /** A lane has its first picture. */
  opened(lane: LaneKind, now: number): LaneAction[] {
    if (this.attempt?.lane !== lane) return [];
    const before = this.shown;
    this.attempt = null;
    this.rest = [];
    this.failures.delete(lane);
    this.shown = { lane, since: now };
    const order = this.order();
    if (lane === order[0]) this.climbs = 0;
    this.planClimb(now);
    const close: LaneAction[] = before && before.lane !== lane ? [{ do: "close", lane: before.lane }] : [];
    return [{ do: "show", lane }, ...close];
  }

  /** A lane ended or cannot be opened. */
  failed(lane: LaneKind, why: Why, now: number): LaneAction[] {
    if (this.stopped) return [];
    if (this.attempt?.lane === lane) return this.giveUp(why, now);
    if (this.shown?.lane !== lane) return [];
    const stable = now - this.shown.since >= STABLE_MS;
    this.failures.set(lane, why);
    this.shown = null;
    this.climbAt = null;
    // What was opened behind the picture is now the one that is waited for, and not for long.
    if (this.attempt) {
      this.attempt.until = Math.min(this.attempt.until, now + CONNECT_MS[this.attempt.lane]);
      return [{ do: "close", lane }];
    }
    const order = this.order();
    const same = stable && lane !== "webrtc";
    if (stable) {
      this.backoff.reset();
      this.climbs = 0;
    }
    this.rest = order.slice(order.indexOf(lane) + (same ? 0 : 1));
    // A lane by choice that comes before others: those count as fallbacks, too.
    if (this.rest.length === 0) this.rest = order.filter((other) => other !== lane);
    return [{ do: "close", lane }, ...this.openNext(now)];
  }

  /** Time has passed. */
  tick(now: number): LaneAction[] {
    if (this.stopped) return [];
    if (this.attempt && now >= this.attempt.until) return this.giveUp("slow", now);
    if (this.waitUntil !== null && now >= this.waitUntil) {
      this.waitUntil = null;
      return this.start(now);
    }
    if (!this.attempt && this.climbAt !== null && now >= this.climbAt) return this.climb(now);
    return [];
  }

  /** The network or the page is back: neither waits nor remembers old failures. */
  wake(now: number): LaneAction[] {
    if (this.stopped || this.attempt) return [];
    this.climbs = 0;
    if (this.waitUntil !== null) {
      this.waitUntil = null;
      this.backoff.reset();
      return this.start(now);
    }
    return this.climbAt === null ? [] : this.climb(now);
  }

  /** The person chooses. */
  choose(wish: Wish, now: number): LaneAction[] {
    this.wish = wish;
    if (this.stopped) return [];
    this.climbs = 0;
    if (!this.shown) {
      const close = this.dropAttempt();
      this.waitUntil = null;
      return [...close, ...this.start(now)];
    }
    const close = this.dropAttempt();
    this.planClimb(now);
    return this.climbAt === null ? close : [...close, ...this.climb(now)];
  }

  stop(): LaneAction[] {
    this.stopped = true;
    const close: LaneAction[] = this.shown ? [{ do: "close", lane: this.shown.lane }] : [];
    this.shown = null;
    return [...this.dropAttempt(), ...close];
  }

  /** The lanes to try, best first; what the person chose comes before all. */
  private order(): LaneKind[] {
    const usable = LANES.filter((lane) => this.supported.has(lane));
    const wish = this.wish;
    return wish !== "auto" && usable.includes(wish) ? [wish, ...usable.filter((lane) => lane !== wish)] : usable;
  }

  private openNext(now: number): LaneAction[] {
    const lane = this.rest.shift();
    if (lane !== undefined) {
      this.attempt = { lane, until: now + (this.shown ? BEHIND_MS : CONNECT_MS[lane]) };
      return [{ do: "open", lane }];
    }
    this.attempt = null;
    if (this.shown) this.planClimb(now);
    else this.waitUntil = now + this.backoff.next();
    return [];
  }

  private giveUp(why: Why, now: number): LaneAction[] {
    const lane = this.attempt?.lane;
    this.attempt = null;
    if (lane === undefined) return [];
    this.failures.set(lane, why);
    return [{ do: "close", lane }, ...this.openNext(now)];
  }

  private dropAttempt(): LaneAction[] {
    const lane = this.attempt?.lane;
    this.attempt = null;
    return lane === undefined ? [] : [{ do: "close", lane }];
  }

  /** Opens better lanes behind the picture, one after the other. */
  private climb(now: number): LaneAction[] {
    const order = this.order();
    this.rest = this.shown ? order.slice(0, order.indexOf(this.shown.lane)) : [];
    this.climbAt = null;
    this.climbs += 1;
    return this.openNext(now);
  }

  private planClimb(now: number): void {
    const best = this.order()[0];
    this.climbAt = this.shown && this.shown.lane !== best ? now + Math.min(CLIMB_MS * 2 ** this.climbs, CLIMB_MOST_MS) : null;
  }
}
