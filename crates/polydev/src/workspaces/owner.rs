//! The task that owns one user's CLI VM.
//!
//! ```text
//!          Ensure                    agent gone
//!  absent ────────▶ running ─────────────────────▶ absent (VM removed, disk kept)
//!                      └──── Destroy ─────────────▶ absent
//! ```

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use polydev_core::{
    ids::{UserId, VmId},
    wire::Identity,
};
use polydev_host::{CreateVm, Vm, VmKind};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use uuid::Uuid;

use crate::store::vms::{VmRecord, VmRole, VmState};

use super::{Parts, Permit, WorkspaceError};

const SLOT_LIMIT: Duration = Duration::from_secs(180);

/// A question to an owner.
pub(super) enum Ask {
    Ensure(oneshot::Sender<Result<Vm, WorkspaceError>>),
    Running(oneshot::Sender<Option<Vm>>),
    Destroy(VmId, oneshot::Sender<Result<(), WorkspaceError>>),
}

/// A CLI VM and its place.
pub(super) struct Running {
    pub(super) vm: Vm,
    pub(super) permit: Permit,
}

/// Owns one user's CLI VM.
pub(super) struct Owner {
    parts: Arc<Parts>,
    user: UserId,
    running: Option<Running>,
}

impl Owner {
    pub(super) fn new(parts: Arc<Parts>, user: UserId, running: Option<Running>) -> Self {
        Self { parts, user, running }
    }

    /// Answers until nobody can ask any more. The VM goes on running then.
    pub(super) async fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        loop {
            let gone = async {
                match &self.running {
                    Some(running) => running.vm.agent.closed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = gone => self.lost().await,
                ask = asks.recv() => match ask {
                    // A receiver that is gone has given up waiting; the work is done all the same.
                    Some(Ask::Ensure(reply)) => drop(reply.send(self.ensure().await)),
                    Some(Ask::Running(reply)) => drop(reply.send(self.running.as_ref().map(|r| r.vm.clone()))),
                    Some(Ask::Destroy(vm, reply)) => drop(reply.send(self.destroy(vm).await)),
                    None => return,
                },
            }
        }
    }

    async fn ensure(&mut self) -> Result<Vm, WorkspaceError> {
        if let Some(running) = &self.running {
            return Ok(running.vm.clone());
        }
        let parts = &self.parts;
        let total = parts.slots.count().1;
        let ticket = parts.slots.enter_urgently();
        let permit = timeout(SLOT_LIMIT, ticket.wait(|_| ())).await;
        let permit = permit.map_err(|_| WorkspaceError::SlotTimeout { total })?;
        let id = VmId::from_uuid(Uuid::new_v4());
        let record = VmRecord {
            id,
            role: VmRole::Cli,
            user: self.user.clone(),
            session: None,
            slot: None,
            state: VmState::Creating,
            created_unix_ms: parts.clock.now_db(),
            destroyed_unix_ms: None,
        };
        parts.store.ensure_user(&self.user, parts.clock.now_db()).await?;
        parts.store.add_vm(&record).await?;
        let vm = match self.start(id).await {
            Ok(vm) => vm,
            Err(error) => {
                parts.store.vm_failed(id).await?;
                parts.cleaner.destroy_later(id).await;
                return Err(error);
            }
        };
        tracing::info!(vm.id = %id, user = %self.user, "CLI VM is running");
        self.running = Some(Running { vm: vm.clone(), permit });
        for credential in self.parts.store.undelivered_credentials(&self.user).await? {
            self.parts.deliver(&vm, &credential).await?;
        }
        Ok(vm)
    }

    async fn start(&self, id: VmId) -> Result<Vm, WorkspaceError> {
        let parts = &self.parts;
        let mut env = BTreeMap::new();
        for provider in parts.providers.iter() {
            env.extend(provider.cli_env(&parts.places));
        }
        let create = CreateVm {
            id,
            kind: VmKind::Cli { user: self.user.clone() },
            vcpus: parts.size.vcpus,
            memory_mib: parts.size.memory_mib,
            identity: identity(id, "workspace", env),
        };
        let vm = parts.machines.create(create).await?;
        parts.store.vm_running(id, vm.slot).await?;
        Ok(vm)
    }

    async fn destroy(&mut self, vm: VmId) -> Result<(), WorkspaceError> {
        if self.running.as_ref().is_none_or(|running| running.vm.id != vm) {
            return Ok(());
        }
        let Some(running) = self.running.take() else { return Ok(()) };
        self.parts.store.vm_failed(vm).await?;
        let done = self.parts.cleaner.destroy(vm).await;
        drop(running.permit);
        if let Err(error) = done {
            tracing::warn!(vm.id = %vm, %error, "CLI VM could not be removed yet");
            self.parts.cleaner.destroy_later(vm).await;
        }
        Ok(())
    }

    async fn lost(&mut self) {
        let Some(running) = self.running.take() else { return };
        let id = running.vm.id;
        tracing::warn!(vm.id = %id, user = %self.user, "CLI VM ended by itself");
        if let Err(error) = self.parts.store.vm_failed(id).await {
            tracing::error!(vm.id = %id, %error, "lost CLI VM could not be noted");
        }
        self.parts.cleaner.destroy_later(id).await;
    }
}

/// An identity for a VM; clock and entropy are filled in by the host when it is handed over.
pub(crate) fn identity(id: VmId, role: &str, env: BTreeMap<String, String>) -> Identity {
    Identity {
        hostname: format!("{role}-{}", id.short()),
        machine_id: id.as_uuid().simple().to_string(),
        unix_time_ms: 0,
        entropy: String::new(),
        env,
        egress: true,
    }
}
