// A lane that is open or being opened, and what it has said so far.

import type { Lane } from "./lane";
import type { ClipboardPolicy, CursorMoved, CursorShape, HubStats, Role } from "./protocol";
import type { Size } from "./geometry";

export interface Open {
  lane: Lane;
  hello: boolean;
  hasPicture: boolean;
  handingOver: ReturnType<typeof setTimeout> | undefined;
  /** The lane before it was told to hand the control over. */
  asked: boolean;
  token: string | null;
  repairing: boolean;
  interrupted: boolean;
  shape: CursorShape | null;
  moved: CursorMoved | null;
  role: Role;
  mayControl: boolean;
  viewer: number | null;
  viewers: number;
  clipboard: ClipboardPolicy;
  size: Size;
  hub: HubStats | null;
}

export function newOpen(lane: Lane, wish: Role): Open {
  return {
    lane,
    hello: false,
    hasPicture: false,
    handingOver: undefined,
    asked: false,
    token: null,
    repairing: false,
    interrupted: false,
    shape: null,
    moved: null,
    role: "view",
    mayControl: wish === "control",
    viewer: null,
    viewers: 1,
    clipboard: "off",
    size: { width: 0, height: 0 },
    hub: null,
  };
}
