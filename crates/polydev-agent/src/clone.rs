//! What a machine that goes on from a snapshot has to lose before it is one of its own.
//!
//! Done while everything a person or the browser runs is frozen, after the kernel's random pool was renewed. What is left
//! of the template afterwards: the browser's main process, its zygotes and its compositor, which draw random numbers from
//! the kernel (Chromium: base/rand_util_posix.cc; what they keep in stock are names for talking to each other), the X
//! server with its key, which only the browser's account can present, ids in the profile that nothing sends, and where in
//! memory all of these lie.

use std::{
    fs, io,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use polydev_core::guest::BROWSER_USER;
use rustix::{
    mount::mount_bind,
    net::{AddressFamily, Shutdown, SocketType, shutdown, sockopt},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open},
};

use crate::log::Log;

const KERNELS_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Lies over the kernel's.
const OWN_BOOT_ID: &str = "/run/polydev/boot_id";
/// What tells the browser's processes apart on their command lines.
const RENDERER: &str = "--type=renderer";
const NETWORK_SERVICE: &str = "--utility-sub-type=network.mojom.NetworkService";
/// How long processes may take to end. Those that are killed have nothing left to do.
const END_LIMIT: Duration = Duration::from_secs(5);
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// Gives the machine a boot id of its own. The kernel's is part of its memory, so clones share it.
pub(crate) fn renew_boot_id(log: &Log) -> io::Result<()> {
    let old = fs::read_to_string(KERNELS_BOOT_ID)?;
    let mut random = [0; 16];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut random)?;
    let new = uuid(random);
    let mounted = Path::new(OWN_BOOT_ID).exists();
    fs::write(OWN_BOOT_ID, format!("{new}\n"))?;
    fs::set_permissions(OWN_BOOT_ID, std::os::unix::fs::PermissionsExt::from_mode(0o444))?;
    if !mounted {
        mount_bind(OWN_BOOT_ID, KERNELS_BOOT_ID)?;
    }
    log.note("identity", format_args!("boot {} goes on as {new}", old.trim()));
    Ok(())
}

/// Has the browser's renderers end before a snapshot: their random numbers, such as those of scripts, are seeded once.
///
/// Each is told that the browser is gone, by the end of what it reads, and then ends in good order. One that is killed
/// would leave a page in its tab that says so.
pub(crate) fn end_renderers() -> io::Result<()> {
    let renderers = processes(&[RENDERER])?;
    for renderer in &renderers {
        match hang_up(*renderer) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
            _ => {}
        }
    }
    ended(&renderers)
}

/// Ends what holds random numbers of the template: the network service with its TLS, and renderers that came since
/// [`end_renderers`] and have no page yet. The browser starts them anew.
pub(crate) fn end_holders(log: &Log) -> io::Result<()> {
    let holders = processes(&[RENDERER, NETWORK_SERVICE])?;
    for holder in &holders {
        match kill_process(*holder, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ended(&holders)?;
    log.note("identity", format_args!("{} processes of the template ended", holders.len()));
    Ok(())
}

/// The browser's processes with one of these words on their command line.
fn processes(words: &[&str]) -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = number else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        // Both zeros and blanks: a process that names itself anew joins its words.
        let holds = line.split(['\0', ' ']).any(|word| words.contains(&word));
        let is_browsers = || {
            use std::os::unix::fs::MetadataExt;
            // A sandboxed process belongs to root as far as its directory is concerned: it cannot be looked into.
            fs::metadata(entry.path()).is_ok_and(|it| [0, BROWSER_USER.uid].contains(&it.uid()))
        };
        if holds && is_browsers() {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Ends everything that a process reads from sockets of its own.
fn hang_up(pid: Pid) -> io::Result<()> {
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    for entry in fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()))? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(file) = pidfd_getfd(&handle, number, PidfdGetfdFlags::empty()) else { continue };
        let socket = file.as_fd();
        // Others than streams are shared by all renderers with the process that starts them.
        let is_channel = sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(socket) == Ok(SocketType::STREAM);
        if is_channel {
            // It may have been closed by the other side just now.
            let _ = shutdown(socket, Shutdown::Read);
        }
    }
    Ok(())
}

/// Waits until all of these are gone or dead. Their parent may be frozen and not collect them.
fn ended(all: &[Pid]) -> io::Result<()> {
    let deadline = Instant::now() + END_LIMIT;
    for pid in all {
        while lives(*pid) {
            if Instant::now() >= deadline {
                let what = format!("process {} does not end", pid.as_raw_nonzero());
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }
    Ok(())
}

fn lives(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // `PID (NAME) STATE ...`, and the name may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A random UUID (RFC 9562, version 4).
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Read,
        os::unix::net::UnixStream,
        process::{Command, Stdio},
    };

    #[test]
    fn a_boot_id_is_a_random_uuid() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid([0; 16]), "00000000-0000-4000-8000-000000000000");
    }

    #[test]
    fn a_process_that_is_told_that_the_other_side_is_gone_ends_by_itself() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: needs root");
            return;
        }
        let (near, far) = UnixStream::pair().unwrap();
        let reader = Command::new("cat").stdin(std::os::fd::OwnedFd::from(far)).stdout(Stdio::null()).spawn();
        let mut reader = reader.unwrap();
        let pid = Pid::from_child(&reader);
        assert!(lives(pid));
        hang_up(pid).unwrap();
        // Dead, and not collected yet.
        ended(&[pid]).unwrap();
        assert!(reader.wait().unwrap().success());
        assert!(!lives(pid));
        // What it wrote could still have been read.
        near.set_nonblocking(true).unwrap();
        assert_eq!((&near).read(&mut [0; 1]).unwrap(), 0);
    }
}
