//! Browser VMs that wait for somebody.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use polydev_core::{
    ids::{UserId, VmId},
    wire::{AgentEvent, Request},
};
use polydev_host::{CreateVm, Host, HostError, VmKind, WarmPlan};
use tokio::time::{sleep, timeout};

use super::{
    leftovers,
    machine::{Kind, Machine, browser, cli, identity, new_id, run, starts},
};

const DESKTOP: (u16, u16) = (1280, 800);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long a cold desktop may take on a busy machine.
const WARM_LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn plan(low: usize, high: usize) -> WarmPlan {
    WarmPlan { low, high, vcpus: 2, memory_mib: 2048, desktop_px: DESKTOP }
}

/// Waits until so many VMs are ready.
pub(crate) async fn warm(host: &Host, wanted: usize) {
    let ready = async {
        while host.status().warm != wanted {
            sleep(LOOK_AGAIN).await;
        }
    };
    let limit = if host.status().driver.contains("emulated") { WARM_LIMIT * 4 } else { WARM_LIMIT };
    timeout(limit, ready).await.unwrap_or_else(|_| panic!("{wanted} VMs do not get warm"));
}

pub(crate) async fn draw(host: &Host) -> VmId {
    host.draw(&VmKind::Browser, 2, 2048).await
}

fn paints(kind: &Kind) {
    if let Kind::Fake(driver) = kind {
        driver.paint_desktops();
    }
}

/// Removes all VMs, the warm ones too.
async fn drain(host: &Host) {
    host.set_warm(plan(0, 0));
    warm(host, 0).await;
    let gone = async {
        while host.status().slots_used > 0 {
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout(WARM_LIMIT, gone).await.expect("a pool that is not wanted goes");
}

pub(crate) async fn a_warm_vm_is_painted_and_takes_its_name_when_it_is_drawn(kind: Kind) {
    let Some(machine) = Machine::new(kind.clone(), 4) else { return };
    paints(&kind);
    let host = machine.host().await;
    let made = draw(&host).await;
    assert_ne!(made, draw(&host).await, "without a pool an id is a new one");
    host.set_warm(plan(1, 2));
    warm(&host, 2).await;
    assert_eq!(host.status().slots_used, 2);
    let report = host.reclaim(&HashSet::new()).await.unwrap();
    assert!(report.destroyed.is_empty(), "warm VMs are nobody's yet and stay");
    let other_size = host.draw(&VmKind::Browser, 2, 1024).await;
    assert!(host.list().await.unwrap().iter().all(|vm| vm.id != other_size), "sizes are kept");

    for left in [1, 0] {
        let began = Instant::now();
        let id = draw(&host).await;
        let drawn_ms = began.elapsed().as_millis();
        assert!(host.list().await.unwrap().iter().any(|vm| vm.id == id), "it was there before");
        assert_eq!(host.status().warm, left, "a drawn VM is reserved");
        let began = Instant::now();
        let vm = host.create(browser(id)).await.unwrap();
        let claimed_ms = began.elapsed().as_millis();
        assert!(matches!(host.create(browser(id)).await, Err(HostError::AlreadyExists(_))));
        let mut events = vm.agent.events();
        let (width, height) = DESKTOP;
        vm.agent.request(Request::StartDesktop { width, height }).await.unwrap();
        let painted = async {
            while !matches!(events.recv().await.unwrap(), AgentEvent::Desktop { state } if state.painted) {}
        };
        timeout(machine.patience(), painted).await.expect("whoever asks first is told that it is painted");
        println!(
            "drawn: {drawn_ms} ms, claimed: {claimed_ms} ms, painted: {} ms",
            began.elapsed().as_millis()
        );
        match &kind {
            Kind::Fake(driver) => {
                let asked = driver.agent(id).unwrap().requests();
                let names = asked.iter().filter_map(|it| match it {
                    Request::Identify(identity) => Some((identity.hostname.as_str(), identity.egress)),
                    _ => None,
                });
                let (warm, own) = (format!("warm-{}", id.short()), format!("vm-{}", id.short()));
                assert_eq!(names.collect::<Vec<_>>(), [(warm.as_str(), false), (own.as_str(), true)]);
            }
            Kind::Container | Kind::Qemu => {
                assert_eq!(
                    run(&vm, &["cat", "/proc/sys/kernel/hostname"]).await.trim(),
                    identity(id).hostname
                );
                assert_eq!(run(&vm, &["cat", "/etc/machine-id"]).await.trim(), identity(id).machine_id);
                assert_eq!(run(&vm, &["printenv", "POLYDEV_TEST"]).await.trim(), "1");
            }
        }
        host.destroy(id).await.unwrap();
        leftovers::assert_none("VM", || leftovers::of_vm(&id.to_string()));
    }
    warm(&host, 2).await;
    assert_eq!(["claim", "total"].map(|phase| starts(&host, "claimed", phase)), [2, 2]);
    assert!(
        starts(&host, "ahead", "paint") >= 4 && starts(&host, "new", "total") == 0,
        "nobody waited for these"
    );
    drain(&host).await;
    drop(host);
    machine.assert_nothing_left();
}

pub(crate) async fn warm_vms_survive_their_manager_and_give_way_to_wanted_ones(kind: Kind) {
    let Some(machine) = Machine::new(kind.clone(), 1) else { return };
    paints(&kind);
    let host = machine.host().await;
    host.set_warm(plan(1, 1));
    warm(&host, 1).await;
    let before = host.list().await.unwrap()[0].id;
    drop(host);

    let host = machine.host().await;
    host.set_warm(plan(1, 1));
    warm(&host, 1).await;
    assert_eq!(draw(&host).await, before, "the next manager takes it into its own pool");
    let vm = host.create(browser(before)).await.unwrap();
    host.destroy(before).await.unwrap();
    warm(&host, 1).await;

    // The only slot is the warm VM's: a VM that somebody wants gets it.
    let user: UserId = "someone".parse().unwrap();
    let wanted = new_id();
    drop(host.create(cli(wanted, &user)).await.unwrap());
    assert_eq!(host.list().await.unwrap().iter().map(|vm| vm.id).collect::<Vec<_>>(), [wanted]);
    assert_eq!(host.status().warm, 0);
    assert!(matches!(host.create(browser(new_id())).await, Err(HostError::NoSlot { total: 1 })));
    host.destroy(wanted).await.unwrap();
    warm(&host, 1).await;
    drain(&host).await;
    drop((vm, host));
    machine.assert_nothing_left();
}

pub(crate) async fn a_warm_vm_that_dies_is_replaced_and_never_handed_out(kind: Kind) {
    let Some(machine) = Machine::new(kind.clone(), 4) else { return };
    paints(&kind);
    let host = machine.host().await;
    host.set_warm(plan(1, 1));
    warm(&host, 1).await;
    let dead = host.list().await.unwrap()[0].id;
    machine.crash(dead);
    assert_ne!(draw(&host).await, dead);
    let replaced = async {
        while host.status().warm == 0 || host.list().await.unwrap().iter().any(|vm| vm.id == dead) {
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout(WARM_LIMIT, replaced).await.expect("another one takes its place");
    leftovers::assert_none("VM", || leftovers::of_vm(&dead.to_string()));

    // One that dies after it was drawn is made anew under the same id.
    let drawn = draw(&host).await;
    machine.crash(drawn);
    let vm = host.create(CreateVm { ..browser(drawn) }).await.unwrap();
    assert_eq!(run(&vm, &["echo", "here"]).await.trim().trim_start_matches("echo "), "here");
    host.destroy(drawn).await.unwrap();
    drain(&host).await;
    drop((vm, host));
    machine.assert_nothing_left();
}

pub(crate) async fn a_vm_that_finds_no_room_is_refused_before_anything_is_made(kind: Kind) {
    let Some(mut machine) = Machine::new(kind.clone(), 4) else { return };
    paints(&kind);
    let capacity =
        polydev_host::Capacity { reserve_mib: 0, browser_mib: 1, cli_mib: 1, vcpus_per_core: 1 << 20 };
    machine.config.capacity = Some(polydev_host::Capacity { reserve_mib: 1 << 30, ..capacity });
    let host = machine.host().await;
    host.set_warm(plan(1, 1));
    let refused = host.create(browser(new_id())).await;
    assert!(matches!(refused, Err(HostError::NoCapacity { what: "memory (MiB)", .. })), "{refused:?}");
    assert_eq!((host.status().slots_used, host.status().warm), (0, 0));
    assert!(host.list().await.unwrap().is_empty());
    drop(host);

    // Cores for one VM: a warm one gives way to one that is wanted.
    machine.config.capacity = Some(capacity);
    let host = machine.host().await;
    host.set_warm(plan(1, 1));
    warm(&host, 1).await;
    drop(host);
    let cores = std::thread::available_parallelism().unwrap().get() as u64;
    machine.config.capacity =
        Some(polydev_host::Capacity { vcpus_per_core: 3_u64.div_ceil(cores), ..capacity });
    let room = 3_u64.div_ceil(cores) * cores;
    let host = machine.host().await;
    host.set_warm(plan(1, 1));
    warm(&host, 1).await;
    let vcpus = u8::try_from(room).unwrap();
    let id = new_id();
    let user: UserId = "someone".parse().unwrap();
    drop(host.create(CreateVm { vcpus, ..cli(id, &user) }).await.unwrap());
    assert_eq!(host.list().await.unwrap().len(), 1, "the warm VM gave way");
    let refused = host.create(browser(new_id())).await;
    assert!(matches!(refused, Err(HostError::NoCapacity { what: "cores", .. })), "{refused:?}");
    host.destroy(id).await.unwrap();
    drain(&host).await;
    drop(host);
    machine.assert_nothing_left();
}

/// Of drivers that restore: the pool's VMs continue from the template, and a drawn one answers at once.
pub(crate) async fn restored_vms_wait_in_the_pool() {
    let Some(machine) = Machine::new(Kind::Qemu, 4) else { return };
    let host = machine.host().await;
    if !host.status().driver.contains("emulated") {
        println!("SKIPPED: KVM works here, snapshots are for emulation");
        return;
    }
    host.prepare_templates(2, 2048, DESKTOP).await.unwrap();
    let began = Instant::now();
    host.set_warm(plan(1, 2));
    warm(&host, 2).await;
    println!("two VMs warm: {} ms", began.elapsed().as_millis());
    for vm in host.list().await.unwrap() {
        let log = host.read_log(vm.id, polydev_host::LogKind::Driver, 1000).await.unwrap();
        assert!(log.contains("restored from template"), "{log}");
    }
    let mut seen = HashSet::new();
    for _ in 0..2 {
        let began = Instant::now();
        let id = draw(&host).await;
        let vm = host.create(browser(id)).await.unwrap();
        println!("drawn and claimed: {} ms", began.elapsed().as_millis());
        assert_eq!(run(&vm, &["cat", "/proc/sys/kernel/hostname"]).await.trim(), identity(id).hostname);
        assert!(
            seen.insert(run(&vm, &["od", "-An", "-N32", "-tx1", "/dev/urandom"]).await),
            "two drew the same bytes"
        );
    }
    for vm in host.list().await.unwrap() {
        host.destroy(vm.id).await.unwrap();
    }
    drain(&host).await;
    drop(host);
    machine.assert_nothing_left();
}
