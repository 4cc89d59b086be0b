// The live browser through the built-in TURN server and nothing else: for people whose network lets no other way through.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { clicksAndTypes, openDesktop, UdpRelay, visitor } from "../play/lanes.mjs";
import { limitsOf } from "../play/settings.mjs";
import { until } from "../play/until.mjs";
import { World } from "../play/world.mjs";

const limits = limitsOf("container");
/** The page tries WebRTC again and again; a busy machine may need more than one try. */
const LANE_MS = 60_000;
/** With this each way, the dozen round trips of a connection by relay take longer than the page waits in front of nothing. */
const FAR_MS = 150;
/** The control is kept for a page that went without its good-bye being heard until it is missed, and a grace longer. */
const CONTROL_MS = 90_000;
const ID = "turn";
let world;
let visits;

before(async () => {
  world = await World.start();
  ({ visits } = visitor(world, await openDesktop(world, ID)));
  // Server and endpoint are on this machine's loopback, where Chromium gathers no relayed candidates unless told to.
  world.browser = await world.launchBrowser(["--allow-loopback-in-peer-connection"]);
}, { timeout: limits.test });

after(async () => {
  assert.deepEqual(await world?.stop(), [], "nothing is left on the machine");
}, { timeout: limits.finish });

/** A page that uses relayed candidates alone, and of the server's ways only that one. */
const relayedBy = (transport, lead = (url) => url) => async (page) => {
  await page.addInitScript(() => {
    localStorage.setItem("polydev.iceTransportPolicy", "relay");
    const Native = globalThis.RTCPeerConnection;
    globalThis.peersOfTheTest = [];
    globalThis.RTCPeerConnection = class extends Native {
      constructor(...given) {
        super(...given);
        globalThis.peersOfTheTest.push(this);
      }
    };
  });
  await page.route("**/api/webrtc/ice-servers", async (route) => {
    const response = await route.fetch();
    const json = await response.json();
    for (const server of json.iceServers) server.urls = server.urls.filter((url) => url.endsWith(`?transport=${transport}`)).map(lead);
    await route.fulfill({ response, json });
  });
};

/** What the connection in use says about its own end: kind of candidate, how the relay is reached, decoded pictures. */
const connection = (page) =>
  page.evaluate(async () => {
    const peer = globalThis.peersOfTheTest.findLast((each) => each.connectionState === "connected");
    if (!peer) return null;
    const stats = await peer.getStats();
    const all = [...stats.values()];
    const pair = stats.get(all.find((entry) => entry.type === "transport")?.selectedCandidatePairId);
    const local = stats.get(pair?.localCandidateId);
    const video = all.find((entry) => entry.type === "inbound-rtp" && entry.kind === "video");
    return { kind: local?.candidateType, relayProtocol: local?.relayProtocol, frames: video?.framesDecoded ?? 0 };
  });

/** Sees pictures that came by the relay, and types. */
async function worksBy(person, transport, text) {
  await person.seesLane("webrtc", LANE_MS);
  await person.seesPicture("a painted page", ({ white, width, height }) => white > width * height * 0.3, limits.input);
  await until("the person is in control", async () => (await person.page.getByTestId("role").innerText()) === "In control", { deadlineMs: CONTROL_MS });
  await until("the page says how the packets travel", async () => (await person.page.getByTestId("lane").innerText()).startsWith("WebRTC by relay"), {
    deadlineMs: limits.input,
    seen: () => person.page.getByTestId("lane").innerText(),
  });
  await clicksAndTypes(person, ID, text);
  const used = await connection(person.page);
  assert.equal(used?.kind, "relay");
  assert.equal(used.relayProtocol, transport);
  // The keep-alive picture of each second comes even when nothing changes.
  await until("more pictures are decoded", async () => ((await connection(person.page))?.frames ?? 0) > used.frames, { deadlineMs: limits.input });
}

/** A person whose page gets through by the relay alone. */
const visit = (name, hinder, tell) => visits(name, { hinder }, tell);

for (const transport of ["udp", "tcp"]) {
  test(`the picture and the control of it come through TURN over ${transport.toUpperCase()}`, { timeout: limits.test }, () =>
    visit(`turn-${transport}`, relayedBy(transport), (person) => worksBy(person, transport, `${transport};`)),
  );
}

test("a relay that is too far away for a quick start is used once it is connected", { timeout: limits.test }, async () => {
  const far = await UdpRelay.open({ delayMs: FAR_MS });
  try {
    await visit("turn-far", relayedBy("udp", (url) => far.leadTo(url)), (person) => worksBy(person, "udp", "far;"));
  } finally {
    far.close();
  }
});
