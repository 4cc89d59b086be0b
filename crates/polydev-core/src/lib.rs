//! Pure logic of polydev, shared by the controller, the host and the guest programs.
//!
//! Nothing here opens a file or a socket, reads a clock or spawns a task: time is an argument, effects are
//! returned as data. That is what lets the session machine and the reconciler be tested with every ordering of
//! events, and lets both ends of the guest channel share one definition of the protocol.

pub mod desktop;
pub mod dns;
pub mod guest;
pub mod ids;
#[cfg(feature = "provider-files")]
pub mod provider;
pub mod scrub;
pub mod session;
pub mod url_rule;
pub mod vm;
pub mod wire;
