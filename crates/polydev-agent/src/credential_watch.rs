//! Notices that credential files change, whether by rename or in place, in directories that may not be there yet.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};

/// A change counts this much later: files written in place come in pieces. What comes after counts as another change.
const SETTLE: Duration = Duration::from_millis(150);

pub(crate) struct CredentialWatch {
    inotify: AsyncFd<OwnedFd>,
    /// The home and every directory on the way to a file, outermost first.
    directories: Vec<PathBuf>,
    /// When the change that was noticed counts.
    settled: Option<Instant>,
}

impl CredentialWatch {
    pub(crate) fn new(home: &Path, files: &[String]) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // SAFETY: the descriptor is owned, so it stays the same open file until it is dropped with its registration.
        let inotify = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        let mut directories: Vec<PathBuf> = Vec::new();
        for file in files {
            let parents: Vec<&Path> = Path::new(file).ancestors().skip(1).collect();
            for directory in parents.into_iter().rev().map(|parent| home.join(parent)) {
                if !directories.contains(&directory) {
                    directories.push(directory);
                }
            }
        }
        let watch = Self { inotify, directories, settled: None };
        watch.add_watches();
        Ok(watch)
    }

    /// Returns when something changed and had time to settle. Cancel-safe: the change is remembered.
    pub(crate) async fn changed(&mut self) {
        let settled = match self.settled {
            Some(settled) => settled,
            None => {
                if self.directories.is_empty() || self.drain().await.is_err() {
                    return std::future::pending().await;
                }
                *self.settled.insert(Instant::now() + SETTLE)
            }
        };
        tokio::time::sleep_until(settled).await;
        self.settled = None;
        self.add_watches();
    }

    /// Adding a watch again is harmless; a directory that is not there yet announces itself in its parent.
    fn add_watches(&self) {
        let events = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE | WatchFlags::MODIFY;
        for directory in &self.directories {
            let flags = events | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
            let _ = inotify::add_watch(self.inotify.get_ref(), directory, flags);
        }
    }

    async fn drain(&self) -> io::Result<()> {
        let mut events = [0u8; 4096];
        self.inotify
            .async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut events)?))
            .await
            .map(|_| ())
    }
}
