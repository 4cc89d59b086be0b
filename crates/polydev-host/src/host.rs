//! The host: creates, finds again and destroys VMs.

use std::{collections::HashSet, sync::Arc};

use polydev_core::{
    ids::{Slot, UserId, VmId},
    wire::Identity,
};

use crate::{agent::AgentClient, config::HostConfig, egress::EgressHandler};

/// What a VM is for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum VmKind {
    /// Disposable, with a desktop.
    Browser,
    /// A user's persistent workspace; its disk outlives the VM.
    Cli {
        /// Whose.
        user: UserId,
    },
}

/// A VM to create.
#[derive(Debug, Clone)]
pub struct CreateVm {
    /// Drawn by the caller and recorded before the call.
    pub id: VmId,
    /// What for.
    pub kind: VmKind,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Handed to the agent after start or restore. Clock and entropy are filled in by the host at that moment.
    pub identity: Identity,
}

/// A running VM whose agent has answered and taken its identity.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// What it is for.
    pub kind: VmKind,
    /// Its place.
    pub slot: Slot,
    /// Connection to its agent.
    pub agent: AgentClient,
}

/// A VM found on the machine.
#[derive(Debug, Clone)]
pub struct SeenVm {
    /// Its id.
    pub id: VmId,
    /// What it is for.
    pub kind: VmKind,
    /// Its place.
    pub slot: Slot,
    /// Whether its process is alive.
    pub running: bool,
}

/// Logs of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// Guest console (kernel and PID 1).
    Console,
    /// The driver's own process (runc, QEMU).
    Driver,
    /// The agent and the programs it supervises.
    Agent,
}

/// For `/health`, `/metrics`, `doctor` and the page's badge.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// Driver in use.
    pub driver: String,
    /// Guests share the host's kernel.
    pub shared_kernel: bool,
    /// Golden image in use.
    pub image: String,
    /// Slots in use.
    pub slots_used: usize,
    /// Slots there are.
    pub slots_total: usize,
}

/// What [`Host::reclaim`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReclaimReport {
    /// VMs that nobody wanted.
    pub destroyed: Vec<VmId>,
    /// Leftovers without a VM (directories, mounts, namespaces, cgroups, sockets), by name.
    pub swept: Vec<String>,
}

/// Why the host could not do it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No golden image is installed.
    #[error("no golden image in {dir}; build one with `polydev image build`")]
    ImageMissing {
        /// Where it was looked for.
        dir: String,
    },
    /// The image's files do not match their recorded checksums.
    #[error("golden image {id} is damaged: {what}")]
    ImageDamaged {
        /// Image id.
        id: String,
        /// Which file and how.
        what: String,
    },
    /// The wanted driver does not work here.
    #[error("driver {driver} does not work on this machine: {reason}")]
    DriverUnusable {
        /// Driver.
        driver: String,
        /// What the probe found.
        reason: String,
    },
    /// All slots are in use.
    #[error("all {total} slots are in use")]
    NoSlot {
        /// How many there are.
        total: usize,
    },
    /// The machine's disk is full.
    #[error("no space left for {what}")]
    NoSpace {
        /// What was to be written.
        what: String,
    },
    /// The VM is not there.
    #[error("no VM {0}")]
    NoSuchVm(VmId),
    /// The VM ended before its agent answered.
    #[error("VM {id} ended during {step}: {detail}")]
    StartFailed {
        /// Which.
        id: VmId,
        /// Which step.
        step: &'static str,
        /// Last words from its logs.
        detail: String,
    },
    /// The agent did not answer in time.
    #[error("agent of VM {id} did not answer within {limit_ms} ms")]
    AgentSilent {
        /// Which.
        id: VmId,
        /// The limit.
        limit_ms: u64,
    },
    /// The operating system refused.
    #[error("{op}: {source}")]
    Os {
        /// What was tried, and on what.
        op: String,
        /// Its answer.
        #[source]
        source: std::io::Error,
    },
    /// The agent refused its identity.
    #[error("identity hand-over to VM {id}: {source}")]
    Identity {
        /// Which.
        id: VmId,
        /// Why.
        #[source]
        source: crate::agent::AgentError,
    },
}

/// Handle to the host; clones share it.
#[derive(Clone)]
pub struct Host {
    _config: Arc<HostConfig>,
    _egress: Arc<dyn EgressHandler>,
}

impl Host {
    /// Probes the driver and opens the image. Touches no VM.
    pub async fn open(config: HostConfig, egress: Arc<dyn EgressHandler>) -> Result<Self, HostError> {
        Ok(Self { _config: Arc::new(config), _egress: egress })
    }

    /// Every VM this machine still has traces of, whoever started it.
    pub async fn list(&self) -> Result<Vec<SeenVm>, HostError> {
        Ok(Vec::new())
    }

    /// Starts a VM; returns when its agent has taken the identity. On error nothing is left but its logs.
    pub async fn create(&self, create: CreateVm) -> Result<Vm, HostError> {
        Err(HostError::NoSuchVm(create.id))
    }

    /// Connects to a VM that is running already, for example after a restart of the controller.
    pub async fn adopt(&self, id: VmId) -> Result<Vm, HostError> {
        Err(HostError::NoSuchVm(id))
    }

    /// Stops a VM, archives its logs, removes all it had. Idempotent. A CLI VM's disk stays.
    pub async fn destroy(&self, id: VmId) -> Result<(), HostError> {
        Err(HostError::NoSuchVm(id))
    }

    /// Removes a user's CLI disk for good. Refused while a VM uses it.
    pub async fn remove_user_disk(&self, user: &UserId) -> Result<(), HostError> {
        let _ = user;
        Ok(())
    }

    /// Destroys every VM not in `wanted` and sweeps leftovers.
    pub async fn reclaim(&self, wanted: &HashSet<VmId>) -> Result<ReclaimReport, HostError> {
        let _ = wanted;
        Ok(ReclaimReport::default())
    }

    /// The end of a VM's log, alive or archived.
    pub async fn read_log(&self, id: VmId, kind: LogKind, max_bytes: usize) -> Result<String, HostError> {
        let _ = (kind, max_bytes);
        Err(HostError::NoSuchVm(id))
    }

    /// What is in use.
    pub fn status(&self) -> HostStatus {
        HostStatus {
            driver: String::new(),
            shared_kernel: false,
            image: String::new(),
            slots_used: 0,
            slots_total: 0,
        }
    }
}
