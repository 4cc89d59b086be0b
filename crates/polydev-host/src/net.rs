//! Network mode `tap`: a network of its own for each slot, and the gateway that is its only other end.
//!
//! A slot's namespace leads nowhere. Whatever a guest sends ends at sockets that this process holds in there (the
//! gateway), and leaves from there only as a connection that the [`crate::EgressHandler`] made. So a guest can
//! reach no other VM and nothing of this machine, and no packet filter has to be kept in step with what runs.
//!
//! Namespaces are named files and outlive this process; sockets do not, and are made again when a VM is adopted.

pub mod constants;
mod error;
mod gateway;
mod link;
mod namespace;
mod pool;
mod rtnetlink;

pub use error::NetworkError;
pub use gateway::Guest;
pub use link::LinkKind;
pub use pool::{Networks, measure, remove_all, try_out};
pub(crate) use pool::{Scratch, guest_namespace_of, namespace_of};
