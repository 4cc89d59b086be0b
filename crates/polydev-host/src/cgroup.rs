//! One control group per VM: `/polydev-<instance>/<vm>`, outside the manager's own, on cgroup v1, hybrid and v2.
//!
//! A group is found again by its name alone. It is made with its limits before the VM's first process, joined by that
//! process itself, and removed when it is empty, after the VM's processes have ended. Controllers that the machine
//! does not have, or does not let us use, limit nothing: `polydev doctor` says which.

mod delegation;
mod freezer;
mod layout;
mod usage;

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use polydev_core::ids::VmId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::sleep;

pub use self::layout::Version;
use self::layout::{Controller, Layout};
pub(crate) use self::{freezer::Freezer, usage::GroupUsage};
use crate::error::HostError;

/// Where control groups are mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// How long the kernel may take to forget a group's ended processes.
const EMPTY_LIMIT: Duration = Duration::from_secs(5);
const EMPTY_POLL: Duration = Duration::from_millis(2);
/// Held while a group and the one above it are made, or that one is taken away: it goes with its last VM.
static PARENTS: Mutex<()> = Mutex::new(());
/// One period of the CPU limit, in microseconds.
pub(crate) const CPU_PERIOD_US: u64 = 100_000;
/// A CPU weight of 100 in `cpu.shares` of cgroup v1.
const SHARES_PER_100: u64 = 1024;

/// What a VM's processes may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Memory; none of it may be swapped out, since it holds secrets.
    pub(crate) memory_bytes: u64,
    /// CPU time in percent of one CPU.
    pub(crate) cpu_percent: u32,
    /// Share of busy CPUs, 1..=10000; 100 is the usual one.
    pub(crate) cpu_weight: u32,
    /// Most processes and threads.
    pub(crate) pids_max: u32,
    /// Bytes read, and bytes written, per second on one block device.
    pub(crate) io: Option<IoLimit>,
}

impl Limits {
    /// CPU time per [`CPU_PERIOD_US`].
    pub(crate) fn cpu_quota_us(&self) -> u64 {
        u64::from(self.cpu_percent) * CPU_PERIOD_US / 100
    }

    /// The weight as cgroup v1 and OCI runtimes want it.
    pub(crate) fn cpu_shares(&self) -> u64 {
        (u64::from(self.cpu_weight) * SHARES_PER_100 / 100).max(2)
    }
}

/// A limit of the traffic with one block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IoLimit {
    pub(crate) device: (u32, u32),
    pub(crate) bytes_per_second: u64,
}

impl IoLimit {
    /// For the disk that a directory lies on; `None` where that is no block device.
    pub(crate) fn of(dir: &Path, bytes_per_second: u64) -> Option<Self> {
        let device = fs::metadata(dir).ok()?.dev();
        let number = |device: u64| (rustix::fs::major(device), rustix::fs::minor(device));
        let (major, minor) = number(device);
        let shown = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        // The kernel limits whole disks, not their partitions.
        let disk = if shown.join("partition").exists() { shown.parent()? } else { &shown };
        let text = fs::read_to_string(disk.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { device: (major.parse().ok()?, minor.parse().ok()?), bytes_per_second })
    }
}

/// The groups of one instance of polydev.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    root: PathBuf,
    parent: String,
    layout: Layout,
}

impl Groups {
    /// Looks at what this machine has.
    pub(crate) fn open(instance: &str) -> Self {
        Self::below(Path::new(ROOT), instance)
    }

    fn below(root: &Path, instance: &str) -> Self {
        Self { root: root.to_path_buf(), parent: format!("polydev-{instance}"), layout: Layout::of(root) }
    }

    /// The group's path as OCI runtimes want it.
    pub(crate) fn path(&self, id: VmId) -> String {
        format!("/{}/{id}", self.parent)
    }

    /// Makes a VM's group; returns the `cgroup.procs` files that its first process has to join.
    pub(crate) fn make(&self, id: VmId, limits: &Limits) -> Result<Vec<PathBuf>, HostError> {
        let mut joined = Vec::new();
        for (hierarchy, controllers) in self.layout.hierarchies() {
            let Some(group) = self.make_in(hierarchy, id)? else { continue };
            let present = match self.layout.version() {
                Version::V1 => controllers.clone(),
                Version::V2 => {
                    delegation::pass_down(hierarchy, &hierarchy.join(&self.parent), controllers);
                    delegation::present(&group)
                }
            };
            for missing in controllers.difference(&present) {
                tracing::warn!(vm.id = %id, controller = missing.name(), "VM has no such limits");
            }
            let mut settings = self.layout.settings(&present, limits);
            // Of a VM that slept, under smaller limits: memory with swap is never below memory alone.
            let with_swap = fs::read_to_string(group.join("memory.memsw.limit_in_bytes")).ok();
            let with_swap: Option<u64> = with_swap.and_then(|bytes| bytes.trim().parse().ok());
            if with_swap.is_some_and(|bytes| bytes < limits.memory_bytes) {
                settings.reverse();
            }
            for (file, value) in settings {
                set(&group.join(file), &value)?;
            }
            joined.push(group.join("cgroup.procs"));
        }
        Ok(joined)
    }

    /// Makes a VM's group where OCI runtimes may not: in the hierarchies of version 1 that limit nothing. Returns the
    /// `cgroup.procs` files that the runtime has to join.
    pub(crate) fn make_unlimited(&self, id: VmId) -> Result<Vec<PathBuf>, HostError> {
        let mut joined = Vec::new();
        let unlimited = self.layout.hierarchies().iter().filter(|(_, controllers)| controllers.is_empty());
        for (hierarchy, _) in unlimited.filter(|_| self.layout.version() == Version::V1) {
            joined.extend(self.make_in(hierarchy, id)?.map(|group| group.join("cgroup.procs")));
        }
        Ok(joined)
    }

    /// Makes a VM's group in one hierarchy; `None` where that is not allowed.
    fn make_in(&self, hierarchy: &Path, id: VmId) -> Result<Option<PathBuf>, HostError> {
        let parent = hierarchy.join(&self.parent);
        let group = parent.join(id.to_string());
        match make_group(&parent, &group) {
            Ok(()) => Ok(Some(group)),
            Err(error) if denied(&error) => {
                tracing::warn!(vm.id = %id, group = %group.display(), %error, "VM has no such group");
                Ok(None)
            }
            Err(error) => Err(HostError::os(format!("make cgroup {}", group.display()))(error)),
        }
    }

    /// Removes a VM's group, ending what is still in it. None is fine.
    pub(crate) async fn remove(&self, id: VmId) -> Result<(), HostError> {
        for parent in self.parents() {
            let group = parent.join(id.to_string());
            let deadline = Instant::now() + EMPTY_LIMIT;
            loop {
                kill_all(&group);
                match remove_tree(&group) {
                    Ok(()) => break,
                    Err(error)
                        if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
                    {
                        sleep(EMPTY_POLL).await;
                    }
                    Err(error) => {
                        return Err(HostError::os(format!("remove cgroup {}", group.display()))(error));
                    }
                }
            }
            remove_parent(&parent);
        }
        Ok(())
    }

    /// VMs that have a group in any hierarchy.
    pub(crate) fn traces(&self) -> BTreeSet<VmId> {
        let entries = self.parents().into_iter().filter_map(|parent| fs::read_dir(parent).ok()).flatten();
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// A VM's groups, one per hierarchy.
    pub(crate) fn dirs(&self, id: VmId) -> Vec<PathBuf> {
        let groups = self.parents().into_iter().map(|parent| parent.join(id.to_string()));
        groups.filter(|group| group.is_dir()).collect()
    }

    /// Processes in a VM's group and below it.
    pub(crate) fn processes(&self, id: VmId) -> Vec<i32> {
        let found: BTreeSet<i32> = self.dirs(id).iter().flat_map(|group| members(group)).collect();
        found.into_iter().collect()
    }

    /// What a VM's processes took so far; `None` without a group.
    pub(crate) fn usage(&self, id: VmId) -> Option<GroupUsage> {
        self.layout.usage(&Path::new(&self.parent).join(id.to_string()))
    }

    /// Whether the kernel ended a process of this VM because the group's memory was used up.
    pub(crate) fn ran_out_of_memory(&self, id: VmId) -> bool {
        self.usage(id).is_some_and(|usage| usage.oom_kills > 0)
    }

    /// Our directories, in every hierarchy that is mounted: runtimes make groups in more of them than we do.
    fn parents(&self) -> Vec<PathBuf> {
        let mounted = fs::read_dir(&self.root).into_iter().flatten().flatten();
        // On many machines `cpu` is a link to `cpu,cpuacct`: only what it names is visited.
        let mounted = mounted.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        std::iter::once(self.root.clone())
            .chain(mounted.map(|entry| entry.path()))
            .map(|dir| dir.join(&self.parent))
            .filter(|dir| dir.is_dir())
            .collect()
    }
}

/// What limits VMs on this machine, for `polydev doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Support {
    /// Which interface the kernel offers; `None` without control groups.
    pub version: Option<Version>,
    /// Controllers that can be used.
    pub usable: Vec<&'static str>,
    /// Controllers that cannot.
    pub missing: Vec<&'static str>,
}

/// Looks at what limits VMs on this machine, by making a group and removing it.
pub fn support() -> Support {
    support_below(Path::new(ROOT))
}

fn support_below(root: &Path) -> Support {
    let groups = Groups::below(root, &format!("probe-{}", std::process::id()));
    let mut usable: BTreeSet<Controller> = BTreeSet::new();
    for (hierarchy, controllers) in groups.layout.hierarchies() {
        let parent = hierarchy.join(&groups.parent);
        let probe = parent.join("probe");
        if make_group(&parent, &probe).is_ok() {
            match groups.layout.version() {
                Version::V1 => usable.extend(controllers),
                Version::V2 => {
                    delegation::pass_down(hierarchy, &parent, controllers);
                    usable.extend(delegation::present(&probe));
                }
            }
        }
        let _ = fs::remove_dir(&probe);
        remove_parent(&parent);
    }
    let (present, absent): (Vec<_>, Vec<_>) = Controller::ALL.into_iter().partition(|it| usable.contains(it));
    let names = |all: Vec<Controller>| all.into_iter().map(Controller::name).collect();
    let version = (!groups.layout.hierarchies().is_empty()).then(|| groups.layout.version());
    Support { version, usable: names(present), missing: names(absent) }
}

/// Every process in a group and those below it.
fn members(group: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut found: Vec<i32> = below.flat_map(|entry| members(&entry.path())).collect();
    let here = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    found.extend(here.lines().filter_map(|line| line.parse::<i32>().ok()));
    found
}

/// Kills what is in a group and below it: on version 2 at once, so that nothing starts another one in time.
fn kill_all(group: &Path) {
    if fs::OpenOptions::new()
        .write(true)
        .open(group.join("cgroup.kill"))
        .is_ok_and(|mut file| io::Write::write_all(&mut file, b"1").is_ok())
    {
        return;
    }
    for pid in members(group) {
        let Some(handle) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            continue;
        };
        // The handle may be that of a later process: only what is in the group now is ended.
        if members(group).contains(&pid) {
            let _ = pidfd_send_signal(&handle, Signal::KILL);
        }
    }
}

fn remove_tree(group: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(group) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a VM's group and the one above it.
fn make_group(parent: &Path, group: &Path) -> io::Result<()> {
    let _parents = PARENTS.lock().unwrap_or_else(PoisonError::into_inner);
    make_dir(parent).and_then(|()| make_dir(group))
}

/// The parent goes with its last VM; until then the kernel refuses.
fn remove_parent(parent: &Path) {
    let _parents = PARENTS.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = fs::remove_dir(parent);
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Sets a limit. A file that is not there belongs to a feature this kernel was built without.
fn set(file: &Path, value: &str) -> Result<(), HostError> {
    match fs::OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut it| io::Write::write_all(&mut it, value.as_bytes()))
    {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HostError::os(format!("write {value:?} to {}", file.display()))(error))
        }
        _ => Ok(()),
    }
}

fn denied(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod tests;
