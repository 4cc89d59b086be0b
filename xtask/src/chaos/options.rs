//! What the suite can be asked.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use polydev_host::net::LinkKind;

/// Most CLI and browser VMs at one time, so that slots are scarce enough to be used again.
const TRACKS: usize = 5;
/// An emulated machine takes a minute to boot: fewer at one time.
const TRACKS_EMULATED: usize = 3;

/// See [`Options::read`].
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) driver: Driver,
    /// How often the manager is killed.
    pub(crate) kills: usize,
    pub(crate) seed: u64,
    /// VMs have a network device of their own; none: where this machine has such devices.
    pub(crate) tap: Option<bool>,
    /// No templates are made, so that browser VMs boot. Where a machine is emulated a template takes many minutes.
    pub(crate) cold: bool,
    /// A failpoint that was reached and at which nothing was killed is a fault however few kills there are.
    pub(crate) all_failpoints: bool,
    pub(crate) json: Option<PathBuf>,
}

/// What runs the VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    /// Processes with a fake agent.
    Fake,
    Container,
    Qemu,
    Firecracker,
}

impl Options {
    pub(crate) fn read(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            driver: Driver::Fake,
            kills: 200,
            seed: 1,
            tap: None,
            cold: false,
            all_failpoints: false,
            json: None,
        };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--driver" => options.driver = Driver::read(value()?)?,
                "--kills" => options.kills = value()?.parse().context("--kills is a number")?,
                "--seed" => options.seed = value()?.parse().context("--seed is a number")?,
                "--network" => {
                    options.tap = match value()?.as_str() {
                        "tap" => Some(true),
                        "channel" => Some(false),
                        other => bail!("no network {other}; there are tap and channel"),
                    }
                }
                "--cold" => options.cold = true,
                "--all-failpoints" => options.all_failpoints = true,
                "--json" => options.json = Some(value()?.into()),
                other => {
                    bail!(
                        "unknown option {other}; there are --driver, --kills, --seed, --network, --cold, \
                         --all-failpoints and --json"
                    )
                }
            }
        }
        Ok(options)
    }
}

impl Driver {
    fn read(name: &str) -> Result<Self> {
        let all = [Self::Fake, Self::Container, Self::Qemu, Self::Firecracker];
        let found = all.into_iter().find(|driver| driver.name() == name);
        found.with_context(|| format!("no driver {name}; there are fake, container, qemu and firecracker"))
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fake => "fake",
            Self::Container => "container",
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
        }
    }

    /// What the manager is told.
    pub(crate) const fn setting(self) -> &'static str {
        match self {
            Self::Fake | Self::Container | Self::Qemu => self.name(),
            Self::Firecracker => "firecracker-toy",
        }
    }

    /// What is in the VMs.
    pub(crate) const fn guest(self) -> &'static str {
        match self {
            Self::Fake => "none: processes with a fake agent",
            Self::Container | Self::Qemu => "golden image",
            Self::Firecracker => "toy without an operating system, its agent in the manager",
        }
    }

    /// Whether a guest can write to a disk. Firecracker's here is a few dozen bytes without any device driver.
    pub(crate) const fn has_disk(self) -> bool {
        !matches!(self, Self::Firecracker)
    }

    /// Whether a VM's process outlives its sleep. Otherwise the guest shows that its memory did.
    pub(crate) const fn sleeps_in_place(self) -> bool {
        matches!(self, Self::Fake | Self::Container)
    }

    /// Whether the guest is [`polydev_host::firecracker::toy`], whose agent knows nothing of its memory.
    pub(crate) const fn has_toy(self) -> bool {
        matches!(self, Self::Firecracker)
    }

    /// What VMs with a network device have at their end.
    pub(crate) const fn link(self) -> LinkKind {
        match self {
            Self::Container => LinkKind::Veth,
            Self::Fake | Self::Qemu | Self::Firecracker => LinkKind::Tap,
        }
    }

    pub(crate) const fn tracks(self) -> usize {
        match self {
            Self::Fake | Self::Container => TRACKS,
            Self::Qemu | Self::Firecracker => TRACKS_EMULATED,
        }
    }

    /// Longest that one request may take.
    pub(crate) const fn patience(self) -> Duration {
        match self {
            Self::Fake | Self::Container => Duration::from_secs(60),
            Self::Qemu | Self::Firecracker => Duration::from_secs(400),
        }
    }

    /// Longest that callers go on until the manager gets to where it is to die. What is being asked then is answered.
    pub(crate) const fn round(self) -> Duration {
        match self {
            Self::Fake => Duration::from_secs(10),
            Self::Container => Duration::from_secs(20),
            Self::Firecracker => Duration::from_secs(60),
            Self::Qemu => Duration::from_secs(150),
        }
    }

    /// Latest time of a random kill, from the manager's start.
    pub(crate) const fn random_kill(self) -> Duration {
        match self {
            Self::Fake => Duration::from_millis(800),
            Self::Container => Duration::from_millis(2500),
            Self::Qemu | Self::Firecracker => Duration::from_secs(20),
        }
    }

    /// Memory of each VM.
    pub(crate) const fn memory_mib(self) -> u32 {
        match self {
            Self::Fake | Self::Firecracker => 128,
            Self::Container => 512,
            Self::Qemu => 1024,
        }
    }

    /// Browser VMs that are held ready.
    pub(crate) const fn warm(self) -> usize {
        match self {
            Self::Fake | Self::Container => 1,
            // Another one that boots would take the processors from those that are looked at.
            Self::Qemu | Self::Firecracker => 0,
        }
    }
}
