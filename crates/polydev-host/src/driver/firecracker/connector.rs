//! The way to an agent under Firecracker: the VM's vsock, after its API has said that it is this VM's.

use std::io;

use async_trait::async_trait;
use tokio::net::UnixStream;

use super::guest::Agents;
use crate::{
    agent::{ByteStream, Connector},
    driver::vsock,
    firecracker::{
        home::VSOCK,
        vmm::{Home, Vmm},
    },
    process::ProcessId,
};

/// Reaches an agent as long as its VM's process lives.
pub(super) struct FirecrackerConnector {
    home: Home,
    process: Option<ProcessId>,
    agents: Agents,
}

impl FirecrackerConnector {
    pub(super) fn new(home: Home, agents: Agents) -> Self {
        let process = home.process().unwrap_or_else(|error| {
            tracing::error!(vm.id = %home.id, %error, "the VM's process cannot be looked up");
            None
        });
        Self { home, process, agents }
    }
}

#[async_trait]
impl Connector for FirecrackerConnector {
    async fn dial(&self) -> io::Result<Box<dyn ByteStream>> {
        Ok(Box::new(self.dial_socket().await?))
    }

    async fn dial_socket(&self) -> io::Result<UnixStream> {
        // Whoever else may listen there by now, and a VMM that hangs, is not talked to.
        let vmm = Vmm::adopt(self.home.clone()).await.map_err(io::Error::other)?;
        if vmm.is_none() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        match &self.agents {
            Agents::InGuest => vsock::dial(&self.home.root().join(VSOCK)).await,
            #[cfg(feature = "chaos")]
            Agents::StandIn(agents) => agents.dial(&self.home),
        }
    }

    fn alive(&self) -> bool {
        self.process.is_some_and(ProcessId::alive)
    }
}
