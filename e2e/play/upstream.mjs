// An upstream proxy as a user might have one: HTTP CONNECT with a login. Every name leads to the demo network.
import { createServer } from "node:http";
import { connect } from "node:net";

export class Upstream {
  /** `host:port` of every tunnel that was asked for with the right login, oldest first. */
  targets = [];
  /** How often somebody came without it. */
  refused = 0;
  #sockets = new Set();

  static async start({ user, password, to }) {
    const upstream = new Upstream();
    const wanted = `Basic ${Buffer.from(`${user}:${password}`).toString("base64")}`;
    upstream.server = createServer((request, response) => response.writeHead(405).end());
    upstream.server.on("connect", (request, client) => upstream.#tunnel(request, client, wanted, to));
    upstream.server.on("connection", (socket) => upstream.#keep(socket));
    await new Promise((resolve, reject) => upstream.server.once("error", reject).listen(0, "127.0.0.1", resolve));
    upstream.address = `127.0.0.1:${upstream.server.address().port}`;
    upstream.url = `http://${encodeURIComponent(user)}:${encodeURIComponent(password)}@${upstream.address}`;
    return upstream;
  }

  #tunnel(request, client, wanted, to) {
    if (request.headers["proxy-authorization"] !== wanted) {
      this.refused += 1;
      client.end("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"e2e\"\r\nContent-Length: 0\r\n\r\n");
      return;
    }
    this.targets.push(request.url);
    const far = connect(to, "127.0.0.1", () => {
      client.write("HTTP/1.1 200 Connection established\r\n\r\n");
      client.pipe(far).pipe(client);
    });
    this.#keep(far);
    for (const [one, other] of [[client, far], [far, client]]) {
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroy());
    }
  }

  #keep(socket) {
    this.#sockets.add(socket);
    socket.on("close", () => this.#sockets.delete(socket));
  }

  /** Takes no more connections and ends those there are. */
  async stop() {
    const closed = new Promise((resolve) => this.server.close(resolve));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}
