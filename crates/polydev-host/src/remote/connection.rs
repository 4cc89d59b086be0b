//! One end of the socket: messages with, now and then, a connected socket in their company.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::frame::{Decoder, Frame};

/// How long one message may take to be taken by the other side.
const SEND_LIMIT: Duration = Duration::from_secs(20);
/// Messages that wait to be sent. Who wants to add one more waits.
const OUTBOX: usize = 64;
/// Bytes read at a time.
const CHUNK: usize = 16 << 10;
/// Sockets taken out of one read; the kernel passes on no more than one message's.
const SOCKETS_READ: usize = 4;
/// Sockets that came before the frame they belong to.
const SOCKETS_EARLY: usize = 8;

/// A message on its way out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    socket: Option<OwnedFd>,
}

impl Outgoing {
    /// A message alone.
    pub(crate) fn new(message: &impl Serialize) -> io::Result<Self> {
        Self::with_socket(message, None)
    }

    /// A message that hands a connected socket over.
    pub(crate) fn with_socket(message: &impl Serialize, socket: Option<OwnedFd>) -> io::Result<Self> {
        let body = serde_json::to_vec(message).map_err(io::Error::other)?;
        let bytes = Frame { socket: socket.is_some(), body }.encode().map_err(io::Error::other)?;
        Ok(Self { bytes, socket })
    }
}

/// Where messages to the other side are put.
pub(crate) type Outbox = mpsc::Sender<Outgoing>;

/// Cuts a connection into its two directions.
pub(crate) fn split(stream: UnixStream) -> (Reader, Writer, Outbox) {
    let stream = Arc::new(stream);
    let (outbox, queue) = mpsc::channel(OUTBOX);
    let reader = Reader { stream: Arc::clone(&stream), decoder: Decoder::default(), early: VecDeque::new() };
    (reader, Writer { stream, queue }, outbox)
}

/// Messages that come in.
pub(crate) struct Reader {
    stream: Arc<UnixStream>,
    decoder: Decoder,
    early: VecDeque<OwnedFd>,
}

impl Reader {
    /// The next message and the socket that came with it; `None` at the end. An error means that the other side does not
    /// keep to the protocol. Dropping the future loses nothing.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        loop {
            if let Some(frame) = self.decoder.next().map_err(invalid)? {
                let socket = match frame.socket {
                    true => Some(self.early.pop_front().ok_or_else(|| invalid("the socket is missing"))?),
                    false => None,
                };
                // The parser's own message would quote what was sent.
                let message = serde_json::from_slice(&frame.body).map_err(|error| {
                    invalid(format!(
                        "the message is not one of this version ({:?} at {})",
                        error.classify(),
                        error.column()
                    ))
                })?;
                return Ok(Some((message, socket)));
            }
            self.stream.readable().await?;
            let stream = Arc::clone(&self.stream);
            match stream.try_io(Interest::READABLE, || self.read()) {
                Ok(0) if self.decoder.pending() == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn read(&mut self) -> io::Result<usize> {
        let mut chunk = [0; CHUNK];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_READ))];
        let mut passed = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(
            self.stream.as_fd(),
            &mut [IoSliceMut::new(&mut chunk)],
            &mut passed,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in passed.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                self.early.extend(sockets);
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) || self.early.len() > SOCKETS_EARLY {
            return Err(invalid("too many sockets were passed"));
        }
        self.decoder.extend(&chunk[..got.bytes]);
        Ok(got.bytes)
    }
}

/// Messages that go out, in order.
pub(crate) struct Writer {
    stream: Arc<UnixStream>,
    queue: mpsc::Receiver<Outgoing>,
}

impl Writer {
    /// Sends until the last outbox is dropped or the other side takes nothing any more.
    pub(crate) async fn run(mut self) -> io::Result<()> {
        while let Some(outgoing) = self.queue.recv().await {
            let limit = Instant::now() + SEND_LIMIT;
            timeout_at(limit, self.send(outgoing)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        }
        Ok(())
    }

    async fn send(&self, outgoing: Outgoing) -> io::Result<()> {
        let Outgoing { bytes, mut socket } = outgoing;
        let mut sent = 0;
        while sent < bytes.len() {
            self.stream.writable().await?;
            let write = || write(&self.stream, &bytes[sent..], socket.as_ref());
            match self.stream.try_io(Interest::WRITABLE, write) {
                Ok(count) => {
                    sent += count;
                    // It goes with the first byte, once.
                    socket = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn write(stream: &UnixStream, bytes: &[u8], socket: Option<&OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut passed = SendAncillaryBuffer::new(&mut space);
    let sockets = socket.map(|socket| [socket.as_fd()]);
    if let Some(sockets) = &sockets {
        passed.push(SendAncillaryMessage::ScmRights(sockets));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut passed, flags)?)
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[tokio::test]
    async fn sockets_arrive_with_the_message_they_were_sent_with() {
        let (near, far) = UnixStream::pair().unwrap();
        let (_, writer, outbox) = split(near);
        let (mut reader, _writer, _outbox) = split(far);
        let sending = tokio::spawn(writer.run());
        let mut kept = Vec::new();
        for number in 0u32..40 {
            let socket = number.is_multiple_of(3).then(|| {
                let (mine, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
                kept.push((number, mine));
                OwnedFd::from(theirs)
            });
            // Of all lengths, so that frames and reads do not meet.
            let text = "x".repeat(usize::try_from(number * 997).unwrap());
            outbox.send(Outgoing::with_socket(&(number, text), socket).unwrap()).await.unwrap();
        }
        drop(outbox);
        let mut number = 0;
        while let Some(((got, text), socket)) = reader.next::<(u32, String)>().await.unwrap() {
            assert_eq!((got, text.len()), (number, usize::try_from(number * 997).unwrap()));
            if let Some(socket) = socket {
                let mut socket = std::os::unix::net::UnixStream::from(socket);
                let (of, mine) = kept.remove(0);
                assert_eq!(of, number);
                socket.write_all(b"hello").unwrap();
                drop(socket);
                let mut text = String::new();
                (&mine).read_to_string(&mut text).unwrap();
                assert_eq!(text, "hello");
            }
            number += 1;
        }
        assert_eq!(number, 40);
        sending.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_nothing_holds_the_sender_up_for_a_bounded_time() {
        let (near, _far) = UnixStream::pair().unwrap();
        let (_, writer, outbox) = split(near);
        let sending = tokio::spawn(writer.run());
        let long = "x".repeat(1 << 20);
        let mut taken = 0;
        while let Ok(()) = outbox.try_send(Outgoing::new(&long).unwrap()) {
            taken += 1;
        }
        assert_eq!(taken, OUTBOX, "no more than that waits in memory");
        assert_eq!(sending.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn sockets_that_belong_to_no_message_end_the_connection() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut reader, _writer, _outbox) = split(far);
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let socket = OwnedFd::from(socket);
        near.writable().await.unwrap();
        // A frame whose end never comes, and a socket with each byte of it.
        let frame = Frame { socket: false, body: vec![b' '; 100] }.encode().unwrap();
        for byte in &frame[..20] {
            write(&near, &[*byte], Some(&socket)).unwrap();
        }
        let error = reader.next::<u32>().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
