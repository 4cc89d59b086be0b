import { expect, test } from "vitest";
import { inputToPicture, Meter } from "./meter";

test("figures are those since the last look, counts those since the start", () => {
  const meter = new Meter();
  meter.take(0);
  for (let at = 0; at < 30; at += 1) {
    meter.receive(1_000);
    meter.show(at, at + 20, 8);
  }
  meter.drop();
  expect(meter.take(1_000)).toEqual({ fps: 30, kbps: 240, presentMs: 8, framesShown: 30, framesDropped: 1, freezes: 0 });
  expect(meter.take(2_000)).toMatchObject({ fps: 0, kbps: 0, presentMs: null, framesShown: 30 });
});

test("a still desktop does not freeze, a late picture does, once", () => {
  const meter = new Meter();
  meter.show(0, 20, null);
  meter.show(5_000, 5_025, null);
  expect(meter.take(0).freezes).toBe(0);
  meter.show(5_100, 5_700, null);
  meter.show(5_150, 5_710, null);
  meter.show(5_200, 5_225, null);
  expect(meter.take(0).freezes).toBe(1);
});

test("a clock that is set does not count as a freeze", () => {
  const meter = new Meter();
  meter.show(1_000_000, 20, null);
  meter.show(0, 60, null);
  meter.show(40, 100, null);
  expect(meter.take(0).freezes).toBe(0);
});

test("an estimate needs all of its parts", () => {
  expect(inputToPicture({ rttMs: 10, presentMs: 5 }, 20)).toBe(35);
  expect(inputToPicture({ rttMs: null, presentMs: 5 }, 20)).toBeNull();
  expect(inputToPicture({ rttMs: 10, presentMs: 5 }, null)).toBeNull();
});
