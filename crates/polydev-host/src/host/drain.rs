//! Before a host process ends for good: nothing new, nothing held ready, everything else left as it is.

use std::{sync::atomic::Ordering, time::Duration};

use super::{Host, Inner};
use crate::error::HostError;

/// How long the VMs that were held ready may take to go.
const LIMIT: Duration = Duration::from_secs(60);

impl Host {
    /// Refuses new VMs from now on, removes those that were held ready, and returns when they are gone: then only
    /// VMs that somebody has are left, running or asleep. They outlive this process, and the next one finds them.
    ///
    /// An upgrade needs no more than the end of this process and the start of the next; this is for a machine that is
    /// to be taken out of service. There is no way back but a new process.
    pub async fn drain(&self) -> Result<(), HostError> {
        self.inner.draining.store(true, Ordering::Relaxed);
        self.end_pool(LIMIT).await?;
        self.end().await
    }

    /// The last call before this process ends in order: removes the networks that lie ready for VMs. All VMs go on.
    pub async fn end(&self) -> Result<(), HostError> {
        let closed = self.inner.networks.close().await;
        closed.map(drop).map_err(|error| HostError::Unavailable { reason: error.to_string() })
    }
}

impl Inner {
    /// An error when this host takes no new VMs any more.
    pub(super) fn must_take_vms(&self) -> Result<(), HostError> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(HostError::Unavailable { reason: "it is being drained".to_owned() });
        }
        Ok(())
    }
}
