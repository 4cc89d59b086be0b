// One way the picture takes, behind a small interface. A lane that has failed is done with; a new one is made.

import type { LaneKind, Why } from "./lanes";
import type { Figures } from "./meter";
import type { CursorMoved, CursorShape, FromViewer, Role, ToViewer } from "./protocol";

/** What a lane tells; every call but `failed` may come often, `failed` comes once and last. */
export interface LaneHandlers {
  /** The transport is up. */
  connected(): void;
  /** The first picture can be seen in `view`. */
  picture(): void;
  words(words: ToViewer): void;
  cursor(cursor: CursorShape | CursorMoved): void;
  /** How the pointer looks, as a CSS value, where the lane knows it in no other way. */
  cursorStyle(css: string): void;
  /** What brings this viewer's number and role back within a minute. */
  resume(token: string): void;
  /** The picture has this size now. */
  size(width: number, height: number): void;
  /** The connection is being repaired, or is whole again. */
  repairing(is: boolean): void;
  failed(why: Why, detail?: string): void;
}

export interface LaneContext {
  /** Address of the controller without a slash at its end; empty for the page's own origin. */
  base: string;
  sessionId: string;
  role: Role;
  /** From an earlier lane of the same viewer. */
  resume: string | null;
}

export interface Lane {
  readonly kind: LaneKind;
  /** Shows the picture. */
  readonly view: HTMLElement;
  /** The element that is covered by the desktop exactly, if the lane places it itself. */
  ownPlacement?(): Element | null;
  start(): void;
  /** An input message; an unreliable one may be left out. */
  send(message: Uint8Array<ArrayBuffer>, reliable: boolean): void;
  say(words: FromViewer): void;
  figures(): Promise<Figures>;
  /** The room for the picture changed, or a better moment to look at it has come. */
  refit?(): void;
  stop(): void;
}

/** Calls a handler's `failed` once and nothing after it. */
export function onceFailed(handlers: LaneHandlers): LaneHandlers {
  let over = false;
  const guard =
    <Args extends unknown[]>(call: (...args: Args) => void) =>
    (...args: Args): void => {
      if (!over) call(...args);
    };
  return {
    connected: guard(() => handlers.connected()),
    picture: guard(() => handlers.picture()),
    words: guard((words) => handlers.words(words)),
    cursor: guard((cursor) => handlers.cursor(cursor)),
    cursorStyle: guard((css) => handlers.cursorStyle(css)),
    resume: guard((token) => handlers.resume(token)),
    size: guard((width, height) => handlers.size(width, height)),
    repairing: guard((is) => handlers.repairing(is)),
    failed: (why, detail) => {
      if (over) return;
      over = true;
      handlers.failed(why, detail);
    },
  };
}
