// Users' upstream proxies: a whole sign-in through one, programs that know nothing of it, and the user's own port.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync, readdirSync } from "node:fs";
import { promisify } from "node:util";
import { limitsOf } from "../play/settings.mjs";
import { Terminal } from "../play/terminal.mjs";
import { until } from "../play/until.mjs";
import { Upstream } from "../play/upstream.mjs";
import { World } from "../play/world.mjs";

const limits = limitsOf("container");
const run = promisify(execFile);
const USER = "e2e-ada";
const PASSWORD = "FAKE-upstream-password-for-e2e";
/** A page of the demo network that needs no sign-in. */
const PAGE = "https://id.polydev.test/.well-known/openid-configuration";
let world;
let upstream;
let signedIn;
let token;

before(async () => {
  world = await World.start({ browser: false });
  // The sign-in page sends everybody on by itself: no person is needed.
  await world.setDemo({ outcome: "allow" });
  upstream = await Upstream.start({ user: "ada", password: PASSWORD, to: world.demoPorts.httpsPort });
}, { timeout: limits.test });

after(async () => {
  await upstream?.stop();
  assert.deepEqual(await world?.stop(), [], "nothing is left on the machine");
}, { timeout: limits.finish });

test("a sign-in goes through the user's upstream proxy, browser and tool alike", { timeout: limits.test }, async () => {
  const decided = await egress("PUT", { policy: "upstream", upstream: upstream.url });
  assert.deepEqual([decided.policy, decided.upstream.hasCredentials, decided.proxy.listening], ["upstream", true, true]);
  token = decided.proxyToken;
  const { status, json, text } = await world.api("POST", "/api/auth/start", { userId: USER, provider: "codex" });
  assert.equal(status, 200, text);
  signedIn = await until("the sign-in is closed", async () => {
    const session = await world.session(json.sessionId);
    return session?.closed ? session : null;
  }, { deadlineMs: limits.page, seen: async () => JSON.stringify(await world.session(json.sessionId)) });
  assert.deepEqual([signedIn.state, signedIn.error], ["succeeded", null], JSON.stringify(signedIn));
  const asked = world.requests().filter((request) => request.host === "auth.openai.com");
  assert.ok(asked.some(({ method, path }) => method === "GET" && path === "/oauth/authorize"), "the browser asked for the page");
  assert.ok(asked.some(({ method, path }) => method === "POST" && path === "/oauth/token"), "the tool asked for its token");
  assert.ok(upstream.targets.filter((target) => target === "auth.openai.com:443").length >= 2, `both came through: ${upstream.targets}`);
  const reached = new Set(upstream.targets.map((target) => target.split(":")[0]));
  for (const { host } of world.requests()) assert.ok(reached.has(host), `${host} was reached past the upstream`);
});

test("curl and Node in the workspace go through it without being told, and find no trace of it", { timeout: limits.test }, async () => {
  await inTerminal(async (terminal) => {
    const skip = upstream.targets.length;
    await terminal.runs(`curl -sS -o /dev/null -w 'curl-%{http_code}\\n' ${PAGE}`, /^curl-200/m, limits.terminal);
    const program = `fetch("${PAGE}").then((r) => console.log("node-" + r.status), (e) => console.log("node-" + e.cause))`;
    await terminal.runs(`node -e '${program}'`, /^node-200/m, limits.terminal);
    assert.deepEqual(upstream.targets.slice(skip), ["id.polydev.test:443", "id.polydev.test:443"]);
    // Put together by the shell, so that what was typed is not what is found.
    await terminal.runs("p=$(printf '%s-%s' FAKE upstream-password-for-e2e)", /\$ /, limits.terminal);
    const places = "/etc /home /root /run /tmp /var/log /proc/[0-9]*/environ";
    const search = (is) => terminal.runs(`grep -rasl -e "$p" -e '${upstream.address}' ${places} | wc -l | sed 's/^/${is}-/'`, new RegExp(`^${is}-(\\d+)`, "m"), limits.terminal);
    assert.equal((await search("found"))[1], "0");
    await terminal.runs("echo \"$p\" > /tmp/planted; echo planted-$?", /^planted-0/m, limits.terminal);
    assert.equal((await search("control"))[1], "1", "what is there is found");
    await terminal.runs("env | grep -ic _proxy= | sed 's/^/settings-/'", /^settings-0/m, limits.terminal);
  });
});

test("what the workspace sends and receives is counted", { timeout: limits.test }, async () => {
  const counts = async () => (await world.api("GET", `/api/vms/${signedIn.cliVmId}`)).json.egress;
  await until("bytes are counted both ways", async () => {
    const { allowed, bytesOut, bytesIn } = await counts();
    return allowed >= 2 && bytesOut > 0 && bytesIn > bytesOut;
  }, { deadlineMs: limits.terminal, seen: async () => JSON.stringify(await counts()) });
});

test("a program on the machine has the user's exit through the user's port, with the token only", { timeout: limits.test }, async () => {
  const { proxy } = await egress("GET");
  const curl = (login) => run("curl", [
    "-sS", "--noproxy", "", "--cacert", world.path("demo/ca.pem"), "-o", "/dev/null", "-w", "%{http_connect} %{http_code}",
    "--proxy", `http://${login}${proxy.host}:${proxy.port}`, PAGE,
  ]).catch((error) => error);
  const skip = upstream.targets.length;
  assert.equal((await curl(`any:${token}@`)).stdout, "200 200");
  assert.deepEqual(upstream.targets.slice(skip), ["id.polydev.test:443"]);
  assert.match((await curl("")).stdout, /^407 /);
  assert.match((await curl("any:FAKE-wrong@")).stdout, /^407 /);
  assert.equal(upstream.targets.length, skip + 1);
});

test("when the upstream is gone nothing is reached, though a route and the demo network are there", { timeout: limits.test }, async () => {
  await upstream.stop();
  const skip = world.requests().length;
  await inTerminal(async (terminal) => {
    await terminal.runs(`curl -sS -o /dev/null -w 'curl-%{http_code}\\n' ${PAGE}`, /^curl-000/m, limits.terminal);
  });
  assert.equal(world.requests().length, skip, "the demo network was asked past the upstream");
  await egress("DELETE");
  await inTerminal(async (terminal) => {
    await terminal.runs(`curl -sS -o /dev/null -w 'curl-%{http_code}\\n' ${PAGE}`, /^curl-200/m, limits.terminal);
  });
});

test("the password is in no log, no file of the controller and no log of a VM", { timeout: limits.test }, async () => {
  const spellings = [PASSWORD, encodeURIComponent(PASSWORD), Buffer.from(`ada:${PASSWORD}`).toString("base64")];
  const texts = { controller: world.controller.output };
  for (const name of readdirSync(world.path("data"))) {
    if (name.startsWith("polydev.db")) texts[name] = readFileSync(world.path(`data/${name}`), "latin1");
  }
  for (const vm of world.vmIds) {
    for (const log of ["console", "driver", "agent"]) texts[`${log} of ${vm}`] = (await world.api("GET", `/api/vms/${vm}/logs/${log}`)).text;
  }
  assert.ok(Object.values(texts).some((text) => text.includes("egress_policies")), "the database was looked at");
  for (const [where, text] of Object.entries(texts)) {
    for (const spelling of spellings) assert.ok(!text.includes(spelling), `the password is in ${where}`);
  }
});

test("a removed user leaves no VM, no credential and no open port", { timeout: limits.test }, async () => {
  await egress("PUT", { policy: "direct" });
  const { proxy } = await egress("GET");
  const removed = await world.api("DELETE", `/api/users/${USER}`);
  assert.deepEqual([removed.status, removed.json], [200, { success: true, existed: true }], removed.text);
  assert.deepEqual((await world.api("GET", "/api/vms")).json.vms, []);
  assert.deepEqual((await world.api("GET", "/api/credentials")).json.credentials, []);
  assert.deepEqual((await world.api("GET", "/api/users")).json.users, []);
  await assert.rejects(fetch(`http://${proxy.host}:${proxy.port}/`), "the port is closed");
});

async function egress(method, body) {
  const { status, json, text } = await world.api(method, `/api/users/${USER}/egress`, body);
  assert.equal(status, 200, text);
  return json;
}

async function inTerminal(what) {
  const terminal = await Terminal.open(world, signedIn.cliVmId, limits.terminal);
  try {
    return await what(terminal);
  } finally {
    terminal.close();
  }
}
