// A second, independent implementation of WebRTC (aiortc, Python) watches and controls the live desktop.
import { spawn } from "node:child_process";
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { limitsOf } from "../play/settings.mjs";
import { SIGN_IN_PATH } from "../play/sign-in.mjs";
import { until } from "../play/until.mjs";
import { World } from "../play/world.mjs";

const PAGE = fileURLToPath(new URL("../aiortc/page.py", import.meta.url));
const python = process.env.POLYDEV_E2E_PYTHON ?? "";
const limits = limitsOf("container");
let world;

before(async () => {
  assert.ok(existsSync(python), "POLYDEV_E2E_PYTHON must name a Python with e2e/aiortc/requirements.txt: use cargo xtask e2e");
  world = await World.start({ browser: false });
});

after(async () => {
  assert.deepEqual(await world?.stop(), [], "nothing is left on the machine");
}, { timeout: limits.finish });

/** Runs the program and gives what it saw. */
function watch(wish) {
  return new Promise((resolve, reject) => {
    const page = spawn(python, [PAGE], { stdio: ["pipe", "pipe", "pipe"] });
    let [output, errors] = ["", ""];
    page.stdout.on("data", (data) => (output += data));
    page.stderr.on("data", (data) => (errors += data));
    page.on("error", reject);
    page.on("close", (code) => (code === 0 ? resolve(JSON.parse(output)) : reject(new Error(`aiortc page ended with ${code}: ${errors}`))));
    page.stdin.end(JSON.stringify(wish));
  });
}

test("aiortc plays the live desktop and signs in with a wrong password", { timeout: limits.test }, async (t) => {
  const start = await world.api("POST", "/api/auth/start", { userId: "ada", provider: "codex" });
  assert.equal(start.status, 200, start.text);
  const id = start.json.sessionId;
  await until("it is the person's turn", async () => (await world.session(id)).state === "awaiting_user", { deadlineMs: limits.page });
  await world.request("the sign-in page was asked for", { method: "GET", path: SIGN_IN_PATH, status: 200 }, limits.page);
  const wish = { origin: world.origin, token: world.apiToken, session: id, text: "demo", secret: "FAKE-wrong-password" };
  const seen = await watch(wish);
  t.diagnostic(JSON.stringify(seen));
  await world.request("the wrong password was sent", { method: "POST", path: SIGN_IN_PATH, status: 401 }, limits.input);
  assert.ok(seen.width >= 320 && seen.height >= 200, "a whole desktop");
  assert.ok(seen.mean > 20, "it is not black");
  assert.ok(seen.frames >= 3, "several pictures");
  assert.equal(seen.hello.role, "control");
  assert.ok(seen.typingChanged > 0 && seen.enteringChanged > 0);
  const session = await world.session(id);
  assert.ok(session.steps.some(({ step }) => step === "user_active"), "typing counts as activity");
  await world.api("POST", `/api/auth/session/${id}/cancel`, {});
  await until("the sign-in is closed", async () => (await world.session(id)).closed, { deadlineMs: limits.finish });
});
