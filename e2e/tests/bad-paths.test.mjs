import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { request } from "node:http";
import { readdirSync, readFileSync } from "node:fs";
import { reachSignInPage, story } from "../play/sign-in.mjs";
import { limitsOf } from "../play/settings.mjs";
import { World } from "../play/world.mjs";

const limits = limitsOf("container");
let world;

before(async () => {
  world = await World.start();
});

after(async () => {
  assert.deepEqual(await world?.stop(), [], "nothing is left on the machine");
}, { timeout: limits.finish });

/** A request with exactly these headers; fetch would not let a page's origin or another host be claimed. */
function raw({ method = "GET", path, headers = {} }) {
  const { hostname, port } = new URL(world.origin);
  return new Promise((resolve, reject) => {
    const sent = request({ hostname, port, method, path, headers: { authorization: `Bearer ${world.apiToken}`, ...headers } });
    sent.on("response", (response) => {
      response.resume();
      resolve({ status: response.statusCode });
    });
    sent.on("upgrade", (response, socket) => {
      socket.destroy();
      resolve({ status: response.statusCode });
    });
    sent.on("error", reject);
    sent.end(method === "POST" ? '{"userId":"e2e-origin","provider":"codex"}' : undefined);
  });
}

test("the one-time link opens the page once", () =>
  story(world, "link-twice", async (person) => {
    const other = await (await world.browser.newContext()).newPage();
    await other.goto(world.link);
    await other.getByRole("heading", { name: "This link does not work" }).waitFor();
    assert.equal(new URL(other.url()).hash, "", "the token is out of the address bar");
    await other.goto(world.origin);
    await other.getByText("polydev open").first().waitFor();
    await person.page.getByRole("heading", { name: "Choose a tool" }).waitFor();
  }));

test("an unknown tool and a user id with path characters are refused with a code", async () => {
  const unknown = await world.api("POST", "/api/auth/start", { userId: "e2e-bad", provider: "no-such-tool" });
  assert.ok([400, 404, 422].includes(unknown.status), `status ${unknown.status}`);
  assert.ok(unknown.json.code, "has a code");
  const path = await world.api("POST", "/api/auth/start", { userId: "../../etc", provider: "codex" });
  assert.ok([400, 422].includes(path.status), `status ${path.status}`);
  assert.ok(path.json.code, "has a code");
});

test("a page of another origin and another host name are refused, WebSockets included", async () => {
  const foreign = { origin: "http://evil.example" };
  const json = { "content-type": "application/json" };
  assert.equal((await raw({ method: "POST", path: "/api/auth/start", headers: { ...json, ...foreign } })).status, 403);
  const upgrade = { connection: "Upgrade", upgrade: "websocket", "sec-websocket-version": "13", "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==" };
  const id = "00000000-0000-4000-8000-000000000000";
  for (const path of [`/api/vms/${id}/terminal?cols=80&rows=24`, `/api/auth/session/${id}/vnc`]) {
    assert.equal((await raw({ path, headers: { ...upgrade, ...foreign } })).status, 403, path);
  }
  assert.ok([400, 403, 421].includes((await raw({ path: "/api/providers", headers: { host: "rebound.example" } })).status));
});

test("nothing but the page's files and the health answer is given without access", async () => {
  for (const path of ["/api/providers", "/api/vms", "/api/credentials?userId=me"]) {
    assert.equal((await fetch(world.origin + path)).status, 401, path);
  }
  assert.equal((await fetch(`${world.origin}/health`)).status, 200);
  assert.equal((await fetch(world.origin)).status, 200);
});

test("a person cancels, and the browser VM goes", { timeout: limits.test }, () =>
  story(world, "cancel", async (person) => {
    await reachSignInPage(person, { provider: "codex", user: "e2e-cancel" });
    await person.page.getByRole("button", { name: "Cancel the sign-in" }).click();
    await person.sees("cancelled", limits.finish);
    await person.seesStep("closed", limits.finish);
    const { browserVmId } = await world.session(person.sessionId);
    const { vms } = (await world.api("GET", "/api/vms")).json;
    assert.ok(!vms.some((vm) => vm.id === browserVmId));
    assert.deepEqual((await world.api("GET", "/api/credentials?userId=e2e-cancel")).json.credentials, []);
  }));

test("a second click on the tool comes back to the sign-in under way", { timeout: limits.test }, () =>
  story(world, "attach", async (person) => {
    await person.choose("codex", "e2e-attach");
    const first = person.sessionId;
    await person.page.goto(world.origin);
    await person.choose("codex", "e2e-attach");
    assert.equal(person.sessionId, first);
    await person.page.getByRole("button", { name: "Cancel the sign-in" }).click();
    await person.sees("cancelled", limits.finish);
    await person.seesStep("closed", limits.finish);
  }));

test("the browser VM is killed while the person types: a clear end, logs to read, nothing left", { timeout: limits.test }, () =>
  story(world, "killed", async (person) => {
    await reachSignInPage(person, { provider: "codex", user: "e2e-killed" });
    await person.focusLiveBrowser();
    await person.type("demo");
    const { browserVmId } = await world.session(person.sessionId);
    process.kill(firstProcessOf(browserVmId), "SIGKILL");
    await person.sees("failed", limits.finish);
    assert.match(await person.page.getByTestId("error-code").innerText(), /^[a-z_]+$/);
    await person.seesStep("closed", limits.finish);
    for (const [name, reachesTo] of [["console", /login: codex starts/], ["agent", /login: codex starts/]]) {
      const address = await person.page.getByRole("link", { name: `${name} log` }).getAttribute("href");
      const log = await world.api("GET", address);
      assert.equal(log.status, 200);
      assert.match(log.text, reachesTo, `the ${name} log reaches up to the kill`);
    }
    assert.equal((await world.api("GET", `/api/vms/${browserVmId}/logs/driver`)).status, 200);
  }));

/** PID 1 of a VM of the container driver, as the machine numbers it. */
function firstProcessOf(vmId) {
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const inside = /^NSpid:.*\t1$/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
      if (inside && readFileSync(`/proc/${pid}/cgroup`, "utf8").includes(vmId)) return Number(pid);
    } catch {
      // It ended while it was looked at.
    }
  }
  throw new Error(`no process of VM ${vmId}`);
}
