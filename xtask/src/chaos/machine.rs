//! What the kernel and the disk say about one host's VMs, read without the host's own code.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use polydev_core::ids::VmId;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// One host's places.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) run: PathBuf,
    pub(super) data: PathBuf,
    /// Name of the host in its processes' environment and its cgroups.
    pub(super) instance: String,
}

/// A process that says it belongs to the host, is in a control group of it, or names its directories.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) id: ProcessId,
    pub(super) vm: Option<VmId>,
    /// It is what the host takes for a VM, not something that runs in one.
    pub(super) is_main: bool,
    pub(super) command: String,
}

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessId {
    pub(super) pid: i32,
    pub(super) start_ticks: u64,
}

impl ProcessId {
    pub(super) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Field 22 of proc_pid_stat(5); the name in parentheses may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let gone = matches!(*fields.first()?, "Z" | "X");
        (!gone).then_some(Self { pid, start_ticks: fields.get(19)?.parse().ok()? })
    }

    pub(super) fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

impl Machine {
    /// Both directories are to exist.
    pub(super) fn new(run: &Path, data: &Path) -> std::io::Result<Self> {
        let (run, data) = (fs::canonicalize(run)?, fs::canonicalize(data)?);
        let digest = Sha256::digest(run.as_os_str().as_encoded_bytes());
        let instance = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { run, data, instance })
    }

    /// Every process of the host's VMs, and every other one that names the host's directories.
    pub(super) fn processes(&self) -> Vec<Found> {
        let numbers = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
        let jails = self.jails();
        numbers.filter_map(|pid| self.process(pid, &jails)).collect()
    }

    /// The root directories of jailed VMs.
    fn jails(&self) -> BTreeMap<Inode, VmId> {
        let dir = self.run.join("vm");
        let jail = |name: String| Some((inode(&dir.join(&name).join("r"))?, name.parse().ok()?));
        names(&dir).into_iter().filter_map(jail).collect()
    }

    fn process(&self, pid: i32, jails: &BTreeMap<Inode, VmId>) -> Option<Found> {
        let id = ProcessId::of(pid)?;
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let environment = fs::read(dir.join("environ")).unwrap_or_default();
        let value = |name: &str| {
            let mut variables = environment.split(|byte| *byte == 0);
            variables.find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        };
        let ours = value("POLYDEV_INSTANCE") == Some(self.instance.as_bytes());
        let named = value("POLYDEV_VM").filter(|_| ours);
        let named = named.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
        // A jail takes the environment away.
        let main = named.or_else(|| jails.get(&inode(&dir.join("root"))?).copied());
        let groups = fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
        let group = groups.lines().find_map(|line| line.split_once(&format!("/polydev-{}/", self.instance)));
        let vm = main.or_else(|| group?.1.split('/').next()?.parse().ok());
        let command = fs::read(dir.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let in_places = [&self.run, &self.data].iter().any(|place| {
            command.contains(&*place.to_string_lossy())
                || fs::read_link(dir.join("cwd")).is_ok_and(|cwd| cwd.starts_with(place))
        });
        let found = Found { id, vm, is_main: main.is_some(), command };
        (ours || vm.is_some() || group.is_some() || in_places).then_some(found)
    }

    /// The records, by the id in their names; `None` for one that cannot be read.
    pub(super) fn records(&self) -> BTreeMap<VmId, Option<Value>> {
        let dir = self.data.join("vms");
        let read = |name: String| {
            let id = name.strip_suffix(".json")?.parse().ok()?;
            let record = fs::read(dir.join(&name)).ok().and_then(|text| serde_json::from_slice(&text).ok());
            Some((id, record))
        };
        names(&dir).into_iter().filter_map(read).collect()
    }

    /// What a VM's record says it is.
    pub(super) fn recorded_state(&self, id: VmId) -> Option<String> {
        self.records().remove(&id)??["state"].as_str().map(str::to_owned)
    }

    /// What a VM's guest said on its console and was not cut off.
    pub(super) fn console(&self, id: VmId) -> String {
        let said = fs::read(self.run.join("vm").join(id.to_string()).join("console.log"));
        String::from_utf8_lossy(&said.unwrap_or_default()).into_owned()
    }

    /// The process that a VM's record names.
    pub(super) fn recorded_process(&self, id: VmId) -> Option<ProcessId> {
        let record = self.records().remove(&id)??;
        let process = &record["process"];
        let pid = i32::try_from(process["pid"].as_i64()?).ok()?;
        Some(ProcessId { pid, start_ticks: process["start_ticks"].as_u64()? })
    }
}

/// Device and number of a file.
pub(super) type Inode = (u64, u64);

/// The file that a path leads to, if there is one.
pub(super) fn inode(path: &Path) -> Option<Inode> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Names in a directory; none if it is not there.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
