// Where the parts under test are. Every path can be given by the environment; the defaults are those of this repository.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const inRepository = (path) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const env = (name, fallback) => process.env[name] || fallback;

export const settings = {
  polydev: env("POLYDEV_E2E_BINARY", inRepository("target/release/polydev")),
  agent: env("POLYDEV_E2E_AGENT", inRepository("target/x86_64-unknown-linux-musl/guest/polydev-agent")),
  desktop: env("POLYDEV_E2E_DESKTOP", inRepository("target/x86_64-unknown-linux-musl/guest/polydev-desktop")),
  imageDir: env("POLYDEV_E2E_IMAGES", "/var/cache/polydev/images"),
  demo: inRepository("demo/server.mjs"),
  chromium: env("POLYDEV_E2E_CHROMIUM", "/usr/bin/chromium"),
  /** How VMs' traffic gets to the host; the controller's default without it. */
  network: env("POLYDEV_E2E_NETWORK", ""),
  /** Directory for screenshots of the three states; none are made without it. */
  screenshots: env("POLYDEV_E2E_SCREENSHOTS", ""),
  /** Directory for what is left of a failed test. */
  remains: env("POLYDEV_E2E_REMAINS", "/tmp/polydev-e2e-remains"),
};

/** Says what is missing before a test fails for a reason that is hard to see. */
export function checkSettings() {
  const missing = ["polydev", "agent", "desktop", "imageDir", "demo", "chromium"].filter((name) => !existsSync(settings[name]));
  if (missing.length > 0) throw new Error(`missing: ${missing.map((name) => `${name} (${settings[name]})`).join(", ")}`);
}

/** How long things may take: the container driver's VMs are as fast as the machine, emulated ones are not. */
export function limitsOf(driver) {
  const factor = driver === "qemu" ? 5 : 1;
  return {
    page: 90_000 * factor,
    input: 45_000 * factor,
    finish: 120_000 * factor,
    terminal: 60_000 * factor,
    test: 400_000 * factor,
    /** Looks in a row at a picture that does not change, after which it is taken for a complete one. */
    stillLooks: driver === "qemu" ? 20 : 4,
    /** Until the snapshot is made that emulated browser VMs start from. */
    snapshot: 480_000,
  };
}
