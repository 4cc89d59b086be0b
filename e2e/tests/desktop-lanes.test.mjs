// The live browser by every lane, in one sign-in that stays open: pages come, are hindered, look, click, type and go.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { arrives, clicksAndTypes, leave, openDesktop, processesOf, rewriteCandidates, typesInto, UdpRelay, visitor, withoutOffers, withoutPaths, withoutStream, withoutUdp, withoutWebCodecs, withoutWebRtc } from "../play/lanes.mjs";
import { limitsOf } from "../play/settings.mjs";
import { until } from "../play/until.mjs";
import { World } from "../play/world.mjs";

const limits = limitsOf("container");
/** The page's own deadlines are seconds; a busy machine may take several times that. */
const LANE_MS = 30_000;
const ID = "lanes";
let world;
let sessionId;
let comes;
let visits;

before(async () => {
  world = await World.start();
  sessionId = await openDesktop(world, ID, async (person) => {
    await person.page.getByTestId("lane").click();
    await until("figures are shown", async () => /Round trip\s+[\d.]+ ms/.test(await person.page.getByTestId("figures").innerText()), { deadlineMs: limits.input });
    await person.keepScreenshot("live-browser-connection");
    await person.page.getByTestId("lane").click();
  });
  ({ comes, visits } = visitor(world, sessionId));
}, { timeout: limits.test });

after(async () => {
  assert.deepEqual(await world?.stop(), [], "nothing is left on the machine");
}, { timeout: limits.finish });

/** A person with a hindered page sees the live browser. */
const visit = (name, options, tell) => () => visits(name, options, tell);

/** The lane is shown with its name, the picture with its colours, and hands reach the VM. */
async function worksBy(person, lane, label, text) {
  await person.seesLane(lane, LANE_MS);
  await person.seesPicture("a painted page", ({ white, width, height }) => white > width * height * 0.3, limits.input);
  await until(`the label says ${label}`, async () => (await person.page.getByTestId("lane").innerText()).startsWith(label), {
    deadlineMs: limits.input,
    seen: () => person.page.getByTestId("lane").innerText(),
  });
  await until("the person is in control", async () => (await person.page.getByTestId("role").innerText()) === "In control", { deadlineMs: limits.input });
  await clicksAndTypes(person, ID, text);
}

/** Presses a key by RFB alone, as a page might that heeds no roles. */
const typesPastThePage = ({ page }) =>
  page.evaluate(async () => {
    const id = location.pathname.split("/").at(-1);
    const socket = new WebSocket(`ws://${location.host}/api/auth/session/${id}/vnc?role=control`, "binary");
    const [VERSION, SECURITY, RESULT] = [12, 2, 4];
    const answers = [new TextEncoder().encode("RFB 003.008\n"), Uint8Array.of(1), Uint8Array.of(0)];
    socket.binaryType = "arraybuffer";
    let got = 0;
    let wanted = 0;
    await new Promise((resolve, reject) => {
      socket.onerror = () => reject(new Error("the WebSocket failed"));
      socket.onmessage = ({ data }) => {
        got += data.byteLength;
        while (answers.length > 0 && got >= wanted + [RESULT, SECURITY, VERSION][answers.length - 1]) {
          wanted += [RESULT, SECURITY, VERSION][answers.length - 1];
          socket.send(answers.shift());
        }
        if (answers.length === 0) resolve();
      };
    });
    for (const down of [1, 0]) socket.send(Uint8Array.of(4, down, 0, 0, 0, 0, 0, 0x78));
    // Whatever comes back was sent by a server that talks to this page.
    await new Promise((resolve) => {
      socket.onmessage = resolve;
      socket.send(Uint8Array.of(3, 0, 0, 0, 0, 0, 0, 1, 0, 1));
    });
    socket.close();
  });

/** Opens the details and reads why that lane is not used. */
async function reasonFor(person, lane) {
  const panel = person.page.getByTestId("connection");
  if (!(await panel.isVisible())) await person.page.getByTestId("lane").click();
  return panel.locator(`[data-why=${lane}]`).innerText();
}

test("the picture comes by WebRTC, with figures, and clicks and keys arrive", { timeout: limits.test },
  visit("lanes-webrtc", {}, async (person) => {
    await worksBy(person, "webrtc", "WebRTC", "webrtc;");
    await person.page.getByTestId("lane").click();
    const figures = person.page.getByTestId("figures");
    await until("latency and data are shown", async () => {
      const shown = await figures.innerText();
      return /Round trip\s+[\d.]+ ms/.test(shown) && /Input to picture\s+[\d.]+ ms/.test(shown) && /Guest CPU\s+\d+ %/.test(shown);
    }, { deadlineMs: limits.input, seen: () => figures.innerText() });
  }),
);

test("with UDP blocked WebRTC goes over TCP", { timeout: limits.test },
  visit("lanes-tcp", { hinder: withoutUdp }, (person) => worksBy(person, "webrtc", "WebRTC over TCP", "tcp;")),
);

test("when offers are not answered the stream comes over a WebSocket", { timeout: limits.test },
  visit("lanes-websocket", { hinder: withoutOffers }, async (person) => {
    await worksBy(person, "websocket", "WebSocket", "websocket;");
    assert.match(await reasonFor(person, "webrtc"), /could not be opened/);
  }),
);

test("when nothing but HTTP gets through the stream comes over a WebSocket within the time of a failing WebRTC", { timeout: limits.test },
  visit("lanes-http", { hinder: withoutPaths }, async (person) => {
    await worksBy(person, "websocket", "WebSocket", "http;");
    assert.match(await reasonFor(person, "webrtc"), /did not connect in time/);
  }),
);

test("a browser without WebRTC takes the WebSocket", { timeout: limits.test },
  visit("lanes-no-webrtc", { hinder: withoutWebRtc }, async (person) => {
    await worksBy(person, "websocket", "WebSocket", "plain;");
    assert.match(await reasonFor(person, "webrtc"), /has no WebRTC/);
  }),
);

test("when both streams fail the picture comes by VNC, which climbs back as soon as a stream works", { timeout: limits.test },
  visit("lanes-vnc", { hinder: async (page) => { await withoutOffers(page); await withoutStream(page); } }, async (person) => {
    await worksBy(person, "vnc", "VNC", "vnc;");
    assert.match(await reasonFor(person, "websocket"), /could not be opened/);
    await person.page.unrouteAll({ behavior: "ignoreErrors" });
    await worksBy(person, "webrtc", "WebRTC", "climbed;");
  }),
);

test("a browser without WebRTC and WebCodecs takes VNC", { timeout: limits.test },
  visit("lanes-old-browser", { hinder: async (page) => { await withoutWebRtc(page); await withoutWebCodecs(page); } }, async (person) => {
    await worksBy(person, "vnc", "VNC", "old;");
    assert.match(await reasonFor(person, "websocket"), /cannot decode/);
  }),
);

test("the person chooses a lane, and comes back to it after a reload", { timeout: limits.test },
  visit("lanes-choice", {}, async (person) => {
    await person.seesLane("webrtc", LANE_MS);
    await person.page.getByTestId("lane").click();
    await person.page.getByRole("radio", { name: /^WebSocket/ }).check();
    await worksBy(person, "websocket", "WebSocket", "chosen;");
    await person.page.reload();
    await worksBy(person, "websocket", "WebSocket", "again;");
    await person.page.getByTestId("lane").click();
    await person.page.getByRole("radio", { name: /^Automatic/ }).check();
    // What is typed while the control goes from the one lane to the other is not lost.
    await person.focusLiveBrowser();
    let typed = await world.typed(ID);
    await until("the better lane is shown", async () => {
      await person.type("0123456789");
      typed += "0123456789";
      return (await person.screen.getAttribute("data-lane")) === "webrtc";
    }, { deadlineMs: LANE_MS });
    await person.type(".");
    await arrives(person, ID, `${typed}.`);
    await worksBy(person, "webrtc", "WebRTC", "automatic;");
  }),
);

test("a path that dies is replaced by another one and nobody loses the control", { timeout: limits.test }, async () => {
  const relay = await UdpRelay.open();
  let alive = true;
  const hinder = (page) => rewriteCandidates(page, (line) => (alive ? relay.lead(line) : line));
  try {
    await visit("lanes-repair", { hinder }, async (person) => {
      await worksBy(person, "webrtc", "WebRTC", "before;");
      alive = false;
      relay.cut();
      await until("the path is given up", async () => (await person.screen.getAttribute("data-phase")) !== "live", { deadlineMs: LANE_MS });
      await worksBy(person, "webrtc", "WebRTC", "repaired;");
    })();
  } finally {
    relay.close();
  }
});

test("when WebRTC dies for good the WebSocket takes over and the person types on", { timeout: limits.test }, async () => {
  const relay = await UdpRelay.open();
  try {
    await visit("lanes-dies", { hinder: (page) => rewriteCandidates(page, relay.lead) }, async (person) => {
      await worksBy(person, "webrtc", "WebRTC", "alive;");
      relay.cut();
      await worksBy(person, "websocket", "WebSocket", "lives on;");
      assert.match(await reasonFor(person, "webrtc"), /was lost|did not connect/);
    })();
  } finally {
    relay.close();
  }
});

/** Ways of a second viewer, which are to make no difference. */
const SECOND = {
  websocket: withoutOffers,
  vnc: async (page) => {
    await withoutOffers(page);
    await withoutStream(page);
  },
};

for (const [lane, hinder] of Object.entries(SECOND)) test(`a second viewer by ${lane} watches only, asks, and is handed the control`, { timeout: limits.test },
  visit(`lanes-roles-${lane}`, {}, async (first) => {
    await worksBy(first, "webrtc", "WebRTC", "first;");
    const second = await comes({ hinder });
    try {
      await second.seesLane(lane, LANE_MS);
      await until("the second one watches", async () => (await second.page.getByTestId("role").innerText()) === "Watching", { deadlineMs: limits.input });
      await until("both see two viewers", async () => {
        const counts = await Promise.all([first, second].map((person) => person.page.getByTestId("viewers").innerText()));
        return counts.every((count) => count.startsWith("2"));
      }, { deadlineMs: limits.input });
      const before = await world.typed(ID);
      await second.focusLiveBrowser();
      await second.type("never");
      if (lane === "vnc") await typesPastThePage(second);
      await first.focusLiveBrowser();
      await typesInto(first, ID, "mine;");
      assert.equal(await world.typed(ID), `${before}mine;`, "what a watching person types goes nowhere");

      await second.page.getByRole("button", { name: "Ask for control" }).click();
      await first.page.getByTestId("asking").getByRole("button", { name: "Hand over" }).click();
      await until("the second one is in control", async () => (await second.page.getByTestId("role").innerText()) === "In control", { deadlineMs: limits.input });
      await until("the first one watches", async () => (await first.page.getByTestId("role").innerText()) === "Watching", { deadlineMs: limits.input });
      await clicksAndTypes(second, ID, "second;");
    } finally {
      await leave(second);
    }
    await until("the control comes back when the second one is gone", async () => {
      const ask = first.page.getByRole("button", { name: "Ask for control" });
      if (await ask.isVisible()) await ask.click({ timeout: 1_000 });
      return (await first.page.getByTestId("role").innerText()) === "In control";
    }, { deadlineMs: limits.input });
  }),
);

test("when the guest's stream program is killed the picture comes back", { timeout: limits.test },
  visit("lanes-killed", {}, async (person) => {
    await worksBy(person, "webrtc", "WebRTC", "running;");
    const { browserVmId } = await world.session(sessionId);
    const pids = processesOf(browserVmId, /polydev-desktop stream/);
    assert.ok(pids.length > 0, "the program is there");
    for (const pid of pids) process.kill(pid, "SIGKILL");
    await until("another one is started", () => processesOf(browserVmId, /polydev-desktop stream/).some((pid) => !pids.includes(pid)), { deadlineMs: LANE_MS });
    await worksBy(person, "webrtc", "WebRTC", "restarted;");
  }),
);

test("a phone shows the desktop at a usable size, and soft keys and typing arrive", { timeout: limits.test },
  visit("lanes-phone", { context: { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true } }, async (person) => {
    await person.seesLane("webrtc", LANE_MS);
    await person.seesPicture("a desktop as narrow as a window can be", ({ width, white, height }) => width >= 500 && width <= 640 && white > width * height * 0.2, limits.input);
    await person.page.getByTestId("soft-keys").waitFor({ timeout: limits.input });
    const overflow = await person.page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.equal(overflow, 0, "the page does not scroll sideways");
    await person.screen.scrollIntoViewIfNeeded();
    const box = await person.screen.boundingBox();
    const before = await world.typed(ID);
    await person.page.touchscreen.tap(box.x + box.width / 2, box.y + box.height / 2);
    await person.press("Control+End");
    await person.type("phone");
    await person.page.getByTestId("soft-keys").getByRole("button", { name: "Backspace" }).click();
    await arrives(person, ID, `${before}phon`);
    await person.keepScreenshot("live-browser-phone");
  }),
);
