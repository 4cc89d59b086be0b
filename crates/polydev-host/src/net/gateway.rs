//! The other end of a guest's network: name server, catcher of TCP 80 and 443, and HTTP proxy.
//!
//! All sockets are in the slot's namespace, so each knows its VM by construction; no guest can speak for another.

mod first_words;
mod proxy;

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener, UdpSocket as StdUdpSocket},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use polydev_core::{
    dns::{self, Names},
    guest::network::{GATEWAY, PROXY_PORT},
    ids::VmId,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, broadcast},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use self::first_words::FirstWords;
use super::{
    NetworkError,
    constants::{
        CONNECT_LIMIT, DNS_CONNECTIONS_MAX, DNS_PORT, DNS_SILENCE_LIMIT, FIRST_NAME, FIRST_WORDS_LIMIT,
        NAME_ADDRESSES, PORTS,
    },
    namespace,
};
use crate::egress::{Account, EgressHandler, EgressRefused, Place};

/// Pause after a connection that could not be accepted, which is a fault of this process (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Refused hosts kept for an agent that is slow to read them.
const REFUSALS_KEPT: usize = 64;

/// Whose gateway it is.
#[derive(Clone)]
pub struct Guest {
    /// The VM.
    pub(crate) vm: VmId,
    /// Decides about its connections and makes them.
    pub(crate) handler: Arc<dyn EgressHandler>,
    /// What it may use and did use.
    pub(crate) account: Arc<Account>,
}

/// An open gateway; dropping it closes every socket and connection.
pub(super) struct Gateway {
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// What all connections of a gateway share.
struct Shared {
    guest: Guest,
    names: Mutex<Names>,
    /// Hosts that were refused, as it happens.
    refusals: broadcast::Sender<String>,
}

/// The sockets of a gateway.
struct Sockets {
    caught: Vec<StdListener>,
    proxy: StdListener,
    dns_stream: StdListener,
    dns: StdUdpSocket,
}

impl Gateway {
    /// Opens the sockets in a namespace and serves them.
    pub(super) async fn open(namespace: &Path, guest: Guest) -> Result<Self, NetworkError> {
        let fault = || NetworkError::os(format!("open a gateway in {}", namespace.display()));
        let path = namespace.to_path_buf();
        let opened = namespace::on_own_thread("slot-gateway", move || Sockets::open(&path)).await;
        let sockets = opened.and_then(|sockets| sockets).map_err(fault())?;
        // A new table begins somewhere else than the one of before a restart: its addresses may still be remembered.
        let start = uuid::Uuid::new_v4().as_u128() as u32;
        let names = Mutex::new(Names::new(FIRST_NAME, NAME_ADDRESSES, start));
        let shared = Arc::new(Shared { guest, names, refusals: broadcast::channel(REFUSALS_KEPT).0 });
        let spawn = || -> io::Result<Vec<AbortOnDropHandle<()>>> {
            let Sockets { caught, proxy, dns_stream, dns } = sockets;
            let mut tasks = Vec::new();
            for listener in caught {
                tasks.push(tokio::spawn(accept(
                    TcpListener::from_std(listener)?,
                    Arc::clone(&shared),
                    caught_one,
                )));
            }
            tasks.push(tokio::spawn(accept(
                TcpListener::from_std(proxy)?,
                Arc::clone(&shared),
                proxy::serve,
            )));
            tasks.push(tokio::spawn(answer_streams(TcpListener::from_std(dns_stream)?, Arc::clone(&shared))));
            tasks.push(tokio::spawn(answer_datagrams(UdpSocket::from_std(dns)?, Arc::clone(&shared))));
            Ok(tasks.into_iter().map(AbortOnDropHandle::new).collect())
        };
        Ok(Self { _tasks: spawn().map_err(fault())? })
    }
}

impl Sockets {
    /// Only on a thread of its own.
    fn open(namespace: &Path) -> io::Result<Self> {
        namespace::enter(&File::open(namespace)?)?;
        let listen = |address: Ipv4Addr, port: u16| -> io::Result<StdListener> {
            let listener = StdListener::bind((address, port))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let caught =
            PORTS.iter().map(|port| listen(Ipv4Addr::UNSPECIFIED, *port)).collect::<io::Result<_>>()?;
        let dns = StdUdpSocket::bind((GATEWAY, DNS_PORT))?;
        dns.set_nonblocking(true)?;
        Ok(Self { caught, proxy: listen(GATEWAY, PROXY_PORT)?, dns_stream: listen(GATEWAY, DNS_PORT)?, dns })
    }
}

impl Shared {
    fn answer(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        dns::answer(packet, |name| Some(names.address_of(name)))
    }

    fn name_of(&self, address: Ipv4Addr) -> Option<String> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.name_of(address).map(str::to_owned)
    }

    /// Makes a connection, or says why not.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, EgressRefused> {
        let account = &self.guest.account;
        let opening = account.opening().await;
        let asked = timeout(CONNECT_LIMIT, self.guest.handler.connect(self.guest.vm, host, port)).await;
        drop(opening);
        let late = || EgressRefused::Unreachable(format!("{host} did not answer in time"));
        let connected = asked.unwrap_or_else(|_| Err(late()));
        match &connected {
            Ok(_) => account.connected(host),
            Err(_) => {
                account.refused(host);
                // Nobody listening is fine.
                let _ = self.refusals.send(host.to_owned());
            }
        }
        connected
    }
}

/// Serves each connection of a listener as long as the VM may have more.
async fn accept<F: Future<Output = io::Result<()>> + Send + 'static>(
    listener: TcpListener,
    shared: Arc<Shared>,
    serve: impl Fn(Arc<Shared>, TcpStream, Place) -> F,
) {
    let mut running = tokio::task::JoinSet::new();
    loop {
        while running.try_join_next().is_some() {}
        shared.guest.account.ask().await;
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Some(place) = shared.guest.account.place() else {
            reset(&socket);
            continue;
        };
        let serving = serve(Arc::clone(&shared), socket, place);
        running.spawn(async move {
            // Either side may end a connection at any time; that is no fault to report.
            if let Err(error) = serving.await {
                tracing::trace!(%error, "egress connection ended");
            }
        });
    }
}

/// A connection to port 80 or 443 of some address.
async fn caught_one(shared: Arc<Shared>, mut socket: TcpStream, place: Place) -> io::Result<()> {
    let SocketAddr::V4(dialled) = socket.local_addr()? else { return Ok(()) };
    let mut early = Vec::new();
    let host = match shared.name_of(*dialled.ip()) {
        Some(name) => name,
        None => {
            let read = timeout(FIRST_WORDS_LIMIT, read_first_words(&mut socket, &mut early)).await;
            match read {
                Ok(Ok(Some(name))) => name,
                // Whoever says no name gets what policy has for the bare address.
                Ok(Ok(None)) | Err(_) => dialled.ip().to_string(),
                Ok(Err(error)) => return Err(error),
            }
        }
    };
    let Ok(mut far) = shared.connect(&host, dialled.port()).await else {
        // A reset instead of an orderly end: programs then say "connection reset", not "empty answer".
        reset(&socket);
        return Ok(());
    };
    let _ = socket.set_nodelay(true);
    far.write_all(&early).await?;
    shared.guest.account.carry(&host, &mut socket, far, place).await
}

/// Reads until the name is known or it is clear that there is none. What was read is to be passed on.
async fn read_first_words(socket: &mut TcpStream, early: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        match first_words::read(early) {
            FirstWords::Name(name) => return Ok(Some(name)),
            FirstWords::None => return Ok(None),
            FirstWords::More => {}
        }
        if socket.read_buf(early).await? == 0 {
            return Ok(None);
        }
    }
}

async fn answer_datagrams(socket: UdpSocket, shared: Arc<Shared>) {
    let mut packet = vec![0; dns::PACKET_MAX];
    loop {
        shared.guest.account.ask().await;
        let Ok((count, from)) = socket.recv_from(&mut packet).await else {
            // An ICMP error of an earlier answer, nothing that lasts.
            tokio::task::yield_now().await;
            continue;
        };
        if !matches!(from.ip(), IpAddr::V4(_)) {
            continue;
        }
        if let Some(reply) = shared.answer(&packet[..count]) {
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

async fn answer_streams(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(DNS_CONNECTIONS_MAX));
    let mut running = tokio::task::JoinSet::new();
    loop {
        while running.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        running.spawn(async move {
            let _place = place;
            // The guest may end it at any time.
            let _ = answer_stream(&shared, socket).await;
        });
    }
}

async fn answer_stream(shared: &Shared, mut socket: TcpStream) -> io::Result<()> {
    loop {
        let Ok(length) = timeout(DNS_SILENCE_LIMIT, socket.read_u16()).await else { return Ok(()) };
        let mut packet = vec![0; usize::from(length?).min(dns::PACKET_MAX)];
        timeout(DNS_SILENCE_LIMIT, socket.read_exact(&mut packet)).await??;
        shared.guest.account.ask().await;
        let Some(reply) = shared.answer(&packet) else { return Ok(()) };
        let mut out = u16::try_from(reply.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
        out.extend_from_slice(&reply);
        timeout(DNS_SILENCE_LIMIT, socket.write_all(&out)).await??;
    }
}

fn reset(socket: &TcpStream) {
    let _ = socket.set_zero_linger();
}
