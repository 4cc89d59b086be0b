//! The connection to the host process: made, kept, made again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use polydev_core::ids::VmId;
use tokio::{
    net::UnixStream,
    sync::{Semaphore, oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    super::{
        connection::{self, Outbox, Outgoing, Reader},
        protocol::{Denied, PROTOCOL_VERSION, Reply, Request, Role, ToClient, ToServer},
    },
    RemoteOptions,
    agents::Agents,
};
use crate::{
    egress::{EgressHandler, EgressRefused},
    error::HostError,
    host::HostStatus,
};

/// How long a request waits for a host process that is being started anew.
const GRACE: Duration = Duration::from_secs(3);
/// Pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long the answer to hello may take.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// How often the status is asked for, which shows that the host process is well, too.
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// Most connections of VMs that are being made at a time.
const ASKS: usize = 1024;

/// What all handles and agents' connectors share.
pub(super) struct Core {
    state: watch::Sender<State>,
    /// Since the first welcome.
    status: Mutex<Option<HostStatus>>,
    /// As the last status tells.
    paused: watch::Sender<BTreeSet<VmId>>,
    egress: Arc<dyn EgressHandler>,
    /// What every host process is told, by name of the request.
    standing: Mutex<BTreeMap<&'static str, Request>>,
    /// VMs that this program uses: a host process that comes later does for them what ended with the former one.
    used: Mutex<BTreeSet<VmId>>,
}

/// How the connection is.
enum State {
    /// Being made (again).
    Down { reason: String },
    /// Hello was good.
    Up(Arc<Link>),
    /// For good.
    Closed { reason: String },
}

/// One connection.
struct Link {
    outbox: Outbox,
    next: AtomicU64,
    pending: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
}

type Answer = (Result<Reply, HostError>, Option<OwnedFd>);

impl Core {
    pub(super) fn new(egress: Arc<dyn EgressHandler>) -> Self {
        let (state, _) = watch::channel(State::Down { reason: "it was not connected to yet".into() });
        Self {
            state,
            status: Mutex::default(),
            paused: watch::Sender::default(),
            egress,
            standing: Mutex::default(),
            used: Mutex::default(),
        }
    }

    pub(super) fn egress(&self) -> Arc<dyn EgressHandler> {
        Arc::clone(&self.egress)
    }

    pub(super) fn status(&self) -> HostStatus {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.expect("handles are given out after the first welcome, which tells it")
    }

    pub(super) fn paused(&self) -> watch::Receiver<BTreeSet<VmId>> {
        self.paused.subscribe()
    }

    /// Tells it to every host process that comes after this one, too.
    pub(super) fn remember(&self, request: &Request) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing.insert(request.name(), request.clone());
    }

    /// Has every host process that comes after this one take the VM over.
    pub(super) fn uses(&self, id: VmId) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    /// No longer so.
    pub(super) fn uses_no_more(&self, id: VmId) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// What a host process is told when it has said welcome.
    fn first_words(&self) -> Vec<Request> {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner).clone();
        standing.into_values().chain(used.into_iter().map(|id| Request::Adopt { id })).collect()
    }

    pub(super) fn ready(&self) -> Result<(), HostError> {
        match &*self.state.borrow() {
            State::Up(_) => Ok(()),
            State::Down { reason } | State::Closed { reason } => Err(unavailable(reason)),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(*self.state.borrow(), State::Closed { .. })
    }

    pub(super) fn close(&self, reason: &str) {
        self.state.send_replace(State::Closed { reason: reason.to_owned() });
    }

    /// Returns once the first hello was good, or with the last reason why it was not.
    pub(super) async fn first(&self, limit: Duration) -> Result<(), HostError> {
        self.up_within(limit).await.map(drop)
    }

    /// Waits a moment for a host process that is being started anew.
    pub(super) async fn ready_soon(&self) -> Result<(), HostError> {
        self.up_within(GRACE).await.map(drop)
    }

    /// Returns once no connection will be made any more, with the reason.
    pub(super) async fn closed(&self) -> String {
        let mut state = self.state.subscribe();
        // The sender is part of this very value: this cannot end without the reason.
        let _ = state.wait_for(|state| matches!(state, State::Closed { .. })).await;
        match &*self.state.borrow() {
            State::Closed { reason } | State::Down { reason } => reason.clone(),
            State::Up(_) => String::new(),
        }
    }

    pub(super) async fn ask(&self, request: Request) -> Result<Reply, HostError> {
        self.ask_for_socket(request).await.map(|(reply, _)| reply)
    }

    pub(super) async fn ask_for_socket(
        &self,
        request: Request,
    ) -> Result<(Reply, Option<OwnedFd>), HostError> {
        let link = self.up_within(GRACE).await?;
        link.ask(request).await
    }

    async fn up_within(&self, limit: Duration) -> Result<Arc<Link>, HostError> {
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Down { .. }));
        let _ = timeout(limit, settled).await;
        match &*self.state.borrow() {
            State::Up(link) => Ok(Arc::clone(link)),
            State::Down { reason } | State::Closed { reason } => Err(unavailable(reason)),
        }
    }

    /// Whether the host process misses nothing any more that it missed before.
    fn note(&self, status: HostStatus) -> bool {
        let (complete, stand_still) = (status.missing.is_none(), status.paused.clone());
        let before = self.status.lock().unwrap_or_else(PoisonError::into_inner).replace(status);
        // Told afterwards: whoever is woken by it may look at the status.
        self.paused.send_if_modified(|paused| {
            let changed = *paused != stand_still;
            *paused = stand_still;
            changed
        });
        complete && before.is_some_and(|before| before.missing.is_some())
    }

    /// Publishes how the connection is, unless it was closed for good.
    fn publish(&self, new: State) {
        self.state.send_if_modified(|state| {
            let open = !matches!(state, State::Closed { .. });
            if open {
                *state = new;
            }
            open
        });
    }
}

impl Link {
    async fn ask(&self, request: Request) -> Result<(Reply, Option<OwnedFd>), HostError> {
        let (name, limit) = (request.name(), Instant::now() + request.limit());
        let (reply, answer) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let message = Outgoing::new(&ToServer::Request { id, request });
        let message = message.map_err(|error| unavailable(&format!("{name} cannot be sent: {error}")))?;
        {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.retain(|_, reply| !reply.is_closed());
            pending.insert(id, reply);
        }
        let lost = || unavailable(&format!("the connection was lost during {name}"));
        let answered = timeout_at(limit, async {
            self.outbox.send(message).await.map_err(|_| lost())?;
            answer.await.map_err(|_| lost())
        });
        match answered.await {
            Ok(answer) => {
                let (result, socket) = answer?;
                Ok((result?, socket))
            }
            Err(_) => Err(unavailable(&format!("it did not answer {name} in time"))),
        }
    }
}

/// Connects and keeps the connection until it is closed for good.
pub(super) async fn keep_up(core: Arc<Core>, agents: Weak<Agents>, options: RemoteOptions) {
    let (mut pause, mut role) = (FIRST_PAUSE, options.role);
    while !core.is_closed() {
        match hello(&options.socket, role).await {
            Ok((mut reader, outbox, writing, status)) => {
                tracing::info!(socket = %options.socket.display(), "connected to the host process");
                // Whoever took over once does not do it again: two of them would never stop.
                if let Role::Controller { take_over } = &mut role {
                    *take_over = false;
                }
                core.note(status);
                let link = Arc::new(Link { outbox, next: AtomicU64::new(1), pending: Mutex::default() });
                core.publish(State::Up(Arc::clone(&link)));
                let reason = converse(&core, &agents, &link, &mut reader, writing).await;
                let superseded = matches!(reason, Lost::Superseded);
                let reason = reason.to_string();
                tracing::warn!(reason, "connection to the host process lost");
                core.publish(match superseded {
                    true => State::Closed { reason },
                    false => State::Down { reason },
                });
                // Whoever waits learns it now.
                link.pending.lock().unwrap_or_else(PoisonError::into_inner).clear();
                pause = FIRST_PAUSE;
            }
            Err(Refused::Denied(denied @ (Denied::Version { .. } | Denied::User { .. }))) => {
                core.publish(State::Closed { reason: denied.to_string() });
            }
            Err(refused) => core.publish(State::Down { reason: refused.to_string() }),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Denied(Denied),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it did not answer hello")]
    Silent,
}

type Connected = (Reader, Outbox, AbortOnDropHandle<io::Result<()>>, HostStatus);

async fn hello(socket: &Path, role: Role) -> Result<Connected, Refused> {
    let stream = UnixStream::connect(socket).await?;
    let (mut reader, writer, outbox) = connection::split(stream);
    let writing = AbortOnDropHandle::new(tokio::spawn(writer.run()));
    let hello = Outgoing::new(&ToServer::Hello { version: PROTOCOL_VERSION, role })?;
    outbox.send(hello).await.map_err(|_| Refused::Silent)?;
    match timeout(HELLO_LIMIT, reader.next::<ToClient>()).await {
        Ok(Ok(Some((ToClient::Welcome { status }, _)))) => Ok((reader, outbox, writing, status)),
        Ok(Ok(Some((ToClient::Denied(denied), _)))) => Err(Refused::Denied(denied)),
        Ok(Err(error)) => Err(error.into()),
        Ok(Ok(_)) | Err(_) => Err(Refused::Silent),
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("it closed the connection")]
    Closed,
    #[error("{0}")]
    Io(io::Error),
    #[error("it takes no messages")]
    Writing,
    #[error("it did not answer in time")]
    Silent,
    #[error("another controller took over")]
    Superseded,
}

async fn converse(
    core: &Arc<Core>,
    agents: &Weak<Agents>,
    link: &Arc<Link>,
    reader: &mut Reader,
    mut writing: AbortOnDropHandle<io::Result<()>>,
) -> Lost {
    let mut asks = JoinSet::new();
    tell_again(core, link, &mut asks);
    let free = Arc::new(Semaphore::new(ASKS));
    let watching = watch_status(link);
    tokio::pin!(watching);
    loop {
        let message = tokio::select! {
            message = reader.next::<ToClient>() => message,
            () = &mut watching => return Lost::Silent,
            _ = &mut writing => return Lost::Writing,
            Some(_) = asks.join_next() => continue,
        };
        match message {
            Ok(Some((ToClient::Reply { id, result, status }, socket))) => {
                if core.note(status) {
                    tell_again(core, link, &mut asks);
                }
                let reply = link.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                if let Some(reply) = reply {
                    let _ = reply.send((result, socket));
                }
            }
            Ok(Some((ToClient::Ask { id, vm, host, port }, None))) => {
                let (egress, outbox, free) = (core.egress(), link.outbox.clone(), Arc::clone(&free));
                asks.spawn(async move {
                    let (result, socket) = match free.try_acquire() {
                        Ok(_place) => connect(&*egress, vm, &host, port).await,
                        Err(_) => (Err(EgressRefused::Unreachable("too many connections".into())), None),
                    };
                    if let Ok(answer) = Outgoing::with_socket(&ToServer::Answer { id, result }, socket) {
                        let _ = outbox.send(answer).await;
                    }
                });
            }
            Ok(Some((ToClient::Ended { vm, end }, None))) => {
                if let Some(agent) = agents.upgrade().and_then(|agents| agents.get(vm)) {
                    agent.vm_ended(end);
                }
            }
            Ok(Some((ToClient::Superseded, _))) => return Lost::Superseded,
            Ok(Some((
                ToClient::Welcome { .. }
                | ToClient::Denied(_)
                | ToClient::Ask { .. }
                | ToClient::Ended { .. },
                _,
            ))) => {
                return Lost::Io(io::ErrorKind::InvalidData.into());
            }
            Ok(None) => return Lost::Closed,
            Err(error) => return Lost::Io(error),
        }
    }
}

fn tell_again(core: &Core, link: &Arc<Link>, asks: &mut JoinSet<()>) {
    for request in core.first_words() {
        let (name, link) = (request.name(), Arc::clone(link));
        asks.spawn(async move {
            if let Err(error) = link.ask(request).await {
                tracing::warn!(request = name, %error, "the host process could not be told again");
            }
        });
    }
}

async fn connect(
    egress: &dyn EgressHandler,
    vm: VmId,
    host: &str,
    port: u16,
) -> (Result<(), EgressRefused>, Option<OwnedFd>) {
    match egress.connect(vm, host, port).await {
        Ok(stream) => match stream.into_std() {
            Ok(stream) => (Ok(()), Some(stream.into())),
            Err(error) => (Err(EgressRefused::Unreachable(error.to_string())), None),
        },
        Err(refused) => (Err(refused), None),
    }
}

/// Returns when the host process does not answer any more.
async fn watch_status(link: &Link) {
    loop {
        tokio::time::sleep(STATUS_EVERY).await;
        if link.ask(Request::Status).await.is_err() {
            return;
        }
    }
}

fn unavailable(reason: &str) -> HostError {
    HostError::Unavailable { reason: reason.to_owned() }
}
