//! Who drives the host. One controller at a time: two of them would each take the other's VMs for leftovers.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    super::{connection::Outbox, protocol::Denied},
    ControllerEgress,
};
use crate::egress::EgressRefused;

/// Handle to the place of the one controller; clones share it.
#[derive(Clone, Default)]
pub struct Lease {
    holder: Arc<watch::Sender<Option<Arc<Holder>>>>,
}

impl Lease {
    /// A handler that has whoever drives the host decide and connect.
    pub fn egress(&self) -> ControllerEgress {
        ControllerEgress::new(self.holder.subscribe())
    }

    pub(super) fn take(&self, new: &Arc<Holder>, take_over: bool) -> Result<(), Denied> {
        let mut result = Ok(());
        self.holder.send_modify(|holder| {
            match holder {
                Some(old) if !take_over => result = Err(Denied::Busy { pid: old.pid }),
                Some(old) => {
                    tracing::warn!(pid = old.pid, by = new.pid, "another controller takes over");
                    old.superseded.cancel();
                    *holder = Some(Arc::clone(new));
                }
                None => *holder = Some(Arc::clone(new)),
            };
        });
        result
    }

    pub(super) fn give_back(&self, mine: &Arc<Holder>) {
        self.holder.send_if_modified(|holder| {
            let is_mine = holder.as_ref().is_some_and(|it| Arc::ptr_eq(it, mine));
            if is_mine {
                *holder = None;
            }
            is_mine
        });
        mine.asks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// What a controller said to an ask.
pub(super) type Answer = (Result<(), EgressRefused>, Option<OwnedFd>);

/// The controller that drives.
pub(super) struct Holder {
    pid: Option<i32>,
    pub(super) outbox: Outbox,
    superseded: CancellationToken,
    next: AtomicU64,
    asks: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
}

impl Holder {
    pub(super) fn new(pid: Option<i32>, outbox: Outbox) -> Self {
        Self {
            pid,
            outbox,
            superseded: CancellationToken::new(),
            next: AtomicU64::new(1),
            asks: Mutex::default(),
        }
    }

    /// Returns when another one took over.
    pub(super) async fn superseded(&self) {
        self.superseded.cancelled().await;
    }

    /// A number for an ask, and where its answer arrives.
    pub(super) fn note_ask(&self) -> (u64, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        asks.retain(|_, reply| !reply.is_closed());
        asks.insert(id, reply);
        (id, answer)
    }

    pub(super) fn answered(&self, id: u64, result: Result<(), EgressRefused>, socket: Option<OwnedFd>) {
        let reply = self.asks.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        // An answer that nobody waits for any more came too late; its socket is closed.
        if let Some(reply) = reply {
            let _ = reply.send((result, socket));
        }
    }
}
