//! Demo identity provider and controller, started and stopped together.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::{compile::Guest, http::Api, repo, run::command, setup::with_node};

const READY_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct StackConfig {
    /// The binary.
    pub(crate) polydev: PathBuf,
    /// Guest programs.
    pub(crate) guest: Guest,
    /// Persistent state of controller and demo.
    pub(crate) state_dir: PathBuf,
    /// State of running VMs; short.
    pub(crate) run_dir: PathBuf,
    /// Where the controller listens; port 0 = any free one.
    pub(crate) listen: SocketAddr,
    /// `auto`, `container` or `qemu`; `None` leaves it to the controller's own configuration.
    pub(crate) driver: Option<String>,
    /// Whether browser VMs may wait for somebody; if not, the machine does nothing but what it is asked for.
    pub(crate) pool: bool,
    /// The controller's log goes to a file instead of this terminal.
    pub(crate) quiet: bool,
}

/// Demo and controller; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Stack {
    controller: Process,
    _demo: Process,
    /// The controller's API.
    pub(crate) api: Api,
    /// The demo's control endpoint.
    pub(crate) demo_api: Api,
    /// The link to open, once.
    pub(crate) link: String,
}

impl Stack {
    /// Starts both and waits until the controller is healthy.
    pub(crate) fn start(config: &StackConfig) -> Result<Self> {
        let stack = Self::start_both(config);
        if stack.is_err() && config.quiet {
            let log = fs::read_to_string(config.state_dir.join("controller.log")).unwrap_or_default();
            eprint!("{log}");
        }
        stack
    }

    fn start_both(config: &StackConfig) -> Result<Self> {
        let demo_dir = config.state_dir.join("demo");
        fs::create_dir_all(&demo_dir).context("create the demo's directory")?;
        let (demo, demo_api) = start_demo(&demo_dir)?;
        let data_dir = config.state_dir.join("data");
        fs::create_dir_all(&data_dir).context("create the data directory")?;
        let mut serve = command(&config.polydev);
        serve
            .arg("serve")
            .env("POLYDEV_LISTEN", config.listen.to_string())
            .env("POLYDEV_DATA_DIR", &data_dir)
            .env("POLYDEV_RUN_DIR", &config.run_dir)
            .env("POLYDEV_IMAGE_DIR", repo::image_dir())
            .env("POLYDEV_AGENT_PATH", &config.guest.agent)
            .env("POLYDEV_DESKTOP_PATH", &config.guest.desktop)
            .env("POLYDEV_OVERLAY_DIR", demo_dir.join("overlay"))
            .env("POLYDEV_EGRESS_ROUTES", demo_dir.join("routes.toml"));
        if let Some(driver) = &config.driver {
            serve.env("POLYDEV_DRIVER", driver);
        }
        if !config.pool {
            serve.env("POLYDEV_WARM_BROWSER_VMS_LOW", "0").env("POLYDEV_WARM_BROWSER_VMS_HIGH", "0");
        }
        if config.quiet {
            let log = config.state_dir.join("controller.log");
            serve.stderr(fs::File::create(&log).with_context(|| format!("create {}", log.display()))?);
        }
        let (mut controller, stdout) = Process::start("controller", &mut serve)?;
        let link = wait_for_line(&mut controller, stdout, |line| {
            let start = line.find("http://").filter(|_| line.contains("/open#"))?;
            line[start..].split_whitespace().next().map(str::to_owned)
        })?;
        let token = fs::read_to_string(data_dir.join("api-token")).context("read the API token")?;
        let host = link.trim_start_matches("http://").split('/').next().unwrap_or_default();
        let address = host.parse().with_context(|| format!("the link names no address: {host}"))?;
        let api = Api { address, token: token.trim().to_owned() };
        let deadline = Instant::now() + READY_LIMIT;
        while !api.is_healthy() {
            controller.must_run()?;
            if Instant::now() > deadline {
                bail!("the controller was not healthy within {} s", READY_LIMIT.as_secs());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(Self { controller, _demo: demo, api, demo_api, link })
    }

    /// Whether the controller still runs.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.controller.must_run()
    }

    /// The controller's process.
    pub(crate) fn controller_pid(&self) -> u32 {
        self.controller.child.id()
    }

    /// Lets the demo answer for the demo user, as if a person had signed in at once.
    pub(crate) fn let_the_demo_sign_in(&self) -> Result<()> {
        self.demo_api.call("PUT", "/control/settings", Some(&json!({ "outcome": "allow" }))).map(drop)
    }

    /// Destroys every VM that is left.
    pub(crate) fn destroy_vms(&self) -> Result<()> {
        let vms = self.api.call("GET", "/api/vms", None)?;
        for vm in vms["vms"].as_array().into_iter().flatten() {
            let id = vm["id"].as_str().context("a VM has an id")?;
            self.api.call("DELETE", &format!("/api/vms/{id}"), None)?;
        }
        Ok(())
    }
}

/// Starts the demo alone.
pub(crate) fn start_demo(dir: &Path) -> Result<(Process, Api)> {
    let mut node = with_node("node");
    node.arg("demo/server.mjs").arg("--state").arg(dir);
    let (mut demo, stdout) = Process::start("demo", &mut node)?;
    let port = wait_for_line(&mut demo, stdout, |line| {
        let ready: Value = serde_json::from_str(line).ok()?;
        ready["httpPort"].as_u64().and_then(|port| u16::try_from(port).ok())
    })?;
    let token = fs::read_to_string(dir.join("control-token")).context("read the demo's control token")?;
    Ok((demo, Api { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), token: token.trim().to_owned() }))
}

/// Reads standard output until a line is the one; later lines are shown, so that the program is never blocked.
fn wait_for_line<T: Send + 'static>(
    process: &mut Process,
    stdout: ChildStdout,
    find: impl Fn(&str) -> Option<T> + Send + 'static,
) -> Result<T> {
    let (found, wait) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|len| len > 0) {
            if let Some(value) = find(&line) {
                // Nobody waits any more when the program was stopped meanwhile.
                let _ = found.send(value);
                break;
            }
            eprint!("{line}");
            line.clear();
        }
        drop(found);
        let mut rest = [0; 4096];
        while let Ok(len @ 1..) = lines.read(&mut rest) {
            let _ = std::io::stderr().write_all(&rest[..len]);
        }
    });
    wait.recv_timeout(READY_LIMIT).with_context(|| match process.must_run() {
        Ok(()) => format!("{} did not become ready", process.name),
        Err(error) => error.to_string(),
    })
}

/// A child in a process group of its own, ended with everything it started.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    fn start(name: &'static str, command: &mut Command) -> Result<(Self, ChildStdout)> {
        // A terminal's Ctrl-C is for us; we stop the others in order.
        let mut child = command
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let stdout = child.stdout.take().expect("stdout is a pipe");
        Ok((Self { name, child }, stdout))
    }

    fn must_run(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("look after {}", self.name))? {
            Some(status) => bail!("{} ended with {status}", self.name),
            None => Ok(()),
        }
    }

    fn group(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(group) = self.group() else { return };
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may end by itself between the look and the signal.
            let _ = kill_process_group(group, Signal::TERM);
            let deadline = Instant::now() + STOP_LIMIT;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(LOOK_AGAIN);
            }
            if matches!(self.child.try_wait(), Ok(None)) {
                eprintln!("{} did not stop within {} s: killed", self.name, STOP_LIMIT.as_secs());
                let _ = kill_process_group(group, Signal::KILL);
                let _ = self.child.wait();
            }
        }
    }
}
