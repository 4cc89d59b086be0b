//! Host side of polydev: runs VMs through a driver and hands out connections to their agents.
//!
//! Knows no providers, no credentials' meaning and no HTTP. Everything it makes on the machine carries the VM's id,
//! is written down before it is made, and can be found and removed by a later process.

pub mod agent;
pub mod config;
pub mod egress;
pub mod host;

pub use agent::{AgentClient, AgentError, ByteStream, Connector, LinkOptions, PtyStream};
pub use config::{DriverChoice, HostConfig};
pub use egress::{EgressHandler, EgressRefused, NoEgress};
pub use host::{CreateVm, Host, HostError, HostStatus, LogKind, ReclaimReport, SeenVm, Vm, VmKind};
