import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Backoff } from "./backoff";
import { Reconnector, type LinkState } from "./reconnector";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

function setUp() {
  const states: LinkState[] = [];
  let attempts = 0;
  let now = 0;
  const link = new Reconnector({
    connect: () => {
      attempts += 1;
    },
    changed: (state) => states.push(state),
    backoff: new Backoff({ firstMs: 100, mostMs: 400, random: () => 0 }),
    now: () => now,
  });
  return { link, states, attempts: () => attempts, pass: (ms: number) => (now += ms) };
}

test("the waits double up to the cap", () => {
  const backoff = new Backoff({ firstMs: 100, mostMs: 400, random: () => 0 });
  expect([backoff.next(), backoff.next(), backoff.next(), backoff.next()]).toEqual([100, 200, 400, 400]);
  backoff.reset();
  expect(backoff.next()).toBe(100);
});

test("jitter only shortens a wait, by at most a quarter", () => {
  expect(new Backoff({ firstMs: 1000, random: () => 0.999 }).next()).toBe(750);
});

test("a lost connection is tried again after the wait, not before", () => {
  const { link, states, attempts } = setUp();
  link.start();
  link.opened();
  link.lost();
  vi.advanceTimersByTime(99);
  expect(attempts()).toBe(1);
  vi.advanceTimersByTime(1);
  expect(attempts()).toBe(2);
  expect(states).toEqual(["connecting", "live", "waiting", "connecting"]);
});

test("a connection that drops at once does not start the waits afresh", () => {
  const { link, attempts, pass } = setUp();
  link.start();
  link.opened();
  link.lost();
  vi.advanceTimersByTime(100);
  link.opened();
  link.lost();
  vi.advanceTimersByTime(100);
  expect(attempts()).toBe(2);
  vi.advanceTimersByTime(100);
  expect(attempts()).toBe(3);
  link.opened();
  pass(5_000);
  link.lost();
  vi.advanceTimersByTime(100);
  expect(attempts()).toBe(4);
});

test("waking up skips the wait, once", () => {
  const { link, attempts } = setUp();
  link.start();
  link.lost();
  link.wake();
  link.wake();
  expect(attempts()).toBe(2);
  vi.advanceTimersByTime(60_000);
  expect(attempts()).toBe(2);
});

test("both ends reporting the loss make one further attempt", () => {
  const { link, attempts } = setUp();
  link.start();
  link.lost();
  link.lost();
  vi.advanceTimersByTime(60_000);
  expect(attempts()).toBe(2);
});

test("stopped is for good", () => {
  const { link, states, attempts } = setUp();
  link.start();
  link.lost();
  link.stop();
  link.wake();
  link.lost();
  vi.advanceTimersByTime(60_000);
  expect(attempts()).toBe(1);
  expect(states.at(-1)).toBe("stopped");
});
