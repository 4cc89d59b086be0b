import { expect, test } from "vitest";
import { Pinch } from "./pinch";

test("two fingers that move apart enlarge around their middle", () => {
  const pinch = new Pinch();
  pinch.down(1, { x: 100, y: 100 });
  expect(pinch.move(1, { x: 110, y: 100 })).toBeNull();
  pinch.down(2, { x: 210, y: 100 });
  expect(pinch.move(2, { x: 250, y: 100 })).toBeNull();
  expect(pinch.move(2, { x: 390, y: 100 })).toEqual({ factor: 2, around: { x: 180, y: 100 }, moved: { x: 70, y: 0 } });
});

test("fingers that move along together and one finger are no pinch", () => {
  const pinch = new Pinch();
  pinch.down(1, { x: 100, y: 100 });
  pinch.down(2, { x: 200, y: 100 });
  expect(pinch.move(1, { x: 110, y: 150 })).toBeNull();
  expect(pinch.move(2, { x: 210, y: 150 })).toBeNull();
  pinch.up(2);
  expect(pinch.move(1, { x: 300, y: 300 })).toBeNull();
});
