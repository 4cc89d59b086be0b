// The viewer's state in words for a person.

import type { LaneKind, Why } from "./lanes";
import type { Phase } from "./viewer";

const NAMES: Record<LaneKind, string> = { webrtc: "WebRTC", websocket: "WebSocket", vnc: "VNC" };

const ABOUT: Record<LaneKind, string> = {
  webrtc: "The fastest way.",
  websocket: "The same picture over an ordinary web connection. A bit slower on bad networks.",
  vnc: "The slowest way. It works nearly everywhere.",
};

/** Name of a lane, with how its packets travel where that is worth a word. */
export function laneName(lane: LaneKind, path = ""): string {
  if (lane !== "webrtc") return NAMES[lane];
  if (path === "relay") return "WebRTC by relay";
  return path === "TCP" ? "WebRTC over TCP" : NAMES[lane];
}

export function aboutLane(lane: LaneKind): string {
  return ABOUT[lane];
}

/** Why a better lane is not in use. */
export function whyNot(lane: LaneKind, why: Why): string {
  const name = NAMES[lane];
  switch (why) {
    case "unsupported":
      return lane === "websocket" ? "This browser cannot decode the stream from a WebSocket." : `This browser has no ${name} for this video.`;
    case "slow":
      return `${name} did not connect in time. A firewall may be in the way.`;
    case "no_picture":
      return `${name} connected, but no picture came.`;
    case "refused":
      return `${name} could not be opened.`;
    case "decoder":
      return "This browser could not decode the video.";
    case "lost":
      return `The ${name} connection was lost.`;
  }
}

/** The state in one short sentence. */
export function phaseText(phase: Phase, ended: string): string {
  switch (phase) {
    case "connecting":
      return "Connecting to the live browser";
    case "live":
      return "The live browser is connected";
    case "repairing":
      return "The connection is unstable. Repairing it";
    case "waiting":
      return "The picture was lost. Connecting again";
    case "interrupted":
      return "The browser's screen is starting again";
    case "ended":
      return ended || "The live browser has ended";
  }
}

/** Why something that the person did was not accepted; empty if there is nothing to say. */
export function refusedText(code: string): string {
  switch (code) {
    case "view_only":
      return "You are watching. Ask for control to use the mouse and keyboard.";
    case "too_fast":
      return "That was too fast. Some input was left out.";
    case "clipboard_policy":
      return "The clipboard is not shared in this direction.";
    case "too_long":
      return "That text is too long.";
    default:
      return "";
  }
}
