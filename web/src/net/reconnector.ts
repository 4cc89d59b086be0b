// Keeps one connection alive: one attempt at a time, back-off between attempts, and at once when the network or the page comes back.
//
//   idle --start--> connecting --opened--> live --lost--> waiting --timer/wake--> connecting
//   any --stop--> stopped (for good)

import { Backoff } from "./backoff";

export type LinkState = "connecting" | "live" | "waiting" | "stopped";

export interface ReconnectorOptions {
  /** Starts one attempt; reports through `opened` and `lost` of the reconnector. */
  connect: () => void;
  /** Called on every change. */
  changed: (state: LinkState) => void;
  backoff?: Backoff;
  /** A connection that lived this long counts as good; only then the waits start small again. */
  stableMs?: number;
  now?: () => number;
}

export class Reconnector {
  private state: LinkState = "waiting";
  private timer: ReturnType<typeof setTimeout> | undefined;
  private openedAt = 0;
  private readonly backoff: Backoff;
  private readonly stableMs: number;
  private readonly now: () => number;

  constructor(private readonly options: ReconnectorOptions) {
    this.backoff = options.backoff ?? new Backoff();
    this.stableMs = options.stableMs ?? 3_000;
    this.now = options.now ?? (() => performance.now());
  }

  /** First attempt. */
  start(): void {
    this.attempt();
  }

  /** The attempt succeeded. */
  opened(): void {
    if (this.state !== "connecting") return;
    this.openedAt = this.now();
    this.set("live");
  }

  /** The attempt failed or the connection ended; a further one follows unless stopped. */
  lost(): void {
    if (this.state === "stopped" || this.state === "waiting") return;
    if (this.state === "live" && this.now() - this.openedAt >= this.stableMs) this.backoff.reset();
    this.set("waiting");
    this.timer = setTimeout(() => this.attempt(), this.backoff.next());
  }

  /** The network or the page came back: do not wait for the timer. */
  wake(): void {
    if (this.state !== "waiting") return;
    this.backoff.reset();
    this.attempt();
  }

  /** No further attempts. */
  stop(): void {
    clearTimeout(this.timer);
    this.set("stopped");
  }

  private attempt(): void {
    if (this.state === "stopped") return;
    clearTimeout(this.timer);
    this.set("connecting");
    this.options.connect();
  }

  private set(state: LinkState): void {
    if (this.state === state) return;
    this.state = state;
    this.options.changed(state);
  }
}

/** Wakes a reconnector when the browser says that the network or the page is back; returns the undo. */
export function wakeOnReturn(reconnector: Reconnector): () => void {
  const wake = (): void => {
    if (document.visibilityState === "visible") reconnector.wake();
  };
  addEventListener("online", wake);
  document.addEventListener("visibilitychange", wake);
  return () => {
    removeEventListener("online", wake);
    document.removeEventListener("visibilitychange", wake);
  };
}
