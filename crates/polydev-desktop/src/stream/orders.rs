//! Reads what one host connection says: input goes straight to the injector, the rest waits for the streaming loop.

use std::{
    io::{self, Read},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, PoisonError},
};

use polydev_core::desktop::{ContentMode, Cutter, DesktopError, TO_DESKTOP_MAX, ToDesktop};

use crate::{input::Injector, wake::Wake};

/// Bytes read at once: many inputs, a part of a clipboard.
const CHUNK: usize = 16 << 10;

/// What the host wants of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Target in kbit/s.
    pub(crate) kbps: u32,
    /// Most frames per second.
    pub(crate) fps: u8,
    /// What to tune for.
    pub(crate) mode: ContentMode,
}

/// What the host wants of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScreenWish {
    /// In pixels.
    pub(crate) width: u16,
    /// In pixels.
    pub(crate) height: u16,
    /// Of the content, in percent.
    pub(crate) scale: u16,
}

/// What was said since the loop last looked; of each kind the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Orders {
    /// Whether anybody watches.
    pub(crate) watch: Option<bool>,
    /// A keyframe is wanted.
    pub(crate) keyframe: bool,
    /// Whether pictures would only wait.
    pub(crate) hold: Option<bool>,
    /// A new rate.
    pub(crate) rate: Option<Rate>,
    /// A new size.
    pub(crate) screen: Option<ScreenWish>,
    /// Nothing comes any more.
    pub(crate) ended: bool,
}

/// Where a connection's reader leaves orders.
#[derive(Debug, Default)]
pub(crate) struct Board {
    orders: Mutex<Orders>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The socket failed.
    #[error("host connection: {0}")]
    Socket(#[from] io::Error),
    /// The host said something that is not of the protocol.
    #[error("host said what is not understood: {0}")]
    Message(#[from] DesktopError),
}

impl Board {
    /// Takes what waits.
    pub(crate) fn take(&self) -> Orders {
        std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn note(&self, message: ToDesktop, injector: &Injector) -> bool {
        match message {
            ToDesktop::Watch(on) => self.put(|orders| {
                // Off and on again is a new viewer: it needs a picture of its own.
                orders.keyframe |= on;
                orders.watch = Some(on);
            }),
            ToDesktop::Keyframe => self.put(|orders| orders.keyframe = true),
            ToDesktop::Hold(on) => self.put(|orders| orders.hold = Some(on)),
            ToDesktop::Rate { kbps, fps, mode } => {
                self.put(|orders| orders.rate = Some(Rate { kbps, fps, mode }));
            }
            ToDesktop::Resize { width, height, scale } => {
                self.put(|orders| orders.screen = Some(ScreenWish { width, height, scale }));
            }
            ToDesktop::Input { seq, event } => {
                injector.input(seq, event);
                return false;
            }
            ToDesktop::Clipboard(text) => {
                injector.clipboard(text);
                return false;
            }
            ToDesktop::Wipe => {
                injector.wipe();
                return false;
            }
        }
        true
    }
}

/// Reads until the connection ends, whatever ends it.
pub(crate) fn read(mut socket: UnixStream, board: &Arc<Board>, injector: &Injector, wake: &Wake) {
    if let Err(error) = read_all(&mut socket, board, injector, wake) {
        eprintln!("polydev-desktop: {error}");
    }
    board.put(|orders| orders.ended = true);
    wake.wake();
}

fn read_all(
    socket: &mut UnixStream,
    board: &Board,
    injector: &Injector,
    wake: &Wake,
) -> Result<(), ReadError> {
    let mut cutter = Cutter::new(TO_DESKTOP_MAX);
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = match socket.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        cutter.extend(&chunk[..count]);
        let mut news = false;
        while let Some(message) = cutter.next()? {
            news |= board.note(ToDesktop::decode(message)?, injector);
        }
        if news {
            wake.wake();
        }
    }
}
