//! Users' CLI VMs: made on first use, found again after a restart, handed the credentials that belong into them.
//!
//! One task owns one user's workspace; others ask it. A CLI VM outlives the controller, its disk outlives the VM.

mod owner;
mod uses;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use polydev_core::{
    ids::{ProviderId, UserId, VmId},
    provider::{Check, Placeholders, Provider, ProviderSet},
    wire::{Reply, Request},
};
use polydev_host::{AgentError, HostError, Vm};
use tokio::sync::{mpsc, oneshot};

use crate::{
    cleaner::Cleaner,
    clock::Clock,
    config::VmSize,
    machines::Machines,
    slots::{Permit, Slots},
    store::{Store, StoreError, credentials::SealedCredential},
    vault::{RecordName, Vault, VaultError},
};

use owner::{Ask, Owner, Place, Running};
pub(crate) use owner::{identity, may_pass};
pub use uses::InUse;

/// Requests that may wait for one workspace.
const ASKS_MAX: usize = 32;

/// Why a workspace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The VM's agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The user has no such VM that runs or sleeps.
    #[error("the CLI VM is not running")]
    NotThere,
    /// Somebody uses it now.
    #[error("the CLI VM is in use; close its terminals first")]
    InUse,
    /// No slot came free in time.
    #[error("no slot came free for the CLI VM; all {total} are in use")]
    SlotTimeout {
        /// How many there are.
        total: usize,
    },
}

/// What workspaces need.
pub struct Parts {
    /// Time.
    pub clock: Clock,
    /// Database.
    pub store: Store,
    /// Opens credentials.
    pub vault: Arc<Vault>,
    /// Makes VMs.
    pub machines: Arc<dyn Machines>,
    /// Places for VMs.
    pub slots: Slots,
    /// Removes VMs.
    pub cleaner: Cleaner,
    /// Knows which file goes where.
    pub providers: Arc<ProviderSet>,
    /// Places in the guest.
    pub places: Placeholders,
    /// Size of a CLI VM.
    pub size: VmSize,
    /// A CLI VM that nobody used for so long is put to sleep; `None`: never.
    pub hibernate_after: Option<Duration>,
}

/// All workspaces; clones share them.
#[derive(Clone)]
pub struct Workspaces {
    parts: Arc<Parts>,
    owners: Arc<Mutex<HashMap<UserId, mpsc::Sender<Ask>>>>,
}

impl Workspaces {
    /// No workspace is running yet.
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), owners: Arc::default() }
    }

    /// Takes over a CLI VM that outlived the controller.
    pub fn adopt(&self, user: &UserId, vm: Vm) {
        let permit = self.parts.slots.occupy();
        self.take_over(user, Place::Running(Running { vm, permit }));
    }

    /// Takes over a CLI VM that sleeps.
    pub fn adopt_asleep(&self, user: &UserId, id: VmId) {
        let permit = self.parts.slots.occupy();
        self.take_over(user, Place::Asleep { id, permit });
    }

    /// Takes over a CLI VM that the host cannot say of now whether it runs or sleeps.
    pub fn adopt_uncertain(&self, user: &UserId, id: VmId) {
        let permit = self.parts.slots.occupy();
        self.take_over(user, Place::Uncertain { id, permit });
    }

    fn take_over(&self, user: &UserId, place: Place) {
        let sender = spawn(Owner::new(Arc::clone(&self.parts), user.clone(), place));
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).insert(user.clone(), sender);
    }

    /// The user's CLI VM, started or woken if need be. It does not go to sleep while the second value lives.
    pub async fn ensure(&self, user: &UserId) -> Result<(Vm, InUse), WorkspaceError> {
        self.ask(user, Ask::Ensure).await
    }

    /// This CLI VM of the user, woken if need be, but not started.
    pub async fn enter(&self, user: &UserId, vm: VmId) -> Result<(Vm, InUse), WorkspaceError> {
        self.ask(user, |reply| Ask::Enter(vm, reply)).await
    }

    /// Puts the user's CLI VM to sleep, unless somebody uses it. Fine for one that sleeps.
    pub async fn hibernate(&self, user: &UserId, vm: VmId) -> Result<(), WorkspaceError> {
        self.ask(user, |reply| Ask::Hibernate(vm, reply)).await
    }

    /// Wakes the user's CLI VM; the answer says why its memory was lost, if it was. Fine for one that runs.
    pub async fn resume(&self, user: &UserId, vm: VmId) -> Result<Option<String>, WorkspaceError> {
        self.ask(user, |reply| Ask::Resume(vm, reply)).await
    }

    /// Destroys the user's CLI VM; the disk stays.
    pub async fn destroy(&self, user: &UserId, vm: VmId) -> Result<(), WorkspaceError> {
        self.ask(user, |reply| Ask::Destroy(vm, reply)).await
    }

    /// Puts the stored credential into the user's CLI VM. Idempotent.
    pub async fn deliver(&self, user: &UserId, provider: &ProviderId) -> Result<VmId, WorkspaceError> {
        let (vm, _in_use) = self.ensure(user).await?;
        if let Some(credential) = self.parts.store.credential(user, provider).await? {
            self.parts.deliver(&vm, &credential).await?;
        }
        Ok(vm.id)
    }

    /// Runs the tool's own check in the user's CLI VM. The inner result is its verdict, in words if it is bad.
    pub async fn verify(
        &self,
        user: &UserId,
        provider: &Provider,
    ) -> Result<Result<(), String>, WorkspaceError> {
        let (vm, _in_use) = self.ensure(user).await?;
        let wrong = |op| WorkspaceError::Agent(AgentError::Protocol { op });
        let verdict = match provider.check(&self.parts.places) {
            Check::Run(request) => match vm.agent.request(request).await? {
                Reply::Ran { exit_code, stdout, stderr } => provider.judge_run(exit_code, &stdout, &stderr),
                _ => return Err(wrong("run")),
            },
            Check::Read(request) => match vm.agent.request(request).await? {
                Reply::Files { files } => provider.judge_files(&files),
                _ => return Err(wrong("get_files")),
            },
        };
        Ok(verdict.map_err(|rejected| rejected.to_string()))
    }

    async fn ask<T>(&self, user: &UserId, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> T {
        let sender = {
            let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = || spawn(Owner::new(Arc::clone(&self.parts), user.clone(), Place::Absent));
            owners.entry(user.clone()).or_insert_with(fresh).clone()
        };
        let (reply, answer) = oneshot::channel();
        sender.send(ask(reply)).await.expect("an owner lives as long as the workspaces");
        answer.await.expect("an owner answers every ask")
    }
}

impl Parts {
    async fn deliver(&self, vm: &Vm, credential: &SealedCredential) -> Result<(), WorkspaceError> {
        let meta = &credential.meta;
        let Some(provider) = self.providers.get(meta.provider.as_str()) else {
            tracing::warn!(provider = %meta.provider, "stored credential of a provider that is no longer defined");
            return Ok(());
        };
        let bundle = self.vault.open(&RecordName::of(meta), &credential.sealed)?;
        let files = provider.cli_files(bundle.files);
        match vm.agent.request(Request::PutFiles { files }).await? {
            Reply::Done => {}
            _ => return Err(WorkspaceError::Agent(AgentError::Protocol { op: "put_files" })),
        }
        self.store.credential_delivered(meta.id, meta.version).await?;
        tracing::info!(vm.id = %vm.id, provider = %meta.provider, version = meta.version, "credential handed over");
        Ok(())
    }
}

fn spawn(owner: Owner) -> mpsc::Sender<Ask> {
    let (sender, asks) = mpsc::channel(ASKS_MAX);
    tokio::spawn(owner.run(asks));
    sender
}
