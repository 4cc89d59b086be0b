//! A VM's network: taken before its process is started, given back when nothing of it is left.

use std::sync::Arc;

use super::{HostError, Inner};
use crate::{
    config::NetworkMode,
    driver::{Driver, container},
    failpoint,
    net::{Guest, LinkKind, NetworkError},
    record::VmRecord,
};

impl Inner {
    /// Makes or takes the network that the VM's process is to start in.
    pub(super) async fn take_network(&self, record: &VmRecord) -> Result<(), HostError> {
        if record.network == NetworkMode::Channel {
            return Ok(());
        }
        failpoint::reach("create/before-network");
        let kind = link_kind(&**self.driver_of(record));
        self.networks.take(record.slot, kind).await.map_err(of_vm(record))?;
        failpoint::reach("create/network");
        Ok(())
    }

    /// Makes the network of a VM that sleeps, where a reboot took it.
    pub(super) async fn keep_network(&self, record: &VmRecord) -> Result<(), HostError> {
        if record.network == NetworkMode::Channel {
            return Ok(());
        }
        let kind = link_kind(&**self.driver_of(record));
        self.networks.keep(record.slot, kind).await.map_err(of_vm(record))
    }

    /// Opens the VM's gateway, unless it is open.
    pub(super) async fn open_gateway(&self, record: &VmRecord) -> Result<(), HostError> {
        if record.network == NetworkMode::Channel {
            return Ok(());
        }
        let guest =
            Guest { vm: record.id, handler: Arc::clone(&self.egress), account: self.accounts.of(record.id) };
        self.networks.serve(record.slot, guest).await.map_err(of_vm(record))
    }

    /// Takes the VM's network down, its name last. None is fine.
    pub(super) async fn give_network_back(&self, record: &VmRecord) -> Result<(), HostError> {
        if record.network == NetworkMode::Channel {
            return Ok(());
        }
        failpoint::reach("destroy/before-network");
        self.networks.give_back(record.slot).await.map_err(of_vm(record))?;
        failpoint::reach("destroy/network");
        Ok(())
    }
}

/// What a driver's VMs have at their end.
pub(super) fn link_kind(driver: &dyn Driver) -> LinkKind {
    if driver.info().name == container::NAME { LinkKind::Veth } else { LinkKind::Tap }
}

fn of_vm(record: &VmRecord) -> impl FnOnce(NetworkError) -> HostError {
    let id = record.id;
    move |error| HostError::NoNetwork { id, reason: error.to_string() }
}
