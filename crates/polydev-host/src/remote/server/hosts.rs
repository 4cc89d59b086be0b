//! The host that requests go to, or why there is none yet: an operator may install the golden image while this process
//! runs.

use std::{sync::Arc, time::Duration};

use polydev_core::ids::VmId;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    config::HostConfig,
    egress::EgressHandler,
    error::{HostError, Missing},
    host::{Host, HostStatus, VmEnd},
};

/// How often what was missing is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The same once there is an image: drivers are tried out then, which takes a while.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// Handle to the host once there is one; clones share it.
#[derive(Clone)]
pub struct Hosts {
    now: watch::Receiver<Result<Host, Missing>>,
    slots: usize,
    opening: Option<Arc<AbortOnDropHandle<()>>>,
}

impl From<Host> for Hosts {
    fn from(host: Host) -> Self {
        let slots = host.status().slots_total;
        // Without its sender the value stays what it is.
        Self { now: watch::channel(Ok(host)).1, slots, opening: None }
    }
}

impl Hosts {
    /// Opens the host. What an operator can bring while this process runs is waited for in the background; other
    /// errors are returned.
    pub async fn open(config: HostConfig, egress: Arc<dyn EgressHandler>) -> Result<Self, HostError> {
        let slots = usize::from(config.slots);
        let missing = match Host::open(config.clone(), Arc::clone(&egress)).await {
            Ok(host) => return Ok(host.into()),
            Err(error) => waits_for(error)?,
        };
        tracing::error!(reason = %missing.error(), "no VM can be made until this is mended");
        let (sender, now) = watch::channel(Err(missing));
        let opening = tokio::spawn(async move {
            let mut pause = LOOK_AGAIN;
            loop {
                tokio::time::sleep(pause).await;
                let error = match Host::open(config.clone(), Arc::clone(&egress)).await {
                    Ok(host) => {
                        tracing::info!(image = host.status().image, "VMs can be made from now on");
                        drop(sender.send_replace(Ok(host)));
                        // The host lives on in the channel.
                        return sender.closed().await;
                    }
                    Err(error) => error,
                };
                let reason = error.to_string();
                let missing = Missing::of(error);
                pause = match missing {
                    Ok(Missing::Image { .. } | Missing::GoodImage { .. }) => LOOK_AGAIN,
                    Ok(Missing::Driver { .. }) | Err(_) => TRY_AGAIN,
                };
                let same =
                    matches!((&*sender.borrow(), &missing), (Err(known), Ok(missing)) if known == missing);
                if same {
                    continue;
                }
                tracing::error!(reason, "no VM can be made until this is mended");
                if let Ok(missing) = missing {
                    drop(sender.send_replace(Err(missing)));
                }
            }
        });
        Ok(Self { now, slots, opening: Some(Arc::new(AbortOnDropHandle::new(opening))) })
    }

    /// The host, or what it misses.
    pub fn get(&self) -> Result<Host, Missing> {
        self.now.borrow().clone()
    }

    /// See [`Host::status`].
    pub fn status(&self) -> HostStatus {
        match self.get() {
            Ok(host) => host.status(),
            Err(missing) => HostStatus::without_host(missing, self.slots),
        }
    }

    /// See [`Host::drain`]. Where there is no host yet none is opened any more.
    pub async fn drain(&self) -> Result<(), HostError> {
        match self.get() {
            Ok(host) => host.drain().await,
            Err(_) => {
                self.opening.iter().for_each(|opening| opening.abort());
                Ok(())
            }
        }
    }

    /// Returns once there is a host.
    async fn ready(&self) -> Host {
        let mut now = self.now.clone();
        let opened = now.wait_for(Result::is_ok).await.ok().and_then(|now| now.as_ref().ok().cloned());
        match opened {
            Some(host) => host,
            // None is opened any more.
            None => std::future::pending().await,
        }
    }
}

/// An error that goes away when an operator brings something, or the error.
fn waits_for(error: HostError) -> Result<Missing, HostError> {
    match Missing::of(error)? {
        // That takes another machine, or packages and this process anew.
        Missing::Driver { driver, reason } => Err(HostError::DriverUnusable { driver, reason }),
        image => Ok(image),
    }
}

/// VMs that end by themselves, whichever host there is.
pub(super) struct Ends {
    hosts: Hosts,
    news: Option<broadcast::Receiver<(VmId, VmEnd)>>,
}

impl Ends {
    pub(super) fn of(hosts: &Hosts) -> Self {
        Self { hosts: hosts.clone(), news: None }
    }

    /// The next one. Those that were missed are left to their connections. Cancel-safe.
    pub(super) async fn next(&mut self) -> (VmId, VmEnd) {
        loop {
            let news = match &mut self.news {
                Some(news) => news,
                None => {
                    let host = self.hosts.ready().await;
                    self.news.insert(host.ends())
                }
            };
            match news.recv().await {
                Ok(end) => return end,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => self.news = None,
            }
        }
    }
}
