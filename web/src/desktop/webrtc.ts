// The stream over WebRTC: one offer, one answer; pictures by RTP, everything else by two data channels. A connection
// that falls silent is repaired by an ICE restart; if that does not help within its time, the lane has failed.

import { onceFailed, type Lane, type LaneContext, type LaneHandlers } from "./lane";
import { Meter, type Figures } from "./meter";
import { decodeFromDesktop, parseWords, type FromViewer } from "./protocol";
import { PING_MS, Pulse, SILENT_MS } from "./pulse";
import { iceServers, OfferRefused, sendOffer, type OfferAnswer } from "./routes";

/** Silence after which a repair has not helped. */
const GIVE_UP_MS = 2 * SILENT_MS;
/** An ICE restart is tried at most this often. */
const REPAIR_EVERY_MS = 10_000;
const MOVES_WAITING_MAX = 16 << 10;
const WAITING_MAX = 1 << 20;
/** Set by tests and by people behind odd networks: `relay` uses TURN servers only. */
const POLICY_KEY = "polydev.iceTransportPolicy";

export function hasWebRtc(): boolean {
  return typeof RTCPeerConnection === "function" && h264First() !== null;
}

export class WebRtcLane implements Lane {
  readonly kind = "webrtc";
  readonly view = document.createElement("video");
  private readonly handlers: LaneHandlers;
  private readonly meter = new Meter();
  private readonly pulse = new Pulse();
  private readonly last = { buffered: 0, emitted: 0, bytes: 0 };
  private peer: RTCPeerConnection | undefined;
  private input: RTCDataChannel | undefined;
  private moves: RTCDataChannel | undefined;
  private answer: OfferAnswer | undefined;
  private timer: ReturnType<typeof setInterval> | undefined;
  private shown = false;
  private isRepairing = false;
  private repairedAt = -REPAIR_EVERY_MS;

  constructor(
    private readonly context: LaneContext,
    handlers: LaneHandlers,
  ) {
    this.handlers = onceFailed(handlers);
    this.view.muted = true;
    this.view.autoplay = true;
    this.view.playsInline = true;
    this.view.disablePictureInPicture = true;
    this.view.tabIndex = -1;
    this.view.addEventListener("loadeddata", () => this.seen());
    this.view.addEventListener("resize", () => this.handlers.size(this.view.videoWidth, this.view.videoHeight));
  }

  start(): void {
    this.connect().catch((cause: unknown) => this.fail("refused", cause instanceof OfferRefused ? String(cause.status) : ""));
  }

  send(message: Uint8Array<ArrayBuffer>, reliable: boolean): void {
    const channel = reliable ? this.input : this.moves;
    if (channel?.readyState !== "open" || (!reliable && channel.bufferedAmount > MOVES_WAITING_MAX)) return;
    if (channel.bufferedAmount > WAITING_MAX) return this.fail("lost");
    channel.send(message);
  }

  say(words: FromViewer): void {
    if (this.input?.readyState === "open") this.input.send(JSON.stringify(words));
  }

  async figures(): Promise<Figures> {
    const stats = await this.peer?.getStats();
    let bufferMs: number | null = null;
    let path = "";
    let rttMs = this.pulse.rttMs;
    stats?.forEach((entry: Record<string, unknown>) => {
      const number = (name: string): number => (typeof entry[name] === "number" ? entry[name] : 0);
      if (entry["type"] === "inbound-rtp" && entry["kind"] === "video") {
        const [buffered, emitted, bytes] = [number("jitterBufferDelay"), number("jitterBufferEmittedCount"), number("bytesReceived") + number("headerBytesReceived")];
        if (emitted > this.last.emitted) bufferMs = (1000 * (buffered - this.last.buffered)) / (emitted - this.last.emitted);
        this.meter.receive(bytes - this.last.bytes);
        this.meter.setDropped(number("framesDropped"));
        Object.assign(this.last, { buffered, emitted, bytes });
      }
      if (entry["type"] === "candidate-pair" && entry["nominated"] === true && entry["state"] === "succeeded") {
        const local = stats.get(String(entry["localCandidateId"])) as Record<string, unknown> | undefined;
        path = local?.["candidateType"] === "relay" ? "relay" : String(local?.["protocol"] ?? "").toUpperCase();
        if (rttMs === null && typeof entry["currentRoundTripTime"] === "number") rttMs = entry["currentRoundTripTime"] * 1000;
      }
    });
    return { ...this.meter.take(performance.now()), rttMs, bufferMs, path };
  }

  stop(): void {
    clearInterval(this.timer);
    const peer = this.peer;
    this.peer = undefined;
    peer?.close();
    this.view.srcObject = null;
  }

  private async connect(): Promise<void> {
    const policy = transportPolicy();
    const peer = new RTCPeerConnection({ bundlePolicy: "max-bundle", iceTransportPolicy: policy });
    this.peer = peer;
    this.listen(peer);
    const transceiver = peer.addTransceiver("video", { direction: "recvonly" });
    transceiver.setCodecPreferences(h264First() ?? []);
    if ("jitterBufferTarget" in transceiver.receiver) transceiver.receiver.jitterBufferTarget = 0;
    this.input = this.openChannel(peer, "input", { ordered: true });
    this.moves = this.openChannel(peer, "moves", { ordered: false, maxRetransmits: 0 });
    const [offer, servers] = await Promise.all([peer.createOffer(), iceServers(this.context)]);
    if (this.peer !== peer) return;
    if (servers.length > 0) peer.setConfiguration({ bundlePolicy: "max-bundle", iceTransportPolicy: policy, iceServers: servers });
    await peer.setLocalDescription(offer);
    const sdp = offer.sdp ?? "";
    const { role, resume } = this.context;
    let answer: OfferAnswer;
    try {
      answer = await sendOffer(this.context, { sdp, role, ...(resume === null ? {} : { resume }) });
    } catch (cause) {
      // A token that is not known any more must not keep the person out.
      if (resume === null || !(cause instanceof OfferRefused) || this.peer !== peer) throw cause;
      answer = await sendOffer(this.context, { sdp, role });
    }
    if (this.peer !== peer) return;
    this.answer = answer;
    this.handlers.resume(answer.resume);
    await peer.setRemoteDescription({ type: "answer", sdp: answer.sdp });
  }

  private listen(peer: RTCPeerConnection): void {
    peer.ontrack = ({ track }) => {
      this.view.srcObject = new MediaStream([track]);
      void this.view.play().catch(() => {});
      this.watchPictures();
    };
    peer.oniceconnectionstatechange = () => {
      if (this.peer !== peer) return;
      if (peer.iceConnectionState === "disconnected" || peer.iceConnectionState === "failed") this.repair();
    };
    peer.onconnectionstatechange = () => {
      if (this.peer === peer && peer.connectionState === "failed" && !this.isRepairing) this.fail("lost");
    };
  }

  private openChannel(peer: RTCPeerConnection, label: string, options: RTCDataChannelInit): RTCDataChannel {
    const channel = peer.createDataChannel(label, options);
    channel.binaryType = "arraybuffer";
    if (label !== "input") return channel;
    channel.onopen = () => {
      if (this.peer !== peer) return;
      this.timer = setInterval(() => this.beat(), PING_MS);
      this.handlers.connected();
    };
    channel.onclose = () => {
      if (this.peer === peer) this.fail("lost");
    };
    channel.onmessage = ({ data }) => {
      if (this.peer === peer) this.hear(data as string | ArrayBuffer);
    };
    return channel;
  }

  private hear(data: string | ArrayBuffer): void {
    this.answered();
    if (typeof data !== "string") {
      const message = decodeFromDesktop(data);
      if (message && message.type !== "frame") this.handlers.cursor(message);
      return;
    }
    const words = parseWords(data);
    if (words?.type === "pong") this.pulse.pong(words.at, performance.now());
    else if (words) this.handlers.words(words);
  }

  private answered(): void {
    this.pulse.sign();
    if (!this.isRepairing) return;
    this.isRepairing = false;
    this.handlers.repairing(false);
  }

  private watchPictures(): void {
    if (typeof this.view.requestVideoFrameCallback !== "function") return;
    const next = (now: number, { rtpTimestamp, receiveTime, expectedDisplayTime }: VideoFrameCallbackMetadata): void => {
      if (!this.peer) return;
      this.seen();
      const present = receiveTime === undefined ? null : Math.max(0, expectedDisplayTime - receiveTime);
      // RTP counts video in 90 kHz (RFC 6184, section 8.2.1).
      this.meter.show(rtpTimestamp === undefined ? now : rtpTimestamp / 90, now, present);
      this.view.requestVideoFrameCallback(next);
    };
    this.view.requestVideoFrameCallback(next);
  }

  private seen(): void {
    if (this.shown || this.view.videoWidth === 0) return;
    this.shown = true;
    this.handlers.size(this.view.videoWidth, this.view.videoHeight);
    this.handlers.picture();
  }

  private beat(): void {
    const now = performance.now();
    const { silentMs } = this.pulse.tick(now);
    if (silentMs >= GIVE_UP_MS) return this.fail("lost");
    if (silentMs >= SILENT_MS) this.repair();
    this.say({ type: "ping", at: now });
  }

  /** Looks for another path of the same connection: the role, the channels and the pictures go on. */
  private repair(): void {
    const { peer, answer } = this;
    const now = performance.now();
    if (!peer || !answer || now - this.repairedAt < REPAIR_EVERY_MS) return;
    this.repairedAt = now;
    this.isRepairing = true;
    this.handlers.repairing(true);
    const restart = async (): Promise<void> => {
      const offer = await peer.createOffer({ iceRestart: true });
      await peer.setLocalDescription(offer);
      const renewed = await sendOffer(this.context, { sdp: offer.sdp ?? "", viewerId: answer.viewerId, resume: answer.resume });
      if (this.peer !== peer) return;
      this.answer = renewed;
      this.handlers.resume(renewed.resume);
      await peer.setRemoteDescription({ type: "answer", sdp: renewed.sdp });
    };
    restart().catch(() => {
      if (this.peer === peer) this.fail("lost");
    });
  }

  private fail(why: "lost" | "refused", detail = ""): void {
    this.stop();
    this.handlers.failed(why, detail);
  }
}

function transportPolicy(): RTCIceTransportPolicy {
  try {
    return localStorage.getItem(POLICY_KEY) === "relay" ? "relay" : "all";
  } catch {
    return "all";
  }
}

/** The codecs of this browser with the stream's own first: H.264 constrained baseline, packetization mode 1. Null if it has none. */
function h264First(): RTCRtpCodec[] | null {
  if (typeof RTCRtpReceiver !== "function") return null;
  const codecs = RTCRtpReceiver.getCapabilities("video")?.codecs ?? [];
  const rank = ({ mimeType, sdpFmtpLine = "" }: RTCRtpCodec): number => {
    if (mimeType !== "video/H264") return /rtx|red|ulpfec|flexfec/i.test(mimeType) ? 3 : 4;
    if (!/packetization-mode=1/.test(sdpFmtpLine)) return 2;
    return /profile-level-id=42(e0|c0)/i.test(sdpFmtpLine) ? 0 : 1;
  };
  const usable = codecs.filter((codec) => rank(codec) < 4).sort((a, b) => rank(a) - rank(b));
  return usable.some(({ mimeType }) => mimeType === "video/H264") ? usable : null;
}
