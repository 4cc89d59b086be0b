//! The way out of a VM: the guest asks, a handler of the controller decides and connects. Each VM has an account of
//! what it may use and did use.

mod account;
mod bucket;

use async_trait::async_trait;
use polydev_core::ids::VmId;
use tokio::net::TcpStream;

pub(crate) use account::{Account, Accounts, Place};
pub use account::{EgressLimits, EgressUsage};

/// A connection that was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EgressRefused {
    /// Policy forbids it.
    #[error("policy forbids {0}")]
    Policy(String),
    /// It was allowed and could not be made.
    #[error("unreachable: {0}")]
    Unreachable(String),
}

/// Decides about and makes a VM's connections.
#[async_trait]
pub trait EgressHandler: Send + Sync + 'static {
    /// `host` is what the guest program asked for: a name or an address literal. Untrusted.
    async fn connect(&self, vm: VmId, host: &str, port: u16) -> Result<TcpStream, EgressRefused>;
}

/// Refuses everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEgress;

#[async_trait]
impl EgressHandler for NoEgress {
    async fn connect(&self, _vm: VmId, host: &str, _port: u16) -> Result<TcpStream, EgressRefused> {
        Err(EgressRefused::Policy(host.to_owned()))
    }
}
