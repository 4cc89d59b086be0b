// polydev's desktop over a WebSocket, decoded by WebCodecs.
import { button, openPage } from "./input.js";

const FRAME = 0x02;
const KEY = 1;
/** Bytes of a frame's message before the picture (crates/polydev-core/src/desktop/guest.rs). */
const HEAD = 26;
const CODEC = "avc1.42e01f";
/** The level of the constrained baseline profile that pictures above 720p need. */
const LARGE_CODEC = "avc1.42e028";

export async function open({ url }) {
  const socket = new WebSocket(url, ["polydev.desktop.v1"]);
  socket.binaryType = "arraybuffer";
  const canvas = document.createElement("canvas");
  document.getElementById("screen").append(canvas);
  const context = canvas.getContext("2d", { alpha: false, desynchronized: true });
  const lane = {
    askedAt: performance.timeOrigin + performance.now(),
    meter: new Meter((x, y) => {
      for (const down of [true, false]) socket.send(button(down, x, y));
    }),
    words: (words) => socket.send(JSON.stringify(words)),
    openPage: (url) => openPage(url).forEach((event) => socket.send(event)),
    bytes: async () => globalThis.socketBytes,
    figures: async () => ({ protocol: "websocket", framesReceived: frames, keyFramesDecoded: keyframes }),
    size: () => [canvas.width, canvas.height],
    ended: null,
    close: () => socket.close(),
  };
  let frames = 0;
  let keyframes = 0;
  let size = null;
  const drawn = watchCanvas(() => canvas, lane.meter);
  const decoder = new VideoDecoder({
    output: (frame) => {
      if (canvas.width !== frame.displayWidth || canvas.height !== frame.displayHeight) {
        canvas.width = frame.displayWidth;
        canvas.height = frame.displayHeight;
      }
      context.drawImage(frame, 0, 0);
      frame.close();
      drawn();
    },
    error: (error) => (lane.ended = `decoder: ${error.message}`),
  });
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") {
      const words = JSON.parse(data);
      if (words.type === "stats") lane.stats = words;
      if (words.type === "ended") lane.ended = words.reason;
      if (words.type === "hello" || words.type === "role") lane.role = words.role;
      return;
    }
    const view = new DataView(data);
    if (view.getUint8(0) !== FRAME) return;
    const key = (view.getUint8(1) & KEY) !== 0;
    const [width, height] = [view.getUint16(22), view.getUint16(24)];
    if (key && size !== `${width}x${height}`) {
      size = `${width}x${height}`;
      decoder.configure({ codec: width * height > 1280 * 800 ? LARGE_CODEC : CODEC, codedWidth: width, codedHeight: height, optimizeForLatency: true });
    }
    if (decoder.state !== "configured" || (keyframes === 0 && !key)) return;
    frames += 1;
    if (key) keyframes += 1;
    decoder.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp: Math.round(performance.now() * 1000), data: new Uint8Array(data, HEAD) }));
  };
  await new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onclose = ({ code, reason }) => reject(new Error(`WebSocket closed: ${code} ${reason}`));
  });
  socket.onclose = ({ code, reason }) => (lane.ended ??= `WebSocket closed: ${code} ${reason}`);
  return lane;
}
