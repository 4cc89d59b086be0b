//! Network namespaces that have a file as their name, and threads that visit them.
//!
//! A namespace gets its name last, when it is whole: what has a name can be used, and what a killed process left half
//! made has none and is gone with it.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    thread,
};

use rustix::{
    fs::statfs,
    mount::{UnmountFlags, mount_bind, unmount},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};
use tokio::sync::oneshot;

/// linux/magic.h
const NSFS_MAGIC: i64 = 0x6e73_6673;
const OWN: &str = "/proc/thread-self/ns/net";

/// Runs `work` on a thread that ends with it, so that no other work ever finds itself in another namespace.
pub(super) async fn on_own_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (give, result) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Nobody may wait for it any more.
        let _ = give.send(work());
    })?;
    result.await.map_err(|_| io::Error::other("the thread panicked"))
}

/// Leaves for a new, empty namespace and returns it. Only on a thread of its own.
pub(super) fn enter_new() -> io::Result<File> {
    // SAFETY: only the calling thread's network namespace changes; no file descriptor table is unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    current()
}

/// The calling thread's namespace.
pub(super) fn current() -> io::Result<File> {
    File::open(OWN)
}

/// Moves the calling thread into a namespace.
pub(super) fn enter(namespace: &impl AsFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Names the calling thread's namespace.
pub(super) fn name(path: &Path) -> io::Result<()> {
    bind(Path::new(OWN), path)
}

/// Names the namespace that a link of a process leads to, unless that is the calling thread's own.
pub(super) fn name_of_process(link: &Path, path: &Path) -> io::Result<()> {
    if !differ(link, Path::new(OWN)) {
        return Err(io::ErrorKind::NotFound.into());
    }
    bind(link, path)
}

fn bind(namespace: &Path, path: &Path) -> io::Result<()> {
    // Without a mount on it the file of that name is what a reboot or a killed process left.
    File::create(path)?;
    let bound = mount_bind(namespace, path);
    if bound.is_err() {
        let _ = fs::remove_file(path);
    }
    Ok(bound?)
}

/// Whether mounts of this process are gone at its next start: systemd gives a service that is confined by them a mount
/// namespace of its own, a new one each time.
pub(super) fn mounts_end_with_service() -> bool {
    // As systemd.exec(5) names it.
    std::env::var_os("INVOCATION_ID").is_some()
        && differ(Path::new("/proc/self/ns/mnt"), Path::new("/proc/1/ns/mnt"))
}

/// Whether two links lead to two namespaces; who may not look does not know.
fn differ(one: &Path, other: &Path) -> bool {
    let number = |link| fs::metadata(link).map(|it| it.ino());
    matches!((number(one), number(other)), (Ok(one), Ok(other)) if one != other)
}

/// Whether this is the name of a namespace.
pub(super) fn is_named(path: &Path) -> bool {
    statfs(path).is_ok_and(|about| about.f_type == NSFS_MAGIC)
}

/// Takes a name away. The namespace ends with the last process and socket in it. No such name is fine.
pub(super) fn unname(path: &Path) -> io::Result<()> {
    while is_named(path) {
        unmount(path, UnmountFlags::DETACH)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a setting of the calling thread's namespace; one that this kernel does not have is none that matters.
pub(super) fn set(setting: &str, value: &str) -> io::Result<()> {
    match fs::write(Path::new("/proc/sys/net").join(setting), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// A link's number in the calling thread's namespace.
pub(super) fn link_index(name: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(&socket, name)?)
}
