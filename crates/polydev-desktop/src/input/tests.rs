//! Input against real X servers and a real browser.

mod browser;
mod characters;
mod clipboard;
mod keys;
mod layouts;
mod server;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use polydev_core::desktop::{FromDesktop, InputEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Injector;
use crate::{outbox::Outbox, wake::Wake};

/// No wait in these tests is longer. The machine may be busy with much else.
const LIMIT: Duration = Duration::from_secs(90);

/// An injector and what the streaming loop has of it.
struct Hand {
    injector: Injector,
    outbox: Outbox,
    applied: Arc<AtomicU32>,
    wake: Wake,
    seq: AtomicU32,
}

impl Hand {
    fn on(display: &str) -> Self {
        let wake = Wake::new().unwrap();
        let (outbox, applied) = (Outbox::new(wake.clone()), Arc::new(AtomicU32::new(0)));
        let injector =
            Injector::start_on(Some(display), outbox.clone(), applied.clone(), wake.clone()).unwrap();
        Self { injector, outbox, applied, wake, seq: AtomicU32::new(0) }
    }

    fn send(&self, event: InputEvent) {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        self.injector.input(seq, event);
    }

    fn key(&self, down: bool, keysym: u32, code: &str) {
        self.send(InputEvent::Key { down, keysym, code: code.to_owned() });
    }

    fn tap(&self, keysym: u32, code: &str) {
        self.key(true, keysym, code);
        self.key(false, keysym, code);
    }

    fn text(&self, text: &str) {
        self.send(InputEvent::Text { text: text.to_owned() });
    }

    /// Returns when everything sent was handed to the X server.
    fn finish(&self) {
        let wanted = self.seq.load(Ordering::Relaxed);
        self.wait("the input is applied", || (self.applied.load(Ordering::Acquire) == wanted).then_some(()));
    }

    /// The next text that a program put on the clipboard.
    fn copied(&self) -> String {
        self.wait("a clipboard text", || match self.outbox.take() {
            Some(FromDesktop::Clipboard(text)) => Some(text),
            _ => None,
        })
    }

    fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            self.wake.clear();
            if let Some(found) = look() {
                return found;
            }
            let left =
                end.checked_duration_since(Instant::now()).unwrap_or_else(|| panic!("no end to: {what}"));
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: 0 };
            poll(&mut [PollFd::new(&self.wake, PollFlags::IN)], Some(&left)).unwrap();
        }
    }
}
