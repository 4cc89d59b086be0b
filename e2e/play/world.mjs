// Everything one test file needs, started for it alone: demo network, controller with its own directories, browser.
import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { findLeaks, machineState } from "./leaks.mjs";
import { Person } from "./person.mjs";
import { Program } from "./program.mjs";
import { checkSettings, limitsOf, settings } from "./settings.mjs";
import { until } from "./until.mjs";

const START_MS = 30_000;
/** A user that owns nothing and has no privilege. */
const NOBODY = 65534;
const BROWSER_FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

export class World {
  /** Ids of all VMs that were ever seen: what is left of one is a leak. */
  vmIds = new Set();
  #browsers = [];

  /**
   * `browser: false` is for tests in which nobody looks at the page; with `apart` the host is a process of its own and the
   * controller is nobody.
   */
  static async start({ driver = "container", env = {}, browser = true, apart = false } = {}) {
    checkSettings();
    const world = new World();
    world.driver = driver;
    world.limits = limitsOf(driver);
    world.before = machineState();
    // Short: unix sockets live below it.
    world.dir = mkdtempSync("/tmp/pde-");
    world.env = env;
    try {
      await world.#startDemo();
      if (apart) await world.#apart();
      await world.startController();
      if (browser) await world.#openBrowser();
      return world;
    } catch (error) {
      await world.#stopAll().catch(() => {});
      throw error;
    }
  }

  async #startDemo() {
    this.demo = new Program("demo", process.execPath, [settings.demo, "--state", this.path("demo")]);
    const [line] = await this.demo.says(/^\{"ready":true.*\}$/m, START_MS);
    this.demoPorts = JSON.parse(line);
  }

  /** Makes room for a controller that may read what it needs and write its own directory. */
  async #apart() {
    this.user = { uid: NOBODY, gid: NOBODY };
    chmodSync(this.dir, 0o755);
    mkdirSync(this.path("data"), { mode: 0o700 });
    chownSync(this.path("data"), NOBODY, NOBODY);
    chmodSync(this.path("demo"), 0o711);
    execFileSync("chmod", ["-R", "a+rX", this.path("demo/overlay"), this.path("demo/routes.toml")]);
    Object.assign(this.env, {
      POLYDEV_HOST_SOCKET: this.path("host.sock"),
      POLYDEV_HOST_USER: String(NOBODY),
      POLYDEV_HOST_DATA_DIR: this.path("host-data"),
    });
    await this.startHost();
  }

  /** The host process, when it is one of its own. */
  async startHost(program = settings.polydev) {
    this.host = new Program("host", program, ["host"], { env: this.#environment() });
    await this.host.says(/polydev host is listening/, START_MS);
  }

  async startController() {
    this.controller = new Program("controller", settings.polydev, ["serve"], { env: this.#environment(), ...this.user });
    const [, origin, token] = await this.controller.says(/(http:\/\/127\.0\.0\.1:\d+)\/open#([A-Za-z0-9_-]+)/, START_MS);
    this.origin = origin;
    this.link = `${origin}/open#${token}`;
    this.apiToken = readFileSync(this.path("data/api-token"), "utf8").trim();
  }

  #environment() {
    return {
      PATH: process.env.PATH,
      HOME: this.dir,
      POLYDEV_LISTEN: "127.0.0.1:0",
      POLYDEV_DRIVER: this.driver,
      POLYDEV_DATA_DIR: this.path("data"),
      POLYDEV_RUN_DIR: this.path("run"),
      POLYDEV_IMAGE_DIR: settings.imageDir,
      POLYDEV_AGENT_PATH: settings.agent,
      POLYDEV_DESKTOP_PATH: settings.desktop,
      POLYDEV_OVERLAY_DIR: this.path("demo/overlay"),
      POLYDEV_EGRESS_ROUTES: this.path("demo/routes.toml"),
      POLYDEV_SLOTS: "6",
      ...(settings.network ? { POLYDEV_NETWORK: settings.network } : {}),
      // Tests that are not about it do without a VM that is made beside theirs.
      POLYDEV_WARM_BROWSER_VMS_HIGH: "0",
      ...this.env,
    };
  }

  /** Ends the controller as a crash would; VMs, files and the database stay as they are. */
  async crashController() {
    await this.controller.stop("SIGKILL");
  }

  /** The same for the host process. */
  async crashHost() {
    await this.host.stop("SIGKILL");
  }

  /** Turns knobs of the demo network, see its README. */
  async setDemo(knobs) {
    const answer = await this.#control("PUT", "/control/settings", knobs);
    if (!answer.ok) throw new Error(`the demo network refuses ${JSON.stringify(knobs)}: ${answer.status} ${await answer.text()}`);
  }

  /** What was typed into a typing page of the demo network, or null if nobody has opened it. */
  async typed(id) {
    const answer = await this.#control("GET", `/control/typed?id=${id}`);
    return answer.ok ? (await answer.json()).text : null;
  }

  #control(method, path, body) {
    const token = readFileSync(this.path("demo/control-token"), "utf8").trim();
    const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
    return fetch(`http://127.0.0.1:${this.demoPorts.httpPort}${path}`, { method, headers, body: JSON.stringify(body) });
  }

  async #openBrowser() {
    this.browser = await this.launchBrowser();
    this.context = await this.browser.newContext({ viewport: { width: 1280, height: 800 }, deviceScaleFactor: 1 });
  }

  /** A browser of its own; `flags` come on top of the usual ones, `more` on top of how it is launched. */
  async launchBrowser(flags = [], more = {}) {
    const browser = await chromium.launch({ executablePath: settings.chromium, headless: true, args: [...BROWSER_FLAGS, ...flags], ...more });
    this.#browsers.push(browser);
    return browser;
  }

  path(name) {
    return join(this.dir, name);
  }

  /** A person at a fresh page of the browser; the first one opens the one-time link. */
  async person() {
    const person = new Person(this, await this.context.newPage());
    if (!this.linkOpened) {
      this.linkOpened = true;
      await person.openLink(this.link);
    } else {
      await person.page.goto(this.origin);
    }
    return person;
  }

  /** Calls the API as a back end would. */
  async api(method, path, body, headers = {}) {
    const response = await fetch(this.origin + path, {
      method,
      headers: { authorization: `Bearer ${this.apiToken}`, ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await response.text();
    let json = null;
    try {
      json = JSON.parse(text);
    } catch {
      // Not every answer is JSON: logs are text.
    }
    return { status: response.status, json, text, headers: response.headers };
  }

  async session(id) {
    const { json } = await this.api("GET", `/api/auth/session/${id}`);
    for (const vmId of [json?.browserVmId, json?.cliVmId]) if (vmId) this.vmIds.add(vmId);
    return json;
  }

  /** What the demo network was asked, oldest first. */
  requests() {
    const text = readFileSync(this.path("demo/requests.jsonl"), "utf8");
    return text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
  }

  /** Waits for a request to the demo network that fits all of `wanted`, after the first `skip` requests. */
  async request(what, wanted, deadlineMs, skip = 0) {
    const fits = (request) => Object.entries(wanted).every(([key, value]) => (value instanceof RegExp ? value.test(request[key]) : request[key] === value));
    return until(what, () => this.requests().slice(skip).find(fits), {
      deadlineMs,
      seen: () => `The demo network was asked:\n${this.requests().map(({ host, method, path, status }) => `  ${method} ${host}${path} ${status}`).join("\n")}`,
    });
  }

  /** Keeps what helps to understand a failed test: logs of the controller and of every VM, the session, a picture. */
  async keepRemains(name, person) {
    const dir = join(settings.remains, name.replace(/[^a-z0-9]+/gi, "-"));
    mkdirSync(dir, { recursive: true });
    const put = (file, text) => writeFileSync(join(dir, file), text);
    put("controller.log", this.controller.output);
    if (this.host) put("host.log", this.host.output);
    put("requests.txt", this.requests().map((request) => JSON.stringify(request)).join("\n"));
    if (person) {
      await person.page.screenshot({ path: join(dir, "page.png") }).catch(() => {});
      put("page.log", person.messages.join("\n"));
      if (person.sessionId) put("session.json", JSON.stringify(await this.session(person.sessionId).catch(String), null, 2));
    }
    for (const vmId of this.vmIds) {
      for (const log of ["console", "driver", "agent"]) {
        const answer = await this.api("GET", `/api/vms/${vmId}/logs/${log}`).catch(() => null);
        if (answer) put(`${vmId.slice(0, 8)}-${log}.log`, answer.text);
      }
    }
    return dir;
  }

  /** Destroys every VM, ends everything and says what is left of it on the machine. */
  async stop() {
    const errors = [];
    const attempt = (what) => what.catch((error) => errors.push(error));
    await attempt(this.#destroyVms());
    await attempt(this.#stopAll());
    const leaks = await this.#leaksAfterwards();
    rmSync(this.dir, { recursive: true, force: true });
    if (errors.length > 0) throw new AggregateError(errors, `the end was not orderly: ${errors.map((error) => error.message).join("; ")}`);
    return leaks;
  }

  async #destroyVms() {
    const list = async () => (await this.api("GET", "/api/vms")).json?.vms ?? [];
    for (const vm of await list()) {
      this.vmIds.add(vm.id);
      await this.api("DELETE", `/api/vms/${vm.id}`);
    }
    await until("all VMs are gone", async () => (await list()).length === 0, { deadlineMs: this.limits.finish, seen: async () => JSON.stringify(await list()) });
  }

  async #stopAll() {
    for (const browser of this.#browsers) await browser.close();
    await this.controller?.stop();
    await this.host?.stop();
    await this.demo?.stop();
  }

  async #leaksAfterwards() {
    const look = () => findLeaks(this.before, { dir: this.dir, vmIds: this.vmIds });
    await until("nothing is left", () => look().length === 0, { deadlineMs: 10_000 }).catch(() => {});
    return look();
  }
}
