//! What the kernel counted for a VM's group.

use std::{fs, path::Path, time::Duration};

use super::layout::{Controller, Layout, Version};

/// Totals since the group was made; a count without a controller is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct GroupUsage {
    /// Memory charged to it now, page cache included.
    pub(crate) memory_bytes: u64,
    pub(crate) cpu: Duration,
    /// Read from and written to block devices.
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    /// Processes and threads now.
    pub(crate) tasks: u64,
    /// Processes that the kernel ended because the group's memory was used up.
    pub(crate) oom_kills: u64,
}

impl Layout {
    /// `group` is relative to the hierarchies' roots.
    pub(super) fn usage(&self, group: &Path) -> Option<GroupUsage> {
        let read = |controller: Controller, file: &str| {
            let dir = self.dir(controller, group)?;
            fs::read_to_string(dir.join(file)).ok()
        };
        if !self.hierarchies().iter().any(|(dir, _)| dir.join(group).is_dir()) {
            return None;
        }
        let (memory, events, tasks) = match self.version() {
            Version::V1 => ("memory.usage_in_bytes", "memory.oom_control", "pids.current"),
            Version::V2 => ("memory.current", "memory.events", "pids.current"),
        };
        let number = |text: Option<String>| text.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let cpu = match self.version() {
            Version::V1 => Duration::from_nanos(number(read(Controller::Cpuacct, "cpuacct.usage"))),
            Version::V2 => {
                let stat = read(Controller::Cpu, "cpu.stat").unwrap_or_default();
                Duration::from_micros(keyed(&stat, "usage_usec"))
            }
        };
        let (read_bytes, written_bytes) = match self.version() {
            Version::V1 => {
                let stat = read(Controller::Io, "blkio.throttle.io_service_bytes_recursive");
                let stat = stat.or_else(|| read(Controller::Io, "blkio.throttle.io_service_bytes"));
                io_v1(&stat.unwrap_or_default())
            }
            Version::V2 => io_v2(&read(Controller::Io, "io.stat").unwrap_or_default()),
        };
        Some(GroupUsage {
            memory_bytes: number(read(Controller::Memory, memory)),
            cpu,
            read_bytes,
            written_bytes,
            tasks: number(read(Controller::Pids, tasks)),
            oom_kills: keyed(&read(Controller::Memory, events).unwrap_or_default(), "oom_kill"),
        })
    }
}

/// The number behind a key at the start of a line.
fn keyed(text: &str, key: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

/// Lines `8:0 Read 4096`.
fn io_v1(text: &str) -> (u64, u64) {
    let sum = |kind: &str| {
        let bytes = text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (_, found, bytes) = (words.next()?, words.next()?, words.next()?);
            (found == kind).then(|| bytes.parse::<u64>().ok())?
        });
        bytes.sum()
    };
    (sum("Read"), sum("Write"))
}

/// Lines `8:0 rbytes=4096 wbytes=0 rios=1 ...`.
fn io_v2(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let words = text.split_whitespace();
        words.filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse::<u64>().ok()).sum()
    };
    (sum("rbytes"), sum("wbytes"))
}
