//! What each VM's way out may use and did use, whichever way its traffic comes.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use polydev_core::{guest::network::Traffic, ids::VmId};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Sleep, sleep},
};

use super::bucket::Bucket;

/// Bytes buffered in each direction of a connection.
const BUFFER: usize = 64 << 10;
/// Most hosts of a VM whose traffic is told apart.
const HOSTS_MAX: usize = 4096;

/// What one VM may use at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EgressLimits {
    /// Most connections at one time.
    pub connections: usize,
    /// Most connections that are being made at one time.
    pub half_open: usize,
    /// New connections per second on average; zero: no limit.
    pub connections_per_second: u64,
    /// New connections at once.
    pub connections_burst: u64,
    /// Bytes per second on average, both ways together; zero: no limit.
    pub bytes_per_second: u64,
    /// How long a connection on which nothing moves is kept.
    pub idle: Duration,
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self {
            connections: 256,
            half_open: 64,
            connections_per_second: 50,
            connections_burst: 200,
            bytes_per_second: 64 << 20,
            idle: Duration::from_secs(900),
        }
    }
}

/// Names and connections that a VM may ask for, whatever is said to them: each takes this process's time.
const ASKS_PER_S: u64 = 500;
const ASKS_BURST: u64 = 1000;

/// What one VM used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressUsage {
    /// Connections made.
    pub connections: u64,
    /// Connections refused, unreachable or too many.
    pub refused: u64,
    /// Bytes that left.
    pub bytes_up: u64,
    /// Bytes that came.
    pub bytes_down: u64,
}

impl std::ops::AddAssign for EgressUsage {
    fn add_assign(&mut self, other: Self) {
        let Self { connections, refused, bytes_up, bytes_down } = other;
        self.connections += connections;
        self.refused += refused;
        self.bytes_up += bytes_up;
        self.bytes_down += bytes_down;
    }
}

/// Counts of one VM; lives as long as the VM is known.
#[derive(Debug, Default)]
struct Meter {
    connections: AtomicU64,
    refused: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

/// A connection's place among those that a VM may have.
#[derive(Debug)]
pub(crate) struct Place {
    ended: watch::Receiver<()>,
    _permit: OwnedSemaphorePermit,
}

/// One VM's limits and counts.
#[derive(Debug)]
pub(crate) struct Account {
    limits: EgressLimits,
    meter: Meter,
    places: Arc<Semaphore>,
    ends: watch::Sender<()>,
    openings: Arc<Semaphore>,
    new: Mutex<Bucket>,
    asks: Mutex<Bucket>,
    bytes: Mutex<Bucket>,
    hosts: Mutex<HashMap<String, Traffic>>,
}

impl Default for Account {
    fn default() -> Self {
        Self::new(EgressLimits::default())
    }
}

impl Account {
    pub(crate) fn new(limits: EgressLimits) -> Self {
        Self {
            limits,
            meter: Meter::default(),
            places: Arc::new(Semaphore::new(limits.connections)),
            ends: watch::Sender::default(),
            openings: Arc::new(Semaphore::new(limits.half_open)),
            new: Mutex::new(Bucket::new(limits.connections_per_second, limits.connections_burst)),
            asks: Mutex::new(Bucket::new(ASKS_PER_S, ASKS_BURST)),
            // A second's worth at once.
            bytes: Mutex::new(Bucket::new(limits.bytes_per_second, limits.bytes_per_second)),
            hosts: Mutex::default(),
        }
    }

    pub(crate) fn usage(&self) -> EgressUsage {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        EgressUsage {
            connections: read(&self.meter.connections),
            refused: read(&self.meter.refused),
            bytes_up: read(&self.meter.bytes_up),
            bytes_down: read(&self.meter.bytes_down),
        }
    }

    /// A place for one more connection, unless there are too many. To be had before it is decided about the connection.
    pub(crate) fn place(&self) -> Option<Place> {
        let ended = self.ends.subscribe();
        let permit = Arc::clone(&self.places).try_acquire_owned().ok();
        if permit.is_none() {
            self.meter.refused.fetch_add(1, Ordering::Relaxed);
        }
        permit.map(|permit| Place { ended, _permit: permit })
    }

    /// Ends all connections that have a place, those that are still being made too.
    pub(crate) fn end_connections(&self) {
        self.ends.send_replace(());
    }

    /// Waits until the VM may ask for one more name or connection. Whoever asks faster waits itself: what it says meanwhile
    /// stays with the kernel, which drops what is too much.
    pub(crate) async fn ask(&self) {
        let wait = lock(&self.asks).take(1, Instant::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }

    /// Waits until one more connection may be made; hold what it returns until that is done.
    pub(crate) async fn opening(&self) -> Option<OwnedSemaphorePermit> {
        let wait = lock(&self.new).take(1, Instant::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        Arc::clone(&self.openings).acquire_owned().await.ok()
    }

    pub(crate) fn connected(&self, host: &str) {
        self.meter.connections.fetch_add(1, Ordering::Relaxed);
        self.of_host(host, |traffic| traffic.connected += 1);
    }

    pub(crate) fn refused(&self, host: &str) {
        self.meter.refused.fetch_add(1, Ordering::Relaxed);
        self.of_host(host, |traffic| traffic.refused += 1);
    }

    /// What went to and came from one host.
    pub(crate) fn traffic(&self, host: &str) -> Traffic {
        lock(&self.hosts).get(host).copied().unwrap_or_default()
    }

    fn of_host(&self, host: &str, change: impl FnOnce(&mut Traffic)) {
        let mut hosts = lock(&self.hosts);
        if hosts.len() >= HOSTS_MAX && !hosts.contains_key(host) {
            hosts.clear();
        }
        change(hosts.entry(host.to_owned()).or_default());
    }

    /// Carries a connection to its end, until it is ended, or until nothing moved for too long.
    pub(crate) async fn carry<N, F>(
        self: &Arc<Self>,
        host: &str,
        near: &mut N,
        far: F,
        mut place: Place,
    ) -> io::Result<()>
    where
        N: AsyncRead + AsyncWrite + Unpin,
        F: AsyncRead + AsyncWrite + Unpin,
    {
        let moved = AtomicU64::default();
        let mut far = Metered { account: self, host, far, moved: &moved, debt: None };
        let still = async {
            let mut before = u64::MAX;
            loop {
                let now = moved.load(Ordering::Relaxed);
                if now == before {
                    return;
                }
                before = now;
                sleep(self.limits.idle).await;
            }
        };
        tokio::select! {
            ended = copy_bidirectional_with_sizes(near, &mut far, BUFFER, BUFFER) => ended.map(drop),
            // The account outlives this, and with it what tells.
            _ = place.ended.changed() => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "it was ended")),
            () = still => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing moved")),
        }
    }
}

/// The far end of a connection: what passes it is counted and takes its time.
struct Metered<'a, F> {
    account: &'a Account,
    host: &'a str,
    far: F,
    moved: &'a AtomicU64,
    debt: Option<Pin<Box<Sleep>>>,
}

impl<F> Metered<'_, F> {
    fn poll_debt(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(debt) = &mut self.debt {
            ready!(debt.as_mut().poll(cx));
            self.debt = None;
        }
        Poll::Ready(())
    }

    fn passed(&mut self, count: usize, total: &AtomicU64) {
        let count = count as u64;
        total.fetch_add(count, Ordering::Relaxed);
        self.moved.fetch_add(count, Ordering::Relaxed);
        let wait = lock(&self.account.bytes).take(count, Instant::now());
        if !wait.is_zero() {
            self.debt = Some(Box::pin(sleep(wait)));
        }
    }
}

impl<F: AsyncRead + Unpin> AsyncRead for Metered<'_, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_debt(cx));
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.far).poll_read(cx, buf))?;
        let count = buf.filled().len() - before;
        let account = self.account;
        if count > 0 {
            self.passed(count, &account.meter.bytes_down);
            account.of_host(self.host, |traffic| traffic.bytes_back += count as u64);
        }
        Poll::Ready(Ok(()))
    }
}

impl<F: AsyncWrite + Unpin> AsyncWrite for Metered<'_, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_debt(cx));
        let count = ready!(Pin::new(&mut self.far).poll_write(cx, buf))?;
        let account = self.account;
        self.passed(count, &account.meter.bytes_up);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.far).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.far).poll_shutdown(cx)
    }
}

/// The accounts of all VMs.
#[derive(Debug)]
pub(crate) struct Accounts {
    limits: EgressLimits,
    all: Mutex<BTreeMap<VmId, Arc<Account>>>,
}

impl Accounts {
    pub(crate) fn new(limits: EgressLimits) -> Self {
        Self { limits, all: Mutex::default() }
    }

    /// The VM's account, opened if it has none.
    pub(crate) fn of(&self, vm: VmId) -> Arc<Account> {
        let open = || Arc::new(Account::new(self.limits));
        Arc::clone(lock(&self.all).entry(vm).or_insert_with(open))
    }

    /// What a VM used, if it is known.
    pub(crate) fn usage(&self, vm: VmId) -> Option<EgressUsage> {
        lock(&self.all).get(&vm).map(|account| account.usage())
    }

    /// Ends all connections that a VM has.
    pub(crate) fn end_connections(&self, vm: VmId) {
        if let Some(account) = lock(&self.all).get(&vm) {
            account.end_connections();
        }
    }

    pub(crate) fn forget(&self, vm: VmId) {
        lock(&self.all).remove(&vm);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    fn account(change: impl FnOnce(&mut EgressLimits)) -> Arc<Account> {
        let mut limits = EgressLimits::default();
        change(&mut limits);
        Arc::new(Account::new(limits))
    }

    #[tokio::test]
    async fn what_passes_is_counted_by_direction_and_host() {
        let account = account(|_| {});
        let (mut guest, mut near) = duplex(100);
        let (far, mut server) = duplex(100);
        account.connected("a.test");
        let place = account.place().unwrap();
        let (carried, (), ()) = tokio::join!(
            account.carry("a.test", &mut near, far, place),
            async {
                guest.write_all(b"question").await.unwrap();
                let mut answer = Vec::new();
                guest.read_to_end(&mut answer).await.unwrap();
                assert_eq!(answer, b"answer");
                drop(guest);
            },
            async {
                let mut question = [0; 8];
                server.read_exact(&mut question).await.unwrap();
                server.write_all(b"answer").await.unwrap();
                server.shutdown().await.unwrap();
            }
        );
        carried.unwrap();
        account.refused("b.test");
        let wanted = EgressUsage { connections: 1, refused: 1, bytes_up: 8, bytes_down: 6 };
        assert_eq!(account.usage(), wanted);
        assert_eq!(account.traffic("a.test"), Traffic { connected: 1, refused: 0, bytes_back: 6 });
        assert_eq!(account.traffic("b.test").refused, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_moves_ends() {
        let account = account(|limits| limits.idle = Duration::from_secs(30));
        let (_guest, mut near) = duplex(100);
        let (far, _server) = duplex(100);
        let place = account.place().unwrap();
        let error = account.carry("a.test", &mut near, far, place).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn connections_that_have_a_place_are_ended_and_later_ones_are_not() {
        let account = account(|_| {});
        let (before, being_made) = (account.place().unwrap(), account.place().unwrap());
        let end = |place| {
            let account = Arc::clone(&account);
            async move {
                let (_guest, mut near) = duplex(100);
                let (far, _server) = duplex(100);
                account.carry("a.test", &mut near, far, place).await.unwrap_err().kind()
            }
        };
        let carried = tokio::spawn(end(before));
        tokio::task::yield_now().await;
        account.end_connections();
        assert_eq!(carried.await.unwrap(), io::ErrorKind::ConnectionAborted);
        assert_eq!(end(being_made).await, io::ErrorKind::ConnectionAborted);
        let later = end(account.place().unwrap());
        assert!(tokio::time::timeout(Duration::from_millis(50), later).await.is_err());
    }

    #[tokio::test]
    async fn there_are_no_more_places_than_allowed_and_they_come_back() {
        let account = account(|limits| limits.connections = 1);
        let held = account.place();
        assert!(held.is_some() && account.place().is_none());
        assert_eq!(account.usage().refused, 1);
        drop(held);
        assert!(account.place().is_some());
    }
}
