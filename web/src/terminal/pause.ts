// What the person is told of a workspace that stands still.

import type { VmMotion } from "./protocol";

export type Notice = "none" | "paused" | "goesOn";

/** How long it is said that the workspace goes on. */
export const GOES_ON_MS = 8_000;

export class PauseNotice {
  private shown: Notice = "none";
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly changed: (notice: Notice) => void) {}

  /** What the connection tells; `null` when it is lost. */
  heard(motion: VmMotion | null): void {
    if (motion === "paused") this.show("paused");
    else if (motion === null) this.show("none");
    else if (this.shown === "paused") {
      this.show("goesOn");
      this.timer = setTimeout(() => this.show("none"), GOES_ON_MS);
    }
  }

  /** Nobody looks any more. */
  stop(): void {
    clearTimeout(this.timer);
  }

  private show(notice: Notice): void {
    clearTimeout(this.timer);
    if (this.shown === notice) return;
    this.shown = notice;
    this.changed(notice);
  }
}
