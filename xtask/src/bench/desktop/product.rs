//! The product itself: controller, demo and a sign-in whose desktop is looked at, on the container driver.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    cpu::{self, CpuClock},
    display::Display,
    interrupt::{self, pause},
};
use crate::{
    compile::{self, Guest, Profile},
    setup,
    stack::{Stack, StackConfig},
};

const DESKTOP_LIMIT: Duration = Duration::from_secs(60);
const CLOSE_LIMIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Where the driver shares a directory with a VM (crates/polydev-core/src/guest.rs).
const CHANNEL: &str = "/run/polydev/channel";
/// The demo's own host, as the guest knows it.
const GUEST_ORIGIN: &str = "https://id.polydev.test";

/// Programs that were built for it.
#[derive(Debug, Clone)]
pub(super) struct Built {
    polydev: PathBuf,
    guest: Guest,
}

/// Builds everything that is not there; the image and the guest programs only unless they are to be taken as they are.
pub(super) fn build(as_built: bool) -> Result<Built> {
    setup::packages()?;
    setup::node()?;
    setup::npm_modules("demo")?;
    if as_built {
        let dir = std::env::var_os("XTASK_GUEST_DIR").map_or_else(compile::guest_dir, PathBuf::from);
        let guest = Guest { agent: dir.join("polydev-agent"), desktop: dir.join("polydev-desktop") };
        return Ok(Built { polydev: compile::controller(Profile::Release)?, guest });
    }
    compile::web()?;
    let guest = compile::guest()?;
    let polydev = compile::controller(Profile::Release)?;
    compile::image_with(&polydev, &guest)?;
    Ok(Built { polydev, guest })
}

/// A running controller; everything of it is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Product {
    stack: Option<Stack>,
    run_dir: PathBuf,
}

/// A sign-in with a desktop.
#[derive(Debug)]
pub(super) struct SignIn {
    pub(super) id: String,
    pub(super) display: Display,
    agent: Vec<u32>,
    /// The program that looks whether the screen is painted.
    watcher: Vec<u32>,
    /// The program that sends the picture.
    streamer: u32,
    controller: u32,
}

/// CPU of the product's parts while something was going on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    /// Seconds of the program that sends the picture.
    pub(super) streamer: f64,
    /// Seconds of the agent.
    pub(super) agent: f64,
    /// Seconds of the program that looks whether the screen is painted.
    pub(super) watcher: f64,
    /// Seconds of the controller.
    pub(super) controller: f64,
}

impl Product {
    /// `state` is for data and logs.
    pub(super) fn start(built: &Built, state: &Path) -> Result<Self> {
        let run_dir = PathBuf::from(format!("/run/polydev-bench-{}", std::process::id()));
        let stack = Stack::start(&StackConfig {
            polydev: built.polydev.clone(),
            guest: built.guest.clone(),
            state_dir: state.to_owned(),
            run_dir: run_dir.clone(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            driver: Some("container".into()),
            pool: false,
            quiet: true,
        })?;
        Ok(Self { stack: Some(stack), run_dir })
    }

    pub(super) fn stack(&self) -> &Stack {
        self.stack.as_ref().expect("it is there until the drop")
    }

    /// A page of the demo as the guest sees it.
    pub(super) fn guest_page(path: &str) -> String {
        format!("{GUEST_ORIGIN}{path}")
    }

    /// Begins a sign-in and waits until its desktop is there.
    pub(super) fn sign_in(&self, user: &str) -> Result<SignIn> {
        let api = &self.stack().api;
        let answer =
            api.call("POST", "/api/auth/start", Some(&json!({ "userId": user, "provider": "demo" })))?;
        let id = answer["sessionId"].as_str().context("the answer has a session id")?.to_owned();
        let started = Instant::now();
        loop {
            interrupt::check()?;
            let session = self.session(&id)?;
            let steps = session["steps"].as_array().map_or(&[][..], Vec::as_slice);
            let reached = |step: &str| steps.iter().any(|entry| entry["step"] == step);
            if reached("desktop_ready") && reached("url_captured") {
                return self.look_up(id, session["browserVmId"].as_str().context("the sign-in has a VM")?);
            }
            if session["state"] == "failed" || started.elapsed() > DESKTOP_LIMIT {
                bail!(
                    "the sign-in is {} after {} s: {session}",
                    session["state"],
                    started.elapsed().as_secs()
                );
            }
            pause(LOOK_AGAIN)?;
        }
    }

    pub(super) fn session(&self, id: &str) -> Result<Value> {
        self.stack().api.call("GET", &format!("/api/auth/session/{id}"), None)
    }

    /// Finds the processes of a VM, by the directory that the driver shares with it.
    fn look_up(&self, id: String, vm: &str) -> Result<SignIn> {
        let ours = |pid: &u32| cpu::has_mounted(*pid, vm, CHANNEL);
        let all = |name: &str| -> Vec<u32> { cpu::named(name).into_iter().filter(ours).collect() };
        let x_server = *all("Xtigervnc").first().context("the VM has an X server")?;
        let (streamer, watcher): (Vec<u32>, Vec<u32>) = all("polydev-desktop")
            .into_iter()
            .partition(|pid| cpu::arguments(*pid).iter().any(|word| word == "stream"));
        Ok(SignIn {
            id,
            display: Display::of_guest(Path::new(&format!("/proc/{x_server}/root")))?,
            agent: all("polydev-agent"),
            watcher,
            streamer: *streamer.first().context("the VM has a program that sends the picture")?,
            controller: self.stack().controller_pid(),
        })
    }

    /// Ends a sign-in and waits until its VM is gone.
    pub(super) fn cancel(&self, sign_in: &SignIn) -> Result<()> {
        self.stack().api.call("POST", &format!("/api/auth/session/{}/cancel", sign_in.id), None)?;
        let started = Instant::now();
        while !self.session(&sign_in.id)?["steps"].to_string().contains("\"closed\"") {
            if started.elapsed() > CLOSE_LIMIT {
                bail!("a cancelled sign-in's VM is still there after {} s", CLOSE_LIMIT.as_secs());
            }
            pause(LOOK_AGAIN)?;
        }
        Ok(())
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        let Some(stack) = self.stack.take() else { return };
        if let Err(error) = stack.destroy_vms() {
            eprintln!("VMs may be left: {error:#}");
        }
        drop(stack);
        // Only what is empty: anything else would belong to a VM that is left.
        for dir in [self.run_dir.join("vm"), self.run_dir.join("runc"), self.run_dir.clone()] {
            if let Ok(files) = std::fs::read_dir(&dir) {
                files.flatten().filter(|file| file.path().is_file()).for_each(|file| {
                    let _ = std::fs::remove_file(file.path());
                });
            }
            let _ = std::fs::remove_dir(dir);
        }
    }
}

impl SignIn {
    /// Runs the clocks of all parts.
    pub(super) fn clocks(&self) -> Result<Clocks> {
        Ok(Clocks {
            streamer: CpuClock::start(&[self.streamer])?,
            agent: CpuClock::start(&self.agent)?,
            watcher: CpuClock::start(&self.watcher)?,
            controller: CpuClock::start(&[self.controller])?,
        })
    }
}

/// One clock for each part.
#[derive(Debug)]
pub(super) struct Clocks {
    streamer: CpuClock,
    agent: CpuClock,
    watcher: CpuClock,
    controller: CpuClock,
}

impl Clocks {
    pub(super) fn used(&self) -> Result<Used> {
        Ok(Used {
            streamer: self.streamer.used()?,
            agent: self.agent.used()?,
            watcher: self.watcher.used()?,
            controller: self.controller.used()?,
        })
    }
}

impl Used {
    pub(super) fn total(&self) -> f64 {
        self.streamer + self.agent + self.watcher + self.controller
    }
}
