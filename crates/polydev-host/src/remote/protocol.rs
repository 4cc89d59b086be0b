//! What controller and host process say to each other. Hello keeps its shape for ever, so that versions can tell each
//! other apart; all else may change with [`PROTOCOL_VERSION`].

use std::time::Duration;

use polydev_core::ids::{UserId, VmId};
use serde::{Deserialize, Serialize};

use crate::{
    egress::EgressRefused,
    error::HostError,
    host::{
        CreateVm, HostStatus, LogKind, ReclaimReport, SeenVm, VmEnd, VmKind, WarmPlan, handover::VmFacts,
    },
    usage::HostFigures,
};

/// Version of the protocol. Both sides have to speak the same.
pub const PROTOCOL_VERSION: u32 = 3;

/// What a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Drives VMs. There is one at a time.
    Controller {
        /// Ends the connection of another one that is still there.
        take_over: bool,
    },
    /// Only looks.
    Observer,
}

/// Why a client was sent away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Denied {
    /// Another version.
    #[error("the host process speaks version {host} of the protocol, this program version {client}")]
    Version {
        /// The host's.
        host: u32,
        /// The client's.
        client: u32,
    },
    /// Not a user whose programs may drive VMs.
    #[error("user {uid} may not drive the host process")]
    User {
        /// Who it is.
        uid: u32,
    },
    /// Another controller is there.
    #[error("another controller drives the host: process {pid:?}")]
    Busy {
        /// Its process, when known.
        pid: Option<i32>,
    },
}

/// To the host process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToServer {
    /// First.
    Hello { version: u32, role: Role },
    /// Something to do; any number at a time.
    Request { id: u64, request: Request },
    /// About [`ToClient::Ask`]; a connected socket comes with the good one.
    Answer { id: u64, result: Result<(), EgressRefused> },
}

/// From the host process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToClient {
    /// Hello was good.
    Welcome { status: HostStatus },
    /// Hello was not; nothing follows.
    Denied(Denied),
    /// About one request.
    Reply { id: u64, result: Result<Reply, HostError>, status: HostStatus },
    /// A VM wants to connect.
    Ask { id: u64, vm: VmId, host: String, port: u16 },
    /// A VM ended by itself.
    Ended { vm: VmId, end: VmEnd },
    /// Another controller took over; nothing follows.
    Superseded,
}

/// What a controller may want done; see the methods of [`crate::Host`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    Create(CreateVm),
    Adopt { id: VmId },
    Draw { kind: VmKind, vcpus: u8, memory_mib: u32 },
    Hibernate { id: VmId },
    Resume { id: VmId },
    SetWarm(WarmPlan),
    Destroy { id: VmId, failed: bool },
    Reclaim { wanted: Vec<VmId> },
    List,
    Status,
    Figures,
    ReadLog { id: VmId, kind: LogKind, max_bytes: usize },
    KeepAgentLog { id: VmId, text: String },
    KeptFailed,
    ForgetFailed { id: VmId },
    EndConnections { id: VmId },
    RemoveUserDisk { user: UserId },
    Prepare { vcpus: u8, memory_mib: u32, desktop_px: (u16, u16) },
    Dial { id: VmId },
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// Nothing to tell.
    Done,
    /// A VM whose agent the client may dial.
    Vm(VmFacts),
    /// The same of one that was woken.
    Resumed { facts: VmFacts, memory_lost: Option<String> },
    /// An id.
    Id(VmId),
    /// VMs on the machine.
    Seen(Vec<SeenVm>),
    /// What was removed.
    Reclaimed(ReclaimReport),
    /// For `/metrics`.
    Figures(HostFigures),
    /// Ids.
    Ids(Vec<VmId>),
    /// A log.
    Text(String),
    /// A socket to the agent comes with it.
    Dialled,
    /// No socket; whether there never will be one.
    NotDialled { gone: bool, why: String },
}

impl Request {
    /// For errors and logs.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Adopt { .. } => "adopt",
            Self::Draw { .. } => "draw",
            Self::Hibernate { .. } => "hibernate",
            Self::Resume { .. } => "resume",
            Self::SetWarm(_) => "set_warm",
            Self::Destroy { .. } => "destroy",
            Self::Reclaim { .. } => "reclaim",
            Self::List => "list",
            Self::Status => "status",
            Self::Figures => "figures",
            Self::ReadLog { .. } => "read_log",
            Self::KeepAgentLog { .. } => "keep_agent_log",
            Self::KeptFailed => "kept_failed",
            Self::ForgetFailed { .. } => "forget_failed",
            Self::EndConnections { .. } => "end_connections",
            Self::RemoveUserDisk { .. } => "remove_user_disk",
            Self::Prepare { .. } => "prepare",
            Self::Dial { .. } => "dial",
        }
    }

    /// Whether a client that only looks may ask.
    pub(crate) const fn only_looks(&self) -> bool {
        match self {
            Self::List | Self::Status | Self::Figures | Self::ReadLog { .. } | Self::KeptFailed => true,
            Self::Create(_)
            | Self::Adopt { .. }
            | Self::Draw { .. }
            | Self::Hibernate { .. }
            | Self::Resume { .. }
            | Self::SetWarm(_)
            | Self::Destroy { .. }
            | Self::Reclaim { .. }
            | Self::KeepAgentLog { .. }
            | Self::ForgetFailed { .. }
            | Self::EndConnections { .. }
            | Self::RemoveUserDisk { .. }
            | Self::Prepare { .. }
            | Self::Dial { .. } => false,
        }
    }

    /// How long the answer may take. What starts a VM has deadlines of its own in the host; this one is for the case that
    /// those are lost.
    pub(crate) const fn limit(&self) -> Duration {
        Duration::from_secs(match self {
            Self::Prepare { .. } => 3600,
            Self::Create(_) | Self::Adopt { .. } | Self::Resume { .. } | Self::Reclaim { .. } => 1200,
            Self::Destroy { .. } | Self::Hibernate { .. } | Self::RemoveUserDisk { .. } => 300,
            Self::Draw { .. } | Self::SetWarm(_) | Self::ForgetFailed { .. } => 60,
            Self::List
            | Self::Status
            | Self::Figures
            | Self::ReadLog { .. }
            | Self::KeepAgentLog { .. }
            | Self::KeptFailed
            | Self::EndConnections { .. }
            | Self::Dial { .. } => 30,
        })
    }
}
