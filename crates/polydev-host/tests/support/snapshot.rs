//! Browser VMs that continue from a snapshot under emulation.

use std::{fs, time::Instant};

use polydev_core::wire::{AgentEvent, Request};
use polydev_host::{FastStart, Host, LogKind, Vm};
use tokio::time::timeout;

use super::{
    machine::{Kind, Machine, browser, identity, new_id, run},
    picture::Picture,
};

const DESKTOP: (u16, u16) = (1280, 800);

pub(crate) async fn vms_restored_from_one_template_answer_fast_and_are_each_one_of_its_own() {
    let Some(machine) = Machine::new(Kind::Qemu, 4) else { return };
    let host = machine.host().await;
    if !host.status().driver.contains("emulated") {
        println!("SKIPPED: KVM works here, snapshots are for emulation");
        return;
    }
    let began = Instant::now();
    assert_eq!(host.status().fast_start, FastStart::None);
    host.prepare_templates(2, 2048, DESKTOP).await.unwrap();
    assert_eq!(host.status().fast_start, FastStart::Ready);
    println!("template made: {} ms", began.elapsed().as_millis());
    let began = Instant::now();
    host.prepare_templates(2, 2048, DESKTOP).await.unwrap();
    println!("template checked: {} ms", began.elapsed().as_millis());

    let mut seen = Vec::new();
    for _ in 0..2 {
        let id = new_id();
        let vm = restored(&host, id).await;
        assert_eq!(run(&vm, &["cat", "/proc/sys/kernel/hostname"]).await.trim(), identity(id).hostname);
        assert_eq!(run(&vm, &["cat", "/etc/machine-id"]).await.trim(), identity(id).machine_id);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let guest: u64 = run(&vm, &["date", "+%s"]).await.trim().parse().unwrap();
        assert!(guest.abs_diff(now) <= 5, "guest clock {guest}, host {now}");
        seen.push(run(&vm, &["head", "-c", "32", "/dev/urandom"]).await);
        // Both run at the same time, on one memory file.
        if seen.len() == 2 {
            let other = host.list().await.unwrap().into_iter().find(|other| other.id != id).unwrap();
            assert!(other.running);
        }
    }
    assert_ne!(seen[0], seen[1], "two clones drew the same random bytes");
    for vm in host.list().await.unwrap() {
        host.destroy(vm.id).await.unwrap();
    }

    // A template that something wrote to is not used: the VM boots instead, and the next prepare makes a new one.
    let templates = machine.config.data_dir.join("templates");
    let template = fs::read_dir(&templates).unwrap().next().unwrap().unwrap().path();
    fs::write(template.join("devices.state"), b"FAKE damage").unwrap();
    let id = new_id();
    let vm = host.create(browser(id)).await.unwrap();
    assert_eq!(run(&vm, &["cat", "/etc/machine-id"]).await.trim(), identity(id).machine_id);
    assert!(!host.read_log(id, LogKind::Driver, 1000).await.unwrap().contains("restored"));
    host.destroy(id).await.unwrap();
    drop((vm, host));
    machine.assert_nothing_left();
}

/// Creates a VM and sees its desktop's picture arrive; prints how long both took.
async fn restored(host: &Host, id: polydev_core::ids::VmId) -> Vm {
    let began = Instant::now();
    let vm = host.create(browser(id)).await.unwrap();
    println!("restored, identity taken: {} ms", began.elapsed().as_millis());
    let log = host.read_log(id, LogKind::Driver, 1000).await.unwrap();
    assert!(log.contains("restored from template"), "{log}");
    let mut events = vm.agent.events();
    let (width, height) = DESKTOP;
    vm.agent.request(Request::StartDesktop { width, height }).await.unwrap();
    let painted = async {
        while !matches!(events.recv().await.unwrap(), AgentEvent::Desktop { state } if state.painted) {}
    };
    timeout(std::time::Duration::from_secs(20), painted).await.expect("the desktop is up already");
    println!("desktop known to be painted: {} ms", began.elapsed().as_millis());
    let Picture { size, colours } = Picture::of(vm.agent.vnc().await.unwrap()).await;
    assert_eq!(size, DESKTOP);
    println!("whole picture ({colours} colours): {} ms", began.elapsed().as_millis());
    assert!(colours > 2, "the picture shows a browser");
    vm
}
