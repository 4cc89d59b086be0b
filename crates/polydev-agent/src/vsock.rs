//! The vsock that carries the guest channel under Firecracker (vsock(7)).
//!
//! A listener survives a snapshot; connections do not.

use std::{
    io, mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
};

use polydev_core::guest::VSOCK_PORT;
use rustix::net::{SocketFlags, accept_with};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
};

/// Hosts that may wait to be accepted.
const BACKLOG: i32 = 8;

/// Waits for hosts on [`VSOCK_PORT`].
pub(crate) struct VsockListener {
    socket: AsyncFd<OwnedFd>,
}

impl VsockListener {
    pub(crate) fn bind() -> io::Result<Self> {
        let checked = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
        // SAFETY: plain call without pointers.
        let raw = checked(unsafe {
            libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)
        })?;
        // SAFETY: the descriptor was just opened and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: an all-zero `sockaddr_vm` is a valid one.
        let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_port = VSOCK_PORT;
        address.svm_cid = libc::VMADDR_CID_ANY;
        let length = mem::size_of_val(&address) as libc::socklen_t;
        // SAFETY: the pointer and the length name `address`, which outlives the call.
        checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
        rustix::net::listen(&socket, BACKLOG)?;
        // SAFETY: the descriptor is owned, so it stays the same open file until it is dropped with its registration.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket })
    }

    /// The next host.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let mut ready = self.socket.readable().await?;
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match ready.try_io(|socket| Ok(accept_with(socket, flags)?)) {
                // A stream socket of another family, of which nothing but reading and writing is asked.
                Ok(accepted) => return UnixStream::from_std(StdUnixStream::from(accepted?)),
                Err(_would_block) => {}
            }
        }
    }
}
