//! The task that owns one user's CLI VM.
//!
//! ```text
//!          Ensure                    agent gone
//!  absent ────────▶ running ─────────────────────▶ absent (VM removed, disk kept)
//!                   │  ▲  └──── Destroy ──────────▶ absent
//!     idle too long │  │ Ensure, Enter, Resume
//!                   ▼  │
//!        asleep or uncertain ── Destroy, or it cannot be woken ──▶ absent
//! ```
//!
//! It is uncertain whether a VM runs or sleeps when the host did not say how putting it to sleep ended. Whatever is
//! asked next finds out.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use polydev_core::{
    ids::{UserId, VmId},
    wire::Identity,
};
use polydev_host::{CreateVm, HostError, Vm, VmKind};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use uuid::Uuid;

use crate::store::vms::{VmRecord, VmRole, VmState};

use super::{
    Parts, Permit, WorkspaceError,
    uses::{InUse, Uses},
};

const SLOT_LIMIT: Duration = Duration::from_secs(180);
/// How long a VM that could not be put to sleep is left alone.
const SLEEP_AGAIN: Duration = Duration::from_secs(600);

/// Where an answer goes. A receiver that is gone has given up waiting; the work is done all the same.
type Reply<T> = oneshot::Sender<Result<T, WorkspaceError>>;

/// A question to an owner.
pub(super) enum Ask {
    Ensure(Reply<(Vm, InUse)>),
    Enter(VmId, Reply<(Vm, InUse)>),
    Hibernate(VmId, Reply<()>),
    Resume(VmId, Reply<Option<String>>),
    Destroy(VmId, Reply<()>),
}

/// A CLI VM and its place.
pub(super) struct Running {
    pub(super) vm: Vm,
    pub(super) permit: Permit,
}

/// How things are with the VM.
pub(super) enum Place {
    Absent,
    Running(Running),
    Asleep {
        id: VmId,
        permit: Permit,
    },
    /// The host could not say or has no room to wake it; it can later.
    Uncertain {
        id: VmId,
        permit: Permit,
    },
}

/// Owns one user's CLI VM.
pub(super) struct Owner {
    parts: Arc<Parts>,
    user: UserId,
    place: Place,
    uses: Uses,
    not_asleep_before: Instant,
}

impl Owner {
    pub(super) fn new(parts: Arc<Parts>, user: UserId, place: Place) -> Self {
        Self { parts, user, place, uses: Uses::new(), not_asleep_before: Instant::now() }
    }

    /// Answers until nobody can ask any more. The VM stays as it is then.
    pub(super) async fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        loop {
            let gone = async {
                match &self.place {
                    Place::Running(running) => running.vm.agent.closed().await,
                    Place::Absent | Place::Asleep { .. } | Place::Uncertain { .. } => {
                        std::future::pending().await
                    }
                }
            };
            let bedtime = self.bedtime();
            let idle = async {
                match bedtime {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = gone => self.lost().await,
                ask = asks.recv() => match ask {
                    Some(ask) => self.answer(ask).await,
                    None => return,
                },
                () = idle => self.fall_asleep().await,
            }
        }
    }

    async fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Ensure(reply) => drop(reply.send(self.ensure().await)),
            Ask::Enter(vm, reply) => drop(reply.send(self.enter(vm).await)),
            Ask::Hibernate(vm, reply) => drop(reply.send(self.hibernate(vm).await)),
            Ask::Resume(vm, reply) => drop(reply.send(self.resume(vm).await)),
            Ask::Destroy(vm, reply) => drop(reply.send(self.destroy(vm).await)),
        }
    }

    fn id(&self) -> Option<VmId> {
        match &self.place {
            Place::Absent => None,
            Place::Running(running) => Some(running.vm.id),
            Place::Asleep { id, .. } | Place::Uncertain { id, .. } => Some(*id),
        }
    }

    async fn ensure(&mut self) -> Result<(Vm, InUse), WorkspaceError> {
        if let Some(id) = self.id() {
            match self.enter(id).await {
                Err(WorkspaceError::NotThere) => {}
                other => return other,
            }
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
        let in_use = self.uses.begin();
        self.place = Place::Running(Running { vm: vm.clone(), permit });
        for credential in self.parts.store.undelivered_credentials(&self.user).await? {
            self.parts.deliver(&vm, &credential).await?;
        }
        Ok((vm, in_use))
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

    async fn enter(&mut self, vm: VmId) -> Result<(Vm, InUse), WorkspaceError> {
        self.resume(vm).await?;
        match &self.place {
            Place::Running(running) => Ok((running.vm.clone(), self.uses.begin())),
            Place::Absent | Place::Asleep { .. } | Place::Uncertain { .. } => Err(WorkspaceError::NotThere),
        }
    }

    async fn hibernate(&mut self, vm: VmId) -> Result<(), WorkspaceError> {
        if self.id() != Some(vm) {
            return Err(WorkspaceError::NotThere);
        }
        if self.uses.any() {
            return Err(WorkspaceError::InUse);
        }
        let permit = match mem::replace(&mut self.place, Place::Absent) {
            Place::Running(Running { permit, .. }) | Place::Uncertain { permit, .. } => permit,
            other => {
                self.place = other;
                return Ok(());
            }
        };
        match self.parts.machines.hibernate(vm).await {
            Ok(()) => {
                tracing::info!(vm.id = %vm, user = %self.user, "CLI VM sleeps");
                self.place = Place::Asleep { id: vm, permit };
                self.parts.store.vm_hibernated(vm).await?;
                Ok(())
            }
            Err(error) => {
                // It runs on, but its connection may have ended.
                self.not_asleep_before = Instant::now() + SLEEP_AGAIN;
                match self.parts.machines.adopt(vm).await {
                    Ok(vm) => self.place = Place::Running(Running { vm, permit }),
                    Err(passing) if may_pass(&passing) => self.place = Place::Uncertain { id: vm, permit },
                    Err(lost) => self.failed(vm, Some(lost.to_string())).await,
                }
                Err(error.into())
            }
        }
    }

    /// Why the memory was lost, if it was.
    async fn resume(&mut self, vm: VmId) -> Result<Option<String>, WorkspaceError> {
        if self.id() != Some(vm) {
            return Err(WorkspaceError::NotThere);
        }
        let permit = match mem::replace(&mut self.place, Place::Absent) {
            Place::Asleep { permit, .. } | Place::Uncertain { permit, .. } => permit,
            other => {
                self.place = other;
                return Ok(None);
            }
        };
        match self.parts.machines.resume(vm).await {
            Ok(resumed) => {
                tracing::info!(vm.id = %vm, user = %self.user, memory_lost = resumed.memory_lost, "CLI VM is awake");
                let slot = resumed.vm.slot;
                self.place = Place::Running(Running { vm: resumed.vm, permit });
                drop(self.uses.begin());
                self.parts.store.vm_running(vm, slot).await?;
                Ok(resumed.memory_lost)
            }
            Err(error) if may_pass(&error) => {
                self.place = Place::Uncertain { id: vm, permit };
                Err(error.into())
            }
            Err(error) => {
                tracing::warn!(vm.id = %vm, user = %self.user, %error, "CLI VM cannot be woken; its disk is kept");
                self.parts.store.vm_failed(vm).await?;
                self.parts.cleaner.destroy_later(vm).await;
                Err(WorkspaceError::NotThere)
            }
        }
    }

    /// When the VM is to be put to sleep, unless something happens before.
    fn bedtime(&self) -> Option<Instant> {
        let after = self.parts.hibernate_after?;
        match &self.place {
            Place::Running(_) | Place::Uncertain { .. } => {
                Some((self.uses.last() + after).max(self.not_asleep_before))
            }
            Place::Absent | Place::Asleep { .. } => None,
        }
    }

    async fn fall_asleep(&mut self) {
        // Whoever came and went since has moved the time.
        if self.bedtime().is_none_or(|at| at > Instant::now()) {
            return;
        }
        let Some(vm) = self.id() else { return };
        match self.hibernate(vm).await {
            Ok(()) | Err(WorkspaceError::InUse) => {}
            Err(WorkspaceError::Host(HostError::NotHibernatable { .. })) => {
                tracing::debug!(vm.id = %vm, "this host cannot put VMs to sleep");
            }
            Err(error) => tracing::warn!(vm.id = %vm, user = %self.user, %error, "CLI VM stays awake"),
        }
    }

    async fn destroy(&mut self, vm: VmId) -> Result<(), WorkspaceError> {
        if self.id() != Some(vm) {
            return Ok(());
        }
        let permit = match mem::replace(&mut self.place, Place::Absent) {
            Place::Running(Running { permit, .. })
            | Place::Asleep { permit, .. }
            | Place::Uncertain { permit, .. } => permit,
            Place::Absent => return Ok(()),
        };
        self.parts.store.vm_failed(vm).await?;
        let done = self.parts.cleaner.destroy(vm).await;
        drop(permit);
        if let Err(error) = done {
            tracing::warn!(vm.id = %vm, %error, "CLI VM could not be removed yet");
            self.parts.cleaner.destroy_later(vm).await;
        }
        Ok(())
    }

    async fn lost(&mut self) {
        let Place::Running(running) = mem::replace(&mut self.place, Place::Absent) else { return };
        let reason = running.vm.agent.end().await.map(|end| end.to_string());
        self.failed(running.vm.id, reason).await;
    }

    /// Has what is left of a VM that is no more removed.
    async fn failed(&self, id: VmId, reason: Option<String>) {
        tracing::warn!(vm.id = %id, user = %self.user, reason, "CLI VM ended by itself");
        if let Err(error) = self.parts.store.vm_failed(id).await {
            tracing::error!(vm.id = %id, %error, "lost CLI VM could not be noted");
        }
        self.parts.cleaner.destroy_later(id).await;
    }
}

/// Whether a VM is as it was, and may be reached or woken later: the host is away, or has no room now.
pub(crate) fn may_pass(error: &HostError) -> bool {
    matches!(error, HostError::NoCapacity { .. } | HostError::NoSpace { .. } | HostError::Unavailable { .. })
}

/// An identity for a VM; clock and entropy are filled in by the host when it is handed over.
pub(crate) fn identity(id: VmId, role: &str, env: BTreeMap<String, String>) -> Identity {
    Identity { env, ..Identity::of(id, role) }
}
