//! The machine as PID 1 sees it: loopback up, power off.

use std::{io, os::fd::AsRawFd, process::ExitCode, time::Duration};

use polydev_core::guest::RUN_DIR;
use rustix::{
    mount::{MountFlags, mount_remount},
    net::{AddressFamily, SocketType, socket},
};

use crate::Surroundings;

/// How long programs may take to end when asked nicely.
const TERM_LIMIT: Duration = Duration::from_secs(2);

/// Sets the loopback interface up. A container's runtime has done so, and kept the right to do it to itself.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = from.cast_signed();
    }
    // SAFETY: both calls take a pointer to a live ifreq; SIOCGIFFLAGS fills the flags that are changed in place.
    unsafe {
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) == -1 {
            return Err(io::Error::last_os_error());
        }
        let up = libc::IFF_UP as libc::c_short;
        if request.ifr_ifru.ifru_flags & up != 0 {
            return Ok(());
        }
        request.ifr_ifru.ifru_flags |= up;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Ends every program, writes everything out and switches the machine off (or leaves the container).
pub(crate) async fn power_off(surroundings: Surroundings) -> ExitCode {
    signal_all(libc::SIGTERM);
    let deadline = tokio::time::Instant::now() + TERM_LIMIT;
    while alone().is_ok_and(|alone| !alone) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    signal_all(libc::SIGKILL);
    rustix::fs::sync();
    match surroundings {
        Surroundings::Container => ExitCode::SUCCESS,
        Surroundings::Vm => {
            // Read-only first, so that the data disk's journal is clean. Best effort: the data is synced already.
            for place in ["/", &format!("{RUN_DIR}/upper")] {
                let _ = mount_remount(place, MountFlags::RDONLY, "");
            }
            power_off_now()
        }
    }
}

/// Switches off at once.
pub(crate) fn power_off_now() -> ExitCode {
    rustix::fs::sync();
    match rustix::system::reboot(rustix::system::RebootCommand::PowerOff) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("polydev-agent: power off: {error}");
            ExitCode::FAILURE
        }
    }
}

fn signal_all(signal: i32) {
    if std::process::id() == 1 {
        // SAFETY: kill takes no pointers; as PID 1 it reaches this PID namespace only, and never PID 1 itself.
        unsafe { libc::kill(-1, signal) };
    }
}

/// Whether PID 1 is the only process of user space left.
fn alone() -> io::Result<bool> {
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        // Kernel threads have no command line.
        if pid != 1 && std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()) {
            return Ok(false);
        }
    }
    Ok(true)
}
