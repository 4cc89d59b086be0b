//! The way to an agent that listens on a vsock: Firecracker's unix socket, on which a line names the guest's port.
//!
//! `vhost-device-vsock`, which gives QEMU the same, speaks the same protocol.

use std::{io, path::Path, time::Duration};

use polydev_core::guest::VSOCK_PORT;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use crate::firecracker::connect;

/// A guest that listens answers at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// "OK", a number and a newline.
const ANSWER_MAX: usize = 32;

/// Connects to the agent of the VM whose vsock this is.
pub(super) async fn dial(socket: &Path) -> io::Result<UnixStream> {
    let mut stream = connect(socket).await?;
    // In one piece: Firecracker drops a connection whose line is not there as a whole.
    stream.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes()).await?;
    match timeout(ANSWER_LIMIT, accepted(&mut stream)).await {
        Ok(answer) => answer.map(|()| stream),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer on the vsock")),
    }
}

/// Reads the answer and not a byte more. Nobody listens: the connection is closed without one.
async fn accepted(stream: &mut UnixStream) -> io::Result<()> {
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        if answer.len() == ANSWER_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the vsock answers something else"));
        }
        answer.push(stream.read_u8().await?);
    }
    // The number is the host's port or the guest's, depending on who answers.
    if answer.starts_with(b"OK ") {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the vsock refuses the connection"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    async fn dialled(answer: &'static [u8]) -> io::Result<UnixStream> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("v.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let serve = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = [0; 13];
            stream.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"CONNECT 5000\n");
            stream.write_all(answer).await.unwrap();
        });
        let stream = dial(&socket).await;
        serve.await.unwrap();
        stream
    }

    #[tokio::test]
    async fn what_follows_the_answer_belongs_to_the_channel() {
        let mut stream = dialled(b"OK 1073741824\nguest").await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "guest");
    }

    #[tokio::test]
    async fn nobody_there_and_nonsense_are_errors() {
        for answer in [&b""[..], b"NO\n", b"OK without end, for ever and ever and ever"] {
            assert!(dialled(answer).await.is_err());
        }
    }
}
