//! The stream of the guest's desktop program, cut into messages.

use std::io;

use polydev_core::desktop::{Cutter, FROM_DESKTOP_MAX, FromDesktop, ToDesktop, framed};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_util::compat::Compat;

const CHUNK: usize = 64 << 10;

/// What the guest's desktop program says.
pub struct DesktopReader {
    stream: ReadHalf<Compat<yamux::Stream>>,
    cutter: Cutter,
    chunk: Vec<u8>,
}

/// What it is told.
pub struct DesktopWriter {
    stream: WriteHalf<Compat<yamux::Stream>>,
}

pub(super) fn split(stream: Compat<yamux::Stream>) -> (DesktopReader, DesktopWriter) {
    let (reader, writer) = tokio::io::split(stream);
    let reader =
        DesktopReader { stream: reader, cutter: Cutter::new(FROM_DESKTOP_MAX), chunk: vec![0; CHUNK] };
    (reader, DesktopWriter { stream: writer })
}

impl DesktopReader {
    /// The next message; `None` when the program or the VM is gone. An error means that the guest does not keep to the
    /// protocol: the stream is of no further use. Dropping the future loses nothing.
    pub async fn next(&mut self) -> io::Result<Option<FromDesktop>> {
        loop {
            if let Some(message) = self.cutter.next().map_err(invalid)? {
                return FromDesktop::decode(message).map(Some).map_err(invalid);
            }
            match self.stream.read(&mut self.chunk).await? {
                0 => return Ok(None),
                count => self.cutter.extend(&self.chunk[..count]),
            }
        }
    }
}

impl DesktopWriter {
    /// Sends a message. A future that is dropped half way leaves the stream of no further use.
    pub async fn send(&mut self, message: &ToDesktop) -> io::Result<()> {
        self.stream.write_all(&framed(&message.encode())).await?;
        self.stream.flush().await
    }
}

fn invalid(error: polydev_core::desktop::DesktopError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
