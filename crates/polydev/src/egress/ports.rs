//! Users' proxy ports: which one is whose, and the listeners.
//!
//! One task gives ports out and owns the listeners; others ask it. A port is given to a user when the user's first
//! policy is decided, and stays the user's until the user is removed. The database says whose it is; a listener
//! that could not be opened is tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use polydev_core::ids::UserId;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Gate, dial, proxy};
use crate::store::StoreError;

/// Questions that may wait.
const ASKS_MAX: usize = 64;
/// Most connections at one port at a time.
const CONNECTIONS_MAX: usize = 256;
/// After this long a port that another program had is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(15);
/// After a failed `accept` (no more file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why a user has no proxy port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// All ports are other users', rest, or are in use by other programs.
    #[error("no proxy port is free: all {total} are taken or rest")]
    Exhausted {
        /// How many there are.
        total: usize,
    },
    /// The user's own port is in use by another program.
    #[error("proxy port {port} cannot be opened: {source}")]
    Listen {
        /// Which.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The controller is shutting down.
    #[error("the service is being stopped")]
    Ended,
}

/// How a proxy port is used, since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSeen {
    /// Its number.
    pub port: u16,
    /// It is open; otherwise another program has it.
    pub listening: bool,
    /// Connections that are carried now.
    pub active: usize,
    /// Connections made.
    pub connected: u64,
    /// Requests refused.
    pub refused: u64,
    /// Bytes towards targets.
    pub bytes_out: u64,
    /// Bytes from there.
    pub bytes_in: u64,
}

/// Counters of one port.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) active: AtomicUsize,
    pub(super) connected: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    listening: AtomicBool,
    ends: watch::Sender<()>,
}

/// Handle to the task.
pub(super) struct Ports {
    asks: mpsc::Sender<Ask>,
    board: Arc<Board>,
}

enum Ask {
    Open(UserId, oneshot::Sender<Result<(), PortError>>),
    Close(UserId, oneshot::Sender<()>),
    CloseAll(oneshot::Sender<()>),
}

/// What others may look at.
type Board = Mutex<BTreeMap<UserId, (u16, Arc<Meter>)>>;

struct Owner {
    gate: Arc<Gate>,
    board: Arc<Board>,
    open: BTreeMap<UserId, Listening>,
}

struct Listening {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Ports {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let board: Arc<Board> = Arc::default();
        tokio::spawn(Owner { gate, board: Arc::clone(&board), open: BTreeMap::new() }.run(asked));
        Self { asks, board }
    }

    /// Opens the user's port; the user gets one who has none.
    pub(super) async fn open(&self, user: &UserId) -> Result<(), PortError> {
        self.ask(|reply| Ask::Open(user.clone(), reply)).await.unwrap_or(Err(PortError::Ended))
    }

    /// Closes the user's port and ends what goes through it.
    pub(super) async fn close(&self, user: &UserId) {
        // A task that has ended has closed everything.
        let _ = self.ask(|reply| Ask::Close(user.clone(), reply)).await;
    }

    /// Ends what goes through the user's port, which stays open.
    pub(super) fn end_connections(&self, user: &UserId) {
        if let Some((_, meter)) = self.lock().get(user) {
            meter.ends.send_replace(());
        }
    }

    /// Closes all ports and ends what goes through them.
    pub(super) async fn close_all(&self) {
        let _ = self.ask(Ask::CloseAll).await;
    }

    pub(super) fn seen(&self, user: &UserId) -> Option<PortSeen> {
        self.lock().get(user).map(|(port, meter)| meter.seen(*port))
    }

    pub(super) fn all_seen(&self) -> Vec<PortSeen> {
        self.lock().values().map(|(port, meter)| meter.seen(*port)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<UserId, (u16, Arc<Meter>)>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).await.ok()?;
        answer.await.ok()
    }
}

impl Meter {
    fn seen(&self, port: u16) -> PortSeen {
        PortSeen {
            port,
            listening: self.listening.load(Ordering::Relaxed),
            active: self.active.load(Ordering::Relaxed),
            connected: self.connected.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
        }
    }

    /// Counts a connection until the guard is dropped; `None` when there are too many.
    fn enter(self: &Arc<Self>) -> Option<Place> {
        let more = |n: usize| (n < CONNECTIONS_MAX).then_some(n + 1);
        self.active.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Place(Arc::clone(self)))
    }
}

struct Place(Arc<Meter>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Owner {
    /// Answers until nobody can ask any more; then everything is closed.
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        let mut again = tokio::time::interval(TRY_AGAIN);
        loop {
            tokio::select! {
                ask = asked.recv() => match ask {
                    // Who asked may have given up; the work is done all the same.
                    Some(Ask::Open(user, reply)) => drop(reply.send(self.open(&user).await)),
                    Some(Ask::Close(user, reply)) => {
                        self.close(&user).await;
                        let _ = reply.send(());
                    }
                    Some(Ask::CloseAll(reply)) => {
                        self.close_all().await;
                        let _ = reply.send(());
                    }
                    None => return self.close_all().await,
                },
                _ = again.tick() => self.try_again().await,
            }
        }
    }

    async fn open(&mut self, user: &UserId) -> Result<(), PortError> {
        if self.open.contains_key(user) {
            return Ok(());
        }
        match self.gate.store.proxy_port(user).await? {
            Some(port) => {
                let listener = self.listen(port).await;
                self.show(user, port);
                let listener = listener.map_err(|source| PortError::Listen { port, source })?;
                self.serve(user, port, listener);
            }
            None => {
                let (port, listener) = self.draw(user).await?;
                tracing::info!(%user, port, "proxy port given out");
                self.show(user, port);
                self.serve(user, port, listener);
            }
        }
        Ok(())
    }

    /// A port for a user who has none: one that nobody had, else the one that rests longest.
    async fn draw(&self, user: &UserId) -> Result<(u16, TcpListener), PortError> {
        let settings = &self.gate.settings;
        let rest_ms = i64::try_from(settings.proxy_port_rest.as_millis()).unwrap_or(i64::MAX);
        let rested_since = self.gate.clock.now_db().saturating_sub(rest_ms);
        let taken: BTreeSet<u16> = self.gate.store.taken_ports(rested_since).await?.into_iter().collect();
        let released = self.gate.store.released_ports().await?;
        let fresh = settings.proxy_ports.ports().filter(|port| !released.contains(port));
        let used = released.iter().copied().filter(|port| settings.proxy_ports.contains(*port));
        for port in fresh.chain(used).filter(|port| !taken.contains(port)) {
            // Opened before it is given out: another program may have it.
            let Ok(listener) = self.listen(port).await else { continue };
            // Not before: who gets no port is not heard of.
            self.gate.store.ensure_user(user, self.gate.clock.now_db()).await?;
            if self.gate.store.take_port(user, port).await? {
                return Ok((port, listener));
            }
        }
        Err(PortError::Exhausted { total: settings.proxy_ports.ports().len() })
    }

    async fn listen(&self, port: u16) -> io::Result<TcpListener> {
        TcpListener::bind(SocketAddr::new(self.gate.settings.proxy_listen, port)).await
    }

    /// Puts the port on the board, with the counters it has if it is there already.
    fn show(&self, user: &UserId, port: u16) {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.entry(user.clone()).or_insert_with(|| (port, Arc::default()));
    }

    fn serve(&mut self, user: &UserId, port: u16, listener: TcpListener) {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let meter = board.get(user).map(|(_, meter)| Arc::clone(meter)).unwrap_or_default();
        drop(board);
        meter.listening.store(true, Ordering::Relaxed);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let accepting = Accepting {
            gate: Arc::clone(&self.gate),
            user: user.clone(),
            meter,
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn(accepting.run(listener));
        tracing::debug!(%user, port, "proxy port is open");
        self.open.insert(user.clone(), Listening { stop, tasks });
    }

    async fn close(&mut self, user: &UserId) {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).remove(user);
        if let Some(Listening { stop, tasks }) = self.open.remove(user) {
            stop.cancel();
            tasks.close();
            tasks.wait().await;
        }
    }

    async fn close_all(&mut self) {
        let users: Vec<UserId> = self.open.keys().cloned().collect();
        for user in users {
            self.close(&user).await;
        }
        self.board.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Users on the board whose ports are not open.
    fn missing(&self) -> Vec<UserId> {
        let board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.keys().filter(|user| !self.open.contains_key(*user)).cloned().collect()
    }

    /// Opens ports that another program had.
    async fn try_again(&mut self) {
        for user in self.missing() {
            match self.open(&user).await {
                Ok(()) => tracing::info!(%user, "proxy port is open after all"),
                Err(error) => tracing::debug!(%user, %error, "proxy port is still not open"),
            }
        }
    }
}

/// Takes a port's connections.
struct Accepting {
    gate: Arc<Gate>,
    user: UserId,
    meter: Arc<Meter>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Accepting {
    async fn run(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((client, _)) => self.take(client),
                Err(error) => {
                    tracing::warn!(user = %self.user, %error, "proxy port cannot take a connection");
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
    }

    fn take(&self, client: TcpStream) {
        // One too many is closed without an answer: answers take time too.
        let Some(place) = self.meter.enter() else {
            self.meter.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        dial::tune(&client);
        let mut ended = self.meter.ends.subscribe();
        let (gate, user, stop) = (Arc::clone(&self.gate), self.user.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = ended.changed() => {}
                () = proxy::serve(&gate, &user, &place.0, client) => {}
            }
        });
    }
}
