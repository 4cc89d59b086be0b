//! The cases of the contract suite.

use std::collections::HashSet;

use polydev_core::{
    ids::UserId,
    wire::{FileGet, FilePut, Reply, Request, files::FileBytes},
};
use polydev_host::{HostError, LogKind, VmEnd};
use tokio::time::timeout;

use super::{
    leftovers,
    machine::{Kind, Machine, browser, cli, new_id, run},
    program::static_program,
};

pub(crate) async fn a_created_vm_answers_has_its_identity_and_leaves_nothing_but_logs(kind: Kind) {
    let Some(machine) = Machine::new(kind.clone(), 4) else { return };
    let network = leftovers::network();
    let host = machine.host().await;
    let id = new_id();
    let began = std::time::Instant::now();
    let vm = host.create(browser(id)).await.unwrap();
    println!("create to identity taken: {} ms", began.elapsed().as_millis());
    assert_eq!(vm.slot.index(), 1);
    assert_eq!(host.status().slots_used, 1);
    match &kind {
        Kind::Fake(driver) => {
            let asked = driver.agent(id).unwrap().requests();
            let identity = asked.iter().find_map(|it| match it {
                Request::Identify(identity) => Some(identity.clone()),
                _ => None,
            });
            let identity = identity.expect("identity was handed over");
            assert_eq!(identity.hostname, format!("vm-{}", id.short()));
            assert!(identity.unix_time_ms > 0 && identity.entropy.len() >= 64);
        }
        Kind::Container | Kind::Qemu => {
            assert_eq!(
                run(&vm, &["cat", "/proc/sys/kernel/hostname"]).await.trim(),
                format!("vm-{}", id.short())
            );
            assert_eq!(run(&vm, &["cat", "/etc/machine-id"]).await.trim(), id.as_uuid().simple().to_string());
            assert_eq!(run(&vm, &["printenv", "POLYDEV_TEST"]).await.trim(), "1");
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            let guest: u64 = run(&vm, &["date", "+%s"]).await.trim().parse().unwrap();
            assert!(guest.abs_diff(now) <= 5, "guest clock {guest}, host {now}");
            let links = run(&vm, &["ls", "/sys/class/net"]).await;
            assert_eq!(links.trim(), "lo", "a VM has no network device");
        }
    }
    let alive = host.read_log(id, LogKind::Agent, 10_000).await.unwrap();
    assert!(!alive.is_empty());

    let began = std::time::Instant::now();
    host.destroy(id).await.unwrap();
    println!("destroy: {} ms", began.elapsed().as_millis());
    leftovers::assert_none("VM", || leftovers::of_vm(&id.to_string()));
    host.destroy(id).await.expect("destroying again is fine");
    timeout(machine.patience(), vm.agent.closed()).await.expect("closed() returns once the VM is gone");
    assert!(host.list().await.unwrap().is_empty());
    assert_eq!(host.status().slots_used, 0);
    for kind in [LogKind::Console, LogKind::Agent] {
        assert!(!host.read_log(id, kind, 10_000).await.unwrap().is_empty(), "{kind:?} log is archived");
    }
    drop((vm, host));
    machine.assert_nothing_left();
    assert_eq!(leftovers::network(), network);
}

/// For a test that is a process of its own: it becomes a service that the kernel spares and whose files are its own.
pub(crate) async fn a_vm_takes_nothing_over_from_the_service_that_starts_it(kind: Kind) {
    let Some(machine) = Machine::new(kind.clone(), 4) else { return };
    std::fs::write("/proc/self/oom_score_adj", "321").unwrap();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let host = machine.host().await;
    let id = new_id();
    let vm = host.create(browser(id)).await.unwrap();
    let pids = processes_of(&format!("POLYDEV_VM={id}"));
    assert!(!pids.is_empty());
    for pid in pids {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        assert_eq!(read("oom_score_adj").trim(), "0");
        // By these systemd knows which service a process belongs to.
        let groups = read("cgroup");
        let mut told =
            groups.lines().filter(|line| line.contains(":name=systemd:") || line.starts_with("0::"));
        assert!(told.all(|line| line.contains(&id.to_string())), "{groups}");
    }
    // Users' programs start what is in it.
    assert_eq!(run(&vm, &["stat", "-c", "%a", "/run/polydev"]).await.trim(), "755");
    host.destroy(id).await.unwrap();
    drop((vm, host));
    machine.assert_nothing_left();
}

fn processes_of(variable: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let of_vm = entries.filter(|entry| {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|it| it == variable.as_bytes())
    });
    of_vm.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

pub(crate) async fn a_vm_survives_its_manager_and_is_adopted_by_the_next(kind: Kind) {
    let Some(machine) = Machine::new(kind, 4) else { return };
    let host = machine.host().await;
    let (kept, unwanted) = (new_id(), new_id());
    let first = host.create(browser(kept)).await.unwrap();
    let user: UserId = "someone".parse().unwrap();
    drop(host.create(cli(unwanted, &user)).await.unwrap());
    drop((first, host));

    let host = machine.host().await;
    let mut seen = host.list().await.unwrap();
    seen.sort_by_key(|vm| vm.slot);
    assert_eq!(
        seen.iter().map(|vm| (vm.id, vm.running)).collect::<Vec<_>>(),
        [(kept, true), (unwanted, true)]
    );
    assert_eq!(host.status().slots_used, 2);
    let report = host.reclaim(&HashSet::from([kept])).await.unwrap();
    assert_eq!(report.destroyed, [unwanted]);
    let vm = host.adopt(kept).await.unwrap();
    assert_eq!(run(&vm, &["echo", "still here"]).await.trim().trim_start_matches("echo "), "still here");
    assert!(matches!(host.adopt(unwanted).await, Err(HostError::NoSuchVm(id)) if id == unwanted));

    let report = host.reclaim(&HashSet::new()).await.unwrap();
    assert_eq!(report.destroyed, [kept]);
    drop((vm, host));
    machine.assert_nothing_left();
}

pub(crate) async fn a_vm_that_crashes_is_noticed_and_reclaimed(kind: Kind) {
    let Some(machine) = Machine::new(kind, 4) else { return };
    let host = machine.host().await;
    let id = new_id();
    let vm = host.create(browser(id)).await.unwrap();
    // Afterwards the agent cannot be asked any more: what it said is copied while it lives.
    machine.agent_log_is_copied(id).await;
    machine.crash(id);
    timeout(machine.patience(), vm.agent.closed()).await.expect("the crash is noticed");
    if !matches!(machine.kind, Kind::Fake(_)) {
        let end = vm.agent.end().await;
        assert!(matches!(end, Some(VmEnd::Killed(9) | VmEnd::Unknown)), "{end:?}");
    }
    assert!(vm.agent.request(Request::CancelLogin).await.is_err());
    let seen = host.list().await.unwrap();
    assert!(seen.iter().any(|vm| vm.id == id && !vm.running), "{seen:?}");
    assert_eq!(host.reclaim(&HashSet::new()).await.unwrap().destroyed, [id]);
    for kind in [LogKind::Console, LogKind::Agent] {
        let log = host.read_log(id, kind, 10_000).await.unwrap();
        assert!(!log.is_empty(), "{kind:?} log of a crashed VM is kept");
    }
    drop((vm, host));
    machine.assert_nothing_left();
}

pub(crate) async fn a_cli_disk_outlives_its_vm_and_has_one_user_at_a_time(kind: Kind) {
    let Some(machine) = Machine::new(kind, 4) else { return };
    let host = machine.host().await;
    let user: UserId = "a.b@example.org".parse().unwrap();
    let (first, second) = (new_id(), new_id());
    let vm = host.create(cli(first, &user)).await.unwrap();
    let file = FilePut {
        path: ".config/kept.txt".to_owned(),
        mode: 0o600,
        data: FileBytes::new(b"FAKE content".to_vec()),
        merge_json: Vec::new(),
    };
    vm.agent.request(Request::PutFiles { files: vec![file] }).await.unwrap();
    assert!(matches!(host.create(cli(second, &user)).await, Err(HostError::DiskInUse { by }) if by == first));
    assert!(matches!(host.remove_user_disk(&user).await, Err(HostError::DiskInUse { by }) if by == first));
    host.destroy(first).await.unwrap();

    let vm = host.create(cli(second, &user)).await.unwrap();
    let wanted = vec![FileGet { path: ".config/kept.txt".to_owned(), optional: false }];
    match vm.agent.request(Request::GetFiles { files: wanted }).await.unwrap() {
        Reply::Files { files } => {
            assert_eq!(&**files[0].data.0, b"FAKE content");
            assert_eq!(files[0].mode & 0o777, 0o600);
        }
        other => panic!("{other:?}"),
    }
    host.destroy(second).await.unwrap();
    host.remove_user_disk(&user).await.unwrap();
    drop((vm, host));
    machine.assert_nothing_left();
}

pub(crate) async fn a_guest_that_dies_at_start_is_reported_with_its_last_words(kind: Kind) {
    let Some(mut machine) = Machine::new(kind.clone(), 4) else { return };
    if let Kind::Fake(driver) = &kind {
        driver.fail_next_start("FAKE last words");
    } else {
        // An agent that only complains.
        let broken = machine.config.run_dir.with_file_name("broken-agent");
        let words =
            "#include <unistd.h>\nint main(void) { write(1, \"FAKE last words\\n\", 16); return 1; }\n";
        static_program(words, &broken);
        machine.config.agent_path = broken;
    }
    let host = machine.host().await;
    let id = new_id();
    match host.create(browser(id)).await {
        Err(HostError::StartFailed { id: failed, detail, .. }) => {
            assert_eq!(failed, id);
            assert!(detail.contains("FAKE last words"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
    leftovers::assert_none("VM", || leftovers::of_vm(&id.to_string()));
    assert!(host.list().await.unwrap().is_empty());
    assert_eq!(host.status().slots_used, 0);
    assert!(host.read_log(id, LogKind::Console, 10_000).await.unwrap().contains("FAKE last words"));
    drop(host);
    machine.assert_nothing_left();
}

pub(crate) async fn more_vms_than_slots_are_refused_and_slots_come_back(kind: Kind) {
    let Some(machine) = Machine::new(kind, 1) else { return };
    let host = machine.host().await;
    let (first, second) = (new_id(), new_id());
    let vm = host.create(browser(first)).await.unwrap();
    assert!(matches!(host.create(browser(second)).await, Err(HostError::NoSlot { total: 1 })));
    assert!(matches!(host.create(browser(first)).await, Err(HostError::AlreadyExists(id)) if id == first));
    host.destroy(first).await.unwrap();
    let again = host.create(browser(second)).await.unwrap();
    assert_eq!(again.slot, vm.slot);
    host.destroy(second).await.unwrap();
    drop((vm, again, host));
    machine.assert_nothing_left();
}

/// Of the suite itself, not of a driver.
pub(crate) async fn a_test_that_fails_leaves_no_vm_to_the_next(kind: Kind) {
    let Some(machine) = Machine::new(kind, 4) else { return };
    let run_dir = machine.config.run_dir.clone();
    let id = new_id();
    let failing = tokio::spawn(async move {
        let host = machine.host().await;
        let _vm = host.create(browser(id)).await.unwrap();
        assert!(leftovers::of(&machine.config.run_dir).is_empty(), "this test fails");
    });
    assert!(failing.await.unwrap_err().is_panic());
    leftovers::assert_none("something", || leftovers::of(&run_dir));
    leftovers::assert_none("VM", || leftovers::of_vm(&id.to_string()));
}
