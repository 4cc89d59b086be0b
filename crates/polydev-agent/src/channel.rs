//! The byte connection to the host: waits for one, finds its preamble, hands it to the multiplexer. The newest wins.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use polydev_core::{
    guest::{CONTAINER_CHANNEL, VSOCK_OPTION},
    wire::preamble,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use crate::{Surroundings, agent::Agent, mux, virtio_port::VirtioPort, vsock::VsockListener};

/// How long a fresh connection may take to send its preamble.
const PREAMBLE_LIMIT: Duration = Duration::from_secs(30);
/// Pause after the channel itself failed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Serves hosts for ever.
pub(crate) async fn serve(agent: Rc<Agent>) {
    loop {
        let failure = match agent.surroundings {
            Surroundings::Container => serve_socket(&agent).await,
            Surroundings::Vm if has_vsock() => serve_vsock(&agent).await,
            Surroundings::Vm => serve_port(&agent).await,
        };
        if let Err(error) = failure {
            agent.log.note("channel", error);
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn serve_socket(agent: &Rc<Agent>) -> io::Result<()> {
    if let Some(directory) = std::path::Path::new(CONTAINER_CHANNEL).parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(CONTAINER_CHANNEL) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(CONTAINER_CHANNEL)?;
    loop {
        serve_host(agent, listener.accept().await?.0);
    }
}

async fn serve_vsock(agent: &Rc<Agent>) -> io::Result<()> {
    let listener = VsockListener::bind()?;
    loop {
        serve_host(agent, listener.accept().await?);
    }
}

fn has_vsock() -> bool {
    std::fs::read_to_string("/proc/cmdline")
        .is_ok_and(|line| line.split_whitespace().any(|word| word == VSOCK_OPTION))
}

fn serve_host(agent: &Rc<Agent>, mut socket: UnixStream) {
    let agent = agent.clone();
    tokio::task::spawn_local(async move {
        match timeout(PREAMBLE_LIMIT, greet(&mut socket)).await {
            Ok(Ok(nonce)) => {
                let session =
                    tokio::task::spawn_local(mux::serve(agent.clone(), Greeted::new(socket, nonce)));
                agent.replace_session(Some(session.abort_handle()));
            }
            Ok(Err(error)) => agent.log.note("channel", format_args!("no preamble: {error}")),
            Err(_) => agent.log.note("channel", "no preamble in time"),
        }
    });
}

async fn serve_port(agent: &Rc<Agent>) -> io::Result<()> {
    let port = VirtioPort::open()?;
    loop {
        port.host_connected().await?;
        // No time limit: the host may connect long before it speaks, and there is nobody else to serve.
        match greet(&mut port.clone()).await {
            Ok(nonce) => {
                let session =
                    tokio::task::spawn_local(mux::serve(agent.clone(), Greeted::new(port.clone(), nonce)));
                agent.replace_session(Some(session.abort_handle()));
                // Cancelled or ended: either way the port is free for the next host.
                let _ = session.await;
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => agent.log.note("channel", error),
        }
    }
}

/// Discards bytes until a preamble comes, then echoes it.
async fn greet<T: AsyncRead + AsyncWrite + Unpin>(io: &mut T) -> io::Result<[u8; 16]> {
    let mut scanner = preamble::Scanner::default();
    loop {
        // Byte by byte: what follows the preamble belongs to somebody else.
        let byte = io.read_u8().await?;
        if let Some(nonce) = scanner.push(byte).map_err(io::Error::other)? {
            io.write_all(&preamble::encode(nonce)).await?;
            io.flush().await?;
            return Ok(nonce);
        }
    }
}

/// A connection after its preamble. The host repeats the preamble until it has seen the echo, so copies of it may
/// still come; they are dropped up to the first byte of yamux, which never looks like a preamble's.
struct Greeted<T> {
    io: T,
    expected: [u8; preamble::LEN],
    /// Bytes of a copy received so far; `None` once yamux has begun.
    copy: Option<usize>,
}

impl<T> Greeted<T> {
    fn new(io: T, nonce: [u8; 16]) -> Self {
        Self { io, expected: preamble::encode(nonce), copy: Some(0) }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Greeted<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while let Some(seen) = this.copy {
            let mut byte = [0];
            let mut one = ReadBuf::new(&mut byte);
            std::task::ready!(Pin::new(&mut this.io).poll_read(cx, &mut one))?;
            match one.filled() {
                [] => return Poll::Ready(Ok(())),
                [byte] if *byte == this.expected[seen] => this.copy = Some((seen + 1) % preamble::LEN),
                [byte] if seen == 0 => {
                    this.copy = None;
                    buf.put_slice(&[*byte]);
                    return Poll::Ready(Ok(()));
                }
                _ => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "another host's preamble",
                    )));
                }
            }
        }
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Greeted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn rubbish_and_repeated_preambles_never_reach_the_multiplexer() {
        let (mut host, mut guest) = tokio::io::duplex(1024);
        let preamble = preamble::encode([7; 16]);
        let yamux = [0u8, 1, 2, 3];
        host.write_all(&[b"rubbish".as_slice(), &preamble, &preamble, &preamble, &yamux].concat())
            .await
            .unwrap();
        let nonce = greet(&mut guest).await.unwrap();
        assert_eq!(nonce, [7; 16]);
        let mut echo = [0; preamble::LEN];
        host.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, preamble);
        drop(host);
        let mut rest = Vec::new();
        Greeted::new(guest, nonce).read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, yamux);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_preamble_of_another_host_ends_the_session() {
        let (mut host, guest) = tokio::io::duplex(1024);
        host.write_all(&preamble::encode([9; 16])).await.unwrap();
        let read = Greeted::new(guest, [7; 16]).read_u8().await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
