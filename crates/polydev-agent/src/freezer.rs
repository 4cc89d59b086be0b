//! Holds everything still that a person or the browser runs, from before a snapshot until the identity is taken.
//!
//! All programs the agent starts are in one control group, with what they start themselves. What is frozen there runs
//! not one instruction, so nothing draws from a random pool or reads a clock that a clone still shares. Ending works.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{MountFlags, mount},
};
use tokio::time::Instant;

/// The control groups' file system: not in its usual place, where programs would look for limits in it.
const PLACE: &str = "/run/polydev/cgroup";
const MEMBERS: &str = "/run/polydev/cgroup/people/cgroup.procs";
const FREEZE: &str = "/run/polydev/cgroup/people/cgroup.freeze";
const EVENTS: &str = "/run/polydev/cgroup/people/cgroup.events";
/// How long everything may take to stand still: a program may be waiting for a disk.
const STILL_LIMIT: Duration = Duration::from_secs(10);
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Makes the control group. A container has none: its whole kernel is the host's.
pub(crate) fn prepare() -> io::Result<()> {
    fs::create_dir_all(PLACE)?;
    fs::set_permissions(PLACE, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let hardened = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("cgroup", PLACE, "cgroup2", hardened, c"")?;
    fs::create_dir(Path::new(MEMBERS).with_file_name(""))
}

/// The way into the control group for a program that is about to be started. While all is frozen there is none: it
/// would never get as far as running, and whoever waits for that neither.
pub(crate) fn way_in() -> io::Result<Option<OwnedFd>> {
    if frozen() {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the machine waits for its identity"));
    }
    match rustix::fs::open(MEMBERS, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(members) => Ok(Some(members)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Puts the calling process into the control group. Makes one system call, so it may run between fork and exec.
pub(crate) fn enter(members: RawFd) -> io::Result<()> {
    // SAFETY: the pointer is to one byte, which is what is written; the kernel takes "0" for the caller.
    if unsafe { libc::write(members, b"0".as_ptr().cast(), 1) } == 1 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Returns once nothing moves any more.
pub(crate) async fn freeze() -> io::Result<()> {
    fs::write(FREEZE, "1")?;
    let deadline = Instant::now() + STILL_LIMIT;
    while !fs::read_to_string(EVENTS)?.contains("frozen 1") {
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "not everything stands still"));
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Ok(())
}

/// Lets everything go on.
pub(crate) fn thaw() -> io::Result<()> {
    match fs::write(FREEZE, "0") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether all is to stand still.
pub(crate) fn frozen() -> bool {
    fs::read(FREEZE).is_ok_and(|state| state.starts_with(b"1"))
}

/// The number by which a started program gets in.
pub(crate) fn number(members: Option<&OwnedFd>) -> Option<RawFd> {
    members.map(AsRawFd::as_raw_fd)
}
