//! Processes by what they have used and where they live.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// CPU time of some processes, read twice.
#[derive(Debug)]
pub(super) struct CpuClock {
    pids: Vec<u32>,
    before: f64,
}

impl CpuClock {
    pub(super) fn start(pids: &[u32]) -> Result<Self> {
        Ok(Self { pids: pids.to_vec(), before: total(pids)? })
    }

    /// Seconds of CPU since the start.
    pub(super) fn used(&self) -> Result<f64> {
        Ok(total(&self.pids)? - self.before)
    }
}

fn total(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| cpu_seconds(*pid)).sum()
}

/// CPU time of a process with all of its threads.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} has ended"))?;
    // proc(5): utime and stime are fields 14 and 15; the name in field 2 may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// All processes whose program is called so.
pub(super) fn named(name: &str) -> Vec<u32> {
    all().filter(|pid| comm(*pid).as_deref() == Some(name)).collect()
}

/// A process and everything below it.
pub(super) fn tree(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = all().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut tree = vec![root];
    let mut at = 0;
    while let Some(pid) = tree.get(at).copied() {
        tree.extend(parents.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| *child));
        at += 1;
    }
    tree
}

/// Whether a process sees a path that holds `part` mounted in that place.
pub(super) fn has_mounted(pid: u32, part: &str, place: &str) -> bool {
    // proc(5): the fourth field is the path within the file system, the fifth the place.
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .any(|fields| fields.get(3).is_some_and(|path| path.contains(part)) && fields.get(4) == Some(&place))
}

/// The words a process was started with.
pub(super) fn arguments(pid: u32) -> Vec<String> {
    let line = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).split_terminator('\0').map(str::to_owned).collect()
}

fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn comm(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}
