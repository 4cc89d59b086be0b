//! The live desktop of a browser VM: one guest stream per sign-in, shared by its viewers whatever way they watch.
//!
//! ```text
//! guest program <--line--> hub --latest frames, words--> seat --> transport (WebRTC or WebSocket) --> viewer
//!                           ^-------input, words----------'
//! ```
//! One task, the hub, owns a desktop. A seat is what it shares with one viewer's transport. Neither side ever waits for
//! the other, so a slow viewer slows nobody.

mod age;
mod bucket;
mod clipboard;
mod control;
mod guest_stats;
mod hub;
mod keyframes;
mod line;
mod metrics;
mod outbox;
mod queue;
mod rate;
pub mod rfb;
mod seat;
mod size;
mod stats;
pub mod talk;
pub mod turn;
mod viewer;
pub mod webrtc;
mod words;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use polydev_core::ids::SessionId;
use polydev_host::Vm;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

use crate::{
    config::DesktopConfig,
    session::{Sessions, Shown},
    store::StoreError,
};
use hub::{Hall, Request};
use talk::{ClipboardPolicy, Role};

pub use metrics::Metrics;
pub use queue::FrameQueue;
pub use viewer::{Joined, Lane, ViewerLink};
pub use words::{Outgoing, WordQueue};

/// Joins that may wait for one hub.
const REQUESTS_MAX: usize = 32;
/// How long a hub may take for one; it waits for nothing.
const JOIN_LIMIT: Duration = Duration::from_secs(5);
/// A hub may end just when it is asked; the next one is another.
const JOIN_ATTEMPTS: usize = 3;

/// How desktops are shown.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Viewers of one desktop.
    pub viewers_max: usize,
    /// Which way clipboard texts may go.
    pub clipboard: ClipboardPolicy,
    /// Most pictures per second.
    pub max_fps: u8,
    /// Most that the encoder may make, kbit/s.
    pub max_kbps: u32,
}

impl From<&DesktopConfig> for Settings {
    fn from(config: &DesktopConfig) -> Self {
        let DesktopConfig { viewers_max, clipboard, max_fps, max_kbps, .. } = *config;
        Self { viewers_max, clipboard, max_fps, max_kbps }
    }
}

/// What desktops need.
pub struct Parts {
    /// Sign-ins.
    pub sessions: Sessions,
    /// How they are shown.
    pub settings: Settings,
    /// Size of a desktop before anybody asks for another.
    pub desktop_px: (u16, u16),
    /// Guests have the host's clock.
    pub shares_clock: bool,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Ends all of them.
    pub stop: CancellationToken,
}

/// The live desktops of all sign-ins.
pub struct Desktops {
    parts: Arc<Parts>,
    hubs: Mutex<HashMap<SessionId, mpsc::Sender<Request>>>,
    tasks: TaskTracker,
}

/// Why a viewer cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is no such sign-in.
    #[error("there is no such sign-in")]
    UnknownSession,
    /// The sign-in has no live browser now.
    #[error("there is no live browser now")]
    NoDesktop,
    /// As many watch as may.
    #[error("{max} viewers watch already")]
    TooManyViewers {
        /// How many may.
        max: usize,
    },
    /// Nobody who left lately has this token.
    #[error("the viewer is not known any more")]
    UnknownViewer,
    /// The service is being stopped.
    #[error("the service is being stopped")]
    ShuttingDown,
    /// The system gave no random bytes for a token.
    #[error("the system gives no random bytes")]
    NoRandomness,
    /// The sign-in could not be looked up.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Desktops {
    /// Nobody watches yet.
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), hubs: Mutex::default(), tasks: TaskTracker::new() }
    }

    /// Joins the desktop of a sign-in. A viewer that wishes for [`Role::View`] never gets the control.
    pub async fn join(&self, session: SessionId, wish: Role, lane: Lane) -> Result<Joined, JoinError> {
        self.ask(session, |reply| Request::Join { wish, lane, reply }).await
    }

    /// Joins again with the token of a connection that was lost or is about to be replaced; a connection that still
    /// stands is ended.
    pub async fn rejoin(&self, session: SessionId, token: &str, lane: Lane) -> Result<Joined, JoinError> {
        let token = Zeroizing::new(token.to_owned());
        self.ask(session, |reply| Request::Rejoin { token: token.clone(), lane, reply }).await
    }

    /// Figures.
    pub fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    /// Waits until every desktop has ended; they do when [`Parts::stop`] is cancelled.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn ask(
        &self,
        session: SessionId,
        request: impl Fn(oneshot::Sender<Result<Joined, JoinError>>) -> Request,
    ) -> Result<Joined, JoinError> {
        for _ in 0..JOIN_ATTEMPTS {
            if self.parts.stop.is_cancelled() {
                return Err(JoinError::ShuttingDown);
            }
            let Some(shown) = self.parts.sessions.watch(session) else {
                let is_known = self.parts.sessions.get(session).await?.is_some();
                return Err(if is_known { JoinError::NoDesktop } else { JoinError::UnknownSession });
            };
            let vm = {
                let shown = shown.borrow();
                shown.vm.clone().filter(|_| !shown.is_final()).ok_or(JoinError::NoDesktop)?
            };
            let hub = self.hub(session, vm, shown);
            let (reply, answer) = oneshot::channel();
            let asking = async {
                hub.send(request(reply)).await.ok()?;
                answer.await.ok()
            };
            if let Some(joined) = timeout(JOIN_LIMIT, asking).await.ok().flatten() {
                return joined;
            }
        }
        Err(JoinError::NoDesktop)
    }

    /// The hub of a sign-in; made if there is none.
    fn hub(&self, session: SessionId, vm: Vm, shown: watch::Receiver<Arc<Shown>>) -> mpsc::Sender<Request> {
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.retain(|_, hub| !hub.is_closed());
        if let Some(hub) = hubs.get(&session) {
            return hub.clone();
        }
        let (asks, requests) = mpsc::channel(REQUESTS_MAX);
        let (parts, stop) = (Arc::clone(&self.parts), self.parts.stop.clone());
        self.tasks.spawn(hub::run(Hall { session, vm, shown, stop, parts }, requests));
        hubs.insert(session, asks.clone());
        asks
    }
}
