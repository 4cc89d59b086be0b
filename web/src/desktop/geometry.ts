// Where the picture is in its room, which pixel of the desktop is under a finger, and what size to ask the desktop for.

import { SIDE_MAX, SIDE_MIN, type Place } from "./protocol";

export interface Size {
  width: number;
  height: number;
}

export interface Box extends Size {
  left: number;
  top: number;
}

/** Chromium's window does not become narrower than about this; a narrower desktop would cut it off. */
export const NARROWEST = 560;
/** A scale this close to one device pixel per desktop pixel becomes exactly that: no blur for a rounded side. */
const CRISP = 0.02;
/** Zoom of fingers on small screens. */
export const ZOOM_MAX = 4;

/** The largest box of the desktop's shape in the middle of the room, on whole device pixels. */
export function fitPicture(room: Size, desktop: Size, ratio: number): Box {
  if (desktop.width === 0 || desktop.height === 0) return { left: 0, top: 0, width: 0, height: 0 };
  let scale = Math.min(room.width / desktop.width, room.height / desktop.height);
  if (Math.abs(scale * ratio - 1) < CRISP) scale = 1 / ratio;
  const [width, height] = [desktop.width * scale, desktop.height * scale];
  const snap = (value: number): number => Math.round(value * ratio) / ratio;
  return { left: snap((room.width - width) / 2), top: snap((room.height - height) / 2), width, height };
}

/** The desktop's pixel under a place of the page. `shown` is where the picture is seen, transforms included. */
export function pixelAt(shown: Box, desktop: Size, client: Place): Place | null {
  if (shown.width <= 0 || shown.height <= 0) return null;
  const x = Math.floor(((client.x - shown.left) / shown.width) * desktop.width);
  const y = Math.floor(((client.y - shown.top) / shown.height) * desktop.height);
  return x >= 0 && y >= 0 && x < desktop.width && y < desktop.height ? { x, y } : null;
}

/** The size to ask for: the room's, in CSS pixels, but never narrower than a usable window; even, as video is. */
export function wantedSize(room: Size): Size | null {
  if (room.width < 1 || room.height < 1) return null;
  const grow = Math.max(1, NARROWEST / room.width);
  const side = (value: number): number => Math.min(Math.max(2 * Math.floor((value * grow) / 2), SIDE_MIN), SIDE_MAX);
  return { width: side(room.width), height: side(room.height) };
}

/** Device pixel ratio in percent, within what a desktop takes. */
export function scalePercent(ratio: number): number {
  return Math.min(Math.max(Math.round(ratio * 100), 50), 400);
}

/** How far the picture is enlarged and moved, in CSS pixels of its room. */
export interface Zoom extends Place {
  scale: number;
}

export const NO_ZOOM: Zoom = { scale: 1, x: 0, y: 0 };

/** Enlarges around a place of the room and moves along; the picture never leaves the room's edges. */
export function zoomed(zoom: Zoom, room: Size, factor: number, around: Place, moved: Place = { x: 0, y: 0 }): Zoom {
  const scale = Math.min(Math.max(zoom.scale * factor, 1), ZOOM_MAX);
  const real = scale / zoom.scale;
  const keep = (offset: number, at: number, by: number, side: number): number => {
    const next = at - (at - offset) * real + by;
    return Math.min(0, Math.max(next, side * (1 - scale)));
  };
  return { scale, x: keep(zoom.x, around.x, moved.x, room.width), y: keep(zoom.y, around.y, moved.y, room.height) };
}
