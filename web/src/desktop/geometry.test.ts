import { expect, test } from "vitest";
import { fitPicture, NO_ZOOM, pixelAt, wantedSize, zoomed } from "./geometry";

const HD = { width: 1280, height: 720 };

test("the picture keeps its shape and lies in the middle", () => {
  expect(fitPicture({ width: 640, height: 480 }, HD, 1)).toEqual({ left: 0, top: 60, width: 640, height: 360 });
  expect(fitPicture({ width: 1280, height: 360 }, HD, 1)).toEqual({ left: 320, top: 0, width: 640, height: 360 });
});

test("a picture that is a pixel off is shown pixel by pixel", () => {
  expect(fitPicture({ width: 1281, height: 721 }, HD, 1)).toMatchObject({ width: 1280, height: 720 });
  expect(fitPicture({ width: 641, height: 360.5 }, HD, 2)).toMatchObject({ width: 640, height: 360, left: 0.5 });
});

test("every pixel of the desktop is under its own place, whatever the scale", () => {
  for (const scale of [0.31, 0.5, 1, 1.25, 2.6]) {
    const shown = { left: 13.5, top: -7.25, width: HD.width * scale, height: HD.height * scale };
    for (const [x, y] of [[0, 0], [639, 359], [1279, 719]] as const) {
      const client = { x: shown.left + (x + 0.5) * scale, y: shown.top + (y + 0.5) * scale };
      expect(pixelAt(shown, HD, client)).toEqual({ x, y });
    }
  }
});

test("beside the picture there is no pixel", () => {
  const shown = { left: 0, top: 60, width: 640, height: 360 };
  for (const client of [{ x: 10, y: 59.9 }, { x: 10, y: 420 }, { x: -0.1, y: 100 }, { x: 640, y: 100 }]) expect(pixelAt(shown, HD, client)).toBeNull();
  expect(pixelAt({ ...shown, width: 0 }, HD, { x: 0, y: 60 })).toBeNull();
});

test("a phone gets a desktop that a window fits into, in its own shape", () => {
  expect(wantedSize({ width: 390, height: 600 })).toEqual({ width: 560, height: 860 });
  expect(wantedSize({ width: 1281.6, height: 720.2 })).toEqual({ width: 1280, height: 720 });
  expect(wantedSize({ width: 9000, height: 100 })).toEqual({ width: 4096, height: 320 });
  expect(wantedSize({ width: 0, height: 100 })).toBeNull();
});

test("zoom keeps what is under the fingers and never shows beyond the edge", () => {
  const room = { width: 400, height: 600 };
  const twice = zoomed(NO_ZOOM, room, 2, { x: 100, y: 300 });
  expect(twice).toEqual({ scale: 2, x: -100, y: -300 });
  expect(zoomed(twice, room, 1, { x: 0, y: 0 }, { x: 900, y: -900 })).toEqual({ scale: 2, x: 0, y: -600 });
  expect(zoomed(twice, room, 0.1, { x: 0, y: 0 })).toEqual({ scale: 1, x: 0, y: 0 });
  expect(zoomed(NO_ZOOM, room, 99, { x: 0, y: 0 }).scale).toBe(4);
});
