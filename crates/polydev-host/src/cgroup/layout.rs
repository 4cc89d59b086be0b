//! Which control group files this machine has, and what is written to them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{CPU_PERIOD_US, Limits};

/// Which interface the kernel offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller; a v2 hierarchy beside them has none (hybrid).
    V1,
    /// One hierarchy.
    V2,
}

/// What is limited or counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Controller {
    Memory,
    Cpu,
    /// Of v1 alone: CPU time.
    Cpuacct,
    Pids,
    Io,
}

impl Controller {
    /// Those that limit something.
    pub(super) const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::Pids, Self::Io];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Pids => "pids",
            Self::Io => "io",
        }
    }

    const fn v1_directory(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            Self::Memory | Self::Cpu | Self::Cpuacct | Self::Pids => self.name(),
        }
    }
}

/// Hierarchies beside those of v1's controllers, by which systemd tells whose a process is.
const TRACKING: [&str; 2] = ["systemd", "unified"];

/// The hierarchies that are used, each with its controllers.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    version: Version,
    hierarchies: Vec<(PathBuf, BTreeSet<Controller>)>,
}

impl Layout {
    pub(super) fn of(root: &Path) -> Self {
        if let Ok(present) = fs::read_to_string(root.join("cgroup.controllers")) {
            let present: BTreeSet<&str> = present.split_whitespace().collect();
            let ours = Controller::ALL.into_iter().filter(|it| present.contains(it.name())).collect();
            return Self { version: Version::V2, hierarchies: vec![(root.to_path_buf(), ours)] };
        }
        let mut hierarchies: Vec<(PathBuf, BTreeSet<Controller>)> = Vec::new();
        for controller in Controller::ALL.into_iter().chain([Controller::Cpuacct]) {
            // Several controllers may share a hierarchy, each name of which is a link to it.
            let Ok(dir) = fs::canonicalize(root.join(controller.v1_directory())) else { continue };
            if !dir.join("cgroup.procs").exists() {
                continue;
            }
            match hierarchies.iter_mut().find(|(known, _)| *known == dir) {
                Some((_, controllers)) => _ = controllers.insert(controller),
                None => hierarchies.push((dir, BTreeSet::from([controller]))),
            }
        }
        // Without a group there, a VM would be a part of the manager's service and end with it.
        let tracking = TRACKING.map(|name| root.join(name)).into_iter();
        hierarchies.extend(
            tracking.filter(|dir| dir.join("cgroup.procs").exists()).map(|dir| (dir, BTreeSet::new())),
        );
        Self { version: Version::V1, hierarchies }
    }

    pub(super) const fn version(&self) -> Version {
        self.version
    }

    pub(super) fn hierarchies(&self) -> &[(PathBuf, BTreeSet<Controller>)] {
        &self.hierarchies
    }

    /// Where a controller's files of a group lie.
    pub(super) fn dir(&self, controller: Controller, group: &Path) -> Option<PathBuf> {
        let has = |controllers: &BTreeSet<Controller>| match self.version {
            Version::V1 => controllers.contains(&controller),
            // All lie in one place, and some are there without a controller.
            Version::V2 => true,
        };
        let (dir, _) = self.hierarchies.iter().find(|(_, controllers)| has(controllers))?;
        Some(dir.join(group))
    }

    /// Files and what is written to them, in this order. Names and values: cgroup-v1/{memory,sched-bwc,pids,
    /// blkio-controller} and cgroup-v2 of the kernel's documentation.
    pub(super) fn settings(
        &self,
        controllers: &BTreeSet<Controller>,
        limits: &Limits,
    ) -> Vec<(&'static str, String)> {
        let quota = limits.cpu_quota_us();
        let memory = limits.memory_bytes.to_string();
        let mut all = Vec::new();
        for controller in controllers {
            match (controller, self.version) {
                (Controller::Memory, Version::V1) => {
                    all.push(("memory.limit_in_bytes", memory.clone()));
                    // Memory and swap together, so none is left for swap.
                    all.push(("memory.memsw.limit_in_bytes", memory.clone()));
                    all.push(("memory.swappiness", "0".to_owned()));
                }
                (Controller::Memory, Version::V2) => {
                    all.push(("memory.max", memory.clone()));
                    all.push(("memory.swap.max", "0".to_owned()));
                    // Half a VMM is none.
                    all.push(("memory.oom.group", "1".to_owned()));
                }
                (Controller::Cpu, Version::V1) => {
                    all.push(("cpu.cfs_period_us", CPU_PERIOD_US.to_string()));
                    all.push(("cpu.cfs_quota_us", quota.to_string()));
                    all.push(("cpu.shares", limits.cpu_shares().to_string()));
                }
                (Controller::Cpu, Version::V2) => {
                    all.push(("cpu.max", format!("{quota} {CPU_PERIOD_US}")));
                    all.push(("cpu.weight", limits.cpu_weight.clamp(1, 10_000).to_string()));
                }
                (Controller::Pids, Version::V1 | Version::V2) => {
                    all.push(("pids.max", limits.pids_max.to_string()));
                }
                (Controller::Io, Version::V1) => {
                    if let Some(io) = limits.io {
                        let line = format!("{}:{} {}", io.device.0, io.device.1, io.bytes_per_second);
                        all.push(("blkio.throttle.read_bps_device", line.clone()));
                        all.push(("blkio.throttle.write_bps_device", line));
                    }
                }
                (Controller::Io, Version::V2) => {
                    if let Some(io) = limits.io {
                        let (major, minor) = io.device;
                        let bps = io.bytes_per_second;
                        all.push(("io.max", format!("{major}:{minor} rbps={bps} wbps={bps}")));
                    }
                }
                (Controller::Cpuacct, Version::V1 | Version::V2) => {}
            }
        }
        all
    }
}
