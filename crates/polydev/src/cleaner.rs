//! Removes VMs that must go, until they are gone: a task in the database per VM, tried again with growing pauses.

use std::{sync::Arc, time::Duration};

use polydev_core::ids::VmId;
use polydev_host::HostError;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    egress::Egress,
    machines::Machines,
    store::{Store, StoreError},
};

const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Handle to the cleaner; clones share it.
#[derive(Clone)]
pub struct Cleaner {
    store: Store,
    machines: Arc<dyn Machines>,
    egress: Arc<Egress>,
    clock: Clock,
    wake: Arc<Notify>,
}

impl Cleaner {
    /// A cleaner that does nothing until [`Self::run`] runs.
    pub fn new(store: Store, machines: Arc<dyn Machines>, egress: Arc<Egress>, clock: Clock) -> Self {
        Self { store, machines, egress, clock, wake: Arc::default() }
    }

    /// Destroys a VM now; a task in the database makes sure of it, whatever happens meanwhile.
    pub async fn destroy(&self, vm: VmId) -> Result<(), CleanError> {
        self.remove(vm, false).await
    }

    /// The same for a VM whose sign-in failed: what may be kept for a look is kept.
    pub async fn destroy_failed(&self, vm: VmId) -> Result<(), CleanError> {
        self.remove(vm, true).await
    }

    async fn remove(&self, vm: VmId, failed: bool) -> Result<(), CleanError> {
        if let Err(error) = self.store.add_cleanup(vm, self.clock.now_db()).await {
            // A full disk must not keep a VM alive; after a crash the start-up sweep finds it all the same.
            tracing::warn!(vm.id = %vm, %error, "clean-up could not be noted");
        }
        let done = match failed {
            true => self.machines.destroy_failed(vm).await,
            false => self.machines.destroy(vm).await,
        };
        match done {
            Ok(()) | Err(HostError::NoSuchVm(_)) => {
                self.egress.forget(vm);
                self.store.vm_destroyed(vm, self.clock.now_db()).await?;
                self.store.cleanup_done(vm).await?;
                Ok(())
            }
            Err(error) => {
                self.store.cleanup_failed(vm, &error.to_string()).await?;
                Err(CleanError::Host(error))
            }
        }
    }

    /// Has a VM destroyed in the background.
    pub async fn destroy_later(&self, vm: VmId) {
        if let Err(error) = self.store.add_cleanup(vm, self.clock.now_db()).await {
            // The start-up sweep finds the VM all the same: nobody wants it.
            tracing::error!(vm.id = %vm, %error, "clean-up could not be noted");
        }
        self.wake.notify_one();
    }

    /// Works until cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut pause = PAUSE_FIRST;
        loop {
            let left = self.sweep().await;
            pause = if left { (pause * 2).min(PAUSE_MAX) } else { PAUSE_FIRST };
            let again =
                async { if left { tokio::time::sleep(pause).await } else { std::future::pending().await } };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = again => {}
            }
        }
    }

    /// Tries every task once; whether any is left.
    async fn sweep(&self) -> bool {
        let tasks = match self.store.cleanup_tasks().await {
            Ok(tasks) => tasks,
            Err(error) => {
                tracing::error!(%error, "clean-up tasks cannot be read");
                return true;
            }
        };
        let mut left = false;
        for task in tasks {
            match self.destroy(task.vm).await {
                Ok(()) => tracing::info!(vm.id = %task.vm, "VM removed"),
                Err(error) => {
                    left = true;
                    tracing::warn!(vm.id = %task.vm, attempts = task.attempts + 1, %error, "VM could not be removed yet");
                }
            }
        }
        left
    }
}

/// Why a VM is still there.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// The host could not remove it.
    #[error(transparent)]
    Host(HostError),
    /// The database did not take it down.
    #[error(transparent)]
    Store(#[from] StoreError),
}
