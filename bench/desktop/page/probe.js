// Put into the page before anything else: what its connections carry, when a canvas was drawn on.
(() => {
  const sizeOf = (data) => (typeof data === "string" ? new TextEncoder().encode(data).length : (data.byteLength ?? data.size));
  let bytes = 0;
  globalThis.socketBytes = () => bytes;
  // noVNC looks at what a socket itself and its prototype have: they stay what they are.
  globalThis.WebSocket = new Proxy(WebSocket, {
    construct(Plain, args) {
      const socket = new Plain(...args);
      socket.addEventListener("message", ({ data }) => (bytes += sizeOf(data)));
      socket.send = (data) => {
        bytes += sizeOf(data);
        Plain.prototype.send.call(socket, data);
      };
      return socket;
    },
  });

  globalThis.peers = [];
  globalThis.RTCPeerConnection = new Proxy(RTCPeerConnection, {
    construct(Plain, args) {
      const peer = new Plain(...args);
      peers.push(peer);
      return peer;
    },
  });

  let heed = () => {};
  globalThis.onCanvasDrawn = (call) => (heed = call);
  const { drawImage } = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.drawImage = function (...args) {
    drawImage.apply(this, args);
    heed(this.canvas);
  };
})();
