// The stream over a WebSocket, decoded by WebCodecs and drawn at once. Late pictures are left out, never queued.

import { codecOf } from "./h264";
import { onceFailed, type Lane, type LaneContext, type LaneHandlers } from "./lane";
import { Meter, type Figures } from "./meter";
import { decodeFromDesktop, parseWords, STREAM_PROTOCOL, type Frame, type FromViewer } from "./protocol";
import { PING_MS, Pulse, SILENT_MS } from "./pulse";
import { streamUrl } from "./routes";

const DEFAULT_CODEC = "avc1.42e01f";
/** More pictures than this in the decoder: it does not keep up, begin anew with a keyframe. */
const DECODING_MAX = 8;
/** Keyframes are asked for at most this often. */
const KEYFRAME_EVERY_MS = 500;
/** Unsent bytes after which moves are left out; and after which the connection is of no use. */
const MOVES_WAITING_MAX = 16 << 10;
const WAITING_MAX = 1 << 20;
/** A WebSocket that says nothing for so long is given up: TCP has no repair but a new connection. */
const GIVE_UP_MS = 3 * SILENT_MS;
/** Errors of the decoder after which another lane is better. */
const ERRORS_MAX = 3;

export function hasWebCodecs(): boolean {
  return typeof VideoDecoder === "function" && typeof EncodedVideoChunk === "function";
}

export class WebSocketLane implements Lane {
  readonly kind = "websocket";
  readonly view = document.createElement("canvas");
  private readonly picture = this.view.getContext("2d", { alpha: false });
  private readonly handlers: LaneHandlers;
  private readonly meter = new Meter();
  private readonly pulse = new Pulse();
  private socket: WebSocket | undefined;
  private decoder: VideoDecoder | undefined;
  private codec = "";
  private hardware: HardwareAcceleration = "no-preference";
  private waitsForKey = true;
  private errors = 0;
  private askedAt = -KEYFRAME_EVERY_MS;
  private timer: ReturnType<typeof setInterval> | undefined;
  private shown = false;
  private count = 0;
  /** When pictures that are being decoded arrived and were read in the VM, by their number. */
  private readonly arrivals = new Map<number, { at: number; readMs: number }>();

  constructor(
    private readonly context: LaneContext,
    handlers: LaneHandlers,
  ) {
    this.handlers = onceFailed(handlers);
  }

  start(): void {
    this.connect(this.context.resume);
  }

  send(message: Uint8Array<ArrayBuffer>, reliable: boolean): void {
    const socket = this.socket;
    if (socket?.readyState !== WebSocket.OPEN || (!reliable && socket.bufferedAmount > MOVES_WAITING_MAX)) return;
    if (socket.bufferedAmount > WAITING_MAX) return this.fail("lost");
    socket.send(message);
  }

  say(words: FromViewer): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(words));
  }

  async figures(): Promise<Figures> {
    return { ...this.meter.take(performance.now()), rttMs: this.pulse.rttMs, bufferMs: null, path: "TCP" };
  }

  stop(): void {
    clearInterval(this.timer);
    const socket = this.socket;
    this.socket = undefined;
    socket?.close();
    this.closeDecoder();
  }

  private connect(resume: string | null): void {
    const socket = new WebSocket(streamUrl(this.context, resume), STREAM_PROTOCOL);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    let open = false;
    socket.onopen = () => {
      open = true;
      this.timer = setInterval(() => this.beat(), PING_MS);
      this.handlers.connected();
    };
    socket.onmessage = ({ data }) => {
      if (this.socket !== socket) return;
      this.pulse.sign();
      if (typeof data === "string") this.hear(data);
      else this.take(data as ArrayBuffer);
    };
    socket.onclose = () => {
      if (this.socket !== socket) return;
      // A token that is not known any more must not keep the person out.
      if (!open && resume !== null) return this.connect(null);
      this.fail(open ? "lost" : "refused");
    };
  }

  private hear(text: string): void {
    const words = parseWords(text);
    if (!words) return;
    if (words.type === "resume") return this.handlers.resume(words.token);
    if (words.type === "pong") return this.pulse.pong(words.at, performance.now());
    this.handlers.words(words);
  }

  private take(buffer: ArrayBuffer): void {
    const message = decodeFromDesktop(buffer);
    if (!message) return;
    if (message.type !== "frame") return this.handlers.cursor(message);
    this.meter.receive(buffer.byteLength);
    this.decode(message);
  }

  private decode(frame: Frame): void {
    if (this.waitsForKey && !frame.key) {
      this.meter.drop();
      return this.askForKeyframe();
    }
    if (!frame.key && (this.decoder?.decodeQueueSize ?? 0) > DECODING_MAX) {
      this.meter.drop();
      return this.beginAnew();
    }
    const decoder = frame.key ? this.decoderFor(codecOf(frame.data) ?? DEFAULT_CODEC) : this.decoder;
    if (!decoder) return;
    this.waitsForKey = false;
    this.count += 1;
    this.arrivals.set(this.count, { at: performance.now(), readMs: frame.capturedUs / 1000 });
    try {
      decoder.decode(new EncodedVideoChunk({ type: frame.key ? "key" : "delta", timestamp: this.count, data: frame.data }));
    } catch {
      this.stumble();
    }
  }

  private decoderFor(codec: string): VideoDecoder | undefined {
    if (this.decoder?.state === "configured" && this.codec === codec) return this.decoder;
    this.closeDecoder();
    try {
      const decoder = new VideoDecoder({
        output: (picture) => this.show(picture),
        error: () => {
          if (this.decoder === decoder) this.stumble();
        },
      });
      decoder.configure({ codec, optimizeForLatency: true, hardwareAcceleration: this.hardware });
      this.decoder = decoder;
      this.codec = codec;
      return decoder;
    } catch {
      this.stumble();
      return undefined;
    }
  }

  private show(picture: VideoFrame): void {
    const arrival = this.arrivals.get(picture.timestamp);
    for (const number of this.arrivals.keys()) {
      if (number > picture.timestamp) break;
      this.arrivals.delete(number);
    }
    const { displayWidth: width, displayHeight: height } = picture;
    if (this.view.width !== width || this.view.height !== height) {
      this.view.width = width;
      this.view.height = height;
      this.handlers.size(width, height);
    }
    this.picture?.drawImage(picture, 0, 0);
    picture.close();
    const now = performance.now();
    if (arrival) this.meter.show(arrival.readMs, now, now - arrival.at);
    if (this.shown) return;
    this.shown = true;
    this.handlers.picture();
  }

  /** The decoder refused something: another kind of decoder may take it, but not for ever. */
  private stumble(): void {
    this.errors += 1;
    if (this.errors >= ERRORS_MAX) return this.fail("decoder");
    this.hardware = "prefer-software";
    this.beginAnew();
  }

  private beginAnew(): void {
    this.closeDecoder();
    this.waitsForKey = true;
    this.askForKeyframe();
  }

  private askForKeyframe(): void {
    const now = performance.now();
    if (now - this.askedAt < KEYFRAME_EVERY_MS) return;
    this.askedAt = now;
    this.say({ type: "keyframe" });
  }

  private closeDecoder(): void {
    if (this.decoder && this.decoder.state !== "closed") this.decoder.close();
    this.decoder = undefined;
    this.codec = "";
    this.arrivals.clear();
  }

  private beat(): void {
    const now = performance.now();
    const { silentMs } = this.pulse.tick(now);
    if (silentMs >= GIVE_UP_MS) return this.fail("lost");
    this.say({ type: "ping", at: now });
  }

  private fail(why: "lost" | "refused" | "decoder"): void {
    this.stop();
    this.handlers.failed(why);
  }
}
