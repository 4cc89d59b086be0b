//! What a VM may reach, and the connection there. Default deny.
//!
//! Routes name hosts that are played by a service on this machine's loopback (demo and tests). What no route names
//! is refused, or with [`EgressPolicy::Direct`] connected to if it resolves to public addresses only: never this
//! machine, never a private network, never a metadata service.

mod public;
mod routes;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use polydev_core::ids::VmId;
use polydev_host::{EgressHandler, EgressRefused};
use tokio::{net::TcpStream, time::timeout};

use crate::config::EgressPolicy;

pub(crate) use public::is_public;
pub use routes::{RouteError, Routes};

const CONNECT_LIMIT: Duration = Duration::from_secs(15);
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);
const ADDRESSES_TRIED_MAX: usize = 4;
/// Most VMs whose counts are kept.
const COUNTED_VMS_MAX: usize = 1024;

/// How often a VM was let out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EgressCounts {
    /// Connections made.
    pub allowed: u64,
    /// Connections that policy forbade.
    pub refused: u64,
    /// Connections that were allowed and could not be made.
    pub unreachable: u64,
}

/// Decides about and makes the connections of all VMs.
#[derive(Debug)]
pub struct Egress {
    routes: Routes,
    policy: EgressPolicy,
    counts: Mutex<HashMap<VmId, EgressCounts>>,
}

impl Egress {
    /// Reads the routes file, if there is one.
    pub fn open(routes: Option<&Path>, policy: EgressPolicy) -> Result<Self, RouteError> {
        let routes = routes.map(Routes::read).transpose()?.unwrap_or_default();
        Ok(Self { routes, policy, counts: Mutex::default() })
    }

    /// What a VM did so far.
    pub fn counts(&self, vm: VmId) -> EgressCounts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).get(&vm).copied().unwrap_or_default()
    }

    /// Forgets a VM that is gone.
    pub fn forget(&self, vm: VmId) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(&vm);
    }

    async fn decide(&self, host: &str, port: u16) -> Result<TcpStream, EgressRefused> {
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        if let Some(target) = self.routes.target(&name, port) {
            return connect(target).await;
        }
        match self.policy {
            EgressPolicy::Deny => Err(EgressRefused::Policy(format!("{name}:{port}"))),
            EgressPolicy::Direct => direct(&name, port).await,
        }
    }

    fn note(&self, vm: VmId, outcome: &Result<TcpStream, EgressRefused>) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= COUNTED_VMS_MAX && !counts.contains_key(&vm) {
            return;
        }
        let count = counts.entry(vm).or_default();
        match outcome {
            Ok(_) => count.allowed += 1,
            Err(EgressRefused::Policy(_)) => count.refused += 1,
            Err(EgressRefused::Unreachable(_)) => count.unreachable += 1,
        }
    }
}

#[async_trait]
impl EgressHandler for Egress {
    async fn connect(&self, vm: VmId, host: &str, port: u16) -> Result<TcpStream, EgressRefused> {
        let outcome = self.decide(host, port).await;
        self.note(vm, &outcome);
        match &outcome {
            Ok(_) => tracing::debug!(vm.id = %vm, host, port, "egress connected"),
            Err(error) => tracing::info!(vm.id = %vm, host, port, %error, "egress refused"),
        }
        outcome
    }
}

async fn direct(name: &str, port: u16) -> Result<TcpStream, EgressRefused> {
    let lookup = timeout(RESOLVE_LIMIT, tokio::net::lookup_host((name, port))).await;
    let found: Vec<SocketAddr> = match lookup {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(_)) => return Err(EgressRefused::Unreachable(format!("{name} does not resolve"))),
        Err(_) => return Err(EgressRefused::Unreachable(format!("{name} did not resolve in time"))),
    };
    // One private address among public ones is a sign of rebinding: refuse them all.
    if let Some(inner) = found.iter().find(|address| !public::is_public(address.ip())) {
        return Err(EgressRefused::Policy(format!("{name}, which is {}", inner.ip())));
    }
    let mut last = EgressRefused::Unreachable(format!("{name} has no address"));
    for address in found.into_iter().take(ADDRESSES_TRIED_MAX) {
        match connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect(address: SocketAddr) -> Result<TcpStream, EgressRefused> {
    match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            // Without it small requests of the guest wait for acknowledgements; failing to set it costs only that.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(EgressRefused::Unreachable(format!("{address}: {error}"))),
        Err(_) => Err(EgressRefused::Unreachable(format!("{address} did not answer in time"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: VmId = VmId::from_uuid(uuid::Uuid::nil());

    fn egress(routes: &str, policy: EgressPolicy) -> Egress {
        Egress { routes: Routes::parse(routes).unwrap(), policy, counts: Mutex::default() }
    }

    #[tokio::test]
    async fn a_route_leads_to_the_loopback_service_and_all_else_is_refused() {
        let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = service.local_addr().unwrap();
        let routes = format!("[[route]]\nhost = \"auth.example.test\"\nport = 443\nto = \"{to}\"\n");
        let egress = egress(&routes, EgressPolicy::Deny);
        egress.connect(VM, "Auth.Example.test.", 443).await.unwrap();
        for (host, port) in [("auth.example.test", 80), ("example.test", 443), ("127.0.0.1", to.port())] {
            let refused = egress.connect(VM, host, port).await.unwrap_err();
            assert!(matches!(refused, EgressRefused::Policy(_)), "{host}:{port}");
        }
        assert_eq!(egress.counts(VM), EgressCounts { allowed: 1, refused: 3, unreachable: 0 });
    }

    #[tokio::test]
    async fn direct_egress_never_reaches_this_machine() {
        let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = service.local_addr().unwrap().port();
        let egress = egress("", EgressPolicy::Direct);
        for host in
            ["127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1", "0.0.0.0", "169.254.169.254", "10.0.0.1"]
        {
            let refused = egress.connect(VM, host, port).await.unwrap_err();
            assert!(matches!(refused, EgressRefused::Policy(_)), "{host}: {refused}");
        }
    }
}
