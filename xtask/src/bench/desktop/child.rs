//! Programs that a benchmark starts, and surely ends.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child as Process, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use super::interrupt::pause;

const STOP_LIMIT: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A program in a process group of its own. Ended with the group when dropped.
#[derive(Debug)]
pub(super) struct Child {
    name: String,
    pub(super) process: Process,
}

impl Child {
    /// What it says goes to a file named after it.
    pub(super) fn start(name: &str, command: &mut Command, log_dir: &Path) -> Result<Self> {
        let log = log_dir.join(format!("{name}.log"));
        let log = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let said = log.try_clone().context("share a log")?;
        Self::start_piped(name, command.stdin(Stdio::null()).stdout(said).stderr(log))
    }

    /// Its standard streams are the caller's matter.
    pub(super) fn start_piped(name: &str, command: &mut Command) -> Result<Self> {
        // A terminal's Ctrl-C is for us; we stop the others in order.
        let process = command.process_group(0).spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), process })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    fn must_run(&mut self) -> Result<()> {
        match self.process.try_wait().with_context(|| format!("look after {}", self.name))? {
            Some(status) => bail!("{} ended with {status}", self.name),
            None => Ok(()),
        }
    }

    /// Waits until something is so, as long as the program runs.
    pub(super) fn until(&mut self, what: &str, limit: Duration, is_so: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        while !is_so() {
            self.must_run()?;
            if started.elapsed() > limit {
                bail!("{}: {what}: not within {} s", self.name, limit.as_secs());
            }
            pause(LOOK_AGAIN)?;
        }
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(group) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) else { return };
        let running = matches!(self.process.try_wait(), Ok(None));
        // What it started may outlive it; the group's number is not given to another while one member is there.
        let _ = kill_process_group(group, Signal::TERM);
        let deadline = Instant::now() + STOP_LIMIT;
        while running && matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
        }
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.process.wait();
    }
}
