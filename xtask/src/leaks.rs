//! What a run leaves behind on the machine: compares what there is afterwards with what there was before. Only what
//! carries a name of ours counts, since other programs come and go meanwhile.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Things may still be on their way out when the last test has ended.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const CGROUP_DEPTH: usize = 6;
/// Set in the environment of everything that a test run starts.
pub(crate) const MARK: &str = "XTASK_TEST_RUN";
/// Programs that only we start in a test run, by the name of their executable.
const PROGRAMS: [&str; 6] =
    ["polydev", "polydev-agent", "polydev-desktop", "Xtigervnc", "qemu-system-x86_64", "runc"];
/// What names of ours begin with or hold.
const NAMES: [&str; 2] = ["polydev", "pde-"];

/// Value of [`MARK`]: tells the processes of this run from those of another on the same machine.
pub(crate) fn mark() -> String {
    std::process::id().to_string()
}

/// What there is, one line per thing.
#[derive(Debug)]
pub(crate) struct Machine(BTreeSet<String>);

impl Machine {
    /// Looks around.
    pub(crate) fn look() -> Self {
        let ours = |line: &String| NAMES.iter().any(|name| line.contains(name));
        let mut things = BTreeSet::new();
        things.extend(processes());
        things.extend(
            lines("mount", fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()).filter(ours),
        );
        things.extend(lines("network namespace", output("ip", &["netns", "list"])).filter(ours));
        things.extend(lines("link", output("ip", &["-o", "link", "show"])).filter(ours));
        cgroups(Path::new("/sys/fs/cgroup"), CGROUP_DEPTH, &mut things);
        things.extend(loop_devices());
        things.extend(run_directories());
        Self(things)
    }

    /// An error that names everything that is there now and was not then.
    pub(crate) fn must_be_clean_since(before: &Self) -> Result<()> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let now = Self::look();
            let left: Vec<&String> = now.0.difference(&before.0).collect();
            if left.is_empty() {
                eprintln!(
                    "no process, mount, network namespace, link, control group, loop device or run directory is left"
                );
                return Ok(());
            }
            if Instant::now() > deadline {
                let left = left.into_iter().map(|thing| format!("\n  {thing}")).collect::<String>();
                bail!("left on the machine:{left}");
            }
            thread::sleep(LOOK_AGAIN);
        }
    }
}

fn lines(kind: &'static str, text: String) -> impl Iterator<Item = String> {
    let lines: Vec<String> = text.lines().map(|line| format!("{kind}: {line}")).collect();
    lines.into_iter()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Marked by the environment, or one of our programs. The start time tells a reused number apart.
fn processes() -> Vec<String> {
    let own = std::process::id().to_string();
    let mark = format!("{MARK}={}", mark());
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let numbers = numbers.filter(|name| name.bytes().all(|b| b.is_ascii_digit()) && *name != own);
    numbers.filter_map(|pid| process(&pid, &mark)).collect()
}

fn process(pid: &str, mark: &str) -> Option<String> {
    let dir = Path::new("/proc").join(pid);
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let (state, parent, started) = (fields.first()?, fields.get(1)?, fields.get(19)?);
    let command = fs::read_to_string(dir.join("cmdline")).unwrap_or_default().replace('\0', " ");
    let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
    let marked = fs::read(dir.join("environ")).is_ok_and(|environment| {
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    });
    // The kernel cuts names off after 15 bytes.
    let program = PROGRAMS.iter().any(|program| program.get(..15).unwrap_or(program) == name.trim());
    let child_of_ours = *parent == std::process::id().to_string();
    let ancestor = is_ancestor(pid);
    ((marked || program) && *state != "Z" && !child_of_ours && !ancestor)
        .then(|| format!("process: {pid} started {started}: {}", command.trim()))
}

/// Make, the shell and cargo, which carry no mark but may one day.
fn is_ancestor(pid: &str) -> bool {
    let mut at = std::process::id().to_string();
    while at != "0" && at != "1" {
        let Ok(stat) = fs::read_to_string(format!("/proc/{at}/stat")) else { return false };
        let Some(parent) = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) else {
            return false;
        };
        if parent == pid {
            return true;
        }
        at = parent.to_owned();
    }
    false
}

fn cgroups(dir: &Path, depth: usize, things: &mut BTreeSet<String>) {
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            let text = path.display().to_string();
            if NAMES.iter().any(|name| text.contains(name)) {
                things.insert(format!("control group: {text}"));
            }
            cgroups(&path, depth - 1, things);
        }
    }
}

fn loop_devices() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let file = |device: fs::DirEntry| {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        let ours = NAMES.iter().any(|name| file.contains(name));
        ours.then(|| format!("loop device: {} of {}", device.file_name().display(), file.trim()))
    };
    devices.filter_map(file).collect()
}

/// Directories of VMs, and test directories that nobody removed.
fn run_directories() -> Vec<String> {
    let places = ["/run", "/run/runc", "/run/crun", "/tmp"];
    let entries = places.iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    let ours = entries.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        NAMES.iter().any(|ours| name.starts_with(ours)) && name != "polydev-e2e-remains"
    });
    ours.flat_map(|dir| {
        let path = dir.path().display().to_string();
        let inside = fs::read_dir(dir.path()).into_iter().flatten().flatten();
        let vms = inside.map(|entry| format!("run directory: {}", entry.path().display()));
        [format!("run directory: {path}")]
            .into_iter()
            .chain(vms.filter(|_| path.starts_with("/run")))
            .collect::<Vec<_>>()
    })
    .collect()
}
