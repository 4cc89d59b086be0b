// The person's browser of `cargo xtask bench desktop`: opens one lane at a time in a fresh headless Chromium and reads its
// pictures. Takes one JSON request per line on standard input, answers each with one line; ends with its input.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "../..");
const { chromium } = createRequire(join(root, "e2e/package.json"))("playwright-core");

const NOVNC = join(root, "web/node_modules/@novnc/novnc");
const PAGE = "/polydev-bench/";
/** Where pages without a server of their own seem to come from; no request ever leaves for it. */
const NOWHERE = "http://127.0.0.1:9";
const PICTURE_LIMIT_MS = 30_000;
/** Room for the page's own edges around the picture. */
const EDGE_PX = 40;
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--autoplay-policy=no-user-gesture-required",
  "--allow-loopback-in-peer-connection",
];
const HTML = `<!doctype html><meta charset="utf-8"><title>bench</title>
<style>body{margin:0}video,canvas{display:block}</style><div id="screen"></div>`;
/** Our own lanes, by the names the viewer has for them. */
const KINDS = { webrtc: "webrtc", tcp: "webrtc", websocket: "websocket" };
const WISH_KEY = "polydev.lane";
const CLICK_EVERY_MS = 317;
/** For the last words of a viewer to leave. */
const GOOD_BYE_MS = 200;
const KEY_PAUSE_MS = 10;
/** A person sees that the address bar has the keyboard before typing. */
const LOOK_UP_MS = 300;

let browser = null;
let page = null;
/** Of the endpoint, as it names itself. */
let udp = null;
let clicking = null;
/** What one-time links gave, since each works once. */
const cookies = new Map();

const typeOf = (path) => (path.endsWith(".js") ? "text/javascript" : "text/html");

async function serve(route) {
  const path = new URL(route.request().url()).pathname;
  if (path === PAGE) return route.fulfill({ contentType: "text/html", body: HTML });
  const file = path.startsWith("/novnc/") ? join(NOVNC, path.slice("/novnc/".length)) : join(here, "page", path.slice(PAGE.length));
  return route.fulfill({ contentType: typeOf(file), body: await readFile(file) });
}

/** Keeps the candidates that the lane is to use, with the relay's address in the place of the endpoint's own. */
function chooseCandidates(sdp, { lane, relay }) {
  const lines = sdp.split("\r\n").flatMap((line) => {
    const fields = line.startsWith("a=candidate:") ? line.split(" ") : null;
    if (!fields) return [line];
    const udp = fields[2].toLowerCase() === "udp";
    if (lane === "webrtc" && !relay?.keepTcp && !udp) return [];
    if (lane === "tcp" && udp) return [];
    if (udp && relay) [fields[4], fields[5]] = relay.address.split(":");
    return [fields.join(" ")];
  });
  return lines.join("\r\n");
}

/** The address of the first UDP candidate. */
function udpAddress(sdp) {
  const line = sdp.split("\r\n").find((line) => /^a=candidate:\S+ 1 udp /i.test(line));
  const [, , , , host, port] = line?.split(" ") ?? [];
  return host && `${host}:${port}`;
}

/** Answers the viewer's offer as the controller does, but for the way the stream is to take. */
async function offer(route, request) {
  const response = await route.fetch();
  if (!response.ok()) return route.fulfill({ response });
  const json = await response.json();
  udp = udpAddress(json.answer.sdp);
  json.answer.sdp = chooseCandidates(json.answer.sdp, request);
  return route.fulfill({ response, json });
}

/** Makes the controller take the page for its own. */
async function enter(context, link) {
  if (!cookies.has(link)) {
    await page.goto(link);
    await page.waitForURL((url) => !url.href.includes("/open"), { timeout: PICTURE_LIMIT_MS });
    cookies.set(link, await context.cookies());
  }
  await context.addCookies(cookies.get(link));
}

/** Clicks as a person does, unless the last click has not been answered. */
async function click() {
  const clicked = page;
  if (await clicked.evaluate(() => lane.meter.waits)) return;
  await clicked.mouse.down();
  await clicked.mouse.up();
}

const actions = {
  /** Opens a lane in a new browser; answers when its picture can be read. */
  async open(request) {
    await actions.close();
    const [width, height] = request.size;
    browser = await chromium.launch({ executablePath: request.chromium, args: [...FLAGS, `--window-size=${width + EDGE_PX},${height + EDGE_PX}`] });
    const context = await browser.newContext({ viewport: { width: width + EDGE_PX, height: height + EDGE_PX } });
    // Everything is on this machine, which a page may not talk to unasked.
    await context.grantPermissions(["local-network-access"]);
    page = await context.newPage();
    if (request.link) await enter(context, request.link);
    page.on("pageerror", (error) => process.stderr.write(`page: ${error.message}\n`));
    page.on("console", (message) => {
      if (message.type() === "error") process.stderr.write(`page: ${message.text()} ${message.location().url}\n`);
    });
    const origin = request.origin ?? NOWHERE;
    await page.route((url) => url.origin === origin && (url.pathname.startsWith(PAGE) || url.pathname.startsWith("/novnc/")), serve);
    await page.route((url) => url.pathname.endsWith("/offer"), (route) => offer(route, request).catch(() => route.abort().catch(() => {})));
    if (request.relay || request.lane === "tcp") {
      // No way around.
      await page.route((url) => url.pathname === "/api/webrtc/ice-servers", (route) => route.fulfill({ json: { success: true, iceServers: [] } }));
    }
    for (const script of ["barcode.js", "meter.js", "probe.js"]) await page.addInitScript({ path: join(here, "page", script) });
    if (!request.anyLane) await page.addInitScript(([key, kind]) => localStorage.setItem(key, kind), [WISH_KEY, KINDS[request.lane] ?? "vnc"]);
    await page.goto(origin + PAGE);
    await page.evaluate(
      async ([script, request]) => {
        const { open } = await import(script);
        globalThis.lane = await open(request);
      },
      [`${PAGE}${KINDS[request.lane] ? "product" : "vnc"}.js`, { url: request.url, session: request.session, size: request.size }],
    );
    return { ...(await actions.picture(request)), udp };
  },

  /** Waits for a picture of that size; tells how long after the asking the first one came, and by which lane. */
  async picture({ lane: wanted, size, anyLane }) {
    const kind = anyLane ? null : (KINDS[wanted] ?? "vnc");
    const fits = ([kind, [width, height]]) => {
      if (lane.ended) throw new Error(lane.ended);
      const [w, h] = lane.size();
      if (lane.role && lane.role() !== "control") return false;
      return lane.meter.firstAt !== null && w === width && h === height && (kind === null || lane.kind() === kind);
    };
    try {
      await page.waitForFunction(fits, [kind, size], { polling: 20, timeout: PICTURE_LIMIT_MS });
    } catch (error) {
      const is = await page.evaluate(() => `${lane.kind()} ${lane.size().join("x")} ${JSON.stringify(lane.state?.() ?? null)}`);
      throw new Error(`no picture of ${size.join("x")}: there is ${is}: ${error.message}`);
    }
    return page.evaluate(() => ({ firstPictureMs: lane.meter.firstAt - (lane.askedAt ?? lane.meter.firstAt), kind: lane.kind() }));
  },

  /** Opens a page in the desktop's browser as a person does. */
  async visit({ url }) {
    await page.evaluate(() => lane.focus());
    await page.keyboard.press("Control+l", { delay: KEY_PAUSE_MS });
    await page.waitForTimeout(LOOK_UP_MS);
    await page.keyboard.type(url, { delay: KEY_PAUSE_MS });
    // What the address bar adds of its own is not meant.
    await page.keyboard.press("Delete", { delay: KEY_PAUSE_MS });
    await page.keyboard.press("Enter", { delay: KEY_PAUSE_MS });
  },

  async start() {
    await page.waitForFunction(() => lane.meter.reads, null, { polling: 50, timeout: PICTURE_LIMIT_MS });
    await page.evaluate(async () => {
      lane.before = { bytes: await lane.bytes(), ...(await lane.figures()) };
      lane.meter.start();
    });
    const { x, y } = await page.evaluate(() => TARGET);
    await page.mouse.move(x, y);
    clicking = setInterval(() => void click().catch(() => {}), CLICK_EVERY_MS);
  },

  async stop() {
    clearInterval(clicking);
    return page.evaluate(async () => {
      if (lane.ended) throw new Error(lane.ended);
      const seen = lane.meter.stop();
      const after = { bytes: await lane.bytes(), ...(await lane.figures()) };
      const { before } = lane;
      const grown = Object.entries(after).filter(([name, value]) => typeof value === "number" && typeof before[name] === "number");
      return { ...seen, grown: Object.fromEntries(grown.map(([name, value]) => [name, value - before[name]])), path: lane.path?.() ?? null, hub: lane.hub ?? null };
    });
  },

  async bytes() {
    return page.evaluate(async () => ({ bytes: await lane.bytes(), figures: await lane.figures() }));
  },

  async screenshot({ file }) {
    await page.screenshot({ path: file });
  },

  async close() {
    clearInterval(clicking);
    const [closing, left] = [browser, page];
    browser = page = null;
    // A viewer that says good-bye does not keep the control for itself.
    await left?.evaluate((ms) => {
      globalThis.lane?.leave?.();
      return new Promise((resolve) => setTimeout(resolve, ms));
    }, GOOD_BYE_MS).catch(() => {});
    await closing?.close();
  },
};

const say = (words) => process.stdout.write(`${JSON.stringify(words)}\n`);

for await (const line of createInterface({ input: process.stdin })) {
  const { action, ...request } = JSON.parse(line);
  try {
    say({ ok: (await actions[action](request)) ?? {} });
  } catch (error) {
    say({ error: error.message });
  }
}
await actions.close();
process.exit(0);
