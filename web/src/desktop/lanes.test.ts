import { expect, test } from "vitest";
import { Backoff } from "../net/backoff";
import { BEHIND_MS, CLIMB_MS, CONNECT_MS, LanePlan, LANES, PICTURE_MS, STABLE_MS, type LaneAction, type LaneKind, type Wish } from "./lanes";

const words = (actions: LaneAction[]): string => actions.map((action) => `${action.do} ${action.lane}`).join(", ");

function plan(wish: Wish = "auto", supported: readonly LaneKind[] = LANES): LanePlan {
  return new LanePlan(new Set(supported), wish, new Backoff({ firstMs: 400, random: () => 0 }));
}

/** A plan that shows this lane since time 0, having failed on the ones before. */
function showing(lane: LaneKind): LanePlan {
  const made = plan();
  made.start(0);
  for (const better of LANES.slice(0, LANES.indexOf(lane))) made.failed(better, "refused", 0);
  made.opened(lane, 0);
  return made;
}

test("WebRTC comes first and is shown when its picture is there", () => {
  const lanes = plan();
  expect(words(lanes.start(0))).toBe("open webrtc");
  expect(words(lanes.opened("webrtc", 300))).toBe("show webrtc");
  expect(lanes.lane).toBe("webrtc");
  expect(lanes.nextAt).toBeNull();
});

test("a WebRTC that is not connected in time is given up for the WebSocket", () => {
  const lanes = plan();
  lanes.start(0);
  expect(lanes.nextAt).toBe(CONNECT_MS.webrtc);
  expect(words(lanes.tick(CONNECT_MS.webrtc - 1))).toBe("");
  expect(words(lanes.tick(CONNECT_MS.webrtc))).toBe("close webrtc, open websocket");
  expect(words(lanes.opened("websocket", 2_200))).toBe("show websocket");
  expect(lanes.reasons.get("webrtc")).toBe("slow");
});

test("a connection without a picture gets its own time", () => {
  const lanes = plan();
  lanes.start(0);
  lanes.connected("webrtc", 1_500);
  expect(lanes.nextAt).toBe(1_500 + PICTURE_MS);
});

test("when both streams fail VNC is shown, and what is missing is not tried", () => {
  const lanes = plan();
  lanes.start(0);
  expect(words(lanes.failed("webrtc", "refused", 10))).toBe("close webrtc, open websocket");
  expect(words(lanes.failed("websocket", "decoder", 20))).toBe("close websocket, open vnc");
  expect(words(lanes.opened("vnc", 30))).toBe("show vnc");
  expect([...lanes.reasons]).toEqual([["webrtc", "refused"], ["websocket", "decoder"]]);
  const without = plan("auto", ["vnc"]);
  expect(words(without.start(0))).toBe("open vnc");
  expect(without.reasons.get("websocket")).toBe("unsupported");
});

test("after the last lane it waits, longer each time, and starts with the first again", () => {
  const lanes = plan();
  let now = 0;
  lanes.start(now);
  for (const wait of [400, 800, 1_600]) {
    for (const lane of LANES) lanes.failed(lane, "refused", now);
    expect(lanes.isWaiting).toBe(true);
    expect(lanes.nextAt).toBe(now + wait);
    now += wait;
    expect(words(lanes.tick(now))).toBe("open webrtc");
  }
});

test("a WebRTC that dies makes room for the WebSocket at once and comes back later", () => {
  const lanes = showing("webrtc");
  expect(words(lanes.failed("webrtc", "lost", 60_000))).toBe("close webrtc, open websocket");
  lanes.opened("websocket", 60_200);
  expect(lanes.nextAt).toBe(60_200 + CLIMB_MS);
  expect(words(lanes.tick(60_200 + CLIMB_MS))).toBe("open webrtc");
  expect(words(lanes.opened("webrtc", 70_000))).toBe("show webrtc, close websocket");
});

test("a climb that fails leaves the picture alone and waits twice as long", () => {
  const lanes = showing("websocket");
  expect(words(lanes.tick(CLIMB_MS))).toBe("open webrtc");
  expect(words(lanes.tick(CLIMB_MS + BEHIND_MS))).toBe("close webrtc");
  expect(lanes.lane).toBe("websocket");
  expect(lanes.nextAt).toBe(CLIMB_MS + BEHIND_MS + 2 * CLIMB_MS);
});

test("a WebRTC that connects slowly is given up in front and gets there behind the picture", () => {
  const lanes = plan();
  lanes.start(0);
  lanes.tick(CONNECT_MS.webrtc);
  lanes.opened("websocket", CONNECT_MS.webrtc);
  const climbs = CONNECT_MS.webrtc + CLIMB_MS;
  expect(words(lanes.tick(climbs))).toBe("open webrtc");
  expect(words(lanes.tick(climbs + 2 * CONNECT_MS.webrtc))).toBe("");
  lanes.connected("webrtc", climbs + 2 * CONNECT_MS.webrtc);
  expect(words(lanes.opened("webrtc", climbs + 2 * CONNECT_MS.webrtc + 200))).toBe("show webrtc, close websocket");
});

test("a climb has less time once the picture is lost", () => {
  const lanes = showing("websocket");
  lanes.tick(CLIMB_MS);
  const lost = CLIMB_MS + 10;
  lanes.failed("websocket", "lost", lost);
  expect(words(lanes.tick(lost + CONNECT_MS.webrtc))).toBe("close webrtc");
  expect(lanes.isWaiting).toBe(true);
});

test("from VNC it climbs to the best lane that works", () => {
  const lanes = showing("vnc");
  expect(words(lanes.tick(CLIMB_MS))).toBe("open webrtc");
  expect(words(lanes.failed("webrtc", "refused", CLIMB_MS))).toBe("close webrtc, open websocket");
  expect(words(lanes.opened("websocket", CLIMB_MS + 100))).toBe("show websocket, close vnc");
});

test("a picture lost during a climb does not start a second attempt", () => {
  const lanes = showing("websocket");
  lanes.tick(CLIMB_MS);
  expect(words(lanes.failed("websocket", "lost", CLIMB_MS + 10))).toBe("close websocket");
  expect(words(lanes.opened("webrtc", CLIMB_MS + 100))).toBe("show webrtc");
});

test("a WebSocket that was good is opened again, one that was not makes room", () => {
  expect(words(showing("websocket").failed("websocket", "lost", STABLE_MS))).toBe("close websocket, open websocket");
  expect(words(showing("websocket").failed("websocket", "lost", STABLE_MS - 1))).toBe("close websocket, open vnc");
});

test("the person's choice comes before all, the others stay as fallbacks", () => {
  const lanes = plan("vnc");
  expect(words(lanes.start(0))).toBe("open vnc");
  lanes.opened("vnc", 100);
  expect(lanes.nextAt).toBeNull();
  expect(words(lanes.choose("websocket", 200))).toBe("open websocket");
  expect(words(lanes.opened("websocket", 300))).toBe("show websocket, close vnc");
  expect(words(lanes.choose("auto", 400))).toBe("open webrtc");
  const failing = plan("websocket");
  failing.start(0);
  expect(words(failing.failed("websocket", "refused", 1))).toBe("close websocket, open webrtc");
});

test("choosing what is shown changes nothing", () => {
  const lanes = showing("websocket");
  expect(words(lanes.choose("websocket", 50))).toBe("");
  expect(lanes.nextAt).toBeNull();
});

test("waking up climbs at once", () => {
  const lanes = showing("vnc");
  expect(words(lanes.wake(500))).toBe("open webrtc");
  expect(words(lanes.wake(600))).toBe("");
});

test("stopped is for good", () => {
  const lanes = showing("websocket");
  lanes.tick(CLIMB_MS);
  expect(words(lanes.stop())).toBe("close webrtc, close websocket");
  expect(words(lanes.failed("webrtc", "lost", 1))).toBe("");
  expect(words(lanes.tick(1e9))).toBe("");
  expect(words(lanes.wake(1e9))).toBe("");
});
