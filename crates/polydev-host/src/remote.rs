//! The host as a process of its own: the one part that needs root runs VMs, the controller drives it over a unix socket.
//!
//! ```text
//!   controller (any user)                          host process (root)
//!  ┌──────────────────────┐  requests, answers   ┌──────────────────────┐
//!  │ RemoteHost           │─────────────────────▶│ Server ── Host       │
//!  │   EgressHandler      │◀─────────────────────│   ControllerEgress   │
//!  │   AgentClient ═══════╪══ connected socket ══╪═▶ agents of VMs      │
//!  └──────────────────────┘   (passed once)      └──────────────────────┘
//! ```
//!
//! No byte of a VM's agent passes through the host process: it dials and hands the connected socket over. So those
//! connections outlive it. A connection that a VM wants to make outside is made by the controller, which hands that
//! socket over in the other direction.

pub(crate) mod client;
pub(crate) mod connection;
pub(crate) mod fault;
pub mod frame;
pub(crate) mod protocol;
pub(crate) mod server;

pub use client::{RemoteHost, RemoteOptions};
pub use protocol::{PROTOCOL_VERSION, Role};
pub use server::{Allowed, ControllerEgress, Hold, Hosts, Lease, Server};

/// Whether bytes are a message of either direction. For fuzzing: reading them must never panic.
pub fn accepts(body: &[u8]) -> (bool, bool) {
    let to_server = serde_json::from_slice::<protocol::ToServer>(body).is_ok();
    (to_server, serde_json::from_slice::<protocol::ToClient>(body).is_ok())
}
