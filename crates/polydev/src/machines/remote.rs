//! A host that is another process.

use std::collections::{BTreeSet, HashSet};

use async_trait::async_trait;
use polydev_core::ids::{UserId, VmId};
use polydev_host::{
    CreateVm, HostError, HostFigures, HostStatus, LogKind, ReclaimReport, Resumed, Vm, VmKind, WarmPlan,
    remote::RemoteHost,
};
use tokio::sync::watch;

use super::Machines;

#[async_trait]
impl Machines for RemoteHost {
    async fn create(&self, create: CreateVm) -> Result<Vm, HostError> {
        RemoteHost::create(self, create).await
    }
    async fn adopt(&self, id: VmId) -> Result<Vm, HostError> {
        RemoteHost::adopt(self, id).await
    }
    async fn draw(&self, kind: &VmKind, vcpus: u8, memory_mib: u32) -> VmId {
        RemoteHost::draw(self, kind, vcpus, memory_mib).await
    }
    async fn hibernate(&self, id: VmId) -> Result<(), HostError> {
        RemoteHost::hibernate(self, id).await
    }
    async fn resume(&self, id: VmId) -> Result<Resumed, HostError> {
        RemoteHost::resume(self, id).await
    }
    async fn set_warm(&self, plan: WarmPlan) -> Result<(), HostError> {
        RemoteHost::set_warm(self, plan).await
    }
    async fn end_connections(&self, id: VmId) -> Result<(), HostError> {
        RemoteHost::end_connections(self, id).await
    }
    async fn remove_user_disk(&self, user: &UserId) -> Result<(), HostError> {
        RemoteHost::remove_user_disk(self, user).await
    }
    async fn destroy(&self, id: VmId) -> Result<(), HostError> {
        RemoteHost::destroy(self, id).await
    }
    async fn destroy_failed(&self, id: VmId) -> Result<(), HostError> {
        RemoteHost::destroy_failed(self, id).await
    }
    async fn reclaim(&self, wanted: &HashSet<VmId>) -> Result<ReclaimReport, HostError> {
        RemoteHost::reclaim(self, wanted).await
    }
    async fn read_log(&self, id: VmId, kind: LogKind, max_bytes: usize) -> Result<String, HostError> {
        RemoteHost::read_log(self, id, kind, max_bytes).await
    }
    async fn kept_failed(&self) -> Result<Vec<VmId>, HostError> {
        RemoteHost::kept_failed(self).await
    }
    async fn forget_failed(&self, id: VmId) -> Result<(), HostError> {
        RemoteHost::forget_failed(self, id).await
    }
    async fn figures(&self) -> HostFigures {
        // While the host is away there is nothing to tell.
        RemoteHost::figures(self).await.unwrap_or_default()
    }
    async fn prepare_templates(
        &self,
        vcpus: u8,
        memory_mib: u32,
        desktop_px: (u16, u16),
    ) -> Result<(), HostError> {
        RemoteHost::prepare_templates(self, vcpus, memory_mib, desktop_px).await
    }
    fn ready(&self) -> Result<(), HostError> {
        RemoteHost::ready(self)
    }
    fn paused(&self) -> watch::Receiver<BTreeSet<VmId>> {
        RemoteHost::paused(self)
    }
    fn status(&self) -> HostStatus {
        RemoteHost::status(self)
    }
}
