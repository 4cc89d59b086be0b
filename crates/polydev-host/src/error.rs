//! Why the host could not do something.

use std::io;

use polydev_core::ids::VmId;
use serde::{Deserialize, Serialize};

use crate::remote::fault::{self, StaticName};

/// Room on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// What was to be written takes at most so much.
    pub wanted_mib: u64,
    /// Free on the disk.
    pub free_mib: u64,
    /// Has to stay free.
    pub reserve_mib: u64,
}

impl std::fmt::Display for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { wanted_mib, free_mib, reserve_mib } = self;
        write!(f, ": it takes {wanted_mib} MiB, {free_mib} MiB are free, {reserve_mib} MiB have to stay free")
    }
}

/// Why the host could not do it.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// The machine's disk is full, or would be.
    #[error("no space left for {what}{}", .room.map(|room| room.to_string()).unwrap_or_default())]
    NoSpace {
        /// What was to be written.
        what: String,
        /// How much room there was, where it was looked at before; otherwise the operating system refused.
        room: Option<Room>,
    },
    /// The kernel ended the VM: it took more memory than it was given.
    #[error("VM {id} was ended for want of memory: it has {memory_mib} MiB")]
    OutOfMemory {
        /// Which.
        id: VmId,
        /// Memory of its guest.
        memory_mib: u32,
    },
    /// The VM is not there.
    #[error("no VM {0}")]
    NoSuchVm(VmId),
    /// There is a VM with this id already.
    #[error("VM {0} exists already")]
    AlreadyExists(VmId),
    /// The user's disk is in use by a VM.
    #[error("the user's disk is in use by VM {by}")]
    DiskInUse {
        /// Which.
        by: VmId,
    },
    /// The VM ended before its agent answered.
    #[error("VM {id} ended during {step}: {detail}")]
    StartFailed {
        /// Which.
        id: VmId,
        /// Which step.
        #[serde(deserialize_with = "fault::name")]
        step: StaticName,
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
    /// The machine has not enough of something for one more VM. Nothing was made.
    #[error("not enough {what} for one more VM: it needs {needed} and {available} are free")]
    NoCapacity {
        /// `memory (MiB)` or `cores`.
        #[serde(deserialize_with = "fault::name")]
        what: StaticName,
        /// For one more VM.
        needed: u64,
        /// What there is for it.
        available: u64,
    },
    /// VMs of this kind, or of this driver, cannot be put to sleep.
    #[error("VM {id} cannot be hibernated")]
    NotHibernatable {
        /// Which.
        id: VmId,
    },
    /// The VM could not be put to sleep. It runs on.
    #[error("VM {id} could not be hibernated: {detail}")]
    HibernateFailed {
        /// Which.
        id: VmId,
        /// Why not.
        detail: String,
    },
    /// What a hibernated VM held in memory is of no use. Its disk is.
    #[error("memory of hibernated VM {id} is lost: {detail}")]
    MemoryLost {
        /// Which.
        id: VmId,
        /// How that was noticed.
        detail: String,
    },
    /// The VM's network cannot be made or removed.
    #[error("network of VM {id}: {reason}")]
    NoNetwork {
        /// Which.
        id: VmId,
        /// Why, as [`crate::net::NetworkError`] says it.
        reason: String,
    },
    /// The operating system refused.
    #[error("{op}: {source}")]
    Os {
        /// What was tried, and on what.
        op: String,
        /// Its answer.
        #[source]
        #[serde(with = "fault::os")]
        source: io::Error,
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
    /// Another process of ours has it.
    #[error("{what} is in use by {}; end it first (SIGTERM; VMs go on)", holder(*.pid))]
    Held {
        /// A socket or a directory.
        what: String,
        /// Its process, when that is known.
        pid: Option<i32>,
    },
    /// The host process cannot be reached; it may come back.
    #[error("the host process cannot be reached: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
}

fn holder(pid: Option<i32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// What keeps a host from making VMs, and a person can bring while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// See [`HostError::ImageMissing`].
    Image {
        /// Where it was looked for.
        dir: String,
    },
    /// See [`HostError::ImageDamaged`].
    GoodImage {
        /// Image id.
        id: String,
        /// Which file and how.
        what: String,
    },
    /// See [`HostError::DriverUnusable`].
    Driver {
        /// Driver.
        driver: String,
        /// What the probe found.
        reason: String,
    },
}

impl Missing {
    /// Other errors are given back.
    pub fn of(error: HostError) -> Result<Self, HostError> {
        Ok(match error {
            HostError::ImageMissing { dir } => Self::Image { dir },
            HostError::ImageDamaged { id, what } => Self::GoodImage { id, what },
            HostError::DriverUnusable { driver, reason } => Self::Driver { driver, reason },
            other => return Err(other),
        })
    }

    /// The error that every request gets which needs it.
    pub fn error(&self) -> HostError {
        match self.clone() {
            Self::Image { dir } => HostError::ImageMissing { dir },
            Self::GoodImage { id, what } => HostError::ImageDamaged { id, what },
            Self::Driver { driver, reason } => HostError::DriverUnusable { driver, reason },
        }
    }
}

impl HostError {
    /// For `map_err`: names the operation, and tells a full disk from other faults.
    pub(crate) fn os<E: Into<io::Error>>(op: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| {
            let (op, source) = (op.into(), source.into());
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Self::NoSpace { what: op, room: None }
                }
                _ => Self::Os { op, source },
            }
        }
    }
}
