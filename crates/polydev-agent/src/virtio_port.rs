//! The virtio-serial port that carries the guest channel under QEMU, as an async byte stream.
//!
//! While no host is connected the port reports end of file and hang-up without end. Waiting on it directly would spin,
//! so the port sits in an edge-triggered epoll instance of its own, which wakes once per change, and tokio watches that.

use std::{
    fs,
    io::{self, IoSlice},
    os::fd::OwnedFd,
    path::PathBuf,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use polydev_core::guest::VIRTIO_CHANNEL;
use rustix::{
    event::epoll,
    fs::{Mode, OFlags},
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// Handle; clones are the same port.
#[derive(Clone)]
pub(crate) struct VirtioPort {
    inner: Rc<Inner>,
}

struct Inner {
    port: OwnedFd,
    changes: AsyncFd<OwnedFd>,
}

impl VirtioPort {
    /// Opens the port named [`VIRTIO_CHANNEL`].
    pub(crate) fn open() -> io::Result<Self> {
        let port =
            rustix::fs::open(device()?, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let changes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let interest = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&changes, &port, epoll::EventData::new_u64(0), interest)?;
        // SAFETY: the descriptor is owned, so it stays the same open file until it is dropped with its registration.
        let changes = unsafe { AsyncFd::register_with_interest(changes, Interest::READABLE) }?;
        Ok(Self { inner: Rc::new(Inner { port, changes }) })
    }

    /// Returns when reading gives something else than "no host is connected".
    pub(crate) async fn host_connected(&self) -> io::Result<()> {
        loop {
            let mut hang_up =
                [rustix::event::PollFd::new(&self.inner.port, rustix::event::PollFlags::empty())];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut hang_up, Some(&now))?;
            if !hang_up[0].revents().contains(rustix::event::PollFlags::HUP) {
                return Ok(());
            }
            let mut guard = self.inner.changes.readable().await?;
            self.inner.forget_change();
            guard.clear_ready();
        }
    }
}

impl Inner {
    fn forget_change(&self) {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 1];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // Only the side effect counts: the instance is no longer readable until the next change.
        let _ = epoll::wait(self.changes.get_ref(), &mut events, Some(&now));
    }

    /// Tries, and when the port would block waits for the next change and tries again.
    fn poll_try<T>(
        &self,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut() -> rustix::io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            match attempt() {
                Err(rustix::io::Errno::AGAIN) => {}
                Err(rustix::io::Errno::INTR) => continue,
                other => return Poll::Ready(other.map_err(io::Error::from)),
            }
            let Poll::Ready(guard) = self.changes.poll_read_ready(cx) else { return Poll::Pending };
            let mut guard = guard?;
            self.forget_change();
            guard.clear_ready();
        }
    }
}

impl AsyncRead for VirtioPort {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let target = buf.initialize_unfilled();
        let count =
            std::task::ready!(self.inner.poll_try(cx, || rustix::io::read(&self.inner.port, &mut *target)))?;
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for VirtioPort {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.inner.poll_try(cx, || rustix::io::write(&self.inner.port, buf))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
        self.poll_write(cx, first)
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn device() -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim_end() == VIRTIO_CHANNEL) {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "no virtio port named polydev.agent"))
}
