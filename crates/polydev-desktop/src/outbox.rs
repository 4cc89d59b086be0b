//! Messages of other threads on their way to the host.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use polydev_core::desktop::FromDesktop;

use crate::wake::Wake;

/// Most messages that wait.
const WAITING_MAX: usize = 32;

/// Takes messages for the host from any thread; the streaming loop sends them. Cheap to clone.
///
/// Of clipboard texts only the newest waits, so that what waits has a bound in bytes, too.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    waiting: Arc<Mutex<VecDeque<FromDesktop>>>,
    wake: Wake,
}

impl Outbox {
    /// An empty one that wakes the loop for each message.
    pub(crate) fn new(wake: Wake) -> Self {
        Self { waiting: Arc::default(), wake }
    }

    /// Hands over a message; `false` if too many wait, and then it is lost. Never blocks.
    pub(crate) fn send(&self, message: FromDesktop) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(message, FromDesktop::Clipboard(_)) {
            waiting.retain(|older| !matches!(older, FromDesktop::Clipboard(_)));
        }
        if waiting.len() >= WAITING_MAX {
            return false;
        }
        waiting.push_back(message);
        drop(waiting);
        self.wake.wake();
        true
    }

    /// The oldest message.
    pub(crate) fn take(&self) -> Option<FromDesktop> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Drops what waits: it was meant for a host that is gone.
    pub(crate) fn clear(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox() -> Outbox {
        Outbox::new(Wake::new().unwrap())
    }

    #[test]
    fn only_the_newest_clipboard_waits() {
        let outbox = outbox();
        for text in ["old", "new"] {
            assert!(outbox.send(FromDesktop::Clipboard(text.into())));
            assert!(outbox.send(FromDesktop::CursorMoved { x: 1, y: 2 }));
        }
        let seen: Vec<_> = std::iter::from_fn(|| outbox.take()).collect();
        let moved = FromDesktop::CursorMoved { x: 1, y: 2 };
        assert_eq!(seen, [moved.clone(), FromDesktop::Clipboard("new".into()), moved]);
    }

    #[test]
    fn a_full_outbox_refuses_and_goes_on_when_there_is_room() {
        let outbox = outbox();
        let moved = || FromDesktop::CursorMoved { x: 0, y: 0 };
        assert!((0..WAITING_MAX).all(|_| outbox.send(moved())));
        assert!(!outbox.send(moved()));
        assert!(outbox.take().is_some());
        assert!(outbox.send(moved()));
    }
}
