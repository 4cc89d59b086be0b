//! The process that is killed.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    caller::{Ask, Caller},
    serve::Config,
};

/// How long a manager may take until it listens: it tries its driver out first.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long a manager may take to end when it is asked to.
const END_LIMIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How managers are started.
#[derive(Debug)]
pub(super) struct Starter {
    pub(super) config: Config,
    /// Where the configuration, the log and the list of failpoints are.
    pub(super) dir: PathBuf,
    pub(super) patience: Duration,
}

/// A manager that was started. Killed when dropped.
#[derive(Debug)]
pub(super) struct Manager {
    child: Child,
}

impl Starter {
    pub(super) fn new(config: Config, dir: PathBuf, patience: Duration) -> Result<Self> {
        let text = serde_json::to_vec(&config).context("write the manager's configuration")?;
        fs::write(dir.join("manager.json"), text).context("write the manager's configuration")?;
        Ok(Self { config, dir, patience })
    }

    /// Starts one that dies at `trap`, if any. It may be dead before it is ready: then there is no caller.
    pub(super) fn start(&self, trap: Option<&str>) -> Result<(Manager, Option<Caller>)> {
        let log = OpenOptions::new().create(true).append(true).open(self.log());
        let log = log.context("open the manager's log")?;
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.arg("chaos-manager").arg(self.dir.join("manager.json")).current_dir("/");
        command.env("POLYDEV_FAILPOINT_LOG", self.reached_file());
        command.env_remove("POLYDEV_FAILPOINT");
        if let Some(trap) = trap {
            command.env("POLYDEV_FAILPOINT", trap);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        // The one before was killed and could not remove it.
        let _ = fs::remove_file(&self.config.socket);
        let mut manager = Manager { child: command.spawn().context("start the manager")? };
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            if let Ok(caller) = self.caller() {
                return Ok((manager, Some(caller)));
            }
            if !manager.lives()? {
                return if trap.is_some() && manager.was_killed() {
                    Ok((manager, None))
                } else {
                    bail!("the manager ended by itself; see {}", self.log().display())
                };
            }
            if Instant::now() > deadline {
                bail!("the manager does not listen after {} s", READY_LIMIT.as_secs());
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    pub(super) fn caller(&self) -> std::io::Result<Caller> {
        Caller::connect(&self.config.socket, self.patience)
    }

    /// Every failpoint that any manager got to.
    pub(super) fn reached(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(self.reached_file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("manager.log")
    }

    fn reached_file(&self) -> PathBuf {
        self.dir.join("failpoints")
    }
}

impl Manager {
    pub(super) fn pid(&self) -> Option<i32> {
        i32::try_from(self.child.id()).ok()
    }

    pub(super) fn lives(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("look after the manager")?.is_none())
    }

    /// Has it end in order.
    pub(super) fn end(mut self, caller: &mut Caller) -> Result<()> {
        // Either answer will do: it may be gone before it is written.
        let _ = caller.ask::<()>(&Ask::End);
        let deadline = Instant::now() + END_LIMIT;
        while self.lives()? {
            if Instant::now() > deadline {
                bail!("the manager does not end within {} s", END_LIMIT.as_secs());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Whether it ended by SIGKILL.
    pub(super) fn was_killed(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt as _;
        const SIGKILL: i32 = 9;
        matches!(self.child.try_wait(), Ok(Some(status)) if status.signal() == Some(SIGKILL))
    }

    /// Kills it, unless it is dead, and waits for its end.
    pub(super) fn kill(&mut self) -> Result<()> {
        if self.lives()? {
            self.child.kill().context("kill the manager")?;
        }
        self.child.wait().context("wait for the manager").map(drop)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}
