// A VNC server seen through noVNC.
import RFB from "/novnc/core/rfb.js";

/** Opens the desktop; gives the lane once it has been read. */
export async function open({ url }) {
  const place = document.getElementById("screen");
  const rfb = new RFB(place, url, { shared: true });
  const lane = {
    meter: new Meter(),
    kind: () => "vnc",
    bytes: async () => socketBytes(),
    figures: async () => ({}),
    size: () => [rfb._canvas.width, rfb._canvas.height],
    ended: null,
  };
  const drawn = watchCanvas(() => rfb._canvas, lane.meter);
  const display = rfb._display;
  const flip = display.flip;
  display.flip = function (fromQueue) {
    // What cannot be shown yet waits in a queue, and comes by again.
    const shows = fromQueue || this._renderQ.length === 0;
    flip.call(this, fromQueue);
    if (shows) drawn();
  };
  rfb.addEventListener("disconnect", () => (lane.ended = "noVNC was disconnected"));
  await new Promise((resolve, reject) => {
    rfb.addEventListener("connect", resolve);
    rfb.addEventListener("disconnect", () => reject(new Error("noVNC could not connect")));
  });
  return lane;
}
