//! How a firecracker ended: from the kernel where it tells (Linux 6.15 and later, while the end was watched), otherwise
//! from its last words in the log.

use std::{os::fd::OwnedFd, time::Duration};

use rustix::{
    io::Errno,
    ioctl::{Updater, ioctl, opcode},
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::time::{Instant, sleep};

use super::home::Home;
use crate::{host::LogKind, logs, process::ProcessId};

/// How much of the log is looked at.
const LOG_BYTES: usize = 8 << 10;
/// A process whose connection broke may need a moment to be gone.
const END_LIMIT: Duration = Duration::from_millis(500);
const END_POLL: Duration = Duration::from_millis(5);

/// A process whose end is to be explained.
#[derive(Debug)]
pub(crate) struct Watch(Option<OwnedFd>);

impl Watch {
    pub(crate) fn of(process: ProcessId) -> Self {
        let open = || pidfd_open(Pid::from_raw(process.identity(false).pid)?, PidfdFlags::empty()).ok();
        let handle = open();
        // Opened first, looked at afterwards: the handle is that of the very process.
        Self(handle.filter(|_| process.alive()))
    }

    /// Whether it has ended, or does so at once.
    pub(super) async fn has_ended(&self, process: ProcessId) -> bool {
        let deadline = Instant::now() + END_LIMIT;
        while process.alive() {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(END_POLL).await;
        }
        true
    }

    /// Its wait status (wait(2)), if the kernel keeps it.
    pub(crate) fn status(&self) -> Option<i32> {
        let handle = self.0.as_ref()?;
        let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
        // SAFETY: the request of pidfd_open(2)'s handles reads and writes a `struct pidfd_info` of the size that its
        // number names; `PidfdInfo` is the first version of that structure, which every kernel with the request knows.
        let told: Result<(), Errno> =
            unsafe { ioctl(handle, Updater::<GET_INFO, PidfdInfo>::new(&mut info)) };
        told.ok()?;
        (info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
    }
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// PIDFD_GET_INFO of linux/pidfd.h.
const GET_INFO: rustix::ioctl::Opcode = opcode::read_write::<PidfdInfo>(0xff, 11);

/// `struct pidfd_info` of linux/pidfd.h.
#[repr(C)]
#[derive(Debug, Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    /// pid, tgid, ppid; real, effective, saved and file system user and group.
    ids: [u32; 11],
    exit_code: i32,
}

/// Words for the end of a VM's process.
pub(super) fn how(watched: Option<&Watch>, home: &Home) -> String {
    let log = logs::tail(&home.dir.join(LogKind::Driver.file_name()), LOG_BYTES).unwrap_or_default();
    let said = last_words(&log);
    match (watched.and_then(Watch::status).map(explain), said) {
        (Some(status), Some(said)) => format!("{status}; {said}"),
        (Some(status), None) => status,
        (None, Some(said)) => said.to_owned(),
        (None, None) => "it left no word; it may have been killed".to_owned(),
    }
}

/// Words for a wait status (wait(2)).
fn explain(status: i32) -> String {
    match (status & 0x7f, (status >> 8) & 0xff) {
        (0, code) => format!("exit code {code}: {}", meaning(code)),
        (9, _) => "killed (signal 9)".to_owned(),
        (signal, _) => format!("ended by signal {signal}"),
    }
}

/// Firecracker's exit codes (`FcExitCode`).
fn meaning(code: i32) -> &'static str {
    match code {
        0 => "its guest ended",
        1 => "an error; the guest may have crashed",
        2 => "a bad invocation of the jailer or of firecracker",
        148 => "a system call that its seccomp filter forbids",
        149 => "SIGBUS: a file it maps was cut, or the disk of its memory is full",
        150 => "SIGSEGV",
        151 => "SIGXFSZ: a file grew over the limit",
        152 => "a bad configuration",
        153 => "bad arguments",
        154 => "SIGXCPU: the limit of CPU time",
        155 => "SIGPIPE",
        156 => "SIGHUP: its session ended",
        157 => "SIGILL: a snapshot of another CPU model, or a damaged program",
        _ => "not known",
    }
}

/// The line that tells most.
fn last_words(log: &str) -> Option<&str> {
    let telling = ["intercepting", "KVM_EXIT", "panicked", "[ERROR]", ":ERROR", "Error:"];
    let mut lines = log.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    lines.find(|line| telling.iter().any(|word| line.contains(word)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn statuses_and_last_words_are_explained() {
        assert!(explain(148 << 8).contains("seccomp"));
        assert!(explain(149 << 8).starts_with("exit code 149: SIGBUS"));
        assert_eq!(explain(9), "killed (signal 9)");
        let log = "a:INFO] start\n2026 [toy:ERROR] Shutting down VM after intercepting a bad syscall (39).\na:INFO] bye\n";
        assert!(last_words(log).unwrap().ends_with("bad syscall (39)."));
        assert_eq!(last_words("nothing\n"), None);
    }

    #[test]
    fn the_kernel_tells_the_exit_code_of_a_process_that_was_watched() {
        let mut child = Command::new("sh")
            .args(["-c", "read line; exit 148"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let watch = Watch::of(ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap());
        assert_eq!(watch.status(), None, "it has not ended");
        drop(child.stdin.take());
        child.wait().unwrap();
        match watch.status() {
            Some(status) => assert_eq!(status, 148 << 8),
            None => println!("SKIPPED: this kernel does not tell (before 6.15)"),
        }
    }
}
