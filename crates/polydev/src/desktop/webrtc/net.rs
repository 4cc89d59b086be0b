//! The endpoint's UDP socket and TCP listener, both with the same port number, and everything that leaves by them.
//!
//! Sending never waits. What the kernel does not take at once waits in a short queue; what does not fit there is lost,
//! as it may be on any network.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use quinn_udp::{RecvMeta, UdpSocketState};
use str0m::net::{Protocol, Transmit};
use tokio::{
    io::Interest,
    net::UdpSocket as AsyncUdpSocket,
    sync::{Notify, mpsc},
};

use super::{
    routes::{Packet, Routes},
    session::Wire,
};

/// Tries to find a port that is free for UDP and TCP.
const PORT_TRIES: usize = 32;
/// Wanted of the kernel: room for some keyframes; what it gives is bounded by its own settings.
const SOCKET_BUFFER: usize = 4 << 20;
/// Datagrams that wait for room in the socket: some keyframes.
const DATAGRAMS_WAITING_MAX: usize = 1024;
/// Bytes that wait for a TCP connection; more than a keyframe, so that it can be handed over in one go.
const TCP_WAITING_MAX: usize = 1 << 20;
/// With so much waiting on a path, its viewer gets no new picture.
const CONGESTED: usize = 64 << 10;
/// Datagrams taken from the kernel in one go, and the room for each: the kernel may have put several into one.
const BATCH: usize = 4;
const DATAGRAMS: usize = 64 << 10;

/// A socket and a listener that nobody reads yet.
pub(super) struct Bound {
    udp: UdpSocket,
    state: UdpSocketState,
    tcp: TcpListener,
    pub(super) address: SocketAddr,
}

/// Takes UDP and TCP of the same port. Port 0 takes any that is free for both.
pub(super) fn bind(listen: SocketAddr) -> io::Result<Bound> {
    let mut tries = if listen.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        let tcp = TcpListener::bind(listen)?;
        let address = tcp.local_addr()?;
        tries -= 1;
        let udp = match UdpSocket::bind(address) {
            Ok(udp) => udp,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => continue,
            Err(error) => return Err(error),
        };
        let state = UdpSocketState::new((&udp).into())?;
        state.set_send_buffer_size((&udp).into(), SOCKET_BUFFER)?;
        state.set_recv_buffer_size((&udp).into(), SOCKET_BUFFER)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        return Ok(Bound { udp, state, tcp, address });
    }
}

/// The ways out.
pub(super) struct Net {
    udp: AsyncUdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    waiting: Mutex<VecDeque<Datagram>>,
    waits: Notify,
    connections: Mutex<HashMap<SocketAddr, Connection>>,
}

struct Datagram {
    source: IpAddr,
    destination: SocketAddr,
    contents: Vec<u8>,
}

/// The way into one TCP connection.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) packets: mpsc::UnboundedSender<Vec<u8>>,
    /// Bytes of the packets that are not written yet; what bounds the channel.
    pub(super) waiting: Arc<AtomicUsize>,
}

impl Wire for Net {
    fn send(&self, transmit: Transmit) {
        let destination = transmit.destination;
        if transmit.proto == Protocol::Udp {
            let contents = transmit.contents.into();
            return self.send_datagram(Datagram { source: transmit.source.ip(), destination, contents });
        }
        let connections = lock(&self.connections);
        let Some(connection) = connections.get(&destination) else { return };
        let packet: Vec<u8> = transmit.contents.into();
        let len = packet.len();
        if connection.waiting.load(Ordering::Acquire) + len <= TCP_WAITING_MAX {
            connection.waiting.fetch_add(len, Ordering::AcqRel);
            // Closed: the connection is about to be removed.
            let _ = connection.packets.send(packet);
        }
    }

    fn is_congested(&self, protocol: Protocol, remote: SocketAddr) -> bool {
        if protocol == Protocol::Udp {
            return !lock(&self.waiting).is_empty();
        }
        let waiting = |connection: &Connection| connection.waiting.load(Ordering::Acquire);
        lock(&self.connections).get(&remote).is_some_and(|connection| waiting(connection) > CONGESTED)
    }
}

impl Net {
    /// Must be called inside the runtime that is to serve the sockets.
    pub(super) fn open(bound: Bound) -> io::Result<(Arc<Self>, tokio::net::TcpListener)> {
        let Bound { udp, state, tcp, address } = bound;
        let net = Self {
            udp: AsyncUdpSocket::from_std(udp)?,
            state,
            local: address,
            waiting: Mutex::default(),
            waits: Notify::new(),
            connections: Mutex::default(),
        };
        Ok((Arc::new(net), tokio::net::TcpListener::from_std(tcp)?))
    }

    /// A TCP connection can take packets.
    pub(super) fn connected(&self, remote: SocketAddr, connection: Connection) {
        lock(&self.connections).insert(remote, connection);
    }

    /// It cannot any more.
    pub(super) fn disconnected(&self, remote: SocketAddr) {
        lock(&self.connections).remove(&remote);
    }

    /// Hands received datagrams to their viewers, forever.
    pub(super) async fn receive(&self, routes: &Routes) {
        let mut buffers = vec![vec![0_u8; DATAGRAMS]; BATCH];
        loop {
            // An error here is about some datagram that was sent before (ICMP); there is nobody to tell.
            if self.udp.readable().await.is_err() {
                tokio::task::yield_now().await;
                continue;
            }
            let mut meta = [RecvMeta::default(); BATCH];
            let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            let read = self
                .udp
                .try_io(Interest::READABLE, || self.state.recv((&self.udp).into(), &mut slices, &mut meta));
            let Ok(count) = read else { continue };
            let received = Instant::now();
            for (buffer, meta) in buffers.iter().zip(&meta).take(count) {
                let to = meta.dst_ip.unwrap_or(self.local.ip()).to_canonical();
                let source = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
                for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                    routes.dispatch(Packet {
                        protocol: Protocol::Udp,
                        source,
                        destination: SocketAddr::new(to, self.local.port()),
                        received,
                        data: datagram.to_vec(),
                    });
                }
            }
        }
    }

    /// Sends what the kernel did not take at once, forever.
    pub(super) async fn flush(&self) {
        loop {
            self.waits.notified().await;
            loop {
                let Some(datagram) = lock(&self.waiting).pop_front() else { break };
                if self.udp.writable().await.is_ok() && !self.try_send(&datagram) {
                    lock(&self.waiting).push_front(datagram);
                }
            }
        }
    }

    fn send_datagram(&self, datagram: Datagram) {
        let mut waiting = lock(&self.waiting);
        if waiting.is_empty() && self.try_send(&datagram) {
            return;
        }
        if waiting.len() < DATAGRAMS_WAITING_MAX {
            waiting.push_back(datagram);
            self.waits.notify_one();
        }
    }

    /// False if there is no room for it now.
    fn try_send(&self, datagram: &Datagram) -> bool {
        let transmit = quinn_udp::Transmit {
            destination: self.as_socket_has_it(datagram.destination),
            ecn: None,
            contents: &datagram.contents,
            segment_size: None,
            src_ip: Some(datagram.source),
        };
        let sent = self.udp.try_io(Interest::WRITABLE, || self.state.try_send((&self.udp).into(), &transmit));
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                // No route, or a path that takes smaller packets only: ICE finds out.
                tracing::debug!(%error, "datagram of a desktop could not be sent");
                true
            }
            Ok(()) => true,
        }
    }

    /// A socket of both families knows IPv4 addresses as IPv6 addresses (RFC 4291 section 2.5.5.2).
    fn as_socket_has_it(&self, address: SocketAddr) -> SocketAddr {
        match (self.local, address.ip()) {
            (SocketAddr::V6(_), IpAddr::V4(ip)) => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), address.port())
            }
            (SocketAddr::V4(_) | SocketAddr::V6(_), _) => address,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
