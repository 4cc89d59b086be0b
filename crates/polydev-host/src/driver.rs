//! How VMs are run. One small trait; the real drivers and the fake pass one contract suite (`tests/contract.rs`).

#[cfg(feature = "chaos")]
pub mod chaos;
pub(crate) mod container;
#[cfg(feature = "fake")]
pub mod fake;
pub(crate) mod firecracker;
mod initrd;
pub(crate) mod probe;
pub(crate) mod qemu;
mod template;
pub(crate) mod user_disk;
mod vsock;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use polydev_core::{ids::VmId, vm::Process};
use sha2::{Digest, Sha256};
use tokio::net::UnixStream;

use crate::{
    agent::{ByteStream, Connector},
    cgroup::{Groups, IoLimit, Limits},
    config::{HostConfig, Resources},
    error::HostError,
    process::{self, ProcessId},
    record::VmRecord,
    space::{self, Promise, Promised},
};

/// How long a killed process may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What does not change while a driver runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverInfo {
    /// `firecracker`, `qemu`, `container` or `fake`.
    pub name: &'static str,
    /// How it is shown to people; tells emulation from virtualisation.
    pub shown: &'static str,
    /// Guests share the host's kernel.
    pub shared_kernel: bool,
    /// Multiplies agents' deadlines.
    pub slow_factor: u32,
    /// How long a start may take until the agent answers.
    pub start_limit: Duration,
    /// How a VM that nobody uses is put to sleep.
    pub hibernation: Hibernation,
}

/// How [`Driver::hibernate`] keeps what a VM holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hibernation {
    /// Not at all.
    None,
    /// It stays in memory and does not run. Lost when the machine is started anew.
    Freeze,
    /// Memory and devices are on disk and the process is gone.
    Save,
}

/// Runs VMs. Everything it makes can be found again by the VM's id, by any later process.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// What does not change.
    fn info(&self) -> DriverInfo;
    /// Makes the VM's resources in `dir` (which exists) and starts its process.
    async fn start(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError>;
    /// The VM's main process, as seen now.
    fn process(&self, id: VmId, dir: &Path) -> Result<Process, HostError>;
    /// The way to the agent of a VM that was started.
    fn connector(&self, id: VmId, dir: &Path) -> Arc<dyn Connector>;
    /// Stops a VM so that all it holds is kept ([`Process::Held`]). The agent has let go of its connection, or nobody was
    /// connected. On error the VM runs on, or what was kept is durably known to be of no use. Repeating it is fine.
    async fn hibernate(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError>;
    /// Lets a VM go on that was held, or that was being held or woken when an earlier process ended; one that runs is
    /// left alone. [`HostError::MemoryLost`] when what was kept is of no use.
    async fn resume(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError>;
    /// Has a running VM stand still as it is, its process and connections kept. Repeating it is fine.
    async fn pause(&self, id: VmId, dir: &Path) -> Result<(), HostError>;
    /// Lets a VM go on that stands still; one that runs or has ended is left alone.
    async fn go_on(&self, id: VmId, dir: &Path) -> Result<(), HostError>;
    /// Bytes that are free on the disk of the data directory, on which VMs write.
    fn disk_free(&self, data: &Path) -> io::Result<u64> {
        space::free(data)
    }
    /// Gives a running VM the host name in its record, where the guest cannot do that itself.
    async fn rename(&self, _vm: &VmRecord, _dir: &Path) -> Result<(), HostError> {
        Ok(())
    }
    /// Kills the VM's processes and returns when they have ended. None is fine.
    async fn stop(&self, id: VmId, dir: &Path) -> Result<(), HostError>;
    /// Removes what was made outside `dir`, and mounts inside it. Nothing there is fine.
    async fn release(&self, id: VmId, dir: &Path) -> Result<(), HostError>;
    /// VMs that left traces outside their run directories.
    fn traces(&self) -> Result<BTreeSet<VmId>, HostError>;
    /// Makes what lets browser VMs of this size start fast, unless it is there. May take minutes.
    async fn prepare(&self, vcpus: u8, memory_mib: u32, desktop_px: (u16, u16)) -> Result<(), HostError>;
}

/// Written in a VM's run directory right before its process is started.
pub(crate) const STARTED: &str = "started";
/// Names a VM's main process once that is known. Until then it is found by its environment.
pub(crate) const PROCESS: &str = "process";

/// Where things are; the same for all drivers of a host.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Volatile state.
    pub(crate) run: PathBuf,
    /// Persistent state.
    pub(crate) data: PathBuf,
    /// Tells this host's processes, cgroups and mounts from another's on the same machine.
    pub(crate) instance: String,
    /// Its VMs' control groups.
    pub(crate) groups: Groups,
    /// What a VM may take.
    pub(crate) resources: Resources,
    /// What is being written to the data directory.
    promised: Promised,
}

impl Places {
    pub(crate) fn open(config: &HostConfig) -> Result<Self, HostError> {
        for dir in [&config.run_dir, &config.data_dir] {
            fs::create_dir_all(dir).map_err(HostError::os(format!("make {}", dir.display())))?;
        }
        let absolute =
            |dir: &Path| fs::canonicalize(dir).map_err(HostError::os(format!("open {}", dir.display())));
        let (run, data) = (absolute(&config.run_dir)?, absolute(&config.data_dir)?);
        let digest = Sha256::digest(run.as_os_str().as_encoded_bytes());
        let instance: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let vms = run.join("vm");
        fs::create_dir_all(&vms).map_err(HostError::os(format!("make {}", vms.display())))?;
        let groups = Groups::open(&instance);
        let (resources, promised) = (config.resources, Promised::default());
        Ok(Self { run, data, instance, groups, resources, promised })
    }

    /// A VM's run directory.
    pub(crate) fn vm(&self, id: VmId) -> PathBuf {
        self.run.join("vm").join(id.to_string())
    }

    /// Where memory and devices of a hibernated VM lie. Named after the VM, so that they are found without its record;
    /// not in the run directory, which a reboot empties.
    pub(crate) fn held(&self, id: VmId) -> PathBuf {
        self.data.join("held").join(id.to_string())
    }

    /// Refuses a write of `bytes` below the data directory that would leave too little on its disk. Whoever writes keeps
    /// the promise until it is done.
    pub(crate) fn room(&self, dir: &Path, bytes: u64, what: &str) -> Result<Promise, HostError> {
        self.promised.room(dir, bytes, self.resources.disk_reserve_bytes, what)
    }

    /// The limits of a VM's group. A VM of a monitor takes more than its guest has: what the monitor needs itself,
    /// and `overhead_mib` on top for this driver; a container has none.
    pub(crate) fn limits(&self, vcpus: u8, memory_mib: u32, overhead_mib: Option<u32>) -> Limits {
        let overhead_mib = overhead_mib.map_or(0, |extra| self.resources.vmm_overhead_mib + extra);
        // A monitor's own threads work while every virtual CPU is busy.
        let monitor_percent = if overhead_mib > 0 { self.resources.cpu_percent / 2 } else { 0 };
        let bytes_per_second = self.resources.io_bytes_per_second;
        Limits {
            memory_bytes: u64::from(memory_mib + overhead_mib) << 20,
            cpu_percent: u32::from(vcpus) * self.resources.cpu_percent + monitor_percent,
            cpu_weight: self.resources.cpu_weight,
            pids_max: self.resources.pids_max,
            io: (bytes_per_second > 0).then(|| IoLimit::of(&self.data, bytes_per_second)).flatten(),
        }
    }

    /// Where a user's workspace lies. The name is a hash: a user id is never a path.
    pub(crate) fn user(&self, user: &polydev_core::ids::UserId) -> PathBuf {
        let digest = Sha256::digest(user.as_str());
        let name: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        self.data.join("users").join(name)
    }
}

/// [`Driver::process`] for drivers whose VMs are processes.
pub(crate) fn process_seen(places: &Places, id: VmId, dir: &Path) -> Result<Process, HostError> {
    if main_process(places, id, dir)?.is_some() {
        return Ok(Process::Alive);
    }
    Ok(if dir.join(STARTED).exists() { Process::Ended } else { Process::NeverStarted })
}

/// [`Driver::stop`] for drivers whose VMs are processes.
pub(crate) async fn kill_all(places: &Places, id: VmId) -> Result<(), HostError> {
    for process in process::of_vm(&places.instance, id).map_err(HostError::os("read the process table"))? {
        process.kill(KILL_LIMIT).await.map_err(HostError::os(format!("kill VM {id}")))?;
    }
    Ok(())
}

/// VMs of this host that have processes or control groups.
pub(crate) fn with_processes(places: &Places) -> Result<BTreeSet<VmId>, HostError> {
    let processes = process::all(&places.instance).map_err(HostError::os("read the process table"))?;
    Ok(processes.into_iter().map(|(vm, _)| vm).chain(places.groups.traces()).collect())
}

/// Notes durably enough for a crash of the controller that the process may exist from now on.
pub(crate) fn mark_started(dir: &Path) -> Result<(), HostError> {
    fs::write(dir.join(STARTED), b"").map_err(HostError::os(format!("write to {}", dir.display())))
}

/// A VM's main process: the noted one, or the one that is found by its environment.
pub(crate) fn main_process(places: &Places, id: VmId, dir: &Path) -> Result<Option<ProcessId>, HostError> {
    if let Some(found) = ProcessId::read(&dir.join(PROCESS)).filter(|process| process.alive()) {
        return Ok(Some(found));
    }
    let found = process::of_vm(&places.instance, id).map_err(HostError::os("read the process table"))?;
    Ok(found.into_iter().next())
}

/// The process whose life makes dialling a VM's agent worth while.
fn process_to_reach(places: &Places, id: VmId, dir: &Path) -> Option<ProcessId> {
    main_process(places, id, dir).unwrap_or_else(|error| {
        tracing::error!(vm.id = %id, %error, "the VM's process cannot be looked up");
        None
    })
}

/// Reaches an agent over a unix socket, as long as the VM's process lives.
pub(crate) struct SocketConnector {
    socket: PathBuf,
    process: Option<ProcessId>,
}

impl SocketConnector {
    pub(crate) fn new(places: &Places, id: VmId, dir: &Path, socket: PathBuf) -> Self {
        Self { socket, process: process_to_reach(places, id, dir) }
    }
}

#[async_trait]
impl Connector for SocketConnector {
    async fn dial(&self) -> io::Result<Box<dyn ByteStream>> {
        Ok(Box::new(self.dial_socket().await?))
    }

    async fn dial_socket(&self) -> io::Result<UnixStream> {
        UnixStream::connect(&self.socket).await
    }

    fn alive(&self) -> bool {
        self.process.is_some_and(ProcessId::alive)
    }
}
