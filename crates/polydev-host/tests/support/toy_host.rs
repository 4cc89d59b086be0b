//! A host whose VMs are of the real Firecracker and whose guests are toys; a manager of it that can be killed.

use std::{
    fs,
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use polydev_core::{
    ids::{UserId, VmId},
    wire::Identity,
};
use polydev_host::{
    CreateVm, DriverChoice, FirecrackerConfig, Host, HostConfig, NetworkChoice, NoEgress, Vm, VmKind,
};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// Tells the test, run again by itself, to be the manager that is killed, and of what.
const MANAGER: &str = "POLYDEV_TEST_MANAGER_OF";
const MEMORY_MIB: u32 = 64;

/// The programs that `POLYDEV_FIRECRACKER` names; none: a line that says the test is skipped.
pub(crate) fn program() -> Option<PathBuf> {
    let program = std::env::var_os("POLYDEV_FIRECRACKER").map(PathBuf::from);
    if program.is_none() {
        println!("SKIPPED: POLYDEV_FIRECRACKER names no firecracker 1.16.1");
    }
    program
}

/// One machine's directories.
pub(crate) struct Bench {
    pub(crate) config: HostConfig,
    dir: TempDir,
}

impl Bench {
    /// With the jailer that lies beside the program, or without.
    pub(crate) fn new(jailed: bool) -> Option<Self> {
        let program = program()?;
        // Short: unix sockets live below it.
        let dir = tempfile::Builder::new().prefix("pd-").tempdir_in("/tmp").unwrap();
        let config = config(dir.path(), program, jailed);
        Some(Self { config, dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) async fn host(&self) -> Host {
        Host::open(self.config.clone(), Arc::new(NoEgress)).await.unwrap()
    }

    pub(crate) fn vm(&self, id: VmId) -> PathBuf {
        self.config.run_dir.join("vm").join(id.to_string())
    }

    pub(crate) fn held(&self, id: VmId) -> PathBuf {
        self.config.data_dir.join("held").join(id.to_string())
    }

    pub(crate) fn console(&self, id: VmId) -> String {
        fs::read_to_string(self.vm(id).join("console.log")).unwrap_or_default()
    }

    /// Waits until a guest has said more than it had.
    pub(crate) async fn ticks(&self, id: VmId) {
        let before = self.console(id).matches('.').count();
        until("the guest ticks", || self.console(id).matches('.').count() > before + 1).await;
    }

    /// Runs the test that calls this in a process of its own, which does `what` with a VM and ends by SIGKILL.
    pub(crate) fn manager(&self, test: &str, id: VmId, what: &str, failpoint: Option<&str>) {
        let mut manager = Command::new(std::env::current_exe().unwrap());
        manager.args(["--exact", test, "--nocapture"]);
        manager.env(MANAGER, self.dir.path()).env("POLYDEV_TEST_VM", id.to_string());
        manager
            .env("POLYDEV_TEST_WHAT", what)
            .env("POLYDEV_TEST_JAILED", self.config.firecracker.jailed.unwrap().to_string());
        if let Some(name) = failpoint {
            manager.env("XTASK_FAILPOINT", name);
        }
        let ended = manager.status().unwrap();
        assert_eq!(ended.signal(), Some(9), "{failpoint:?} is not reached by {what}");
    }

    /// The VM's processes: by environment, or by their root directory.
    pub(crate) fn processes(&self, id: VmId) -> Vec<i32> {
        let mark = format!("POLYDEV_VM={id}");
        let root = fs::metadata(self.vm(id).join("r")).map(|it| (it.dev(), it.ino())).ok();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let marked = environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes());
            let here = fs::metadata(entry.path().join("root")).map(|it| (it.dev(), it.ino())).ok();
            if marked || (root.is_some() && here == root) {
                found.push(pid);
            }
        }
        found
    }

    /// The kernel refuses what no thread of a VMM needs. Only released programs, which are static, come with a filter.
    pub(crate) fn assert_filtered(&self, pid: i32) {
        if !is_static(&self.config.firecracker.program) {
            println!("SKIPPED: the system calls of a firecracker that is not static are not filtered");
            return;
        }
        let threads: Vec<_> = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().collect();
        assert!(threads.len() >= 3, "its loop, its API, its vCPU: {threads:?}");
        for thread in threads {
            let status = fs::read_to_string(thread.path().join("status")).unwrap();
            for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
                assert!(status.lines().any(|it| it == line), "no {line} in {status}");
            }
        }
    }

    /// No control group of any VM of this host: their parent goes with the last of them.
    #[track_caller]
    pub(crate) fn no_group_is_left(&self) {
        let run = fs::canonicalize(&self.config.run_dir).unwrap();
        let digest = Sha256::digest(run.as_os_str().as_encoded_bytes());
        let instance: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let parent = hierarchy.path().join(format!("polydev-{instance}"));
            assert!(!parent.exists(), "{} is left", parent.display());
        }
    }

    /// Processes of any VM below the run directory, by where they work.
    pub(crate) fn all_processes(&self) -> Vec<i32> {
        let here = |pid: &i32| {
            let at = |what: &str| fs::read_link(format!("/proc/{pid}/{what}")).unwrap_or_default();
            at("cwd").starts_with(self.dir()) || at("root").starts_with(self.dir())
        };
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(here).collect()
    }

    pub(crate) fn signal(&self, id: VmId, signal: rustix::process::Signal) {
        let all = self.processes(id);
        assert!(!all.is_empty(), "no process of VM {id}");
        for pid in all {
            rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
        }
    }

    /// No process, directory, mount, cgroup or kept memory of a VM.
    #[track_caller]
    pub(crate) fn nothing_is_left(&self, id: VmId) {
        assert_eq!(self.processes(id), Vec::<i32>::new());
        for path in [self.vm(id), self.held(id)] {
            assert!(!path.exists(), "{} is left", path.display());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&id.to_string()), "a mount is left");
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            for group in fs::read_dir(hierarchy.path()).into_iter().flatten().flatten() {
                assert!(!group.path().join(id.to_string()).exists(), "{} is left", group.path().display());
            }
        }
    }
}

impl Drop for Bench {
    /// A test that failed must not leave its VMs to the machine.
    fn drop(&mut self) {
        // Namespaces that were made ahead outlive a host, for the next one.
        for name in fs::read_dir(self.config.run_dir.join("netns")).into_iter().flatten().flatten() {
            let _ = rustix::mount::unmount(name.path(), rustix::mount::UnmountFlags::DETACH);
        }
        let vms = fs::read_dir(self.config.run_dir.join("vm")).into_iter().flatten().flatten();
        let ids: Vec<VmId> = vms.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        if ids.is_empty() {
            return;
        }
        for id in &ids {
            for pid in self.processes(*id) {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let config = self.config.clone();
        let cleared = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let host = Host::open(config, Arc::new(NoEgress)).await?;
                host.reclaim(&Default::default()).await
            })
        });
        eprintln!("removed what the test left: {:?}", cleared.join());
    }
}

/// What the test does when it runs as the manager that is killed; returns at once otherwise.
pub(crate) async fn be_a_manager() -> bool {
    let Some(dir) = std::env::var_os(MANAGER).map(PathBuf::from) else { return false };
    let var = |name: &str| std::env::var(name).unwrap();
    let id: VmId = var("POLYDEV_TEST_VM").parse().unwrap();
    let config = config(&dir, program().unwrap(), var("POLYDEV_TEST_JAILED") == "true");
    let host = Host::open(config, Arc::new(NoEgress)).await.unwrap();
    for step in var("POLYDEV_TEST_WHAT").split(' ') {
        match step {
            "create" => drop(host.create(cli(id)).await.unwrap()),
            "hibernate" => host.hibernate(id).await.unwrap(),
            "resume" => drop(host.resume(id).await.unwrap()),
            "destroy" => host.destroy(id).await.unwrap(),
            other => panic!("no step {other}"),
        }
    }
    if std::env::var_os("XTASK_FAILPOINT").is_none() {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    }
    true
}

/// Whether a program needs no loader: none of its program headers is PT_INTERP (elf(5)).
fn is_static(program: &Path) -> bool {
    let elf = fs::read(program).unwrap();
    let number = |at: usize| u16::from_le_bytes([elf[at], elf[at + 1]]);
    let first = usize::try_from(u64::from_le_bytes(elf[32..40].try_into().unwrap())).unwrap();
    let (size, count) = (usize::from(number(54)), usize::from(number(56)));
    (0..count).all(|index| elf[first + index * size..][..4] != 3_u32.to_le_bytes())
}

pub(crate) fn new_id() -> VmId {
    VmId::from_uuid(uuid::Uuid::new_v4())
}

pub(crate) fn browser(id: VmId) -> CreateVm {
    CreateVm { id, kind: VmKind::Browser, vcpus: 1, memory_mib: MEMORY_MIB, identity: Identity::of(id, "vm") }
}

pub(crate) fn cli(id: VmId) -> CreateVm {
    let user: UserId = format!("user-{}", id.short()).parse().unwrap();
    CreateVm { kind: VmKind::Cli { user }, ..browser(id) }
}

/// A running VM answers.
pub(crate) async fn answers(vm: &Vm) {
    let request = polydev_core::wire::Request::Run {
        argv: vec!["hello".to_owned()],
        env: Default::default(),
        timeout_ms: 1000,
    };
    vm.agent.request(request).await.unwrap();
}

pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn config(dir: &Path, program: PathBuf, jailed: bool) -> HostConfig {
    HostConfig {
        driver: DriverChoice::FirecrackerToy,
        data_dir: dir.join("data"),
        run_dir: dir.join("run"),
        image_dir: dir.join("none"),
        agent_path: dir.join("none"),
        desktop_path: dir.join("none"),
        overlay_dir: None,
        slots: 4,
        log_bytes_max: 1 << 20,
        log_vms_max: 10,
        keep_failed: false,
        capacity: None,
        network: NetworkChoice::Channel,
        egress_limits: Default::default(),
        resources: Default::default(),
        firecracker: FirecrackerConfig {
            jailer: program.with_file_name("jailer"),
            program,
            jailed: Some(jailed),
            ..FirecrackerConfig::default()
        },
    }
}
