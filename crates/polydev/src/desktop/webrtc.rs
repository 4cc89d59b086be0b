//! The desktop over WebRTC: one endpoint for all viewers, on one port for UDP and TCP.
//!
//! ```text
//! page --offer--> API --> Endpoint --task--> Session (str0m) <--frames, words-- hub
//!   |                                          |  ^
//!   '----- UDP or TCP packets ----- Net -------'  '-- Routes: by ICE name, then by address
//! ```
//! The endpoint lives on a thread of its own, so that neither a busy API delays a packet nor a handshake the API. Each
//! viewer is one task there and owns its session. The page's ICE does all the work (the endpoint is ICE lite): it never
//! sends to an address from which no verified request came.

mod addresses;
mod clock;
mod framing;
mod guarded;
#[cfg(test)]
mod loss;
mod net;
mod offer;
mod pace;
mod routes;
mod session;
mod tcp;
mod viewer;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use polydev_core::ids::SessionId;
use subtle::ConstantTimeEq;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

use crate::config::DesktopConfig;

use self::{
    addresses::Announced,
    net::Net,
    offer::AcceptError,
    pace::Pace,
    routes::Routes,
    session::{Identity, Session},
    viewer::{Command, Viewer},
};
use super::{Desktops, JoinError, Joined, Lane, talk::Role};

pub use offer::{CandidateUse, Offer, OfferFault, SDP_MAX, judge_candidate};

/// Viewers of all desktops together.
const VIEWERS_MAX: usize = 256;
/// Packets that wait for a viewer's task.
const INBOX: usize = 256;
/// How long a viewer's task may take to answer a further offer.
const COMMAND_LIMIT: Duration = Duration::from_secs(2);
/// How long good-byes may take at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Why the endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address cannot be listened on.
    #[error("listen for desktops on {listen} (UDP and TCP): {source}")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its thread.
    #[error("start the thread of the desktop endpoint: {0}")]
    Thread(#[source] io::Error),
    /// Its certificate.
    #[error("make a certificate for desktops")]
    Certificate,
}

/// Why an offer is not answered.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// The offer itself.
    #[error(transparent)]
    Fault(#[from] OfferFault),
    /// The desktop does not take the viewer.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The same offer is being answered.
    #[error("the same offer is being answered")]
    InProgress,
    /// The viewer is another's.
    #[error("the viewer is not known, or its token is another")]
    UnknownViewer,
    /// Too many viewers of all desktops.
    #[error("{VIEWERS_MAX} viewers are connected already")]
    Full,
    /// The endpoint does not work.
    #[error("the desktop endpoint failed")]
    Failed,
}

/// A page's wish to watch.
pub struct Wish {
    /// Its offer.
    pub offer: Offer,
    /// What it wants to do.
    pub role: Role,
    /// The token of the viewer it was before.
    pub resume: Option<Zeroizing<String>>,
    /// The viewer it is, if its connection is to go on.
    pub viewer: Option<u32>,
}

/// What a page is answered.
#[derive(Clone)]
pub struct Answered {
    /// The viewer's number.
    pub viewer: u32,
    /// With it, the viewer can come again.
    pub resume: Zeroizing<String>,
    /// SDP, candidates of the endpoint included.
    pub answer: String,
}

/// What was said last between a page and the endpoint.
#[derive(Clone)]
pub struct Signalled {
    /// What the page offered, without its candidates.
    pub offer: String,
    /// What it was answered.
    pub answered: Answered,
}

/// The WebRTC endpoint. Dropping it ends it without good-byes.
pub struct Endpoint {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
    runtime: tokio::runtime::Handle,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    address: SocketAddr,
    public: Vec<IpAddr>,
    max_kbps: u32,
    identity: Identity,
    /// Until the port is given back.
    net: Mutex<Option<Arc<Net>>>,
    routes: Arc<Routes>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    seated: HashMap<(SessionId, u32), Seated>,
    /// Offers that are being answered.
    pending: Vec<(SessionId, [u8; 32])>,
}

/// A viewer's task, as others know it.
struct Seated {
    offer: Offer,
    answered: Answered,
    commands: mpsc::Sender<Command>,
    stop: CancellationToken,
    /// Which task it is: the same viewer may have a newer one.
    key: routes::ViewerKey,
    newest: u64,
}

impl Endpoint {
    /// Takes the port and starts the thread.
    pub fn open(config: &DesktopConfig) -> Result<Self, EndpointError> {
        let listen = config.listen;
        let bound = net::bind(listen).map_err(|source| EndpointError::Listen { listen, source })?;
        let address = bound.address;
        let identity = Identity::new().ok_or(EndpointError::Certificate)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(EndpointError::Thread)?;
        let (net, listener) = {
            let _inside = runtime.enter();
            Net::open(bound).map_err(|source| EndpointError::Listen { listen, source })?
        };
        let shared = Arc::new(Shared {
            address,
            public: config.public_addresses.clone(),
            max_kbps: config.max_kbps,
            identity,
            net: Mutex::new(Some(Arc::clone(&net))),
            routes: Arc::new(Routes::default()),
            table: Mutex::default(),
        });
        let (stop, tasks, handle) = (CancellationToken::new(), TaskTracker::new(), runtime.handle().clone());
        let (stopped, ended, routes) = (stop.clone(), tasks.clone(), Arc::clone(&shared.routes));
        let thread = std::thread::Builder::new().name("desktop".to_owned()).spawn(move || {
            runtime.block_on(async {
                let viewers_have_ended = async {
                    stopped.cancelled().await;
                    let _ = tokio::time::timeout(CLOSE_LIMIT, ended.wait()).await;
                };
                tokio::select! {
                    () = viewers_have_ended => {}
                    () = net.receive(&routes) => {}
                    () = net.flush() => {}
                    () = tcp::listen(listener, Arc::clone(&net), Arc::clone(&routes)) => {}
                }
            });
        });
        let thread = Mutex::new(Some(thread.map_err(EndpointError::Thread)?));
        Ok(Self { shared, stop, tasks, runtime: handle, thread })
    }

    /// Where it listens, UDP and TCP.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Gives the addresses that pages are told, as they are at the time, for whoever relays to them.
    pub fn announced(&self) -> Arc<dyn Fn() -> Vec<SocketAddr> + Send + Sync> {
        let (address, public) = (self.shared.address, self.shared.public.clone());
        Arc::new(move || {
            Announced::now(address, &public).candidates().iter().map(|candidate| candidate.addr()).collect()
        })
    }

    /// How many viewers it has.
    pub fn viewers(&self) -> usize {
        self.shared.table().seated.len()
    }

    /// Answers an offer. The same offer gets the same answer again as long as its viewer is there, and never a second
    /// viewer.
    pub async fn answer(
        &self,
        desktops: &Desktops,
        session: SessionId,
        wish: Wish,
    ) -> Result<Answered, OfferError> {
        if self.stop.is_cancelled() {
            return Err(JoinError::ShuttingDown.into());
        }
        let offer = (session, wish.offer.digest());
        {
            let mut table = self.shared.table();
            if let Some(answered) = table.already(session, &wish.offer) {
                return Ok(answered);
            }
            if table.pending.contains(&offer) {
                return Err(OfferError::InProgress);
            }
            if table.seated.len() + table.pending.len() >= VIEWERS_MAX {
                return Err(OfferError::Full);
            }
            table.pending.push(offer);
        }
        let _pending = Pending { shared: &self.shared, offer };
        if let (Some(viewer), Some(resume)) = (wish.viewer, &wish.resume)
            && let Some(answered) = self.go_on(session, viewer, resume, &wish.offer).await?
        {
            return Ok(answered);
        }
        // Before anybody joins: a page that cannot show the picture shall not count as a viewer.
        let (rtc, pace) = self.shared.accept(&wish.offer)?;
        let joined = match &wish.resume {
            Some(token) => desktops.rejoin(session, token, Lane::WebRtc).await?,
            None => desktops.join(session, wish.role, Lane::WebRtc).await?,
        };
        self.seat(session, wish.offer, joined, rtc, pace)
    }

    /// What was said last between the page of this viewer, or of the newest one, and the endpoint.
    pub fn signalled(&self, session: SessionId, viewer: Option<u32>) -> Option<Signalled> {
        let table = self.shared.table();
        let of_session = table
            .seated
            .iter()
            .filter(|((of, number), _)| *of == session && viewer.is_none_or(|viewer| viewer == *number));
        let (_, seated) = of_session.max_by_key(|(_, seated)| seated.newest)?;
        Some(Signalled { offer: seated.offer.sdp().to_owned(), answered: seated.answered.clone() })
    }

    /// Says good-bye to all viewers and gives the port back.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic there has been printed.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        self.shared.net.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Has the connection of a viewer go on: ICE restart, or another description of the same. `None` if it cannot.
    async fn go_on(
        &self,
        session: SessionId,
        viewer: u32,
        resume: &str,
        offer: &Offer,
    ) -> Result<Option<Answered>, OfferError> {
        let commands = {
            let table = self.shared.table();
            let Some(seated) = table.seated.get(&(session, viewer)) else { return Ok(None) };
            if !bool::from(seated.answered.resume.as_bytes().ct_eq(resume.as_bytes())) {
                return Err(OfferError::UnknownViewer);
            }
            if !offer.continues(&seated.offer) {
                return Ok(None);
            }
            seated.commands.clone()
        };
        let (reply, answer) = oneshot::channel();
        let asked = async {
            commands.send(Command { offer: offer.clone(), reply }).await.ok()?;
            answer.await.ok()
        };
        let Ok(Some(answer)) = tokio::time::timeout(COMMAND_LIMIT, asked).await else { return Ok(None) };
        let answer = answer?;
        let mut table = self.shared.table();
        let newest = table.newest();
        let Some(seated) = table.seated.get_mut(&(session, viewer)) else { return Ok(None) };
        (seated.offer, seated.answered.answer, seated.newest) = (offer.clone(), answer, newest);
        Ok(Some(seated.answered.clone()))
    }

    fn seat(
        &self,
        session: SessionId,
        offer: Offer,
        joined: Joined,
        (rtc, answer): (str0m::Rtc, String),
        pace: Pace,
    ) -> Result<Answered, OfferError> {
        let shared = Arc::clone(&self.shared);
        let net = shared.net.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let net = net.ok_or(JoinError::ShuttingDown)?;
        let Joined { viewer, link, frames, words } = joined;
        let answered =
            Answered { viewer, resume: Zeroizing::new(link.reconnect_token()), answer: answer.clone() };
        let (inbox, packets) = mpsc::channel(INBOX);
        let (commands, asked) = mpsc::channel(1);
        let key = shared.routes.add(inbox);
        let routes = Arc::clone(&shared.routes);
        let session_of_viewer = Session::new(rtc, pace, key, link, net, routes, Instant::now());
        let stop = self.stop.child_token();
        {
            let mut table = shared.table();
            let newest = table.newest();
            let seated =
                Seated { offer, answered: answered.clone(), commands, stop: stop.clone(), key, newest };
            // The same viewer over a new connection: the former one has no part in it any more.
            if let Some(former) = table.seated.insert((session, viewer), seated) {
                former.stop.cancel();
            }
        }
        let task = Viewer { session: session_of_viewer, frames, words, packets, commands: asked, stop };
        shared.routes.name(key, &viewer::local_name(&answer).ok_or(OfferError::Failed)?);
        self.runtime.spawn(self.tasks.track_future(async move {
            let ended = task.run(session).await;
            tracing::info!(session.id = %session, viewer, reason = %ended, "WebRTC viewer has left");
            shared.routes.remove(key);
            let mut table = shared.table();
            if table.seated.get(&(session, viewer)).is_some_and(|seated| seated.key == key) {
                table.seated.remove(&(session, viewer));
            }
        }));
        Ok(answered)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
    }
}

impl Shared {
    /// A session that has accepted the offer, with its answer.
    fn accept(&self, offer: &Offer) -> Result<((str0m::Rtc, String), Pace), OfferError> {
        let pace = Pace::new(self.max_kbps);
        let mut rtc = self.identity.new_rtc(&pace);
        for candidate in Announced::now(self.address, &self.public).candidates() {
            rtc.add_local_candidate(candidate);
        }
        let answer = offer.accept(&mut rtc).map_err(OfferError::from)?;
        if !viewer::sends_h264(&answer) {
            return Err(OfferFault::NoH264.into());
        }
        Ok(((rtc, answer), pace))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn already(&self, session: SessionId, offer: &Offer) -> Option<Answered> {
        let mut of_session = self.seated.iter().filter(|((of, _), _)| *of == session);
        let same = of_session.find(|(_, seated)| seated.offer.digest() == offer.digest());
        same.map(|(_, seated)| seated.answered.clone())
    }

    fn newest(&self) -> u64 {
        self.seated.values().map(|seated| seated.newest).max().unwrap_or(0) + 1
    }
}

/// An offer that is being answered.
struct Pending<'a> {
    shared: &'a Shared,
    offer: (SessionId, [u8; 32]),
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.shared.table().pending.retain(|pending| *pending != self.offer);
    }
}

impl From<AcceptError> for OfferError {
    fn from(error: AcceptError) -> Self {
        match error {
            AcceptError::Fault(fault) => Self::Fault(fault),
            AcceptError::Panicked(_) => Self::Failed,
        }
    }
}
