//! Starts programs as an account, each in a session and process group of its own.

use std::{
    collections::BTreeMap,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Command, Stdio},
};

use polydev_core::guest::{Account, CLI_USER, PATH};
use tokio::{net::unix::pipe, sync::oneshot};

use crate::{freezer, reaper::Reaper};

/// What a program's standard streams are.
pub(crate) enum Streams {
    /// All `/dev/null`.
    Null,
    /// stdin is `/dev/null`, the others are pipes.
    Output,
    /// All are pipes.
    Pipes,
    /// All are this terminal, which becomes the controlling one.
    Terminal(OwnedFd),
}

/// A program to start.
pub(crate) struct Launch<'a> {
    pub(crate) argv: &'a [String],
    /// Complete: nothing is inherited. The program is looked up in its `PATH`.
    pub(crate) env: &'a BTreeMap<String, String>,
    pub(crate) account: &'a Account,
    pub(crate) streams: Streams,
}

/// A started program. Dropping it does not end it.
pub(crate) struct Child {
    /// Also the id of its process group.
    pub(crate) pid: i32,
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: Option<pipe::Receiver>,
    pub(crate) stderr: Option<pipe::Receiver>,
    /// Exit status; 128 + signal when killed.
    pub(crate) exit: oneshot::Receiver<i32>,
}

impl Launch<'_> {
    pub(crate) fn start(self, reaper: &Reaper) -> io::Result<Child> {
        let group = freezer::way_in()?;
        let Some((program, args)) = self.argv.split_first() else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no program given"));
        };
        let mut command = Command::new(program);
        command.args(args).env_clear();
        if self.account.uid == CLI_USER.uid {
            command.envs(image_env());
        }
        command.envs(self.env).current_dir(self.account.home);
        let has_terminal = match self.streams {
            Streams::Null => {
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                false
            }
            Streams::Output => {
                command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
                false
            }
            Streams::Pipes => {
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                false
            }
            Streams::Terminal(terminal) => {
                command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
                true
            }
        };
        let (uid, gid) = (self.account.uid, self.account.gid);
        let members = freezer::number(group.as_ref());
        // SAFETY: the closure runs between fork and exec and makes only async-signal-safe system calls.
        unsafe {
            command.pre_exec(move || {
                members.map_or(Ok(()), freezer::enter)?;
                become_account(uid, gid, has_terminal)
            });
        }
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let exit = reaper.expect(pid);
        let receiver = |fd: OwnedFd| pipe::Receiver::from_owned_fd(fd);
        Ok(Child {
            pid,
            stdin: child.stdin.take().map(|fd| pipe::Sender::from_owned_fd(fd.into())).transpose()?,
            stdout: child.stdout.take().map(|fd| receiver(fd.into())).transpose()?,
            stderr: child.stderr.take().map(|fd| receiver(fd.into())).transpose()?,
            exit,
        })
    }
}

/// Environment of everything that runs for an account, before what the host adds.
pub(crate) fn base_env(account: &Account) -> BTreeMap<String, String> {
    [
        ("HOME", account.home),
        ("USER", account.name),
        ("LOGNAME", account.name),
        ("SHELL", "/bin/bash"),
        ("PATH", PATH),
        ("LANG", "C.UTF-8"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

/// Variables that the image or an overlay on it sets for everything a person runs; what a request says goes before.
const IMAGE_ENV: &str = "/etc/polydev/environment";

fn image_env() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(IMAGE_ENV).unwrap_or_default();
    let entry = |line: &str| {
        let (name, value) = line.trim().split_once('=')?;
        let sound = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !value.contains('\0');
        (sound && !name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

/// Sends a signal to a whole process group; one that is gone already is no matter.
pub(crate) fn signal_group(pid: i32, signal: i32) {
    if pid > 1 {
        // SAFETY: kill takes no pointers.
        unsafe { libc::kill(-pid, signal) };
    }
}

fn become_account(uid: u32, gid: u32, has_terminal: bool) -> io::Result<()> {
    let done = |result: libc::c_int| if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: plain system calls; the one pointer is to a live local.
    unsafe {
        done(libc::setsid())?;
        if has_terminal {
            done(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
        if libc::getuid() == 0 {
            done(libc::setgroups(1, &gid))?;
            done(libc::setresgid(gid, gid, gid))?;
            done(libc::setresuid(uid, uid, uid))?;
        }
        libc::umask(0o022);
    }
    Ok(())
}
