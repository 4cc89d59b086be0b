// Pointers, wheels and fingers.
import { expect, test } from "vitest";
import type { InputEvent } from "../protocol";
import { pieces } from "./output";
import { platformOf } from "./platform";
import { Pointer } from "./pointer";
import { Touch } from "./touch";
import { Wheel } from "./wheel";

function pointer() {
  const sent: string[] = [];
  const word = (event: InputEvent) => (event.type === "button" ? `${event.down ? "+" : "-"}${event.button}@${event.x},${event.y}` : event.type === "move" ? `${event.x},${event.y}` : event.type);
  let frames = 0;
  const one = new Pointer({
    emit: (event) => void sent.push(word(event)),
    toDesktop: (x, y) => (x < 0 ? null : { x, y }),
    requestFrame: () => void (frames += 1),
  });
  const at = (clientX: number, clientY: number, buttons = 0) => one.event({ clientX, clientY, buttons });
  return { one, at, take: () => sent.splice(0).join(" "), frames: () => frames };
}

test("of many moves only the newest is sent, once per frame", () => {
  const { one, at, take, frames } = pointer();
  for (let x = 0; x < 50; x += 1) at(x, 1);
  expect(take()).toBe("");
  one.frame();
  one.frame();
  expect(take()).toBe("49,1");
  expect(frames()).toBeGreaterThan(0);
});

test("a button goes out at its place, after the move to it", () => {
  const { at, take } = pointer();
  at(5, 6);
  at(7, 8, 1);
  at(9, 8, 1);
  at(9, 8, 0);
  expect(take()).toBe("7,8 +1@7,8 9,8 -1@9,8");
});

test("each of several buttons is told, though only the first has its own event", () => {
  const { at, take } = pointer();
  at(1, 1, 1);
  at(1, 1, 1 | 2);
  at(1, 1, 2 | 4);
  at(1, 1, 8 | 16);
  at(1, 1, 0);
  expect(take().replaceAll("@1,1", "")).toBe("1,1 +1 +3 -1 +2 -2 -3 +8 +9 -8 -9");
});

test("a drag that ends beside the desktop ends where it was last seen on it, and none begins there", () => {
  const { at, take } = pointer();
  at(3, 3, 1);
  at(-1, 3, 1);
  at(-1, 3, 0);
  at(-1, 3, 1);
  expect(take()).toBe("3,3 +1@3,3 -1@3,3");
});

test("letting go ends every button once", () => {
  const { one, at, take } = pointer();
  at(2, 2, 1 | 2);
  take();
  one.release();
  one.release();
  expect(take()).toBe("-1@2,2 -3@2,2");
  expect(one.holds).toBe(false);
});

const PAGE = { width: 1000, height: 500 };

test("a notch is 120 whatever unit the browser counts in", () => {
  for (const [deltaMode, deltaY] of [[0, 100], [1, 3], [2, 0.2]] as const) {
    const wheel = new Wheel();
    wheel.turn({ deltaX: 0, deltaY, deltaMode }, PAGE);
    expect(wheel.take()).toEqual({ dx: 0, dy: 120 });
  }
});

test("small strokes of a touchpad add up and nothing of them is lost", () => {
  const wheel = new Wheel();
  let sum = 0;
  for (let i = 0; i < 400; i += 1) {
    wheel.turn({ deltaX: -0.25, deltaY: 0.25, deltaMode: 0 }, PAGE);
    const turn = wheel.take();
    if (turn) sum += turn.dy;
    if (turn) expect(turn.dx).toBe(-turn.dy);
  }
  expect(sum).toBe(120);
  expect(wheel.take()).toBeNull();
});

function touch(oneFinger: "scroll" | "drag") {
  const log: string[] = [];
  const timers: (() => void)[] = [];
  const one = new Touch({
    oneFinger,
    later: (run) => {
      timers.push(run);
      return () => void timers.splice(timers.indexOf(run), 1);
    },
    tap: ({ x, y }) => void log.push(`tap ${x},${y}`),
    longPress: ({ x, y }) => void log.push(`long ${x},${y}`),
    scroll: (by) => void log.push(`scroll ${by.x},${by.y}`),
    drag: (phase, { x, y }) => void log.push(`${phase} ${x},${y}`),
  });
  const later = () => timers.splice(0).forEach((run) => run());
  return { one, later, take: () => log.splice(0).join("; ") };
}

test("a tap clicks where the finger came down, a long press clicks right and its end nothing", () => {
  const { one, later, take } = touch("scroll");
  one.down(1, { x: 10, y: 20 });
  one.move(1, { x: 14, y: 22 });
  one.up(1);
  later();
  expect(take()).toBe("tap 10,20");
  one.down(1, { x: 10, y: 20 });
  later();
  one.move(1, { x: 60, y: 20 });
  one.up(1);
  expect(take()).toBe("long 10,20");
});

test("one finger scrolls or drags, as is wished", () => {
  const scrolling = touch("scroll");
  scrolling.one.down(1, { x: 0, y: 100 });
  scrolling.one.move(1, { x: 0, y: 80 });
  scrolling.one.move(1, { x: 0, y: 70 });
  scrolling.one.up(1);
  scrolling.later();
  expect(scrolling.take()).toBe("scroll 0,-20; scroll 0,-10");
  const dragging = touch("drag");
  dragging.one.down(1, { x: 0, y: 0 });
  dragging.one.move(1, { x: 30, y: 0 });
  dragging.one.up(1);
  expect(dragging.take()).toBe("start 0,0; move 30,0; end 30,0");
});

test("two fingers that move along scroll, two that move apart are left to the zoom", () => {
  const { one, take } = touch("scroll");
  one.down(1, { x: 0, y: 0 });
  one.down(2, { x: 100, y: 0 });
  one.move(1, { x: 0, y: 15 });
  one.move(2, { x: 100, y: 15 });
  one.move(1, { x: 0, y: 35 });
  expect(take()).toBe("scroll 0,10");
  one.up(1);
  one.up(2);
  one.down(1, { x: 0, y: 0 });
  one.down(2, { x: 100, y: 0 });
  one.move(2, { x: 200, y: 0 });
  one.move(1, { x: 0, y: 90 });
  one.up(2);
  one.up(1);
  expect(take()).toBe("");
});

test("a drag that the browser takes away ends", () => {
  const { one, take } = touch("drag");
  one.down(1, { x: 0, y: 0 });
  one.move(1, { x: 30, y: 0 });
  one.cancel(1);
  one.up(1);
  expect(take()).toBe("start 0,0; move 30,0; end 30,0");
});

test("long texts are cut between characters, without what no key types", () => {
  expect(pieces("a\r\nb\rc\u0000\ud800d")).toEqual(["a\nb\ncd"]);
  expect(pieces("äöü", 4)).toEqual(["äö", "ü"]);
  expect(pieces("a😀😀", 8)).toEqual(["a😀", "😀"]);
  const long = "漢".repeat(5000);
  const cut = pieces(long);
  expect(cut.join("")).toBe(long);
  expect(Math.max(...cut.map((piece) => new TextEncoder().encode(piece).length))).toBeLessThanOrEqual(4096);
  expect(pieces("")).toEqual([]);
});

test("platforms are told by what browsers say", () => {
  expect(platformOf({ platform: "Win32", userAgent: "Mozilla/5.0 (Windows NT 10.0; Win64; x64)" })).toBe("windows");
  expect(platformOf({ platform: "MacIntel", maxTouchPoints: 0 })).toBe("mac");
  expect(platformOf({ platform: "MacIntel", maxTouchPoints: 5 })).toBe("ios");
  expect(platformOf({ platform: "iPhone" })).toBe("ios");
  expect(platformOf({ platform: "Linux armv81", userAgent: "Mozilla/5.0 (Linux; Android 10; K)" })).toBe("android");
  expect(platformOf({ platform: "Linux x86_64" })).toBe("linux");
  expect(platformOf({ platform: "MacIntel", userAgentData: { platform: "macOS" }, userAgent: "Darwin" })).toBe("mac");
  expect(platformOf({})).toBe("other");
});
