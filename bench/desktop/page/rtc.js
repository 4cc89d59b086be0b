// polydev's desktop over WebRTC, with as little around it as possible. `signal` is the program that drives the page: it
// carries the offer to the controller, and the answer back.
import { button, openPage } from "./input.js";

const OPEN_LIMIT_MS = 20_000;

/** What the page wants to get: H.264 as the guest makes it, first. */
function preferH264(transceiver) {
  const { codecs } = RTCRtpReceiver.getCapabilities("video");
  const wanted = (codec) => codec.mimeType === "video/H264" && /packetization-mode=1/.test(codec.sdpFmtpLine) && /profile-level-id=42[0e]0/.test(codec.sdpFmtpLine);
  transceiver.setCodecPreferences([...codecs.filter(wanted), ...codecs.filter((codec) => codec.mimeType === "video/rtx")]);
}

const within = (what, promise) =>
  Promise.race([promise, new Promise((_, reject) => setTimeout(() => reject(new Error(`${what}: not within ${OPEN_LIMIT_MS} ms`)), OPEN_LIMIT_MS))]);

export async function open() {
  const pc = new RTCPeerConnection();
  const input = pc.createDataChannel("input", { ordered: true });
  pc.createDataChannel("moves", { ordered: false, maxRetransmits: 0 });
  const transceiver = pc.addTransceiver("video", { direction: "recvonly" });
  preferH264(transceiver);
  const video = document.createElement("video");
  Object.assign(video, { autoplay: true, muted: true, playsInline: true });
  document.getElementById("screen").append(video);
  const lane = {
    askedAt: performance.timeOrigin + performance.now(),
    meter: new Meter((x, y) => {
      for (const down of [true, false]) input.send(button(down, x, y));
    }),
    words: (words) => input.send(JSON.stringify(words)),
    openPage: (url) => openPage(url).forEach((event) => input.send(event)),
    size: () => [video.videoWidth, video.videoHeight],
    stats: null,
    ended: null,
    close: () => pc.close(),
  };
  input.onmessage = ({ data }) => {
    if (typeof data !== "string") return;
    const words = JSON.parse(data);
    if (words.type === "stats") lane.stats = words;
    if (words.type === "ended") lane.ended = words.reason;
    if (words.type === "hello") lane.role = words.role;
    if (words.type === "role") lane.role = words.role;
  };
  pc.onconnectionstatechange = () => {
    if (pc.connectionState === "failed") lane.ended = "the connection failed";
  };
  transceiver.receiver.jitterBufferTarget = 0;
  pc.ontrack = ({ track }) => (video.srcObject = new MediaStream([track]));
  watchVideo(video, lane.meter);
  const report = async (type, keep = () => true) => [...(await pc.getStats()).values()].find((entry) => entry.type === type && keep(entry));
  lane.bytes = async () => {
    const transport = await report("transport");
    return transport.bytesReceived + transport.bytesSent;
  };
  lane.figures = async () => {
    const rtp = await report("inbound-rtp", (entry) => entry.kind === "video");
    const transport = await report("transport");
    const pair = await report("candidate-pair", (entry) => entry.id === transport.selectedCandidatePairId);
    const remote = await report("remote-candidate", (entry) => entry.id === pair?.remoteCandidateId);
    return {
      protocol: remote?.protocol,
      framesReceived: rtp?.framesReceived,
      framesDropped: rtp?.framesDropped,
      keyFramesDecoded: rtp?.keyFramesDecoded,
      freezeCount: rtp?.freezeCount,
      nackCount: rtp?.nackCount,
      pliCount: rtp?.pliCount,
      packetsLost: rtp?.packetsLost,
      retransmitted: rtp?.retransmittedPacketsReceived,
      jitterBufferDelay: rtp?.jitterBufferDelay,
      jitterBufferEmittedCount: rtp?.jitterBufferEmittedCount,
      totalDecodeTime: rtp?.totalDecodeTime,
      framesDecoded: rtp?.framesDecoded,
      roundTripMs: pair?.currentRoundTripTime === undefined ? undefined : pair.currentRoundTripTime * 1000,
    };
  };
  await pc.setLocalDescription();
  const answer = await globalThis.signal(pc.localDescription.sdp);
  await pc.setRemoteDescription({ type: "answer", sdp: answer });
  await within("input channel", new Promise((resolve) => (input.readyState === "open" ? resolve() : (input.onopen = resolve))));
  return lane;
}
