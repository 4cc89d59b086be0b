// Counts what every WebSocket of the page carries.
(() => {
  globalThis.socketBytes = 0;
  const sizeOf = (data) => (typeof data === "string" ? new TextEncoder().encode(data).length : (data.byteLength ?? data.size));
  // noVNC looks at what a socket itself and its prototype have: they stay what they are.
  globalThis.WebSocket = new Proxy(WebSocket, {
    construct(Plain, args) {
      const socket = new Plain(...args);
      socket.addEventListener("message", ({ data }) => (globalThis.socketBytes += sizeOf(data)));
      socket.send = (data) => {
        globalThis.socketBytes += sizeOf(data);
        Plain.prototype.send.call(socket, data);
      };
      return socket;
    },
  });
})();
