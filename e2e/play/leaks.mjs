// What a run leaves behind on the machine. Other programs come and go meanwhile, so a leak is what carries a name of
// this run: its directory or the id of one of its VMs.
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** Loop devices are numbered, not named: these were there before. */
export function machineState() {
  return { loops: new Set(loopDevices().map((device) => `${device.name} ${device.file}`)) };
}

/** Leftovers of the run, in words. */
export function findLeaks(before, { dir, vmIds }) {
  const names = [dir, ...[...vmIds].flatMap((id) => [id, id.replaceAll("-", "").slice(0, 8)])];
  const ours = (text) => names.some((name) => text.includes(name));
  return [
    ...processes().filter((process) => ours(process.text)).map((process) => `process ${process.pid}: ${process.text}`),
    ...lines(readFileSync("/proc/self/mountinfo", "utf8")).filter(ours).map((line) => `mount ${line}`),
    ...cgroups().filter(ours).map((path) => `cgroup ${path}`),
    ...networkNames().filter(ours).map((line) => `network ${line}`),
    ...loopDevices()
      .filter((device) => ours(device.file) && !before.loops.has(`${device.name} ${device.file}`))
      .map((device) => `loop device ${device.name} of ${device.file}`),
    ...runDirectories(join(dir, "run")).map((path) => `run directory ${path}`),
  ];
}

function lines(text) {
  return text.split("\n").filter(Boolean);
}

function processes() {
  const found = [];
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)) {
    try {
      const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
      const groups = readFileSync(`/proc/${pid}/cgroup`, "utf8").replaceAll("\n", " ");
      found.push({ pid, text: `${command}${groups}` });
    } catch {
      // It ended while it was looked at.
    }
  }
  return found;
}

/** Control groups down to the depth at which VMs have theirs. */
function cgroups(root = "/sys/fs/cgroup", depth = 4) {
  if (depth === 0) return [];
  let entries;
  try {
    entries = readdirSync(root, { withFileTypes: true });
  } catch {
    return [];
  }
  return entries.filter((entry) => entry.isDirectory()).flatMap((entry) => [join(root, entry.name), ...cgroups(join(root, entry.name), depth - 1)]);
}

function networkNames() {
  const run = (args) => {
    try {
      return lines(execFileSync("ip", args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }));
    } catch {
      return [];
    }
  };
  return [...run(["netns", "list"]), ...run(["-o", "link"])];
}

function loopDevices() {
  const base = "/sys/block";
  return readdirSync(base)
    .filter((name) => name.startsWith("loop"))
    .flatMap((name) => {
      try {
        return [{ name, file: readFileSync(join(base, name, "loop/backing_file"), "utf8").trim() }];
      } catch {
        return [];
      }
    });
}

/** Directories of VMs below the controller's run directory; files like a lock may stay. */
function runDirectories(run) {
  if (!existsSync(run)) return [];
  return readdirSync(run, { withFileTypes: true, recursive: true })
    .filter((entry) => /[0-9a-f]{8}/.test(entry.name))
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name));
}
