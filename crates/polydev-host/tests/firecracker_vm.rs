//! VMs of the real Firecracker, with a guest without an operating system, through `polydev-host`: boot, pause, snapshot,
//! restore, hibernation by changed pages, adoption after the manager was killed, end. Needs `POLYDEV_FIRECRACKER`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use polydev_core::ids::VmId;
use polydev_host::firecracker::{
    InstanceState, VersionError, toy,
    vmm::{Home, Machine, Program, Vmm, VmmError},
};
use tempfile::TempDir;

/// Between two dots of the guest.
const TOY_ROUNDS: u32 = 20_000;
const LIMIT: Duration = Duration::from_secs(30);
/// Tells the test, run again by itself, to be the manager that is killed.
const MANAGER: &str = "POLYDEV_TEST_MANAGER_OF";
const LOADS: usize = 15;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_is_saved_restored_hibernated_by_its_changes_and_ended() {
    let Some(bench) = Bench::new().await else { return };
    let first = bench.home();
    let vm = Vmm::launch(&bench.program, first.clone()).await.unwrap();
    assert!(matches!(Vmm::launch(&bench.program, first.clone()).await, Err(VmmError::Exists(_))));
    vm.boot(&bench.machine()).await.unwrap();
    until("the guest speaks and ticks", || console(&first).ends_with("..")).await;
    assert!(console(&first).starts_with(toy::BANNER));
    vm.pause().await.unwrap();
    let golden = bench.dir.path().join("golden");
    vm.save(&golden).await.unwrap();
    assert_eq!(vm.state().await.unwrap(), InstanceState::Paused);
    vm.kill().await.unwrap();
    assert!(Vmm::adopt(first.clone()).await.unwrap().is_none());

    // Many VMs go on from one memory file, which none of them changes.
    let stamp = |dir: &Path| fs::metadata(dir.join("memory")).unwrap().modified().unwrap();
    let before = stamp(&golden);
    let mut loads = Vec::new();
    for _ in 0..LOADS {
        let home = bench.home();
        let vm = Vmm::launch(&bench.program, home.clone()).await.unwrap();
        let began = Instant::now();
        vm.load(&golden).await.unwrap();
        loads.push(began.elapsed());
        until("the restored guest goes on", || console(&home).contains("..")).await;
        assert!(!console(&home).contains(toy::BANNER), "it goes on, it does not begin again");
        vm.kill().await.unwrap();
    }
    loads.sort();
    println!("load and resume: p50 {:.1} ms of {LOADS}", loads[LOADS / 2].as_secs_f64() * 1e3);
    assert_eq!(stamp(&golden), before);

    // A VM of its own: hibernated by what it changed, twice.
    let own = bench.dir.path().join("own");
    copy_snapshot(&bench, &golden, &own).await;
    for _ in 0..2 {
        let home = bench.home();
        let vm = Vmm::launch(&bench.program, home.clone()).await.unwrap();
        vm.load(&own).await.unwrap();
        until("the resumed guest goes on", || console(&home).contains("..")).await;
        vm.pause().await.unwrap();
        vm.save_changes(&own).await.unwrap();
        vm.kill().await.unwrap();
    }

    // What anything else wrote to is refused before it runs.
    fs::write(own.join("devices.state"), b"FAKE damage").unwrap();
    let vm = Vmm::launch(&bench.program, bench.home()).await.unwrap();
    assert!(matches!(vm.load(&own).await, Err(VmmError::Snapshot { .. })));
    assert!(vm.alive());
    vm.kill().await.unwrap();
    bench.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_survives_kill_9_of_its_manager_and_only_itself_is_adopted() {
    if let Some(dir) = std::env::var_os(MANAGER) {
        return be_a_manager_that_is_killed(dir.into()).await;
    }
    let Some(bench) = Bench::new().await else { return };
    let home = bench.home();
    let mut manager = Command::new(std::env::current_exe().unwrap());
    manager.args([
        "--exact",
        "a_vm_survives_kill_9_of_its_manager_and_only_itself_is_adopted",
        "--nocapture",
    ]);
    manager.env(MANAGER, &home.dir).env("POLYDEV_TEST_VM", home.id.to_string());
    manager.env("POLYDEV_TEST_INSTANCE", &home.instance).env("POLYDEV_TEST_KERNEL", bench.kernel());
    let ended = manager.status().unwrap();
    assert_eq!(ended.signal(), Some(9));

    let before = console(&home).len();
    until("the guest goes on without a manager", || console(&home).len() > before).await;
    let vm = Vmm::adopt(home.clone()).await.unwrap().expect("it lives");
    assert_eq!(vm.state().await.unwrap(), InstanceState::Running);
    vm.pause().await.unwrap();
    vm.resume().await.unwrap();
    let other = Home { id: VmId::from_uuid(uuid::Uuid::new_v4()), ..home.clone() };
    assert!(Vmm::adopt(other).await.unwrap().is_none(), "a VM of another name is another VM");

    // A record that names another process: taken for a stranger, and left alone.
    let record = home.dir.join("vmm.json");
    let kept = fs::read(&record).unwrap();
    let forged = String::from_utf8(kept.clone()).unwrap().replace("\"start_ticks\":", "\"start_ticks\":1");
    fs::write(&record, forged).unwrap();
    assert!(matches!(Vmm::adopt(home.clone()).await, Err(VmmError::NotOurs { .. })));
    fs::remove_file(&record).unwrap();
    assert!(matches!(Vmm::adopt(home.clone()).await, Err(VmmError::NotOurs { .. })));
    fs::write(&record, kept).unwrap();
    let vm = Vmm::adopt(home.clone()).await.unwrap().expect("it lives");
    vm.kill().await.unwrap();

    // The sockets that a killed process left do not stand in the way of the next one.
    assert!(home.dir.join("api.sock").exists());
    let vm = Vmm::launch(&bench.program, home.clone()).await.unwrap();
    assert_eq!(vm.state().await.unwrap(), InstanceState::NotStarted);
    vm.kill().await.unwrap();
    bench.nothing_is_left();
}

#[tokio::test]
async fn a_program_that_is_no_firecracker_or_an_old_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let program = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    let old = Program::check(&program("old", "echo Firecracker v1.15.0")).await;
    assert!(matches!(old, Err(VmmError::Version(VersionError::TooOld(_)))), "{old:?}");
    let other = Program::check(&program("other", "echo hello")).await;
    assert!(matches!(other, Err(VmmError::Version(VersionError::Unreadable(_)))), "{other:?}");
    Program::check(&program("broken", "exit 3")).await.unwrap_err();
    Program::check(&dir.path().join("missing")).await.unwrap_err();
    assert_eq!(
        Program::check(&program("good", "echo Firecracker v1.16.1")).await.unwrap().version,
        [1, 16, 1]
    );
}

async fn be_a_manager_that_is_killed(dir: PathBuf) {
    let var = |name: &str| std::env::var(name).unwrap();
    let home =
        Home { id: var("POLYDEV_TEST_VM").parse().unwrap(), dir, instance: var("POLYDEV_TEST_INSTANCE") };
    let program = Program::check(Path::new(&var("POLYDEV_FIRECRACKER"))).await.unwrap();
    let vm = Vmm::launch(&program, home.clone()).await.unwrap();
    vm.boot(&machine_of(var("POLYDEV_TEST_KERNEL").into())).await.unwrap();
    until("the guest speaks", || console(&home).starts_with(toy::BANNER)).await;
    let me = rustix::process::getpid();
    rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
}

/// A directory with a kernel in it, and homes for VMs of one instance.
struct Bench {
    program: Program,
    dir: TempDir,
    instance: String,
}

impl Bench {
    async fn new() -> Option<Self> {
        let Some(program) = std::env::var_os("POLYDEV_FIRECRACKER") else {
            println!("SKIPPED: POLYDEV_FIRECRACKER names no firecracker 1.16.1");
            return None;
        };
        let program = Program::check(Path::new(&program)).await.unwrap();
        let dir = tempfile::Builder::new().prefix("pd-").tempdir().unwrap();
        fs::write(dir.path().join("kernel"), toy::elf(TOY_ROUNDS)).unwrap();
        let instance = dir.path().file_name().unwrap().to_string_lossy().into_owned();
        Some(Self { program, dir, instance })
    }

    fn home(&self) -> Home {
        let id = VmId::from_uuid(uuid::Uuid::new_v4());
        let dir = self.dir.path().join("vm").join(&id.to_string()[..8]);
        fs::create_dir_all(&dir).unwrap();
        Home { id, dir, instance: self.instance.clone() }
    }

    fn kernel(&self) -> PathBuf {
        self.dir.path().join("kernel")
    }

    fn machine(&self) -> Machine {
        machine_of(self.kernel())
    }

    fn nothing_is_left(&self) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let mark = format!("POLYDEV_INSTANCE={}", self.instance);
            let marked = environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes());
            assert!(!marked, "{} is left", entry.path().display());
        }
    }
}

impl Drop for Bench {
    /// A test that failed must not leave its VMs to the machine.
    fn drop(&mut self) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let mark = format!("POLYDEV_INSTANCE={}", self.instance);
            if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
                && let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn machine_of(kernel: PathBuf) -> Machine {
    let (vcpus, memory_mib, command_line) = (1, 64, "console=ttyS0".to_owned());
    Machine { vcpus, memory_mib, kernel, initrd: None, command_line, disks: Vec::new() }
}

/// A snapshot of the VM's own, made by the VM itself: its memory file has one name and one user.
async fn copy_snapshot(bench: &Bench, from: &Path, to: &Path) {
    let vm = Vmm::launch(&bench.program, bench.home()).await.unwrap();
    vm.load(from).await.unwrap();
    vm.pause().await.unwrap();
    vm.save(to).await.unwrap();
    vm.kill().await.unwrap();
}

fn console(home: &Home) -> String {
    fs::read_to_string(home.dir.join("console.log")).unwrap_or_default()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
