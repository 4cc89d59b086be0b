//! Wakes the streaming loop from other threads.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::event::{EventfdFlags, eventfd};

/// Makes the streaming loop look around. Cheap to clone; many wakes before it looks are one.
#[derive(Debug, Clone)]
pub(crate) struct Wake {
    counter: Arc<OwnedFd>,
}

impl Wake {
    /// One that nobody waits on yet.
    pub(crate) fn new() -> io::Result<Self> {
        let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { counter: Arc::new(counter) })
    }

    /// Never blocks.
    pub(crate) fn wake(&self) {
        // The one way to fail is a full counter: then the loop is awake already.
        let _ = rustix::io::write(&self.counter, &1_u64.to_ne_bytes());
    }

    /// Forgets the wakes so far.
    pub(crate) fn clear(&self) {
        // Nothing to forget is no failure.
        let _ = rustix::io::read(&self.counter, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    /// Readable after a wake.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.counter.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_awake(wake: &Wake) -> bool {
        poll(&mut [PollFd::new(wake, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn it_stays_awake_until_it_is_cleared() {
        let wake = Wake::new().unwrap();
        assert!(!is_awake(&wake));
        wake.clone().wake();
        wake.wake();
        assert!(is_awake(&wake));
        wake.clear();
        assert!(!is_awake(&wake));
    }
}
