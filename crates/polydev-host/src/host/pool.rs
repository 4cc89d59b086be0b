//! Browser VMs that wait for somebody: their desktop is painted, and a name of their own is all they lack.
//!
//! ```text
//! making ─▶ ready ─▶ drawn ─▶ claimed: not the pool's any more
//!    └────────┴────────┴──▶ destroyed: it failed, died, gives way, or nobody claimed it
//! found (of an earlier process) ─▶ making, when it is what is planned, otherwise destroyed
//! ```
//!
//! Never hands out a VM whose agent does not answer. Never stands in the way of a VM that somebody wants.

mod state;

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::future;
use polydev_core::{
    ids::VmId,
    vm::Want,
    wire::{Identity, Request},
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout},
};
use uuid::Uuid;

pub(super) use self::state::Pool;
use self::state::Todo;
use super::{
    CreateVm, Host, Inner, Vm, VmKind,
    admission::Admitted,
    hibernate::without_entropy,
    joined,
    lifecycle::{elapsed_ms, fresh},
};
use crate::{
    agent::AgentClient,
    error::HostError,
    failpoint,
    record::{Phase, VmRecord, VmState},
    usage::Start,
};

/// How long a desktop may take to show its first picture, at native speed.
pub(super) const PAINT_LIMIT: Duration = Duration::from_secs(60);
/// Desktop of a warm VM of which nobody said how large it is to be.
pub(super) const DESKTOP_PX: (u16, u16) = (1280, 800);
/// How long a warm VM may take to answer before another one is handed out: on a machine that is too busy for this, a new
/// one takes far longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How often the pool is looked after when nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How many browser VMs wait, and what they are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WarmPlan {
    /// Below this many more are made.
    pub low: usize,
    /// Until there are this many. With 0 there is no pool.
    pub high: usize,
    /// Virtual CPUs of each.
    pub vcpus: u8,
    /// Memory of each in MiB.
    pub memory_mib: u32,
    /// Width and height of the desktop in pixels.
    pub desktop_px: (u16, u16),
}

impl Host {
    /// Sets how many browser VMs are kept ready. Those of an earlier process are taken over if they are like that, and
    /// removed otherwise; until this is called they are left alone.
    pub fn set_warm(&self, plan: WarmPlan) {
        self.inner.pool.set_plan(plan);
    }

    /// From now on there is no pool; returns when the VMs that were held ready are gone, or not later than after `limit`.
    /// A process that ends in order leaves nothing that is nobody's; one that is killed does, and the next takes it over.
    pub async fn end_pool(&self, limit: Duration) -> Result<(), HostError> {
        let inner = Arc::clone(&self.inner);
        let ending = joined(tokio::spawn(async move { inner.end_pool().await }));
        timeout(limit, ending).await.unwrap_or_else(|_| {
            let reason = "VMs that were held ready are still there".to_owned();
            Err(HostError::Unavailable { reason })
        })
    }

    /// Draws the id of a VM to create: that of a ready one, which is reserved for a minute, or a new one. The caller
    /// records it and calls [`Host::create`] with it.
    pub async fn draw(&self, kind: &VmKind, vcpus: u8, memory_mib: u32) -> VmId {
        self.inner.draw(kind, vcpus, memory_mib).await
    }
}

impl Inner {
    async fn draw(&self, kind: &VmKind, vcpus: u8, memory_mib: u32) -> VmId {
        if *kind == VmKind::Browser {
            while let Some((id, client)) = self.pool.reserve(vcpus, memory_mib) {
                if self.answers(&client).await {
                    return id;
                }
                tracing::warn!(vm.id = %id, "warm VM does not answer and is replaced");
                self.pool.give_up(id);
            }
        }
        VmId::from_uuid(Uuid::new_v4())
    }

    async fn end_pool(&self) -> Result<(), HostError> {
        let mut ids: BTreeSet<VmId> = self.pool.close().into_iter().collect();
        // Some may be on their way out already.
        ids.extend(self.records.all()?.iter().filter(|it| it.state == VmState::Warm).map(|it| it.id));
        let ending = ids.into_iter().map(|id| self.remove_warm(id));
        future::join_all(ending).await.into_iter().collect()
    }

    /// Destroys a VM unless somebody has claimed it.
    async fn remove_warm(&self, id: VmId) -> Result<(), HostError> {
        let cell = self.cell(id);
        let mut agent = cell.lock().await;
        let record = self.record_of(id);
        if record.as_ref().is_some_and(|record| record.state != VmState::Warm) {
            return Ok(());
        }
        self.bring_down(id, record, agent.take()).await
    }

    async fn answers(&self, client: &AgentClient) -> bool {
        let limit = ANSWER_LIMIT * self.driver().info().slow_factor;
        matches!(timeout(limit, client.painted()).await, Ok(Ok(true)))
    }

    /// Hands the identity to the warm VM that the caller has drawn. `None` when there is none of this id: then it is to be
    /// made. A warm VM that does not take its identity is removed, and then made anew.
    pub(super) async fn claim(&self, create: &CreateVm) -> Result<Option<Vm>, HostError> {
        let (began, id) = (Instant::now(), create.id);
        let mut watch = self.phases.watch(&create.kind, Start::Claimed);
        let cell = self.cell(id);
        let mut agent = cell.lock().await;
        let record = self.records.read(id).filter(|record| record.state == VmState::Warm);
        let Some(mut record) = record else { return Ok(None) };
        let fits = record.kind == create.kind
            && (record.vcpus, record.memory_mib) == (create.vcpus, create.memory_mib);
        let client = self.pool.take(id).filter(|client| fits && !client.is_closed());
        watch.enter("claim");
        let handed_over = match &client {
            Some(client) => self.hand_identity(client, &mut record, &create.identity).await,
            None => Err(HostError::NoSuchVm(id)),
        };
        match (client, handed_over) {
            (Some(client), Ok(())) => {
                watch.step(None);
                *agent = Some(client.clone());
                tracing::info!(
                    vm.id = %id, slot = record.slot.index(), driver = record.driver,
                    elapsed_ms = elapsed_ms(began.into()), "warm VM claimed"
                );
                Ok(Some(Vm { id, kind: record.kind, slot: record.slot, agent: client }))
            }
            (client, result) => {
                if let Err(error) = result {
                    tracing::warn!(vm.id = %id, %error, "warm VM cannot be claimed; another is made in its place");
                }
                self.bring_down(id, Some(record), client).await?;
                Ok(None)
            }
        }
    }

    async fn hand_identity(
        &self,
        client: &AgentClient,
        record: &mut VmRecord,
        identity: &Identity,
    ) -> Result<(), HostError> {
        let id = record.id;
        record.state = VmState::Active;
        record.hostname.clone_from(&identity.hostname);
        record.identity = Some(without_entropy(identity));
        failpoint::reach("claim/before-record");
        // Whose agent has not taken its identity is not taken over after a crash.
        self.note_phase(record, Phase::Starting)?;
        failpoint::reach("claim/recorded");
        self.driver_of(record).rename(record, &self.places.vm(id)).await?;
        let asked = client.request(Request::Identify(fresh(identity.clone())?)).await;
        asked.map_err(|source| HostError::Identity { id, source })?;
        failpoint::reach("claim/identified");
        self.note_phase(record, Phase::Running)
    }

    /// Room for one more VM, made by warm ones that give way if need be.
    pub(super) async fn make_room(&self, id: VmId, kind: &VmKind, vcpus: u8) -> Result<Admitted, HostError> {
        // None that gives way makes room on the disk.
        self.must_have_disk()?;
        loop {
            let error = match self.admit(id, kind, vcpus) {
                Err(error) => error,
                Ok(admitted) => {
                    let mut slots = self.slots();
                    match slots.take(id) {
                        Ok(_) => return Ok(admitted),
                        Err(_) => HostError::NoSlot { total: slots.total() },
                    }
                }
            };
            let Some(victim) = self.pool.give_way() else { return Err(error) };
            tracing::info!(vm.id = %victim, wanted.id = %id, reason = %error, "warm VM gives way");
            self.discard(victim).await;
        }
    }

    /// Destroys a VM that is no longer the pool's. One that resists is tried again.
    async fn discard(&self, id: VmId) {
        let removed = self.destroy(id, false).await;
        self.note_removed(id, removed);
    }

    fn note_removed(&self, id: VmId, removed: Result<(), HostError>) {
        if let Err(error) = removed {
            tracing::error!(vm.id = %id, %error, "warm VM cannot be removed yet");
            self.pool.note_left(id);
        }
    }

    /// Makes a warm VM, or takes one over.
    async fn warm_up(&self, id: VmId, plan: WarmPlan, found: bool) -> Result<(), HostError> {
        let began = Instant::now();
        let mut watch = self.phases.watch(&VmKind::Browser, Start::Ahead);
        let cell = self.cell(id);
        let mut agent = cell.lock().await;
        if !self.pool.is_being_made(id) {
            // It gave way before it was begun; whoever took it out of the pool may have destroyed it already.
            self.drop_cell(id);
            return Ok(());
        }
        let identity = Identity { egress: false, ..Identity::of(id, "warm") };
        let WarmPlan { vcpus, memory_mib, desktop_px, .. } = plan;
        let create = CreateVm { id, kind: VmKind::Browser, vcpus, memory_mib, identity };
        let (begun, _admitted) = match found {
            true => (self.warm_record(id, plan), None),
            false => match self.must_have_disk().and_then(|()| self.admit(id, &create.kind, vcpus)) {
                Ok(admitted) => (self.new_record(&create, VmState::Warm), Some(admitted)),
                Err(error) => (Err(error), None),
            },
        };
        let result = match begun {
            Err(error) => Err(error),
            Ok(mut record) => {
                self.bring_up(&mut record, create.identity, Want::Warm, Some(desktop_px), &mut watch).await
            }
        };
        match result {
            Ok(client) => {
                if self.pool.note_ready(id, &client, (vcpus, memory_mib)) {
                    *agent = Some(client);
                    tracing::info!(vm.id = %id, found, elapsed_ms = elapsed_ms(began.into()), "VM is warm");
                }
                Ok(())
            }
            Err(error) => {
                let removed = self.bring_down(id, self.record_of(id), None).await;
                self.note_removed(id, removed);
                Err(error)
            }
        }
    }

    /// The record of a warm VM of an earlier process, if it is what is planned.
    fn warm_record(&self, id: VmId, plan: WarmPlan) -> Result<VmRecord, HostError> {
        let planned = |record: &VmRecord| {
            record.state == VmState::Warm
                && record.phase == Phase::Running
                && record.process_is_the_one()
                && record.driver == self.driver().info().name
                && record.image == self.image
                && (record.vcpus, record.memory_mib) == (plan.vcpus, plan.memory_mib)
        };
        self.records.read(id).filter(planned).ok_or(HostError::NoSuchVm(id))
    }

    fn free_slots(&self) -> usize {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.total().saturating_sub(slots.used())
    }
}

/// Looks after the pool as long as there is a host.
pub(super) fn keep(inner: Arc<Inner>) -> JoinHandle<()> {
    let wake = inner.pool.wake();
    // The task must not keep the host alive.
    let host = Arc::downgrade(&inner);
    tokio::spawn(async move {
        let mut work: JoinSet<()> = JoinSet::new();
        loop {
            let Some(inner) = host.upgrade() else { return };
            for todo in inner.pool.todo(inner.free_slots(), Instant::now()) {
                let worker = Arc::clone(&inner);
                match todo {
                    Todo::Discard(id) => drop(work.spawn(async move { worker.discard(id).await })),
                    Todo::Make { id, plan, found } => {
                        let handle = work.spawn(async move {
                            let made = worker.warm_up(id, plan, found).await;
                            worker.pool.note_made(id, made.as_ref().err(), Instant::now());
                        });
                        inner.pool.note_maker(id, handle);
                    }
                }
            }
            drop(inner);
            tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                Some(_) = work.join_next() => {}
            }
        }
    })
}
