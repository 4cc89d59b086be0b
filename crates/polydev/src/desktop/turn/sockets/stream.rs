//! Clients that come over TCP or TLS.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use super::{
    super::{
        limits::DATAGRAM_MAX,
        server::{Client, Transport},
        stats::count,
        stun::{HEADER_LEN, frame_len},
    },
    Exit, PAUSE, QUEUE_MESSAGES_MAX, Shared, StreamQueue,
};

/// Longest TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a connection may last without an allocation.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Longest that a client may take to read what is written.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// Longest frame: a datagram with what is around it.
const FRAME_MAX: usize = DATAGRAM_MAX + HEADER_LEN + 256;
const READ_LEN: usize = 16 << 10;
/// A part of all connections that one address may have.
const PER_SOURCE_PART: usize = 4;

/// Counts connections by address.
#[derive(Default)]
pub(super) struct Doors(Mutex<HashMap<IpAddr, usize>>);

/// One counted connection.
struct Door {
    doors: Arc<Doors>,
    from: IpAddr,
    shared: Arc<Shared>,
}

impl Door {
    fn open(doors: &Arc<Doors>, from: IpAddr, shared: &Arc<Shared>) -> Option<Self> {
        let mut counts = doors.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = counts.values().sum();
        let own = counts.get(&from).copied().unwrap_or_default();
        // Everybody on this machine has the same address.
        let own_max = if from.is_loopback() {
            shared.connections_max
        } else {
            shared.connections_max.div_ceil(PER_SOURCE_PART)
        };
        if all >= shared.connections_max || own >= own_max {
            return None;
        }
        counts.insert(from, own + 1);
        count(&shared.counters.connections);
        Some(Self { doors: Arc::clone(doors), from, shared: Arc::clone(shared) })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let mut counts = self.doors.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = counts.get_mut(&self.from) {
            *own -= 1;
            if *own == 0 {
                counts.remove(&self.from);
            }
        }
        self.shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes connections, as many as may be.
pub(super) async fn accept(
    shared: Arc<Shared>,
    doors: Arc<Doors>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
) {
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "TURN: accept");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Who is one too many sees the connection end.
        let Some(door) = Door::open(&doors, address.ip(), &shared) else { continue };
        let transport = if tls.is_some() { Transport::Tls } else { Transport::Tcp };
        let client = Client { transport, address };
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        let stop = shared.stop.clone();
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let serving = async {
                let _ = stream.set_nodelay(true);
                match tls {
                    None => serve(&shared, client, stream).await,
                    Some(tls) => match timeout(HANDSHAKE_MAX, tls.accept(stream)).await {
                        Ok(Ok(stream)) => serve(&shared, client, stream).await,
                        Ok(Err(error)) => tracing::debug!(%error, "TURN: TLS handshake"),
                        Err(_) => tracing::debug!("TURN: TLS handshake took too long"),
                    },
                }
            };
            stop.run_until_cancelled(serving).await;
            shared.server().client_gone(client);
            drop(door);
        });
    }
}

async fn serve<S: AsyncRead + AsyncWrite>(shared: &Arc<Shared>, client: Client, stream: S) {
    let (reader, writer) = tokio::io::split(stream);
    let (messages, queued) = mpsc::channel(QUEUE_MESSAGES_MAX);
    let bytes = Arc::new(AtomicUsize::new(0));
    let exit = Exit::Stream(StreamQueue { messages, bytes: Arc::clone(&bytes) });
    let ended = tokio::select! {
        read = read(shared, client, reader, &exit) => read,
        written = write(writer, queued, &bytes) => written,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "TURN: a client's connection has ended");
    }
}

/// Cuts the stream into frames. A client that sends anything else is cut off: nothing after it can be understood.
async fn read(shared: &Arc<Shared>, client: Client, reader: impl AsyncRead, exit: &Exit) -> io::Result<()> {
    let mut reader = std::pin::pin!(reader);
    let mut buffer = BytesMut::with_capacity(READ_LEN);
    let mut deadline = Instant::now() + IDLE_MAX;
    loop {
        while let Some(length) = next_frame(&buffer).inspect_err(|_| count(&shared.counters.malformed))? {
            if buffer.len() < length {
                break;
            }
            shared.take(client, &buffer[..length], exit);
            buffer.advance(length);
        }
        buffer.reserve(READ_LEN);
        match timeout_at(deadline, reader.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => return Ok(()),
            Ok(read) => {
                read?;
            }
            Err(_) if shared.server().has_allocation(client) => deadline = Instant::now() + IDLE_MAX,
            Err(_) => return Err(io::Error::other("no allocation")),
        }
    }
}

fn next_frame(buffer: &[u8]) -> io::Result<Option<usize>> {
    match frame_len(buffer) {
        Ok(Some(length)) if length > FRAME_MAX => Err(io::Error::other("a frame is too long")),
        Ok(length) => Ok(length),
        Err(error) => Err(io::Error::other(error)),
    }
}

async fn write(
    writer: impl AsyncWrite,
    mut queued: mpsc::Receiver<Vec<u8>>,
    bytes: &AtomicUsize,
) -> io::Result<()> {
    let mut writer = std::pin::pin!(writer);
    while let Some(message) = queued.recv().await {
        let mut next = Some(message);
        let sending = async {
            while let Some(message) = next.take() {
                writer.write_all(&message).await?;
                bytes.fetch_sub(message.len(), Ordering::AcqRel);
                next = queued.try_recv().ok();
            }
            writer.flush().await
        };
        timeout(WRITE_MAX, sending).await.map_err(|_| io::Error::other("reads too slowly"))??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_are_too_long_or_of_another_protocol_end_the_connection() {
        assert_eq!(next_frame(&[0x40, 0]).unwrap(), None);
        assert_eq!(next_frame(&[0x40, 0, 0, 1]).unwrap(), Some(8));
        assert!(next_frame(&[0x40, 0, 0xff, 0xff]).is_err());
        assert!(next_frame(&[0, 1, 0xff, 0xfc]).is_err());
        assert!(next_frame(b"GET / HTTP/1.1\r\n").is_err());
        assert!(next_frame(&[0x16, 3, 1, 2]).is_err(), "a TLS hello on the plain port");
    }
}
