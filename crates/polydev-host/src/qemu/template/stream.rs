//! The device state on its way between QEMU and this process, through a socket in the VM's run directory.
//!
//! QEMU 7.2 can write to a file only through a shell; a socket needs none, and its end of file shows that all came.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::{Instant, sleep, timeout_at},
};

use super::TemplateError;

/// Largest device state. It is some 100 KiB to 1 MiB; more means that the memory is in it.
const STATE_MAX: u64 = 64 << 20;
/// Pause between attempts to connect.
const RETRY_PAUSE: Duration = Duration::from_millis(2);

/// Listens for QEMU's connection.
pub(super) fn listen(socket: &Path) -> Result<UnixListener, TemplateError> {
    // One that an earlier attempt left.
    let _ = std::fs::remove_file(socket);
    UnixListener::bind(socket).map_err(TemplateError::os("listen for the device state"))
}

/// Takes the whole state.
pub(super) async fn receive(listener: UnixListener, deadline: Instant) -> Result<Vec<u8>, TemplateError> {
    let receiving = async {
        let (stream, _) = listener.accept().await?;
        let mut state = Vec::new();
        stream.take(STATE_MAX + 1).read_to_end(&mut state).await?;
        if state.is_empty() || state.len() as u64 > STATE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} bytes", state.len())));
        }
        Ok(state)
    };
    let received = timeout_at(deadline, receiving).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    received.map_err(TemplateError::os("receive the device state"))
}

/// Sends the whole state.
pub(super) async fn send(socket: &Path, state: &[u8], deadline: Instant) -> Result<(), TemplateError> {
    let sending = async {
        let mut stream = loop {
            match UnixStream::connect(socket).await {
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                    sleep(RETRY_PAUSE).await;
                }
                other => break other?,
            }
        };
        stream.write_all(state).await?;
        stream.shutdown().await
    };
    let sent = timeout_at(deadline, sending).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    sent.map_err(TemplateError::os("send the device state"))
}
