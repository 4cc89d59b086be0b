//! The process that is killed: `polydev host`, built with failpoints.

use std::{
    fs::{self, OpenOptions},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use polydev_host::{
    NoEgress,
    driver::chaos::GUEST_VARIABLE,
    net,
    remote::{RemoteHost, RemoteOptions, Role},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

use super::{caller::Caller, machine::ProcessId, options::Driver};

/// How long a manager may take until it listens: it tries its driver out first.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long a manager may take to end when it is asked to.
const END_LIMIT: Duration = Duration::from_secs(90);
/// How long a controller may take to see that its manager is gone.
const LOSS_LIMIT: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

const SIGKILL: i32 = 9;

/// Where managers find what they need.
#[derive(Debug)]
pub(super) struct Places {
    /// The program.
    pub(super) polydev: PathBuf,
    /// Where the log and the list of failpoints are.
    pub(super) dir: PathBuf,
    pub(super) data: PathBuf,
    pub(super) run: PathBuf,
    pub(super) images: PathBuf,
    pub(super) guest: PathBuf,
}

/// How managers are started, and the controller that speaks to them.
pub(super) struct Starter {
    driver: Driver,
    /// How VMs' traffic gets to the manager.
    pub(super) network: &'static str,
    places: Places,
    settings: Vec<(&'static str, String)>,
    runtime: Runtime,
    /// It may outlive a manager.
    controller: Option<RemoteHost>,
}

/// A manager that was started. Killed when dropped.
#[derive(Debug)]
pub(super) struct Manager {
    child: Child,
    /// The suite killed it.
    put_down: bool,
}

impl Starter {
    /// Without a word on network devices VMs have one where this machine has them.
    pub(super) fn new(driver: Driver, slots: u8, tap: Option<bool>, places: Places) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.context("start a runtime")?;
        let tap = tap.unwrap_or_else(|| {
            let made = runtime.block_on(net::try_out(driver.link()));
            made.inspect_err(|error| eprintln!("VMs have no network device: {error}")).is_ok()
        });
        let network = if tap { "tap" } else { "channel" };
        let path = |path: &PathBuf| path.display().to_string();
        let mut settings = vec![
            ("DRIVER", driver.setting().to_owned()),
            ("SLOTS", slots.to_string()),
            ("NETWORK", network.to_owned()),
            ("HOST_SOCKET", path(&places.socket())),
            ("HOST_USER", "0".to_owned()),
            ("HOST_DATA_DIR", path(&places.data)),
            ("RUN_DIR", path(&places.run)),
            ("IMAGE_DIR", path(&places.images)),
            ("AGENT_PATH", path(&places.guest.join("polydev-agent"))),
            ("DESKTOP_PATH", path(&places.guest.join("polydev-desktop"))),
        ];
        // Its jailer lies beside it.
        if let Some(program) = std::env::var_os("POLYDEV_FIRECRACKER").map(PathBuf::from) {
            settings.push(("FIRECRACKER_PATH", path(&program)));
            settings.push(("JAILER_PATH", path(&program.with_file_name("jailer"))));
        }
        Ok(Self { driver, network, places, settings, runtime, controller: None })
    }

    /// Starts one that dies at `trap`, if any. It may be dead before it is ready: then there is no caller.
    pub(super) fn start(&mut self, trap: Option<&str>) -> Result<(Manager, Option<Caller>)> {
        let mut manager = Manager::of(self.command(trap)?.spawn().context("start the manager")?);
        let process = ProcessId::of(manager.pid()).context("the manager ended at once")?;
        let controller = match self.controller.take() {
            Some(controller) => {
                let ready = manager.lives_until(READY_LIMIT, || controller.ready().is_ok())?;
                ready.then_some(controller)
            }
            None => {
                let options = RemoteOptions {
                    socket: self.places.socket(),
                    role: Role::Controller { take_over: false },
                    egress_limits: Default::default(),
                };
                let connecting =
                    self.runtime.spawn(RemoteHost::connect(options, Arc::new(NoEgress), READY_LIMIT));
                if manager.lives_until(READY_LIMIT, || connecting.is_finished())? {
                    let connected = self.runtime.block_on(connecting).context("connect")?;
                    Some(connected.context("connect to the manager")?)
                } else {
                    connecting.abort();
                    None
                }
            }
        };
        if controller.is_none() && !(trap.is_some() && manager.is_trapped()) {
            bail!("the manager ended by itself; see {}", self.log().display());
        }
        let caller = controller.clone().map(|host| Caller {
            host,
            runtime: self.runtime.handle().clone(),
            manager: process,
            patience: self.driver.patience(),
            memory_mib: self.driver.memory_mib(),
        });
        self.controller = controller;
        Ok((manager, caller))
    }

    /// To be called when a manager is dead: its controller waits for the next one, or is dead, too.
    pub(super) fn ended(&mut self, controller_dies: bool) -> Result<()> {
        if controller_dies {
            self.controller = None;
            return Ok(());
        }
        let deadline = Instant::now() + LOSS_LIMIT;
        while self.controller.as_ref().is_some_and(|controller| controller.ready().is_ok()) {
            if Instant::now() > deadline {
                bail!("the controller does not see that its manager is gone");
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Every failpoint that any manager got to, in this order.
    pub(super) fn reached(&self) -> Vec<String> {
        let text = fs::read_to_string(self.reached_file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What managers say that broke an invariant of theirs.
    pub(super) fn panics(&self) -> Vec<String> {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().filter(|line| line.contains("panicked at")).map(str::to_owned).collect()
    }

    pub(super) fn log(&self) -> PathBuf {
        self.places.dir.join("manager.log")
    }

    fn reached_file(&self) -> PathBuf {
        self.places.dir.join("failpoints")
    }

    fn command(&self, trap: Option<&str>) -> Result<Command> {
        let log = OpenOptions::new().create(true).append(true).open(self.log());
        let log = log.context("open the manager's log")?;
        let mut command = Command::new(&self.places.polydev);
        command.arg("host").current_dir("/");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("POLYDEV_") {
                command.env_remove(name);
            }
        }
        for (name, value) in &self.settings {
            command.env(format!("POLYDEV_{name}"), value);
        }
        command.env("XTASK_FAILPOINT_LOG", self.reached_file());
        command.env(GUEST_VARIABLE, std::env::current_exe().context("find this program")?);
        if let Some(trap) = trap {
            command.env("XTASK_FAILPOINT", trap);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        Ok(command)
    }
}

impl Places {
    fn socket(&self) -> PathBuf {
        self.run.join("host.sock")
    }
}

impl Manager {
    const fn of(child: Child) -> Self {
        Self { child, put_down: false }
    }

    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or_default()
    }

    pub(super) fn lives(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("look after the manager")?.is_none())
    }

    /// Waits until something is so. `false` when it dies before.
    fn lives_until(&mut self, limit: Duration, done: impl Fn() -> bool) -> Result<bool> {
        let deadline = Instant::now() + limit;
        while !done() {
            if !self.lives()? {
                return Ok(false);
            }
            if Instant::now() > deadline {
                bail!("the manager does not listen after {} s", limit.as_secs());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(true)
    }

    /// No new VMs from now on, none held ready.
    pub(super) fn drain(&self) -> Result<()> {
        self.signal(Signal::USR1)
    }

    /// Has it end in order.
    pub(super) fn end(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + END_LIMIT;
        while self.lives()? {
            if Instant::now() > deadline {
                bail!("the manager does not end within {} s", END_LIMIT.as_secs());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid()).context("the manager has a number")?;
        kill_process(pid, signal).context("signal the manager")
    }

    /// Whether it killed itself, as it does at a failpoint.
    pub(super) fn is_trapped(&mut self) -> bool {
        let ended = self.child.try_wait();
        !self.put_down && matches!(ended, Ok(Some(status)) if status.signal() == Some(SIGKILL))
    }

    /// How it ended, if nothing killed it.
    pub(super) fn own_end(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten().filter(|status| status.signal() != Some(SIGKILL))
    }

    /// Kills it, unless it is dead, and waits for its end.
    pub(super) fn kill(&mut self) -> Result<()> {
        if self.lives()? {
            self.put_down = true;
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
