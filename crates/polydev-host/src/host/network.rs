//! A VM's network: taken before its process is started, given back when nothing of it is left.

use std::sync::Arc;

use super::{HostError, Inner};
use crate::{
    config::NetworkMode,
    driver::{self, Driver, container},
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

    /// Makes the network of a VM that sleeps, where a reboot took it. One that lives has to have its own.
    pub(super) async fn keep_network(&self, record: &VmRecord) -> Result<(), HostError> {
        if record.network == NetworkMode::Channel {
            return Ok(());
        }
        if !self.has_named_network(record).await? {
            let detail = "its network was lost with the mounts of an earlier manager".to_owned();
            return Err(HostError::MemoryLost { id: record.id, detail });
        }
        let kind = link_kind(&**self.driver_of(record));
        self.networks.keep(record.slot, kind).await.map_err(of_vm(record))
    }

    /// Opens the VM's gateway, unless it is open.
    pub(super) async fn open_gateway(&self, record: &VmRecord) -> Result<(), HostError> {
        if record.network == NetworkMode::Channel {
            return Ok(());
        }
        self.has_named_network(record).await?;
        let guest =
            Guest { vm: record.id, handler: Arc::clone(&self.egress), account: self.accounts.of(record.id) };
        self.networks.serve(record.slot, guest).await.map_err(of_vm(record))
    }

    /// Whether the network of a VM that lives can be found by its name, which a VMM's process can give back to it.
    /// Without a process nothing is missing.
    async fn has_named_network(&self, record: &VmRecord) -> Result<bool, HostError> {
        if self.networks.is_named(record.slot) {
            return Ok(true);
        }
        let process = driver::main_process(&self.places, record.id, &self.places.vm(record.id))?;
        let Some(process) = process else { return Ok(true) };
        if link_kind(&**self.driver_of(record)) == LinkKind::Veth {
            return Ok(false);
        }
        self.networks.name_again(record.slot, &process.namespace("net")).await.map_err(of_vm(record))?;
        tracing::warn!(vm.id = %record.id, "the VM's network had lost its name and has it again");
        Ok(true)
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
