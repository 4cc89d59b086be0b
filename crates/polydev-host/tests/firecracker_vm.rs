//! VMs of the real Firecracker, with a guest without an operating system, through [`Host`]: create, sleep, wake, adopt
//! after the manager was killed, destroy, with and without a jail, and what can go wrong. Needs `POLYDEV_FIRECRACKER`,
//! with the jailer beside it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

#[path = "support/toy_host.rs"]
mod toy_host;

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Instant};

use polydev_host::{
    BalloonUsage, FastStart, FirecrackerConfig, Host, HostError, LogKind, NetworkChoice, Vm,
    firecracker::{
        Action, Api, InstanceState, SnapshotKind, toy,
        vmm::{Home, Item, Jail, Limits, Machine, Program, ProgramError, Setup, Vmm},
    },
};
use rustix::process::Signal;
use toy_host::{Bench, answers, be_a_manager, browser, cli, new_id, until};

const LOADS: usize = 15;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_lives_sleeps_wakes_and_leaves_nothing() {
    lives_sleeps_wakes_and_leaves_nothing(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jailed_vm_lives_sleeps_wakes_and_leaves_nothing() {
    lives_sleeps_wakes_and_leaves_nothing(true).await;
}

async fn lives_sleeps_wakes_and_leaves_nothing(jailed: bool) {
    let Some(bench) = Bench::new(jailed) else { return };
    let host = bench.host().await;
    let id = new_id();
    let began = Instant::now();
    let vm = host.create(cli(id)).await.unwrap();
    println!("jailed {jailed}: created in {:?}", began.elapsed());
    answers(&vm).await;
    until("the guest speaks", || bench.console(id).contains(toy::BANNER)).await;
    bench.ticks(id).await;
    assert_confined(&bench, &host, id, jailed);
    for round in 0..3 {
        let began = Instant::now();
        host.hibernate(id).await.unwrap();
        let asleep = began.elapsed();
        assert!(bench.processes(id).is_empty());
        assert_eq!(host.status().slots_used, 1, "it keeps its place");
        let kept = fs::metadata(bench.held(id).join("base/memory")).unwrap();
        assert_eq!(kept.len(), 64 << 20);
        assert!(kept.blocks() * 512 < 8 << 20, "what was never written to takes no space");
        host.hibernate(id).await.expect("it sleeps already");
        let began = Instant::now();
        let resumed = host.resume(id).await.unwrap();
        println!("jailed {jailed}: asleep in {asleep:?}, awake in {:?}, round {round}", began.elapsed());
        assert_eq!(resumed.memory_lost, None);
        answers(&resumed.vm).await;
        bench.ticks(id).await;
        assert_eq!(bench.console(id).matches(toy::BANNER).count(), 1, "it goes on, it does not begin again");
    }
    host.destroy(id).await.unwrap();
    bench.nothing_is_left(id);
    assert_eq!(host.status().slots_used, 0);
    let log = host.read_log(id, LogKind::Console, 4096).await.unwrap();
    assert!(log.contains(toy::BANNER), "its logs are kept: {log}");

    // One that is destroyed while it sleeps.
    let id = new_id();
    host.create(cli(id)).await.unwrap();
    host.hibernate(id).await.unwrap();
    host.destroy(id).await.unwrap();
    bench.nothing_is_left(id);
}

/// Who runs a VM, and what it sees of the host.
fn assert_confined(bench: &Bench, host: &Host, id: polydev_core::ids::VmId, jailed: bool) {
    let pid = bench.processes(id)[0];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(groups.contains(&format!("/{id}")), "it is in its own cgroup: {groups}");
    assert_eq!(host.status().slots_used, 1);
    bench.assert_filtered(pid);
    if !jailed {
        assert!(uid.contains("\t0\t"), "{uid}");
        return;
    }
    let wanted = bench.config.firecracker.first_uid + 1;
    assert_eq!(uid, format!("Uid:\t{wanted}\t{wanted}\t{wanted}\t{wanted}"), "that of slot 1");
    let mut seen: Vec<_> =
        fs::read_dir(format!("/proc/{pid}/root")).unwrap().map(|it| it.unwrap().file_name()).collect();
    seen.sort();
    let expected = [
        "api.sock",
        "data",
        "dev",
        "driver.log",
        "firecracker",
        "firecracker.pid",
        "kernel",
        "lib",
        "lib64",
        "metrics",
        "run",
        "saved",
        "v.sock",
    ];
    assert_eq!(seen, expected, "nothing else");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(
        limits.lines().any(|line| line.starts_with("Max open files") && line.contains("4096")),
        "{limits}"
    );
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert!(mounts.lines().count() <= 2, "its root, and where its memory is saved: {mounts}");
    // It may write to its memory's directory only where the host let it.
    assert_eq!(fs::metadata(format!("/proc/{pid}/root/saved")).unwrap().uid(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_survives_kill_9_of_its_manager_and_is_adopted() {
    if be_a_manager().await {
        return;
    }
    for jailed in [false, true] {
        let Some(bench) = Bench::new(jailed) else { return };
        let id = new_id();
        bench.manager("a_vm_survives_kill_9_of_its_manager_and_is_adopted", id, "create", None);
        bench.ticks(id).await;
        let pid = bench.processes(id);
        let host = bench.host().await;
        let report = host.reclaim(&[id].into()).await.unwrap();
        assert!(report.destroyed.is_empty(), "{report:?}");
        assert!(host.list().await.unwrap()[0].running);
        answers(&host.adopt(id).await.unwrap()).await;
        assert_eq!(bench.processes(id), pid, "it is the same process");
        host.hibernate(id).await.unwrap();
        assert_eq!(host.resume(id).await.unwrap().memory_lost, None);
        assert_eq!(bench.console(id).matches(toy::BANNER).count(), 1);
        host.destroy(id).await.unwrap();
        bench.nothing_is_left(id);
    }
}

/// The places of the driver's own, at which a manager dies with a VM half asleep or half awake.
const PLACES: [(&str, &str); 15] = [
    ("create hibernate", "firecracker/paused"),
    ("create hibernate", "firecracker/before-capture"),
    ("create hibernate", "firecracker/captured"),
    ("create hibernate", "firecracker/capture-described"),
    ("create hibernate", "firecracker/asleep"),
    ("create hibernate", "firecracker/base-removed"),
    ("create hibernate resume", "firecracker/before-wake"),
    ("create hibernate resume", "firecracker/launched:2"),
    ("create hibernate resume", "firecracker/answers:2"),
    ("create hibernate resume", "firecracker/loaded"),
    ("create hibernate resume", "firecracker/tracked"),
    ("create hibernate resume", "firecracker/used-up"),
    ("create hibernate resume hibernate", "firecracker/before-merge"),
    ("create hibernate resume hibernate", "firecracker/merged"),
    ("create hibernate resume hibernate", "firecracker/base-described"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_killed_while_a_vm_falls_asleep_or_wakes_loses_nothing() {
    if be_a_manager().await {
        return;
    }
    let test = "a_manager_killed_while_a_vm_falls_asleep_or_wakes_loses_nothing";
    for (round, (what, place)) in PLACES.into_iter().enumerate() {
        let Some(bench) = Bench::new(round % 2 == 0) else { return };
        let id = new_id();
        bench.manager(test, id, what, Some(place));
        let host = bench.host().await;
        let report = host.reclaim(&[id].into()).await.unwrap();
        assert!(report.destroyed.is_empty(), "{place}: {report:?}");
        let resumed = host.resume(id).await.unwrap_or_else(|error| panic!("{place}: {error}"));
        assert_eq!(resumed.memory_lost, None, "{place}");
        answers(&resumed.vm).await;
        bench.ticks(id).await;
        assert_eq!(bench.console(id).matches(toy::BANNER).count(), 1, "{place}: it goes on");
        assert_eq!(bench.processes(id).len(), 1, "{place}");
        host.destroy(id).await.unwrap();
        bench.nothing_is_left(id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_killed_while_a_vm_starts_or_goes_leaves_nothing() {
    if be_a_manager().await {
        return;
    }
    let test = "a_manager_killed_while_a_vm_starts_or_goes_leaves_nothing";
    let places = [
        ("create", "firecracker/cgroup-made"),
        ("create", "firecracker/before-launch"),
        ("create", "firecracker/jail-built"),
        ("create", "firecracker/launched"),
        ("create", "firecracker/answers"),
        ("create destroy", "firecracker/jail-removed"),
    ];
    for (what, place) in places {
        let Some(bench) = Bench::new(true) else { return };
        let id = new_id();
        bench.manager(test, id, what, Some(place));
        let host = bench.host().await;
        host.reclaim(&Default::default()).await.unwrap();
        bench.nothing_is_left(id);
        assert!(host.list().await.unwrap().is_empty(), "{place}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_dies_is_noticed_and_its_log_says_how() {
    for jailed in [false, true] {
        let Some(bench) = Bench::new(jailed) else { return };
        let host = bench.host().await;
        let id = new_id();
        let vm = host.create(browser(id)).await.unwrap();
        bench.signal(id, Signal::KILL);
        tokio::time::timeout(toy_host::LIMIT, vm.agent.closed()).await.expect("it is noticed");
        assert!(
            matches!(host.adopt(id).await, Err(HostError::NoSuchVm(_)))
                || !host.list().await.unwrap()[0].running
        );
        host.reclaim(&Default::default()).await.unwrap();
        bench.nothing_is_left(id);
        let log = host.read_log(id, LogKind::Driver, 4096).await.unwrap();
        assert!(log.contains("firecracker ended: "), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_hangs_is_a_typed_error_and_is_ended() {
    let Some(bench) = Bench::new(true) else { return };
    let host = bench.host().await;
    let id = new_id();
    host.create(cli(id)).await.unwrap();
    bench.signal(id, Signal::STOP);
    let error = host.hibernate(id).await.unwrap_err();
    assert!(
        matches!(&error, HostError::HibernateFailed { detail, .. } if detail.contains("no answer within 3000 ms")),
        "{error}"
    );
    assert!(bench.processes(id).is_empty());
    host.destroy(id).await.unwrap();
    bench.nothing_is_left(id);

    // One that hangs is removed without its help.
    let id = new_id();
    host.create(browser(id)).await.unwrap();
    bench.signal(id, Signal::STOP);
    host.destroy(id).await.unwrap();
    bench.nothing_is_left(id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_was_damaged_is_never_run_and_the_vm_starts_anew() {
    let Some(bench) = Bench::new(true) else { return };
    let host = bench.host().await;
    let damages: [fn(&Path); 3] = [
        |base| fs::write(base.join("devices.state"), b"FAKE damage").unwrap(),
        |base| {
            let memory = fs::File::options().write(true).open(base.join("memory")).unwrap();
            std::os::unix::fs::FileExt::write_at(&memory, b"FAKE", 4096).unwrap();
        },
        |base| fs::remove_file(base.join("snapshot.json")).unwrap(),
    ];
    for damage in damages {
        let id = new_id();
        host.create(cli(id)).await.unwrap();
        host.hibernate(id).await.unwrap();
        damage(&bench.held(id).join("base"));
        let resumed = host.resume(id).await.unwrap();
        assert!(resumed.memory_lost.is_some());
        answers(&resumed.vm).await;
        until("it begins again", || bench.console(id).contains(toy::BANNER)).await;
        host.destroy(id).await.unwrap();
        bench.nothing_is_left(id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_keeps_a_vm_from_sleeping_and_it_runs_on() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    // Too small from the start; too few files for all that Firecracker is to write.
    for (options, room_is_known) in [(c"size=1m", true), (c"size=256m,nr_inodes=4", false)] {
        let Some(mut bench) = Bench::new(true) else { return };
        bench.config.resources.disk_reserve_bytes = 0;
        let held = bench.config.data_dir.join("held");
        fs::create_dir_all(&held).unwrap();
        mount("polydev-test", &held, "tmpfs", MountFlags::empty(), options).unwrap();
        let host = bench.host().await;
        let id = new_id();
        host.create(cli(id)).await.unwrap();
        let error = host.hibernate(id).await.unwrap_err();
        let runs = host.adopt(id).await;
        let ticked = bench.console(id).matches('.').count();
        until("it runs on", || bench.console(id).matches('.').count() > ticked + 1).await;
        let removed = host.destroy(id).await;
        drop(host);
        unmount(&held, UnmountFlags::empty()).unwrap();
        assert!(
            matches!(&error, HostError::NoSpace { room, .. } if room.is_some() == room_is_known),
            "{options:?}: {error}"
        );
        assert_runs(runs);
        removed.unwrap();
        bench.nothing_is_left(id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_does_not_fit_is_a_typed_error_and_leaves_nothing() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    // Too small from the start; too few files for Firecracker's two, and for what describes them.
    let disks = [
        ("", c"size=1m", true),
        ("templates", c"size=256m,nr_inodes=3", false),
        ("templates", c"size=256m,nr_inodes=4", false),
    ];
    for (round, (full, options, room_is_known)) in disks.into_iter().enumerate() {
        let Some(mut bench) = Bench::new(round != 2) else { return };
        bench.config.resources.disk_reserve_bytes = 0;
        let full = bench.config.data_dir.join(full);
        fs::create_dir_all(&full).unwrap();
        mount("polydev-test", &full, "tmpfs", MountFlags::empty(), options).unwrap();
        let host = bench.host().await;
        let templates = bench.config.data_dir.join("templates");
        let made = host.prepare_templates(1, 64, (800, 600)).await;
        let left: Vec<_> =
            fs::read_dir(&templates).into_iter().flatten().map(|it| it.unwrap().path()).collect();
        let vms = fs::read_dir(bench.config.run_dir.join("vm")).unwrap().count();
        let ready = host.status().fast_start;
        // A browser starts without.
        let id = new_id();
        let started = host.create(browser(id)).await;
        let removed = host.destroy(id).await;
        drop(host);
        unmount(&full, UnmountFlags::empty()).unwrap();
        let error = made.unwrap_err();
        assert!(
            matches!(&error, HostError::NoSpace { room, .. } if room.is_some() == room_is_known),
            "{options:?}: {error}"
        );
        assert_eq!((left, vms), (Vec::new(), 0), "{options:?}");
        assert_ne!(ready, FastStart::Ready);
        assert_runs(started);
        removed.unwrap();
        bench.nothing_is_left(id);
        assert_eq!(bench.all_processes(), Vec::<i32>::new(), "{options:?}");
        bench.no_group_is_left();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_take_a_bounded_place_while_nobody_reads_them_and_are_told_afterwards() {
    let Some(bench) = Bench::new(true) else { return };
    let host = bench.host().await;
    let id = new_id();
    host.create(cli(id)).await.unwrap();
    drop(host);
    let api = Api::new(bench.vm(id).join("r/api.sock"));
    let mut full = false;
    for _ in 0..100 {
        full |= api.action(Action::FlushMetrics).await.is_err();
    }
    assert!(full, "the pipe takes no more");
    bench.ticks(id).await;
    let host = bench.host().await;
    let mut told = None;
    let deadline = Instant::now() + toy_host::LIMIT;
    while told.is_none() {
        assert!(Instant::now() < deadline, "in vain: {:?}", host.usage());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let usage = host.usage().into_iter().find(|(of, _)| *of == id).map(|(_, usage)| usage);
        told = usage.and_then(|usage| Some((usage.throttled?, usage.balloon?)));
    }
    let balloon = BalloonUsage { target_bytes: 0, actual_bytes: 0, available_bytes: None };
    assert_eq!(told, Some((0, balloon)), "the toy has no driver");
    let latest = fs::read(bench.vm(id).join("metrics.json")).unwrap();
    assert!(String::from_utf8(latest).unwrap().contains("\"balloon\""));
    api.action(Action::FlushMetrics).await.expect("there is room again");
    host.destroy(id).await.unwrap();
    bench.nothing_is_left(id);
}

fn assert_runs(vm: Result<Vm, HostError>) {
    vm.expect("it runs on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_missing_or_old_is_named_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let fake = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    let other = Program::check(&fake("other", "echo hello")).await;
    assert!(matches!(other, Err(ProgramError::Version { .. })), "{other:?}");
    assert!(matches!(Program::check(&fake("broken", "exit 3")).await, Err(ProgramError::Broken { .. })));
    let Some(bench) = Bench::new(true) else { return };
    let (program, jailer) =
        (bench.config.firecracker.program.clone(), bench.config.firecracker.jailer.clone());
    let cases = [
        (fake("old", "echo Firecracker v1.15.0"), jailer.clone(), "1.15.0 is too old"),
        (dir.path().join("missing"), jailer, "install firecracker 1.16.1"),
        (program.clone(), fake("jailer", "echo Jailer v1.17.0"), "install both of one release"),
        (program, dir.path().join("no-jailer"), "no-jailer"),
    ];
    for (program, jailer, words) in cases {
        let mut config = bench.config.clone();
        config.firecracker = FirecrackerConfig { program, jailer, ..config.firecracker };
        let host = Host::open(config, std::sync::Arc::new(polydev_host::NoEgress)).await.unwrap();
        let id = new_id();
        let error = host.create(browser(id)).await.unwrap_err();
        assert!(
            matches!(&error, HostError::DriverUnusable { reason, .. } if reason.contains(words)),
            "{error}"
        );
        bench.nothing_is_left(id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browser_vms_continue_from_a_template_that_is_made_once() {
    for jailed in [false, true] {
        let Some(bench) = Bench::new(jailed) else { return };
        let host = bench.host().await;
        let began = Instant::now();
        host.prepare_templates(1, 64, (800, 600)).await.unwrap();
        println!("jailed {jailed}: template made in {:?}", began.elapsed());
        assert_eq!(host.status().fast_start, FastStart::Ready);
        let templates = || -> Vec<_> {
            let all = fs::read_dir(bench.config.data_dir.join("templates")).unwrap();
            all.map(|it| it.unwrap().path()).collect()
        };
        let made = templates();
        assert_eq!(made.len(), 1, "{made:?}");
        let stamp = || fs::metadata(made[0].join("memory")).unwrap().modified().unwrap();
        let before = stamp();
        host.prepare_templates(1, 64, (800, 600)).await.unwrap();
        let ids = [new_id(), new_id(), new_id()];
        for id in ids {
            let began = Instant::now();
            answers(&host.create(browser(id)).await.unwrap()).await;
            println!("jailed {jailed}: restored in {:?}", began.elapsed());
            bench.ticks(id).await;
            assert!(!bench.console(id).contains(toy::BANNER), "it goes on where the template was");
        }
        assert_eq!(stamp(), before, "nobody changes what others run on");
        for id in ids {
            host.destroy(id).await.unwrap();
            bench.nothing_is_left(id);
        }
        // A damaged one is not used.
        fs::write(made[0].join("devices.state"), "FAKE").unwrap();
        let id = new_id();
        host.create(browser(id)).await.unwrap();
        until("it boots", || bench.console(id).contains(toy::BANNER)).await;
        host.destroy(id).await.unwrap();
        assert_eq!(fs::read_dir(bench.config.run_dir.join("vm")).unwrap().count(), 0);
        bench.no_group_is_left();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jails_work_where_the_run_directory_forbids_programs_and_devices() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let Some(bench) = Bench::new(true) else { return };
    let run = &bench.config.run_dir;
    fs::create_dir_all(run).unwrap();
    let flags = MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSUID;
    mount("polydev-test", run, "tmpfs", flags, c"size=64m").unwrap();
    let host = bench.host().await;
    let id = new_id();
    let made = host.create(cli(id)).await;
    let slept = host.hibernate(id).await;
    let woke = host.resume(id).await;
    let gone = host.destroy(id).await;
    drop(host);
    let _ = unmount(run.join("vm"), UnmountFlags::empty());
    unmount(run, UnmountFlags::DETACH).unwrap();
    assert_runs(made);
    slept.unwrap();
    assert_eq!(woke.unwrap().memory_lost, None);
    gone.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_with_a_network_device_and_limits_boots_sleeps_wakes_and_is_restored_in_its_slots_namespace() {
    for jailed in [false, true] {
        let Some(mut bench) = Bench::new(jailed) else { return };
        bench.config.network = NetworkChoice::Tap;
        bench.config.firecracker.disk_mib_per_s = Some(50);
        bench.config.firecracker.network_mib_per_s = Some(20);
        let host = bench.host().await;
        let id = new_id();
        host.create(cli(id)).await.unwrap();
        assert_in_namespace(&bench, id, 1);
        host.hibernate(id).await.unwrap();
        assert_eq!(host.resume(id).await.unwrap().memory_lost, None);
        assert_in_namespace(&bench, id, 1);
        bench.ticks(id).await;
        host.prepare_templates(1, 64, (800, 600)).await.unwrap();
        let restored = new_id();
        host.create(browser(restored)).await.unwrap();
        assert_in_namespace(&bench, restored, 2);
        bench.ticks(restored).await;
        assert!(!bench.console(restored).contains(toy::BANNER), "it goes on where the template was");
        for id in [id, restored] {
            host.destroy(id).await.unwrap();
            bench.nothing_is_left(id);
        }
    }
}

/// The VM's process is where the slot's TAP is, and nowhere else.
fn assert_in_namespace(bench: &Bench, id: polydev_core::ids::VmId, slot: u8) {
    let named = fs::metadata(bench.config.run_dir.join("netns").join(slot.to_string())).unwrap();
    let entered = fs::metadata(format!("/proc/{}/ns/net", bench.processes(id)[0])).unwrap();
    assert_eq!((named.dev(), named.ino()), (entered.dev(), entered.ino()));
    let links = fs::read_to_string(format!("/proc/{}/net/dev", bench.processes(id)[0])).unwrap();
    assert!(links.contains("tap0:"), "{links}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_vms_go_on_from_one_memory_file() {
    for jailed in [false, true] {
        let Some(bench) = Bench::new(jailed) else { return };
        let program = Program::check(&bench.config.firecracker.program).await.unwrap();
        let jail = jailed.then(|| Jail {
            jailer: bench.config.firecracker.jailer.clone(),
            uid: 100_200,
            file_bytes_max: 1 << 30,
        });
        let kernel = bench.dir().join("toy.elf");
        fs::write(&kernel, toy::elf(20_000)).unwrap();
        let golden = bench.dir().join("golden");
        fs::create_dir(&golden).unwrap();
        if let Some(jail) = &jail {
            std::os::unix::fs::chown(&golden, Some(jail.uid), Some(jail.uid)).unwrap();
        }
        let home = || {
            let id = new_id();
            let dir = bench.vm(id);
            fs::create_dir_all(&dir).unwrap();
            Home { id, dir, instance: "firecracker-vm-test".to_owned() }
        };
        let machine = Machine {
            vcpus: 1,
            memory_mib: 64,
            kernel: "kernel".to_owned(),
            initrd: None,
            command_line: "console=ttyS0".to_owned(),
            disks: Vec::new(),
            network: None,
            limits: Limits::default(),
        };
        let items = vec![Item::read("kernel", &kernel), Item::write("golden", &golden)];
        let vmm = Vmm::launch(home(), &Setup::new(&program, jail.as_ref(), items)).await.unwrap();
        vmm.boot(&machine).await.unwrap();
        let first = vmm.home().id;
        until("the guest speaks", || bench.console(first).contains(toy::BANNER)).await;
        vmm.pause().await.unwrap();
        vmm.capture(SnapshotKind::Full, "golden").await.unwrap();
        assert_eq!(vmm.state().await.unwrap(), InstanceState::Paused);
        vmm.kill().await.unwrap();
        let (mut launches, mut loads) = (Vec::new(), Vec::new());
        for _ in 0..LOADS {
            let items = vec![Item::read("golden", &golden)];
            let began = Instant::now();
            let vmm = Vmm::launch(home(), &Setup::new(&program, jail.as_ref(), items)).await.unwrap();
            launches.push(began.elapsed());
            let began = Instant::now();
            vmm.load_and_run("golden", &machine).await.unwrap();
            loads.push(began.elapsed());
            assert_eq!(vmm.state().await.unwrap(), InstanceState::Running);
            let id = vmm.home().id;
            bench.ticks(id).await;
            vmm.kill().await.unwrap();
        }
        loads.sort();
        launches.sort();
        let ms = |all: &[std::time::Duration]| all[LOADS / 2].as_secs_f64() * 1e3;
        println!(
            "jailed {jailed}: launch p50 {:.1} ms, load and resume p50 {:.1} ms (min {:.1}) of {LOADS}",
            ms(&launches),
            ms(&loads),
            loads[0].as_secs_f64() * 1e3
        );
    }
}
