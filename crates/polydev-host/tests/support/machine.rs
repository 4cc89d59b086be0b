//! A machine of its own for each test: run directory, data directory, and a way to open hosts on it.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use polydev_core::{
    ids::{UserId, VmId},
    wire::{Identity, Reply, Request},
};
use polydev_host::{
    CreateVm, DriverChoice, EgressHandler, Host, HostConfig, HostError, NoEgress, Vm, VmKind,
    driver::fake::FakeDriver,
};
use tempfile::TempDir;
use uuid::Uuid;

use super::leftovers;

const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How VMs are run in a test.
#[derive(Clone)]
pub(crate) enum Kind {
    Fake(FakeDriver),
    Container,
    Qemu,
}

pub(crate) struct Machine {
    pub(crate) kind: Kind,
    pub(crate) config: HostConfig,
    _dir: TempDir,
}

/// Why this kind cannot be tested here, if so.
pub(crate) fn missing(kind: &Kind) -> Option<String> {
    if matches!(kind, Kind::Fake(_)) {
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let config = config(kind, Path::new("/nonexistent"));
    for (what, path) in [
        ("golden image", config.image_dir.join("current/image.json")),
        ("polydev-agent", config.agent_path),
        ("polydev-desktop", config.desktop_path),
    ] {
        if !path.exists() {
            return Some(format!("no {what} at {}", path.display()));
        }
    }
    None
}

impl Machine {
    /// `None` (and a line that says why) where this kind cannot be tested.
    pub(crate) fn new(kind: Kind, slots: u8) -> Option<Self> {
        if let Some(reason) = missing(&kind) {
            println!("SKIPPED: {reason}");
            return None;
        }
        // Short: unix sockets live below it.
        let dir = tempfile::Builder::new().prefix("pd-").tempdir_in("/tmp").unwrap();
        let config = HostConfig { slots, ..config(&kind, dir.path()) };
        Some(Self { kind, config, _dir: dir })
    }

    pub(crate) async fn host(&self) -> Host {
        self.host_with(Arc::new(NoEgress)).await
    }

    pub(crate) async fn host_with(&self, egress: Arc<dyn EgressHandler>) -> Host {
        match &self.kind {
            Kind::Fake(driver) => {
                Host::with_driver(self.config.clone(), egress, Arc::new(driver.clone())).unwrap()
            }
            Kind::Container | Kind::Qemu => Host::open(self.config.clone(), egress).await.unwrap(),
        }
    }

    /// Patience for things that take a moment on a machine with this kind of VM.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(if matches!(self.kind, Kind::Qemu) { 120 } else { 20 })
    }

    /// Waits until the host has copied the VM's agent log.
    pub(crate) async fn agent_log_is_copied(&self, id: VmId) {
        let path = self.config.run_dir.join("vm").join(id.to_string()).join("agent.log");
        let copied = async {
            while std::fs::metadata(&path).map_or(0, |it| it.len()) == 0 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(self.patience(), copied).await.expect("the agent's log is copied");
    }

    /// Ends a VM's processes from outside, as a crash would.
    pub(crate) fn crash(&self, id: VmId) {
        if let Kind::Fake(driver) = &self.kind {
            driver.kill(id);
            return;
        }
        let variable = format!("POLYDEV_VM={id}");
        let mut killed = 0;
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|it| it == variable.as_bytes()) {
                let pid = entry.file_name().to_str().unwrap().parse().unwrap();
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                killed += 1;
            }
        }
        assert!(killed > 0, "no process of VM {id} found");
    }

    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        leftovers::assert_none("something", || leftovers::of(&self.config.run_dir));
    }

    /// Removes all VMs of this machine, whichever host made them.
    async fn clear(config: HostConfig) -> Result<(), HostError> {
        Host::open(config, Arc::new(NoEgress)).await?.reclaim(&HashSet::new()).await.map(drop)
    }
}

impl Drop for Machine {
    /// A test that fails must not leave VMs to the tests after it.
    fn drop(&mut self) {
        if matches!(self.kind, Kind::Fake(_)) || leftovers::of(&self.config.run_dir).is_empty() {
            return;
        }
        let config = self.config.clone();
        // The test's own runtime may be unwinding: this one is on a thread of its own.
        let cleared = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
            runtime.block_on(Self::clear(config)).map_err(|error| error.to_string())
        });
        match cleared.join() {
            Ok(Ok(())) => eprintln!("removed what the test left in {}", self.config.run_dir.display()),
            Ok(Err(error)) => eprintln!("what the test left cannot be removed: {error}"),
            Err(_) => eprintln!("what the test left cannot be removed: it panicked"),
        }
    }
}

pub(crate) fn new_id() -> VmId {
    VmId::from_uuid(Uuid::new_v4())
}

pub(crate) fn browser(id: VmId) -> CreateVm {
    CreateVm { id, kind: VmKind::Browser, vcpus: 2, memory_mib: 2048, identity: identity(id) }
}

pub(crate) fn cli(id: VmId, user: &UserId) -> CreateVm {
    CreateVm { kind: VmKind::Cli { user: user.clone() }, memory_mib: 1024, ..browser(id) }
}

pub(crate) fn identity(id: VmId) -> Identity {
    Identity { env: [("POLYDEV_TEST".to_owned(), "1".to_owned())].into(), ..Identity::of(id, "vm") }
}

/// Runs a program in a VM and returns what it printed.
pub(crate) async fn run(vm: &Vm, argv: &[&str]) -> String {
    let argv: Vec<String> = argv.iter().map(|it| (*it).to_owned()).collect();
    let request = Request::Run { argv: argv.clone(), env: Default::default(), timeout_ms: 60_000 };
    match vm.agent.request(request).await.unwrap() {
        Reply::Ran { exit_code: 0, stdout, .. } => stdout,
        other => panic!("{argv:?}: {other:?}"),
    }
}

fn config(kind: &Kind, dir: &Path) -> HostConfig {
    let path = |variable: &str, default: &str| {
        std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from)
    };
    let guest = path("POLYDEV_GUEST_DIR", concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guest"));
    HostConfig {
        driver: match kind {
            Kind::Fake(_) => DriverChoice::Auto,
            Kind::Container => DriverChoice::Container,
            Kind::Qemu => DriverChoice::Qemu,
        },
        data_dir: dir.join("data"),
        run_dir: dir.join("run"),
        image_dir: path("POLYDEV_IMAGE_DIR", "/var/cache/polydev/images"),
        agent_path: guest.join("polydev-agent"),
        desktop_path: guest.join("polydev-desktop"),
        overlay_dir: None,
        slots: 4,
        log_bytes_max: 1 << 20,
        log_vms_max: 10,
        keep_failed: false,
        capacity: None,
        network: polydev_host::NetworkChoice::Channel,
        egress_limits: polydev_host::EgressLimits::default(),
        resources: Default::default(),
        firecracker: Default::default(),
    }
}

/// How many starts of this sort had this phase.
pub(crate) fn starts(host: &Host, start: &str, phase: &str) -> u64 {
    let all = host.figures().starts;
    let found = all.iter().filter(|it| it.start == start && it.phase == phase);
    found.flat_map(|it| &it.buckets).map(|(_, count)| count).sum()
}
