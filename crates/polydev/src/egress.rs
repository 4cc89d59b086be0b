//! What users' traffic may reach and the connection there, for their VMs and at their proxy ports. Default deny.
//!
//! ```text
//!  VM ──────────▶ who is it? ─▶ policy, lists, routes ─▶ public address │ user's upstream proxy │ refused
//!  proxy port ──▶ token?     ─┘
//! ```
//! A user's own policy goes before everybody's. Routes name hosts that are played by a service on this machine's
//! loopback (demo and tests). Without a route only public addresses are connected to: never this machine, never a
//! private network, never a metadata service. An upstream is never replaced by a direct connection. Upstreams'
//! credentials are opened for one connection and leave this module towards the upstream alone.

mod change;
mod dial;
mod head;
mod metrics;
mod policy;
mod ports;
mod proxy;
mod public;
mod request;
mod routes;
mod target;
mod upstream;

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use polydev_core::{
    ids::{ProviderId, UserId, VmId},
    provider::{ProviderSet, host_fits},
};
use polydev_host::{EgressHandler, EgressRefused};
use tokio::net::TcpStream;

use crate::{
    clock::Clock,
    config::{EgressConfig, EgressPolicy},
    store::{
        Store, StoreError,
        egress::{EgressRecord, UserPolicy},
        vms::VmRole,
    },
    vault::{SecretName, Vault, VaultError},
};

pub use change::{Change, ChangeError, Changed};
pub use metrics::EgressCounts;
pub use ports::{PortError, PortSeen};
pub(crate) use public::is_public;
pub use routes::{RouteError, Routes};
pub use upstream::{Scheme, Upstream, UpstreamFault};

use dial::DialError;
use policy::{Asker, Case, Reason, Verdict, Way};
use ports::Ports;
use target::Target;

/// Most VMs that are remembered.
const REMEMBERED_VMS_MAX: usize = 1024;

/// What [`Egress`] is built from.
pub struct Parts {
    /// Lists and proxy ports.
    pub settings: EgressConfig,
    /// For users without a policy of their own.
    pub policy: EgressPolicy,
    /// File with routes to services of this machine.
    pub routes: Option<PathBuf>,
    /// Time.
    pub clock: Clock,
    /// Knows whose a VM is, and users' policies.
    pub store: Store,
    /// Opens upstreams.
    pub vault: Arc<Vault>,
    /// Tools and the hosts they need.
    pub providers: Arc<ProviderSet>,
}

/// Decides about and makes the connections of all VMs and proxy ports.
pub struct Egress {
    gate: Arc<Gate>,
    ports: Ports,
}

/// What decides and connects.
struct Gate {
    settings: EgressConfig,
    policy: EgressPolicy,
    routes: Routes,
    clock: Clock,
    store: Store,
    vault: Arc<Vault>,
    providers: Arc<ProviderSet>,
    vms: Mutex<HashMap<VmId, Remembered>>,
}

/// A VM that wanted out.
#[derive(Clone)]
struct Remembered {
    owner: Option<Owner>,
    counts: EgressCounts,
}

/// Whose traffic it is, and what for.
#[derive(Clone)]
struct Owner {
    user: UserId,
    asker: Asker,
    /// The tool that is signed in, in a browser VM.
    provider: Option<ProviderId>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the host is not one")]
    NoHost,
    #[error("the VM is nobody's")]
    Stranger,
    #[error(transparent)]
    Policy(Reason),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the user's policy cannot be read")]
    Store(#[from] StoreError),
    #[error("the user's upstream proxy cannot be opened")]
    Sealed(#[from] VaultError),
    #[error("the user's upstream proxy is damaged")]
    Damaged(#[from] UpstreamFault),
}

impl Egress {
    /// Reads the routes file, if there is one. Proxy ports are opened by [`Self::open_ports`].
    pub fn open(parts: Parts) -> Result<Self, RouteError> {
        let Parts { settings, policy, routes, clock, store, vault, providers } = parts;
        let routes = routes.as_deref().map(Routes::read).transpose()?.unwrap_or_default();
        let vms = Mutex::default();
        let gate = Arc::new(Gate { settings, policy, routes, clock, store, vault, providers, vms });
        let ports = Ports::new(Arc::clone(&gate));
        Ok(Self { gate, ports })
    }

    /// Opens the proxy ports of all users that have a policy. One that another program has is tried again later.
    pub async fn open_ports(&self) -> Result<(), StoreError> {
        for record in self.gate.store.egress_policies().await? {
            if let Err(error) = self.ports.open(&record.user).await {
                tracing::error!(user = %record.user, %error, "proxy port is not open");
            }
        }
        Ok(())
    }

    /// Closes all proxy ports and what goes through them.
    pub async fn shut_down(&self) {
        self.ports.close_all().await;
    }

    /// Address of users' proxy ports.
    pub fn proxy_address(&self) -> IpAddr {
        self.gate.settings.proxy_listen
    }

    /// How a user's proxy port is used; `None` if it is not to be open.
    pub fn port_seen(&self, user: &UserId) -> Option<PortSeen> {
        self.ports.seen(user)
    }

    /// The user's upstream proxy, if the policy says so.
    pub fn upstream_of(&self, record: &EgressRecord) -> Result<Option<Upstream>, UpstreamUnreadable> {
        self.gate.upstream(record).map_err(|error| {
            tracing::error!(user = %record.user, error = &error as &dyn std::error::Error, "upstream cannot be opened");
            UpstreamUnreadable
        })
    }

    /// What a VM did so far.
    pub fn counts(&self, vm: VmId) -> EgressCounts {
        self.gate.lock().get(&vm).map(|remembered| remembered.counts).unwrap_or_default()
    }

    /// Forgets a VM that is gone.
    pub fn forget(&self, vm: VmId) {
        self.gate.lock().remove(&vm);
    }
}

/// A stored upstream proxy that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the stored upstream proxy cannot be opened; set it again")]
pub struct UpstreamUnreadable;

#[async_trait]
impl EgressHandler for Egress {
    async fn connect(&self, vm: VmId, host: &str, port: u16) -> Result<TcpStream, EgressRefused> {
        let outcome = self.gate.connect_vm(vm, host, port).await;
        self.gate.note(vm, &outcome);
        match &outcome {
            Ok(_) => tracing::debug!(vm.id = %vm, host, port, "egress connected"),
            Err(error @ (Refusal::Store(_) | Refusal::Sealed(_) | Refusal::Damaged(_))) => {
                tracing::error!(vm.id = %vm, host, port, error = error as &dyn std::error::Error, "egress refused");
            }
            Err(error) => tracing::info!(vm.id = %vm, host, port, %error, "egress refused"),
        }
        outcome.map_err(|error| match error {
            Refusal::Dial(error) => error.into(),
            Refusal::Store(_) | Refusal::Sealed(_) | Refusal::Damaged(_) => {
                EgressRefused::Unreachable(error.to_string())
            }
            Refusal::NoHost | Refusal::Stranger | Refusal::Policy(_) => {
                EgressRefused::Policy(error.to_string())
            }
        })
    }
}

impl Gate {
    async fn connect_vm(&self, vm: VmId, host: &str, port: u16) -> Result<TcpStream, Refusal> {
        let target = Target::parse(host).ok_or(Refusal::NoHost)?;
        let owner = self.owner(vm).await?.ok_or(Refusal::Stranger)?;
        let record = self.store.egress(&owner.user).await?;
        self.connect(&owner, record.as_ref(), &target, port).await
    }

    /// A connection for an owner whose policy, if there is one, is given.
    async fn connect(
        &self,
        owner: &Owner,
        record: Option<&EgressRecord>,
        target: &Target,
        port: u16,
    ) -> Result<TcpStream, Refusal> {
        match self.decide(owner, record, target, port) {
            Verdict::Refused(reason) => Err(Refusal::Policy(reason)),
            Verdict::Routed(to) => Ok(dial::routed(to).await?),
            Verdict::Direct => Ok(dial::direct(target, port).await?),
            Verdict::Upstream => {
                let record = record.expect("only a user's own policy leads upstream");
                let upstream = self.upstream(record)?.expect("this policy is stored with its upstream");
                Ok(dial::through(&upstream, target, port).await?)
            }
        }
    }

    fn decide(&self, owner: &Owner, record: Option<&EgressRecord>, target: &Target, port: u16) -> Verdict {
        let way = match (record.map(|record| record.policy), self.policy) {
            (Some(UserPolicy::Deny), _) => Way::Deny,
            (Some(UserPolicy::Upstream), _) => Way::Upstream,
            (Some(UserPolicy::Direct), _) | (None, EgressPolicy::Direct) => Way::Direct,
            (None, EgressPolicy::Deny) => Way::RoutesOnly,
        };
        let host = target.text();
        policy::decide(&Case {
            asker: owner.asker,
            way,
            strict: self.settings.strict,
            port,
            inside: target.is_inside(),
            listed: self.is_listed(owner, &host, port),
            route: self.routes.target(&host, port),
        })
    }

    /// Whether the lists that apply to the owner have a host and a port.
    fn is_listed(&self, owner: &Owner, host: &str, port: u16) -> bool {
        let of_tool = match &owner.provider {
            Some(id) => self.providers.get(id.as_str()).is_some_and(|tool| tool.needs_host(host, port)),
            None => self.providers.iter().any(|tool| tool.needs_host(host, port)),
        };
        let web = port == 80 || port == 443;
        of_tool || (web && self.settings.hosts.iter().any(|pattern| host_fits(pattern, host)))
    }

    fn upstream(&self, record: &EgressRecord) -> Result<Option<Upstream>, Refusal> {
        let Some(sealed) = &record.upstream else { return Ok(None) };
        let secret = self.vault.open_secret(&SecretName::upstream(&record.user, record.version), sealed)?;
        let text = std::str::from_utf8(&secret).map_err(|_| UpstreamFault::Scheme)?;
        Ok(Some(Upstream::parse(text)?))
    }

    /// Whose a VM is. `None` for one that was given to nobody yet.
    async fn owner(&self, vm: VmId) -> Result<Option<Owner>, StoreError> {
        if let Some(owner) = self.lock().get(&vm).and_then(|remembered| remembered.owner.clone()) {
            return Ok(Some(owner));
        }
        let Some(record) = self.store.vm(vm).await? else { return Ok(None) };
        if record.destroyed_unix_ms.is_some() {
            return Ok(None);
        }
        let provider = match record.session {
            Some(id) => self.store.session(id).await?.map(|session| session.provider),
            None => None,
        };
        let asker = match record.role {
            VmRole::Browser => Asker::BrowserVm,
            VmRole::Cli => Asker::CliVm,
        };
        // A browser VM whose sign-in nobody knows is for no tool.
        if asker == Asker::BrowserVm && provider.is_none() {
            return Ok(None);
        }
        let owner = Owner { user: record.user, asker, provider };
        if let Some(remembered) = remember(&mut self.lock(), vm) {
            remembered.owner = Some(owner.clone());
        }
        Ok(Some(owner))
    }

    fn note<T>(&self, vm: VmId, outcome: &Result<T, Refusal>) {
        let mut vms = self.lock();
        // One that is nobody's yet, or not there any more, is not remembered: nobody would forget it.
        let Some(Remembered { counts, .. }) = vms.get_mut(&vm) else { return };
        match outcome {
            Ok(_) => counts.allowed += 1,
            Err(
                Refusal::Policy(_) | Refusal::NoHost | Refusal::Stranger | Refusal::Dial(DialError::Inside),
            ) => {
                counts.refused += 1;
            }
            Err(_) => counts.unreachable += 1,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, Remembered>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The VM's entry, unless there are too many.
fn remember(vms: &mut HashMap<VmId, Remembered>, vm: VmId) -> Option<&mut Remembered> {
    if vms.len() >= REMEMBERED_VMS_MAX && !vms.contains_key(&vm) {
        return None;
    }
    Some(vms.entry(vm).or_insert(Remembered { owner: None, counts: EgressCounts::default() }))
}

#[cfg(test)]
mod tests;
