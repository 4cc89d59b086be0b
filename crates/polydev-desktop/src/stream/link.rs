//! The connection to the host: what goes out never waits in more than one message of memory.

use std::{
    io::{self, IoSlice},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use polydev_core::desktop::PREFIX;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{SendAncillaryBuffer, SendFlags, sendmsg, sockopt},
};

use super::orders::{self, Board};
use crate::{input::Injector, wake::Wake};

/// Room in the socket, in bytes. Small, so that pictures grow old here and not on the way; the kernel calls the socket
/// writable while less than about half of it is taken.
const SEND_BUFFER: usize = 64 << 10;

/// One host connection.
#[derive(Debug)]
pub(crate) struct Link {
    socket: UnixStream,
    /// What the reader of this connection left.
    pub(crate) board: Arc<Board>,
    /// The message that did not fit yet.
    rest: Vec<u8>,
    sent: usize,
}

impl Link {
    /// Starts to read.
    pub(crate) fn new(socket: UnixStream, injector: &Arc<Injector>, wake: &Wake) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
        let board = Arc::new(Board::default());
        let (ours, theirs, injector, wake) =
            (board.clone(), socket.try_clone()?, injector.clone(), wake.clone());
        std::thread::Builder::new()
            .name("host".into())
            .spawn(move || orders::read(theirs, &ours, &injector, &wake))?;
        Ok(Self { socket, board, rest: Vec::new(), sent: 0 })
    }

    /// Whether everything said so far left the program.
    pub(crate) fn is_clear(&self) -> bool {
        self.sent == self.rest.len()
    }

    /// Whether a frame that is made now would leave at once: else it is better made later.
    pub(crate) fn is_ready(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.is_clear()
            && poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&now))
                .is_ok_and(|ready| ready == 1)
    }

    /// Sends a message, or keeps what does not fit. Only for a link that is clear.
    pub(crate) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        debug_assert!(self.is_clear(), "one message at a time");
        let prefix = u32::try_from(message.len()).map_err(io::Error::other)?.to_be_bytes();
        let count = self.write(&[IoSlice::new(&prefix), IoSlice::new(message)])?;
        self.rest.clear();
        self.sent = 0;
        if count < PREFIX + message.len() {
            self.rest.extend_from_slice(&prefix[count.min(PREFIX)..]);
            self.rest.extend_from_slice(&message[count.saturating_sub(PREFIX)..]);
        }
        Ok(())
    }

    /// Sends more of what did not fit.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.is_clear() {
            match self.write(&[IoSlice::new(&self.rest[self.sent..])])? {
                0 => return Ok(()),
                count => self.sent += count,
            }
        }
        Ok(())
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(&self.socket, parts, &mut SendAncillaryBuffer::default(), flags) {
                Ok(count) => return Ok(count),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(0),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Ends the reader as well; a socket that is gone already needs no end.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}
