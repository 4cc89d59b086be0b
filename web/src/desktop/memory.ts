// What the viewer remembers in this browser: the chosen lane for good, and what brings a viewer back for a reload.

import { LANES, type Wish } from "./lanes";

const WISH_KEY = "polydev.lane";
const RESUME_KEY = "polydev.desktop.resume.";

// Storage can be forbidden; then nothing is remembered.

export function savedWish(): Wish {
  try {
    const saved = localStorage.getItem(WISH_KEY);
    return LANES.find((lane) => lane === saved) ?? "auto";
  } catch {
    return "auto";
  }
}

export function saveWish(wish: Wish): void {
  try {
    localStorage.setItem(WISH_KEY, wish);
  } catch {
    return;
  }
}

export function takeToken(sessionId: string): string | null {
  try {
    const token = sessionStorage.getItem(RESUME_KEY + sessionId);
    sessionStorage.removeItem(RESUME_KEY + sessionId);
    return token;
  } catch {
    return null;
  }
}

export function leaveToken(sessionId: string, token: string | null): void {
  try {
    if (token !== null) sessionStorage.setItem(RESUME_KEY + sessionId, token);
  } catch {
    return;
  }
}
