import { expect, test } from "vitest";
import { PING_MS, Pulse } from "./pulse";

test("silence is counted from the oldest ping without an answer", () => {
  const pulse = new Pulse();
  expect(pulse.tick(0).silentMs).toBe(0);
  pulse.pong(0, 30);
  expect(pulse.tick(500).silentMs).toBe(0);
  expect(pulse.tick(1_000).silentMs).toBe(500);
  expect(pulse.tick(1_500).silentMs).toBe(1_000);
  pulse.sign();
  expect(pulse.tick(2_000).silentMs).toBe(0);
});

test("a page that slept does not blame the other end", () => {
  const pulse = new Pulse();
  pulse.tick(0);
  pulse.tick(PING_MS);
  expect(pulse.tick(60_000).silentMs).toBe(0);
});

test("the round trip is the median, so that one late answer does not count", () => {
  const pulse = new Pulse();
  expect(pulse.rttMs).toBeNull();
  for (const rtt of [10, 12, 900]) pulse.pong(0, rtt);
  expect(pulse.rttMs).toBe(12);
});
