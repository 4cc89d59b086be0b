//! Passive ICE-TCP (RFC 6544): a page whose network lets no UDP through connects to the same port.
//!
//! A connection has to begin with a binding request to a viewer of the endpoint; anything else ends it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use str0m::net::Protocol;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{
    framing::{Deframer, frame},
    net::{Connection, Net},
    routes::{Packet, Routes},
};

/// Connections at one time, those that have said nothing yet included.
const CONNECTIONS_MAX: usize = 256;
/// A page speaks as soon as it is connected.
const FIRST_PACKET_LIMIT: Duration = Duration::from_secs(5);
/// A page asks for consent every few seconds (RFC 7675); one that is silent for this long is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// A page that takes nothing for this long is gone.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// After the listener failed, as when the process has too many files open.
const LISTEN_AGAIN: Duration = Duration::from_millis(100);
const CHUNK: usize = 16 << 10;
/// Packets that are written in one go.
const BATCH: usize = 64;

/// Takes connections, forever.
pub(super) async fn listen(listener: TcpListener, net: Arc<Net>, routes: Arc<Routes>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, remote) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%error, "desktop connection not accepted");
                tokio::time::sleep(LISTEN_AGAIN).await;
                continue;
            }
        };
        let (net, routes) = (Arc::clone(&net), Arc::clone(&routes));
        tokio::spawn(async move {
            serve(stream, canonical(remote), &net, &routes).await;
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, remote: SocketAddr, net: &Net, routes: &Routes) {
    let Ok(local) = stream.local_addr().map(canonical) else { return };
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let (from_page, to_page) = stream.into_split();
    let (packets, waiting) = (mpsc::unbounded_channel(), Arc::new(AtomicUsize::new(0)));
    net.connected(remote, Connection { packets: packets.0, waiting: Arc::clone(&waiting) });
    tokio::select! {
        () = read(from_page, local, remote, routes) => {}
        () = write(to_page, packets.1, &waiting) => {}
    }
    net.disconnected(remote);
}

async fn read(mut stream: OwnedReadHalf, local: SocketAddr, remote: SocketAddr, routes: &Routes) {
    let mut deframer = Deframer::default();
    let mut chunk = vec![0; CHUNK];
    let mut known = false;
    let mut limit = FIRST_PACKET_LIMIT;
    loop {
        match timeout(limit, stream.read(&mut chunk)).await {
            Ok(Ok(count)) if count > 0 => deframer.extend(&chunk[..count]),
            Ok(Ok(_) | Err(_)) | Err(_) => return,
        }
        let received = Instant::now();
        loop {
            let data = match deframer.next() {
                Ok(Some(packet)) => packet.to_vec(),
                Ok(None) => break,
                Err(error) => return tracing::debug!(%error, "desktop connection ended"),
            };
            let packet =
                Packet { protocol: Protocol::Tcp, source: remote, destination: local, received, data };
            let taken = routes.dispatch(packet);
            if !taken && !known {
                return;
            }
            known = true;
            limit = SILENCE_LIMIT;
        }
    }
}

async fn write(
    mut stream: OwnedWriteHalf,
    mut packets: mpsc::UnboundedReceiver<Vec<u8>>,
    waiting: &AtomicUsize,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut bytes = Vec::new();
    loop {
        if packets.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        bytes.clear();
        let len: usize = batch.iter().map(Vec::len).sum();
        batch.drain(..).for_each(|packet| frame(&packet, &mut bytes));
        if !matches!(timeout(WRITE_LIMIT, stream.write_all(&bytes)).await, Ok(Ok(()))) {
            return;
        }
        waiting.fetch_sub(len, Ordering::AcqRel);
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
