import { render } from "svelte/server";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import PausedBar from "../parts/PausedBar.svelte";
import { GOES_ON_MS, PauseNotice, type Notice } from "./pause";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

function heard(): { notice: PauseNotice; shown: Notice[] } {
  const shown: Notice[] = [];
  return { notice: new PauseNotice((now) => shown.push(now)), shown };
}

function textOf(notice: Notice): string {
  const { body } = render(PausedBar, { props: { notice } });
  return body
    .replace(/<!--.*?-->|<[^>]*>/gs, " ")
    .replace(/\s+/g, " ")
    .trim();
}

test("it is paused until it is said to go on, which is said for a while", () => {
  const { notice, shown } = heard();
  notice.heard("paused");
  notice.heard("paused");
  vi.advanceTimersByTime(10 * GOES_ON_MS);
  expect(shown).toEqual(["paused"]);
  notice.heard("running");
  expect(shown).toEqual(["paused", "goesOn"]);
  vi.advanceTimersByTime(GOES_ON_MS);
  expect(shown).toEqual(["paused", "goesOn", "none"]);
});

test("a workspace that is paused again at once is not said to go on later", () => {
  const { notice, shown } = heard();
  notice.heard("paused");
  notice.heard("running");
  notice.heard("paused");
  vi.advanceTimersByTime(10 * GOES_ON_MS);
  expect(shown).toEqual(["paused", "goesOn", "paused"]);
});

test("without a connection nothing is claimed, and one that never was paused does not go on", () => {
  const { notice, shown } = heard();
  notice.heard("running");
  notice.heard(null);
  expect(shown).toEqual([]);
  notice.heard("paused");
  notice.heard(null);
  expect(shown).toEqual(["paused", "none"]);
});

test("who looks away is told nothing more", () => {
  const { notice, shown } = heard();
  notice.heard("paused");
  notice.heard("running");
  notice.stop();
  vi.advanceTimersByTime(GOES_ON_MS);
  expect(shown).toEqual(["paused", "goesOn"]);
});

test("the person reads why it stands still, that nothing is lost, and that it goes on by itself", () => {
  expect(textOf("paused")).toBe(
    "Your workspace is paused. The host's disk is nearly full. Nothing is lost: programs and this terminal stand still as they are and go on by themselves once there is room.",
  );
  expect(textOf("goesOn")).toBe("Your workspace goes on where it was paused.");
  expect(textOf("none")).toBe("");
});

test("a screen reader is told without being interrupted", () => {
  for (const notice of ["paused", "goesOn", "none"] as const) {
    expect(render(PausedBar, { props: { notice } }).body).toContain('role="status"');
  }
});
