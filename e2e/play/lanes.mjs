// Ways to hinder the live browser's lanes, and a page in the VM that tells what was typed into it.
import { createSocket } from "node:dgram";
import { readdirSync, readFileSync } from "node:fs";
import { Person } from "./person.mjs";
import { reachSignInPage, story } from "./sign-in.mjs";
import { until } from "./until.mjs";

const OFFER = "**/api/webrtc/session/*/offer";
/** An address that was not asked for within this time was not taken. */
const ASKED_MS = 10_000;
const TYPING_PAGE = "https://auth.openai.com/polydev-demo/typing";

/** Opens a live browser that stays open, and a page in it that tells what is typed; gives the sign-in's id. */
export async function openDesktop(world, id, look = async () => {}) {
  let sessionId;
  await story(world, `${id}-before`, async (person) => {
    await reachSignInPage(person, { provider: "codex", user: id });
    sessionId = person.sessionId;
    await look(person);
    await openTypingPage(person, id);
    await typesInto(person, id, "-");
  });
  return sessionId;
}

/** People who come to that live browser. If the story of a visit fails, what helps to understand it is kept. */
export function visitor(world, sessionId) {
  const comes = (options) => comeTo(world, sessionId, options);
  const visits = async (name, options, tell) => {
    const person = await comes(options);
    try {
      await tell(person);
    } catch (error) {
      const dir = await world.keepRemains(name, person).catch((cause) => `(nothing kept: ${cause.message})`);
      throw new Error(`${error.message}\nWhat is left of it: ${dir}`, { cause: error });
    } finally {
      await leave(person);
    }
  };
  return { comes, visits };
}

/** A page of its own for a person, with nothing remembered but the cookie. `hinder` is called before anything is loaded. */
async function comeTo(world, sessionId, { context = {}, hinder = async () => {} } = {}) {
  const { cookies } = await world.context.storageState();
  const own = await world.browser.newContext({ viewport: { width: 1280, height: 800 }, storageState: { cookies, origins: [] }, ...context });
  const person = new Person(world, await own.newPage());
  person.sessionId = sessionId;
  await hinder(person.page);
  await person.page.goto(`${world.origin}/session/${sessionId}`);
  return person;
}

/** Goes away as a person does: the page hears of it. */
export async function leave(person) {
  await person.page.goto("about:blank").catch(() => {});
  await person.page.context().close();
}

// -- what is in the way -----------------------------------------------------------------------------------------------

/** No WebRTC for this page: the controller's answer never comes. */
export const withoutOffers = (page) => page.route(OFFER, (route) => route.abort());

/** A browser without WebRTC. */
export const withoutWebRtc = (page) => page.addInitScript(() => delete globalThis.RTCPeerConnection);

/** No WebSocket with pictures for this page: it asks at a place where there is none. */
export const withoutStream = (page) =>
  page.addInitScript(() => {
    // noVNC looks at the socket's own prototype: it must stay the real one.
    globalThis.WebSocket = new Proxy(WebSocket, {
      construct: (Real, [url, ...more]) => new Real(String(url).replace("/api/stream/", "/api/nowhere/"), ...more),
    });
  });

/** A browser without WebCodecs. */
export const withoutWebCodecs = (page) => page.addInitScript(() => delete globalThis.VideoDecoder);

/** Changes each candidate line of the controller's answers; a line that becomes null is left out. */
export const rewriteCandidates = (page, change) =>
  page.route(OFFER, async (route) => {
    const response = await route.fetch();
    if (!response.ok()) return route.fulfill({ response });
    const json = await response.json();
    const lines = json.answer.sdp.split("\r\n").map((line) => (line.startsWith("a=candidate:") ? change(line) : line));
    json.answer.sdp = lines.filter((line) => line !== null).join("\r\n");
    await route.fulfill({ response, json });
  });

const isUdp = (line) => / udp /i.test(line);

/** A network that lets no UDP through: the page hears of the candidates of TCP alone. */
export const withoutUdp = (page) => rewriteCandidates(page, (line) => (isUdp(line) ? null : line));

/** A network that lets nothing through but HTTP: the candidates lead to a port where nobody answers. */
export const withoutPaths = (page) => rewriteCandidates(page, (line) => (isUdp(line) ? line.replace(/(candidate:\S+ \d+ \S+ \d+ \S+) \d+/, "$1 9") : null));

/** Stands between a page and one of the controller's UDP ports, takes its time, and can be cut. */
export class UdpRelay {
  #front = createSocket("udp4");
  #backs = new Map();
  #cut = false;
  #target = null;
  #delayMs;

  constructor(delayMs) {
    this.#delayMs = delayMs;
  }

  /** `delayMs`: what each datagram takes longer, either way. */
  static async open({ delayMs = 0 } = {}) {
    const relay = new UdpRelay(delayMs);
    relay.#front.on("message", (data, { address, port }) => relay.#forward(data, address, port));
    await new Promise((resolve) => relay.#front.bind(0, "127.0.0.1", resolve));
    return relay;
  }

  /** For `rewriteCandidates`: leads through here, and nowhere else. */
  lead = (line) => {
    if (!isUdp(line)) return null;
    const [, head, address, port, rest] = /^(a=candidate:\S+ \d+ \S+ \d+) (\S+) (\d+)(.*)$/.exec(line);
    this.#target = { address, port: Number(port) };
    return `${head} 127.0.0.1 ${this.#front.address().port}${rest}`;
  };

  /** The address of a STUN or TURN server with the way to it leading through here. */
  leadTo(url) {
    const [, head, address, port, rest] = /^(turn:)([^:]+):(\d+)(.*)$/.exec(url);
    this.#target = { address, port: Number(port) };
    return `${head}127.0.0.1:${this.#front.address().port}${rest}`;
  }

  /** From now on nothing gets through. */
  cut() {
    this.#cut = true;
  }

  close() {
    this.#cut = true;
    this.#front.close();
    for (const back of this.#backs.values()) back.close();
  }

  #forward(data, address, port) {
    if (this.#cut) return;
    const key = `${address}:${port}`;
    let back = this.#backs.get(key);
    if (!back) {
      back = createSocket("udp4");
      back.on("message", (answer) => this.#later(() => this.#front.send(answer, port, address)));
      this.#backs.set(key, back);
    }
    this.#later(() => back.send(data, this.#target.port, this.#target.address));
  }

  #later(send) {
    const unlessCut = () => {
      if (!this.#cut) send();
    };
    if (this.#delayMs === 0) unlessCut();
    else setTimeout(unlessCut, this.#delayMs);
  }
}

// -- what arrives in the VM -------------------------------------------------------------------------------------------

/** Leads the browser in the VM to a page that tells what is typed into it. */
export async function openTypingPage(person, id) {
  const { world } = person;
  const isOpen = async () => (await world.typed(id)) !== null;
  await person.focusLiveBrowser();
  // The browser may still be busy with another page and forget what was typed into its address bar.
  await until("the typing page is open", async () => {
    await person.press("Control+l");
    await person.seesStillPicture(world.limits.input);
    await person.type(`${TYPING_PAGE}?id=${id}`);
    await person.seesStillPicture(world.limits.input);
    await person.press("Enter");
    return until("the address is asked for", isOpen, { deadlineMs: ASKED_MS }).catch(() => false);
  }, { deadlineMs: 2 * world.limits.input });
  await person.seesStillPicture(world.limits.input);
}

/** Types behind what is there already, and waits until exactly that has arrived. */
export async function typesInto(person, id, text) {
  const before = await person.world.typed(id);
  await person.type(text);
  await arrives(person, id, before + text);
}

/** Waits until exactly this is in the page. */
export const arrives = ({ world }, id, wanted) =>
  until(`the VM's page holds ${JSON.stringify(wanted)}`, async () => (await world.typed(id)) === wanted, {
    deadlineMs: world.limits.input,
    seen: async () => JSON.stringify(await world.typed(id)),
  });

/** Takes the keyboard away from the page's field, and gives it back by a click: what is typed then has been clicked for. */
export async function clicksAndTypes(person, id, text) {
  await person.focusLiveBrowser();
  // The VM's browser moves the focus in its own time.
  await person.press("Control+l");
  await person.seesStillPicture(person.world.limits.input);
  await person.clickAt(0.5, 0.6);
  await person.seesStillPicture(person.world.limits.input);
  await person.press("Control+End");
  await typesInto(person, id, text);
}

/** The processes of a VM on this machine whose command line fits; the container driver's VMs share its kernel. */
export function processesOf(vmId, pattern) {
  const names = [vmId, vmId.replaceAll("-", "").slice(0, 8)];
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        const groups = readFileSync(`/proc/${pid}/cgroup`, "utf8");
        return names.some((name) => groups.includes(name)) && pattern.test(readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " "));
      } catch {
        // It ended while it was looked at.
        return false;
      }
    });
}
