//! The host's end of the connection.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use polydev_core::desktop::{
    Cutter, DESKTOP_VERSION, FROM_DESKTOP_MAX, Frame, FromDesktop, ToDesktop, framed,
};

use crate::{picture::Decoder, server::LIMIT};

/// A host that is connected.
pub(crate) struct Host {
    pub(crate) socket: UnixStream,
    cutter: Cutter,
    pub(crate) decoder: Decoder,
    next_seq: u32,
}

impl Host {
    /// Connects as soon as the program listens.
    pub(crate) fn connect(socket: &Path) -> Self {
        let deadline = Instant::now() + LIMIT;
        let socket = loop {
            match UnixStream::connect(socket) {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < deadline, "the program does not listen: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self { socket, cutter: Cutter::new(FROM_DESKTOP_MAX), decoder: Decoder::new(), next_seq: 0 }
    }

    /// Connects and watches from the start.
    pub(crate) fn watch(socket: &Path) -> Self {
        let mut host = Self::connect(socket);
        assert!(matches!(host.next(), Some(FromDesktop::Hello { version: DESKTOP_VERSION, .. })));
        host.tell(&ToDesktop::Watch(true));
        host
    }

    pub(crate) fn tell(&mut self, message: &ToDesktop) {
        self.socket.write_all(&framed(&message.encode())).unwrap();
    }

    /// The next message; `None` at the end. Frames are decoded.
    pub(crate) fn next(&mut self) -> Option<FromDesktop> {
        self.try_next().unwrap_or_else(|error| panic!("nothing came in time: {error}"))
    }

    /// Reads until nothing came for so long.
    pub(crate) fn until_silent(&mut self, silence: Duration) {
        let deadline = Instant::now() + LIMIT;
        self.socket.set_read_timeout(Some(silence)).unwrap();
        while let Ok(message) = self.try_next() {
            assert!(message.is_some(), "the program hung up");
            assert!(Instant::now() < deadline, "it goes on and on");
        }
        self.socket.set_read_timeout(Some(LIMIT)).unwrap();
    }

    fn try_next(&mut self) -> std::io::Result<Option<FromDesktop>> {
        loop {
            if let Some(message) = self.cutter.next().unwrap() {
                let message = FromDesktop::decode(message).unwrap();
                if let FromDesktop::Frame(frame) = &message {
                    assert_eq!(frame.seq, self.next_seq, "a frame is missing");
                    self.next_seq += 1;
                    self.decoder.take(frame);
                }
                return Ok(Some(message));
            }
            let mut chunk = [0; 16 << 10];
            match self.socket.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => self.cutter.extend(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next frame.
    pub(crate) fn frame(&mut self) -> Frame {
        loop {
            match self.next() {
                Some(FromDesktop::Frame(frame)) => return frame,
                Some(_) => {}
                None => panic!("the program hung up"),
            }
        }
    }

    /// Frames until one is as wanted; gives that one.
    pub(crate) fn frame_where(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Frame, &Decoder) -> bool,
    ) -> Frame {
        let deadline = Instant::now() + LIMIT;
        loop {
            let frame = self.frame();
            if wanted(&frame, &self.decoder) {
                return frame;
            }
            assert!(Instant::now() < deadline, "no frame {what}");
        }
    }

    /// Reads until the stream is at rest: a keep-alive came.
    pub(crate) fn rest(&mut self) {
        self.frame_where("that is a keep-alive", |frame, _| frame.keep_alive);
    }
}
