//! Host side of polydev: runs VMs through a driver and hands out connections to their agents.
//!
//! Knows no providers, no credentials' meaning and no HTTP. Everything it makes on the machine carries the VM's id,
//! is written down before it is made, and can be found and removed by a later process.

pub mod agent;
mod cgroup;
mod command;
pub mod config;
pub mod driver;
pub mod egress;
mod error;
pub mod failpoint;
pub mod firecracker;
mod golden;
pub mod host;
pub mod image;
mod launch;
mod logs;
mod machine;
mod mounts;
pub mod net;
mod process;
#[cfg(test)]
#[path = "cgroup/other_kernel.rs"]
mod qemu;
mod record;
pub mod remote;
mod slots;
mod snapshot;
mod space;
mod usage;

pub use agent::{
    AgentClient, AgentError, ByteStream, Connector, DesktopReader, DesktopWriter, LinkOptions, PtyStream,
};
pub use cgroup::{Support as CgroupSupport, Version as CgroupVersion, support as cgroup_support};
pub use config::{
    Capacity, DriverChoice, FirecrackerConfig, HostConfig, NetworkChoice, NetworkMode, Resources,
};
pub use driver::user_disk::measure as measure_user_disk;
pub use driver::{
    Hibernation,
    probe::{DriverProbe, chosen},
};
pub use egress::{EgressHandler, EgressLimits, EgressRefused, EgressUsage, NoEgress};
pub use error::{HostError, Missing, Room};
pub use host::{
    CreateVm, FastStart, Host, HostStatus, LogKind, ReclaimReport, Resumed, SeenVm, Vm, VmEnd, VmKind,
    WarmPlan,
};
pub use machine::{Need, needs};
pub use process::{ProcessIdentity, ProgramFile};
pub use record::{Phase, VmRecord, VmState};
pub use usage::{BalloonUsage, HostFigures, PhaseFigures, VmUsage};
