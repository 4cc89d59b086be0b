//! The sockets under the server: one task per listener, per stream connection and per relayed address.
//!
//! The server's state is behind a lock that is held for one message and never while anything waits.

mod stream;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::net::{SendFlags, sockopt};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::clock::Clock;

use super::{
    limits::DATAGRAM_MAX,
    server::{Client, Now, Outcome, Port, Server, Transport},
    stats::{Counters, count},
};

/// Keyframes come in bursts of a hundred datagrams and more.
const SOCKET_BUFFER: usize = 1 << 20;
/// A relayed address' own; there may be hundreds.
const RELAY_BUFFER: usize = 512 << 10;
/// How often what is over is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(2);
/// How often a port is drawn until one is even.
const EVEN_TRIES: usize = 32;
/// Before the next try after a socket said no.
const PAUSE: Duration = Duration::from_millis(20);
/// What may wait for a client that reads slowly; more is dropped, as a full link would.
const QUEUE_BYTES_MAX: usize = 256 << 10;
const QUEUE_MESSAGES_MAX: usize = 512;

/// What all tasks share.
pub(super) struct Shared {
    server: Mutex<Server<Arc<Relay>>>,
    pub(super) counters: Arc<Counters>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    clock: Clock,
    /// Where relayed addresses are opened.
    relay_ip: IpAddr,
    connections_max: usize,
}

/// A relayed address; it is closed when the last one is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    socket: Arc<UdpSocket>,
    stop: CancellationToken,
    _at_the_end: DropGuard,
}

/// The way to a client.
#[derive(Clone)]
enum Exit {
    Datagrams(Arc<UdpSocket>, SocketAddr),
    Stream(StreamQueue),
}

/// What is to be written to a client's stream.
#[derive(Clone)]
struct StreamQueue {
    messages: mpsc::Sender<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
}

impl Shared {
    pub(super) fn new(
        server: Server<Arc<Relay>>,
        counters: Arc<Counters>,
        clock: Clock,
        relay_ip: IpAddr,
        connections_max: usize,
    ) -> Arc<Self> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let server = Mutex::new(server);
        Arc::new(Self { server, counters, tasks, stop, clock, relay_ip, connections_max })
    }

    /// Begins to serve.
    pub(super) fn start(
        self: &Arc<Self>,
        udp: UdpSocket,
        tcp: TcpListener,
        tls: Option<(TcpListener, TlsAcceptor)>,
    ) {
        let doors = Arc::new(stream::Doors::default());
        let spawn_stopped = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stop = self.stop.clone();
            self.tasks.spawn(async move { stop.run_until_cancelled_owned(task).await });
        };
        spawn_stopped(Box::pin(serve_datagrams(Arc::clone(self), Arc::new(udp))));
        spawn_stopped(Box::pin(stream::accept(Arc::clone(self), Arc::clone(&doors), tcp, None)));
        if let Some((listener, acceptor)) = tls {
            spawn_stopped(Box::pin(stream::accept(Arc::clone(self), doors, listener, Some(acceptor))));
        }
        spawn_stopped(Box::pin(sweep(Arc::clone(self))));
    }

    /// Ends everything and waits until it has.
    pub(super) async fn shut_down(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        // Only now: until then a message may still have been taken.
        self.server().clear();
    }

    fn server(&self) -> MutexGuard<'_, Server<Arc<Relay>>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now { at: Instant::now(), unix_s: self.clock.now_ms() / 1000 }
    }

    /// Takes one message of a client's and does what it leads to.
    fn take(self: &Arc<Self>, client: Client, bytes: &[u8], exit: &Exit) {
        let outcome = self.server().hear_client(client, bytes, self.now(), |port| self.open_relay(port));
        match outcome {
            Outcome::Silence => {}
            Outcome::Answer(answer) => self.send(exit, answer),
            Outcome::Opened { answer, relayed, relay } => {
                let (socket, stop) = (Arc::clone(&relay.socket), relay.stop.clone());
                let (shared, way) = (Arc::clone(self), exit.clone());
                self.tasks.spawn(async move {
                    stop.run_until_cancelled(serve_relayed(shared, socket, client, relayed, way)).await
                });
                self.send(exit, answer);
            }
            Outcome::Relay { relay, peer, data } => {
                if send_now(&relay.socket, &bytes[data], peer).is_err() {
                    count(&self.counters.datagrams_dropped);
                }
            }
        }
    }

    /// Sends without waiting: what does not fit is lost, as on any link.
    fn send(&self, exit: &Exit, bytes: Vec<u8>) {
        let sent = match exit {
            Exit::Datagrams(socket, client) => send_now(socket, &bytes, *client).is_ok(),
            Exit::Stream(queue) => queue.push(bytes),
        };
        if !sent {
            count(&self.counters.datagrams_dropped);
        }
    }

    fn open_relay(&self, port: Port) -> io::Result<(SocketAddr, Arc<Relay>)> {
        // The kernel draws ports; every other one is even.
        let fits = |socket: &UdpSocket| {
            socket.local_addr().is_ok_and(|address| port == Port::Any || address.port() % 2 == 0)
        };
        let socket = (0..EVEN_TRIES)
            .map(|_| bind_udp(SocketAddr::new(self.relay_ip, 0), RELAY_BUFFER))
            .find(|bound| bound.as_ref().map_or(true, fits))
            .unwrap_or_else(|| Err(io::ErrorKind::AddrNotAvailable.into()))?;
        let relayed = socket.local_addr()?;
        let stop = self.stop.child_token();
        let _at_the_end = stop.clone().drop_guard();
        Ok((relayed, Arc::new(Relay { socket: Arc::new(socket), stop, _at_the_end })))
    }
}

impl StreamQueue {
    /// `false` when the client reads too slowly.
    fn push(&self, message: Vec<u8>) -> bool {
        let size = message.len();
        let fits = |queued: usize| (queued + size <= QUEUE_BYTES_MAX).then_some(queued + size);
        if self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_err() {
            return false;
        }
        let queued = self.messages.try_send(message).is_ok();
        if !queued {
            self.bytes.fetch_sub(size, Ordering::AcqRel);
        }
        queued
    }
}

/// Binds a socket that takes bursts.
pub(super) fn bind_udp(address: SocketAddr, buffer: usize) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    // The kernel gives as much as its limits allow; less works too.
    let _ = sockopt::set_socket_recv_buffer_size(&socket, buffer);
    let _ = sockopt::set_socket_send_buffer_size(&socket, buffer);
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Binds UDP and TCP to the same port; any port that is free for both when it is 0.
pub(super) fn bind_both(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    const TRIES: usize = 16;
    let mut tries = 0;
    loop {
        tries += 1;
        let tcp = bind_tcp(address)?;
        match bind_udp(tcp.local_addr()?, SOCKET_BUFFER) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && address.port() == 0 && tries < TRIES => {}
            udp => return Ok((udp?, tcp)),
        }
    }
}

/// Binds a TCP listener.
pub(super) fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    // The standard library's listener can be bound again at once after a restart.
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Asks the kernel at once: what the runtime believes about a fresh socket may be behind.
fn send_now(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
    rustix::net::sendto(socket, bytes, SendFlags::DONTWAIT, &to)?;
    Ok(())
}

async fn serve_datagrams(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, address)) => {
                let client = Client { transport: Transport::Udp, address };
                let exit = Exit::Datagrams(Arc::clone(&socket), address);
                shared.take(client, &buffer[..length], &exit);
            }
            Err(error) => {
                tracing::debug!(%error, "TURN: receive");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn serve_relayed(
    shared: Arc<Shared>,
    socket: Arc<UdpSocket>,
    client: Client,
    relayed: SocketAddr,
    exit: Exit,
) {
    // One byte more than may be, so that a longer datagram is seen to be longer.
    let mut buffer = vec![0; DATAGRAM_MAX + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, _)) if length > DATAGRAM_MAX => count(&shared.counters.datagrams_dropped),
            Ok((length, peer)) => {
                let out = shared.server().hear_peer(client, relayed, peer, &buffer[..length], Instant::now());
                if let Some(bytes) = out {
                    shared.send(&exit, bytes);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "TURN: receive on a relayed address");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn sweep(shared: Arc<Shared>) {
    let mut ticks = interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        shared.server().sweep(Instant::now());
    }
}
