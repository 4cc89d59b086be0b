//! What a session has done for it: slow work, each piece in a task of its own.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use polydev_core::{
    ids::{CredentialId, ProviderId, SessionId, UserId, VmId},
    provider::Provider,
    session::{Event, FetchFailure, SealFailure, VmFailure},
    wire::{FileRead, Reply, Request},
};
use polydev_host::{AgentClient, AgentError, CreateVm, HostError, Vm, VmKind};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc, watch},
    task::AbortHandle,
    time::timeout,
};
use uuid::Uuid;

use crate::{
    store::{
        StoreError,
        credentials::{CredentialMeta, SealedCredential},
        vms::{VmRecord, VmRole, VmState},
    },
    vault::{Bundle, RecordName, VaultError},
    workspaces::identity,
};

use super::{Parts, driver::Message};

/// How long a creation that was overtaken by its VM's removal may take to notice.
const OVERTAKEN_LIMIT: Duration = Duration::from_secs(60);
/// Times a credential is stored again because another sign-in of the same user was faster.
const STORE_TRIES: u32 = 3;

/// Why a browser VM was not created.
#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Host(#[from] HostError),
}

impl CreateError {
    pub(super) fn cause(&self) -> VmFailure {
        match self {
            Self::Store(StoreError::NoSpace { .. }) | Self::Host(HostError::NoSpace { .. }) => {
                VmFailure::NoSpace
            }
            Self::Host(HostError::NoSlot { .. } | HostError::NoCapacity { .. }) => VmFailure::NoSlot,
            Self::Host(HostError::ImageMissing { .. }) => VmFailure::ImageMissing,
            Self::Host(HostError::ImageDamaged { .. }) => VmFailure::ImageDamaged,
            Self::Host(HostError::DriverUnusable { .. }) => VmFailure::DriverUnusable,
            Self::Host(HostError::AgentSilent { .. }) => VmFailure::TimedOut,
            Self::Store(_) | Self::Host(_) => VmFailure::StartFailed,
        }
    }
}

/// Notes the VM, then creates it.
pub(super) async fn create(
    parts: Arc<Parts>,
    session: SessionId,
    user: UserId,
    id: VmId,
) -> Result<Vm, CreateError> {
    let record = VmRecord {
        id,
        role: VmRole::Browser,
        user,
        session: Some(session),
        slot: None,
        state: VmState::Creating,
        created_unix_ms: parts.clock.now_db(),
        destroyed_unix_ms: None,
    };
    parts.store.add_vm(&record).await?;
    let create = CreateVm {
        id,
        kind: VmKind::Browser,
        vcpus: parts.size.vcpus,
        memory_mib: parts.size.memory_mib,
        identity: identity(id, "browser", BTreeMap::new()),
    };
    let vm = parts.machines.create(create).await?;
    parts.store.vm_running(id, vm.slot).await?;
    Ok(vm)
}

/// Whether a VM is gone.
pub(super) enum Gone {
    Yes,
    NotYet,
}

/// Removes a VM. If it is still being created, makes sure that nothing comes after the removal.
pub(super) async fn release(
    parts: &Parts,
    vm: VmId,
    failed: bool,
    creating: Option<watch::Receiver<bool>>,
) -> Gone {
    let created_before = creating.as_ref().is_none_or(|ended| *ended.borrow());
    if failed && let Err(error) = parts.store.vm_failed(vm).await {
        tracing::error!(vm.id = %vm, %error, "failed VM could not be noted");
    }
    let remove = async || match failed {
        true => parts.cleaner.destroy_failed(vm).await,
        false => parts.cleaner.destroy(vm).await,
    };
    let mut done = remove().await;
    if !created_before && let Some(mut ended) = creating {
        if timeout(OVERTAKEN_LIMIT, ended.wait_for(|ended| *ended)).await.is_err() {
            return Gone::NotYet;
        }
        done = remove().await;
    }
    match done {
        Ok(()) => Gone::Yes,
        Err(error) => {
            tracing::warn!(vm.id = %vm, %error, "browser VM could not be removed yet");
            Gone::NotYet
        }
    }
}

/// Forwards what the VM's agent reports, until it is gone for good.
pub(super) fn listen(vm: &Vm, report: mpsc::Sender<Message>) -> AbortHandle {
    let (agent, id) = (vm.agent.clone(), vm.id);
    let mut events = agent.events();
    let task = tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => Message::Agent(event),
                    Err(RecvError::Lagged(lost)) => {
                        tracing::warn!(vm.id = %id, lost, "agent reported faster than the session could follow");
                        continue;
                    }
                    Err(RecvError::Closed) => Message::Happened(gone(&agent).await),
                },
                () = agent.closed() => Message::Happened(gone(&agent).await),
            };
            let last = matches!(message, Message::Happened(_));
            if report.send(message).await.is_err() || last {
                return;
            }
        }
    });
    task.abort_handle()
}

/// The end of the connection to a VM's agent, with the reason when the VM itself ended.
async fn gone(agent: &AgentClient) -> Event {
    agent.end().await.map_or(Event::AgentGone, |end| Event::VmFailed {
        cause: VmFailure::Died,
        detail: format!("the browser VM ended by itself: {end}"),
    })
}

/// Reads the credential files and checks them as the agent did.
pub(super) async fn fetch(agent: AgentClient, provider: Provider) -> Message {
    let failed = |cause, detail| Message::Happened(Event::FetchFailed { cause, detail });
    let request = Request::GetFiles { files: provider.credential_files() };
    match agent.request(request).await {
        Ok(Reply::Files { files }) => match provider.collect(files) {
            Ok(files) => Message::Fetched(files),
            Err(fault) => failed(FetchFailure::Incomplete, fault.to_string()),
        },
        Ok(_) => failed(FetchFailure::Unreadable, AgentError::Protocol { op: "get_files" }.to_string()),
        Err(error) => failed(FetchFailure::Unreadable, error.to_string()),
    }
}

/// Why a credential was not stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("another sign-in of the same user keeps storing this credential")]
    Overtaken,
}

impl SealError {
    pub(super) fn cause(&self) -> SealFailure {
        match self {
            Self::Store(StoreError::NoSpace { .. }) => SealFailure::NoSpace,
            Self::Store(_) | Self::Vault(_) | Self::Overtaken => SealFailure::Other,
        }
    }
}

/// Seals the files as the next version of the user's credential and stores them.
pub(super) async fn seal(
    parts: &Parts,
    user: UserId,
    provider: ProviderId,
    files: Vec<FileRead>,
) -> Result<(), SealError> {
    let bundle = Bundle { files };
    for _ in 0..STORE_TRIES {
        let stored = parts.store.credential(&user, &provider).await?;
        let now = parts.clock.now_db();
        let meta = CredentialMeta {
            id: stored.as_ref().map_or_else(|| CredentialId::from_uuid(Uuid::new_v4()), |old| old.meta.id),
            user: user.clone(),
            provider: provider.clone(),
            version: stored.as_ref().map_or(1, |old| old.meta.version + 1),
            files: bundle.files.iter().map(|file| file.path.clone()).collect(),
            created_unix_ms: stored.as_ref().map_or(now, |old| old.meta.created_unix_ms),
            updated_unix_ms: now,
        };
        let sealed = parts.vault.seal(&RecordName::of(&meta), &bundle)?;
        let (id, version) = (meta.id.to_string(), meta.version);
        if parts.store.put_credential(&SealedCredential { meta, sealed }).await? {
            tracing::info!(credential.id = id, version, %provider, "credential sealed");
            let (user, detail) = (user.as_str(), format!("{provider} version {version}"));
            parts.store.audit(now, "credential.sealed", Some(user), Some(&id), Some(&detail)).await?;
            return Ok(());
        }
    }
    Err(SealError::Overtaken)
}
