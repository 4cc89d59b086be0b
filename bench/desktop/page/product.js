// polydev's own viewer, as an embedding page gets it.

const VIEWER = "/embed/polydev-desktop.js";
const now = () => performance.timeOrigin + performance.now();

/** Begins to open the desktop of a session in a room of that size. */
export async function open({ session, size: [width, height] }) {
  await import(VIEWER);
  const element = document.createElement("polydev-desktop");
  element.setAttribute("session", session);
  Object.assign(element.style, { width: `${width}px`, height: `${height}px` });
  const view = () => element.viewer?.front?.lane.view;
  const lane = {
    askedAt: now(),
    meter: new Meter(),
    kind: () => element.viewer?.front?.lane.kind ?? null,
    size: () => Object.values(element.state?.desktop ?? {}),
    path: () => element.state?.path,
    state: () => element.state,
    role: () => element.state?.role,
    hub: null,
    leave: () => element.remove(),
    focus: () => element.focus(),
  };
  element.addEventListener("polydev-figures", ({ detail }) => (lane.hub = detail.hub));
  Object.defineProperty(lane, "ended", { get: () => element.state?.ended || null });

  let watched = null;
  const drawn = watchCanvas(view, lane.meter);
  onCanvasDrawn((canvas) => {
    if (canvas === view()) drawn();
  });
  const look = () => {
    const video = view();
    if (video instanceof HTMLVideoElement && video !== watched) {
      watched = video;
      watchVideo(video, lane.meter, () => view() === video);
    }
    setTimeout(look, 20);
  };
  document.getElementById("screen").append(element);
  look();

  const reports = async (pick) => {
    const all = await Promise.all(peers.filter((peer) => peer.connectionState === "connected").map((peer) => peer.getStats()));
    return all.flatMap((report) => [...report.values()].filter(pick));
  };
  const sum = (entries, name) => entries.reduce((total, entry) => total + (entry[name] ?? 0), 0);
  lane.bytes = async () => {
    const transports = await reports(({ type }) => type === "transport");
    return socketBytes() + sum(transports, "bytesReceived") + sum(transports, "bytesSent");
  };
  lane.figures = async () => {
    const streams = await reports(({ type, kind }) => type === "inbound-rtp" && kind === "video");
    const names = ["framesReceived", "framesDecoded", "framesDropped", "keyFramesDecoded", "nackCount", "pliCount", "packetsReceived", "packetsLost"];
    const rtp = ["retransmittedPacketsReceived", "freezeCount", "jitterBufferDelay", "jitterBufferEmittedCount", "totalDecodeTime", "totalProcessingDelay"];
    return streams.length === 0 ? {} : Object.fromEntries([...names, ...rtp].map((name) => [name, sum(streams, name)]));
  };
  return lane;
}
