// The VM's pointer, drawn by the person's own browser so that it follows the hand without delay.

import type { CursorShape } from "./protocol";

/** Browsers ignore larger cursors. */
const SIDE_MAX_PX = 128;

/** A cursor as CSS: `scale` is CSS pixels per pixel of the desktop, `ratio` device pixels per CSS pixel. */
export function cursorCss(shape: CursorShape, scale: number, ratio: number): string[] {
  if (shape.width === 0 || shape.height === 0) return ["none"];
  const fit = Math.min(scale, SIDE_MAX_PX / Math.max(shape.width, shape.height));
  const [width, height] = [shape.width, shape.height].map((side) => Math.max(1, Math.round(side * fit * ratio))) as [number, number];
  const drawn = draw(shape, width, height);
  if (drawn === "") return ["default"];
  const hot = (at: number, side: number): number => Math.min(Math.round(at * fit), Math.max(0, Math.ceil(side / ratio) - 1));
  const spot = `${hot(shape.hotX, width)} ${hot(shape.hotY, height)}`;
  // Browsers that do not know the second one keep the first.
  return [`url(${drawn}) ${spot}, default`, `image-set(url(${drawn}) ${ratio}x) ${spot}, default`];
}

/** The cursor as a picture of its own, for those who only watch. */
export function cursorImage(shape: CursorShape): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = shape.width;
  canvas.height = shape.height;
  const pixels = new ImageData(new Uint8ClampedArray(shape.rgba), shape.width, shape.height);
  canvas.getContext("2d")?.putImageData(pixels, 0, 0);
  return canvas;
}

function draw(shape: CursorShape, width: number, height: number): string {
  const scaled = document.createElement("canvas");
  scaled.width = width;
  scaled.height = height;
  const context = scaled.getContext("2d");
  if (!context) return "";
  context.drawImage(cursorImage(shape), 0, 0, width, height);
  return scaled.toDataURL("image/png");
}
