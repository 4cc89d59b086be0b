//! Runs the build's programs: cleared environment, output to a log, own process group, cancellable, with signs of life for the person who waits.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::error::{ImageError, IoContext};

/// Fixed modification time of everything in an image and `SOURCE_DATE_EPOCH` of the build: 2026-01-01T00:00:00Z.
pub(crate) const EPOCH: u64 = 1_767_225_600;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const POLL: Duration = Duration::from_millis(20);
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);
const TERM_GRACE: Duration = Duration::from_secs(3);
const TAIL_BYTES: u64 = 3000;

/// The operator's settings that programs which fetch packages may see; everything else of the environment is dropped.
const FETCH_VARIABLES: [&str; 9] = [
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "npm_config_registry",
];

/// Stops a running build from another thread or a signal task.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the build to stop; it kills its children, removes its unfinished files and returns [`ImageError::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Fails once [`Cancel::cancel`] was called.
    pub fn check(&self) -> Result<(), ImageError> {
        if self.0.load(Ordering::Relaxed) { Err(ImageError::Cancelled) } else { Ok(()) }
    }
}

/// One line for the person who waits.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Time since the operation started.
    pub elapsed: Duration,
    /// Part of the work: a layer's name, `kernel`, `image`, `check`, `boot`.
    pub part: String,
    /// What is happening or was found.
    pub text: String,
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>5.1}s  {:<8} {}", self.elapsed.as_secs_f64(), self.part, self.text)
    }
}

/// Receives progress, possibly from several threads.
pub type ProgressFn<'a> = dyn Fn(Progress) + Send + Sync + 'a;

/// What every step needs: a way to run programs, to tell and to stop.
pub(crate) struct Runner<'a> {
    cancel: &'a Cancel,
    given_up: AtomicBool,
    progress: &'a ProgressFn<'a>,
    started: Instant,
    /// Scratch directory, removed with everything in it at the end.
    pub(crate) work: PathBuf,
    log: PathBuf,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(cancel: &'a Cancel, progress: &'a ProgressFn<'a>, work: PathBuf, log: PathBuf) -> Self {
        Self { cancel, given_up: AtomicBool::new(false), progress, started: Instant::now(), work, log }
    }

    pub(crate) fn say(&self, part: &str, text: impl Into<String>) {
        (self.progress)(Progress {
            elapsed: self.started.elapsed(),
            part: part.to_owned(),
            text: text.into(),
        });
    }

    /// Stops the steps that run in parallel: their result is of no use any more.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Fails once the caller cancelled or another step failed.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        if self.given_up.load(Ordering::Relaxed) { Err(ImageError::Cancelled) } else { self.cancel.check() }
    }

    /// A program with nothing of the caller's environment but `PATH`, locale and build date.
    pub(crate) fn offline(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("SOURCE_DATE_EPOCH", EPOCH.to_string());
        command.env("HOME", &self.work).env("TMPDIR", &self.work);
        command
    }

    /// Like [`Runner::offline`], with the operator's proxy and registry settings.
    pub(crate) fn fetcher(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.offline(program);
        for name in FETCH_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// Runs to the end; a failure carries the last lines of the output.
    pub(crate) fn run(&self, part: &str, what: &str, command: &mut Command) -> Result<(), ImageError> {
        let mut output = self.scratch_file()?;
        let both = |f: &File| f.try_clone().or_io("clone handle of", &self.work);
        command.stdout(both(&output)?).stderr(both(&output)?);
        let status = self.wait(part, what, command)?;
        self.append_log(what, &mut output)?;
        if status.success() { Ok(()) } else { Err(self.failure(what, status, &mut output)) }
    }

    /// Runs to the end and returns standard output.
    pub(crate) fn output(&self, part: &str, what: &str, command: &mut Command) -> Result<String, ImageError> {
        let (mut output, mut errors) = (self.scratch_file()?, self.scratch_file()?);
        command
            .stdout(output.try_clone().or_io("clone handle of", &self.work)?)
            .stderr(errors.try_clone().or_io("clone handle of", &self.work)?);
        let status = self.wait(part, what, command)?;
        self.append_log(what, &mut errors)?;
        if !status.success() {
            return Err(self.failure(what, status, &mut errors));
        }
        let mut text = String::new();
        output
            .seek(SeekFrom::Start(0))
            .and_then(|_| output.read_to_string(&mut text))
            .or_io("read output in", &self.work)?;
        Ok(text)
    }

    /// Runs to the end within `limit`; returns whether it succeeded and everything it printed.
    pub(crate) fn attempt(
        &self,
        part: &str,
        what: &str,
        limit: Duration,
        command: &mut Command,
    ) -> Result<(bool, String), ImageError> {
        let mut output = self.scratch_file()?;
        let both = |f: &File| f.try_clone().or_io("clone handle of", &self.work);
        command.stdout(both(&output)?).stderr(both(&output)?);
        let status = self.wait_within(part, what, Some(limit), command)?;
        let mut bytes = Vec::new();
        output
            .seek(SeekFrom::Start(0))
            .and_then(|_| output.read_to_end(&mut bytes))
            .or_io("read output in", &self.work)?;
        Ok((status.is_some_and(|s| s.success()), String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Counts the bytes a program prints.
    pub(crate) fn count_output(&self, what: &str, command: &mut Command) -> Result<u64, ImageError> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .or_io("start", Path::new(command.get_program()))?;
        let mut pipe = child.stdout.take().expect("stdout was piped a line above");
        let counted = std::io::copy(&mut pipe, &mut std::io::sink());
        let status = child.wait().or_io("wait for", Path::new(what))?;
        if !status.success() {
            return Err(self.failure(what, status, &mut self.scratch_file()?));
        }
        counted.or_io("read output of", Path::new(what))
    }

    fn wait(&self, part: &str, what: &str, command: &mut Command) -> Result<ExitStatus, ImageError> {
        Ok(self.wait_within(part, what, None, command)?.expect("without a limit the wait ends with a status"))
    }

    fn wait_within(
        &self,
        part: &str,
        what: &str,
        limit: Option<Duration>,
        command: &mut Command,
    ) -> Result<Option<ExitStatus>, ImageError> {
        self.check()?;
        let program = OsString::from(command.get_program());
        let mut child =
            command.stdin(Stdio::null()).process_group(0).spawn().or_io("start", Path::new(&program))?;
        let began = Instant::now();
        let mut told = began;
        loop {
            if let Some(status) = child.try_wait().or_io("wait for", Path::new(&program))? {
                return Ok(Some(status));
            }
            if let Err(cancelled) = self.check() {
                end_group(&mut child);
                return Err(cancelled);
            }
            if limit.is_some_and(|limit| began.elapsed() > limit) {
                end_group(&mut child);
                return Ok(None);
            }
            if told.elapsed() > SIGN_OF_LIFE {
                told = Instant::now();
                self.say(part, format!("still: {what} ({:.0} s)", began.elapsed().as_secs_f64()));
            }
            std::thread::sleep(POLL);
        }
    }

    fn scratch_file(&self) -> Result<File, ImageError> {
        tempfile::tempfile_in(&self.work).or_io("create a file in", &self.work)
    }

    fn append_log(&self, what: &str, output: &mut File) -> Result<(), ImageError> {
        let mut log = File::options().append(true).create(true).open(&self.log).or_io("open", &self.log)?;
        let copy = writeln!(log, "== {what}")
            .and_then(|()| output.seek(SeekFrom::Start(0)))
            .and_then(|_| std::io::copy(output, &mut log));
        copy.map(drop).or_io("write", &self.log)
    }

    fn failure(&self, what: &str, status: ExitStatus, output: &mut File) -> ImageError {
        let length = output.metadata().map_or(0, |meta| meta.len());
        let mut tail = Vec::new();
        // A tail that cannot be read back leaves the message without it; the failure itself is what matters.
        if output.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).is_ok() {
            output.read_to_end(&mut tail).unwrap_or_default();
        }
        ImageError::Command {
            what: what.to_owned(),
            status: status.to_string(),
            tail: String::from_utf8_lossy(&tail).trim().to_owned(),
            log: self.log.clone(),
        }
    }
}

/// Fails with the package to install when a program is not in `PATH`.
pub(crate) fn require(programs: &[(&'static str, &'static str)]) -> Result<(), ImageError> {
    for &(program, package) in programs {
        if !PATH.split(':').any(|dir| Path::new(dir).join(program).is_file()) {
            return Err(ImageError::MissingProgram { program, package });
        }
    }
    Ok(())
}

fn end_group(child: &mut Child) {
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    let asked = Instant::now();
    // A group that is gone already needs no signal, so both results carry nothing to act on.
    kill_process_group(group, Signal::TERM).unwrap_or(());
    while asked.elapsed() < TERM_GRACE && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(POLL);
    }
    kill_process_group(group, Signal::KILL).unwrap_or(());
    child.wait().map(drop).unwrap_or(());
}
