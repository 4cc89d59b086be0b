//! The controller's view of the host: the few things it asks for, so that tests can put a fake in its place.

mod remote;

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use async_trait::async_trait;
use polydev_core::ids::{UserId, VmId};
use polydev_host::{
    CreateVm, Host, HostError, HostFigures, HostStatus, LogKind, Missing, ReclaimReport, Resumed, Vm, VmKind,
    WarmPlan,
};
use tokio::sync::watch;
use uuid::Uuid;

/// Runs VMs.
#[async_trait]
pub trait Machines: Send + Sync + 'static {
    /// See [`Host::create`].
    async fn create(&self, create: CreateVm) -> Result<Vm, HostError>;
    /// See [`Host::adopt`].
    async fn adopt(&self, id: VmId) -> Result<Vm, HostError>;
    /// See [`Host::draw`].
    async fn draw(&self, kind: &VmKind, vcpus: u8, memory_mib: u32) -> VmId;
    /// See [`Host::hibernate`].
    async fn hibernate(&self, id: VmId) -> Result<(), HostError>;
    /// See [`Host::resume`].
    async fn resume(&self, id: VmId) -> Result<Resumed, HostError>;
    /// See [`Host::set_warm`].
    async fn set_warm(&self, plan: WarmPlan) -> Result<(), HostError>;
    /// This process is about to end in order. See [`Host::end_pool`]; a host that is a process of its own keeps its pool.
    async fn end_pool(&self, _limit: Duration) -> Result<(), HostError> {
        Ok(())
    }
    /// See [`Host::destroy`].
    async fn destroy(&self, id: VmId) -> Result<(), HostError>;
    /// See [`Host::destroy_failed`].
    async fn destroy_failed(&self, id: VmId) -> Result<(), HostError>;
    /// See [`Host::reclaim`].
    async fn reclaim(&self, wanted: &HashSet<VmId>) -> Result<ReclaimReport, HostError>;
    /// See [`Host::read_log`].
    async fn read_log(&self, id: VmId, kind: LogKind, max_bytes: usize) -> Result<String, HostError>;
    /// See [`Host::kept_failed`].
    async fn kept_failed(&self) -> Result<Vec<VmId>, HostError>;
    /// See [`Host::forget_failed`].
    async fn forget_failed(&self, id: VmId) -> Result<(), HostError>;
    /// See [`Host::end_connections`].
    async fn end_connections(&self, id: VmId) -> Result<(), HostError>;
    /// See [`Host::remove_user_disk`].
    async fn remove_user_disk(&self, user: &UserId) -> Result<(), HostError>;
    /// See [`Host::prepare_templates`].
    async fn prepare_templates(
        &self,
        vcpus: u8,
        memory_mib: u32,
        desktop_px: (u16, u16),
    ) -> Result<(), HostError>;
    /// Whether VMs can be made at all.
    fn ready(&self) -> Result<(), HostError>;
    /// See [`Host::status`].
    fn status(&self) -> HostStatus;
    /// See [`Host::paused`].
    fn paused(&self) -> watch::Receiver<BTreeSet<VmId>> {
        watch::Sender::default().subscribe()
    }
    /// See [`Host::figures`].
    async fn figures(&self) -> HostFigures {
        HostFigures::default()
    }
}

#[async_trait]
impl Machines for Host {
    async fn create(&self, create: CreateVm) -> Result<Vm, HostError> {
        Host::create(self, create).await
    }
    async fn adopt(&self, id: VmId) -> Result<Vm, HostError> {
        Host::adopt(self, id).await
    }
    async fn draw(&self, kind: &VmKind, vcpus: u8, memory_mib: u32) -> VmId {
        Host::draw(self, kind, vcpus, memory_mib).await
    }
    async fn hibernate(&self, id: VmId) -> Result<(), HostError> {
        Host::hibernate(self, id).await
    }
    async fn resume(&self, id: VmId) -> Result<Resumed, HostError> {
        Host::resume(self, id).await
    }
    async fn set_warm(&self, plan: WarmPlan) -> Result<(), HostError> {
        Host::set_warm(self, plan);
        Ok(())
    }
    async fn end_pool(&self, limit: Duration) -> Result<(), HostError> {
        Host::end_pool(self, limit).await
    }
    async fn destroy(&self, id: VmId) -> Result<(), HostError> {
        Host::destroy(self, id).await
    }
    async fn destroy_failed(&self, id: VmId) -> Result<(), HostError> {
        Host::destroy_failed(self, id).await
    }
    async fn reclaim(&self, wanted: &HashSet<VmId>) -> Result<ReclaimReport, HostError> {
        Host::reclaim(self, wanted).await
    }
    async fn read_log(&self, id: VmId, kind: LogKind, max_bytes: usize) -> Result<String, HostError> {
        Host::read_log(self, id, kind, max_bytes).await
    }
    async fn kept_failed(&self) -> Result<Vec<VmId>, HostError> {
        Host::kept_failed(self)
    }
    async fn forget_failed(&self, id: VmId) -> Result<(), HostError> {
        Host::forget_failed(self, id)
    }
    async fn end_connections(&self, id: VmId) -> Result<(), HostError> {
        Host::end_connections(self, id);
        Ok(())
    }
    async fn remove_user_disk(&self, user: &UserId) -> Result<(), HostError> {
        Host::remove_user_disk(self, user).await
    }
    async fn prepare_templates(
        &self,
        vcpus: u8,
        memory_mib: u32,
        desktop_px: (u16, u16),
    ) -> Result<(), HostError> {
        Host::prepare_templates(self, vcpus, memory_mib, desktop_px).await
    }
    fn ready(&self) -> Result<(), HostError> {
        Ok(())
    }
    fn status(&self) -> HostStatus {
        Host::status(self)
    }
    fn paused(&self) -> watch::Receiver<BTreeSet<VmId>> {
        Host::paused(self)
    }
    async fn figures(&self) -> HostFigures {
        Host::figures(self)
    }
}

/// Stands in for a host that could not be opened: the API works, and says why there are no VMs.
pub struct Unavailable {
    missing: Missing,
    slots: usize,
}

impl Unavailable {
    /// For faults that a person has to mend while the controller runs on; other errors are given back.
    pub fn because(error: HostError, slots: usize) -> Result<Self, HostError> {
        Missing::of(error).map(|missing| Self { missing, slots })
    }

    fn error(&self) -> HostError {
        self.missing.error()
    }
}

#[async_trait]
impl Machines for Unavailable {
    async fn create(&self, _: CreateVm) -> Result<Vm, HostError> {
        Err(self.error())
    }
    async fn adopt(&self, _: VmId) -> Result<Vm, HostError> {
        Err(self.error())
    }
    async fn draw(&self, _: &VmKind, _: u8, _: u32) -> VmId {
        VmId::from_uuid(Uuid::new_v4())
    }
    async fn hibernate(&self, _: VmId) -> Result<(), HostError> {
        Err(self.error())
    }
    async fn resume(&self, _: VmId) -> Result<Resumed, HostError> {
        Err(self.error())
    }
    async fn set_warm(&self, _: WarmPlan) -> Result<(), HostError> {
        Err(self.error())
    }
    async fn destroy(&self, _: VmId) -> Result<(), HostError> {
        Err(self.error())
    }
    async fn destroy_failed(&self, _: VmId) -> Result<(), HostError> {
        Err(self.error())
    }
    async fn reclaim(&self, _: &HashSet<VmId>) -> Result<ReclaimReport, HostError> {
        Ok(ReclaimReport::default())
    }
    async fn read_log(&self, id: VmId, _: LogKind, _: usize) -> Result<String, HostError> {
        Err(HostError::NoSuchVm(id))
    }
    async fn kept_failed(&self) -> Result<Vec<VmId>, HostError> {
        Ok(Vec::new())
    }
    async fn forget_failed(&self, _: VmId) -> Result<(), HostError> {
        Err(self.error())
    }
    async fn end_connections(&self, _: VmId) -> Result<(), HostError> {
        // No VM, no connection.
        Ok(())
    }
    async fn remove_user_disk(&self, _: &UserId) -> Result<(), HostError> {
        Err(self.error())
    }
    async fn prepare_templates(&self, _: u8, _: u32, _: (u16, u16)) -> Result<(), HostError> {
        Err(self.error())
    }
    fn ready(&self) -> Result<(), HostError> {
        Err(self.error())
    }
    fn status(&self) -> HostStatus {
        HostStatus::without_host(self.missing.clone(), self.slots)
    }
}
