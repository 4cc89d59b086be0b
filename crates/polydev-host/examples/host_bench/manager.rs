//! The manager itself, with VMs that cost nothing. They are tasks of this process, so its memory is an upper bound of a
//! manager's.

use std::{collections::HashSet, sync::Arc, time::Instant};

use polydev_core::ids::VmId;
use polydev_host::{DriverChoice, Host, NoEgress, driver::fake::FakeDriver};

use super::{Place, browser, figure, ms, new_id};

/// Takes over so many VMs at a time, as a controller does.
const AT_ONCE: usize = 16;

pub(super) async fn measure(vms: u8) {
    let place = Place::new();
    let driver = FakeDriver::default();
    let open = || {
        let config = place.config(DriverChoice::Auto, vms);
        Host::with_driver(config, Arc::new(NoEgress), Arc::new(driver.clone())).expect("a host")
    };
    let host = open();
    let mut wanted = HashSet::new();
    let mut took = Vec::new();
    for _ in 0..vms {
        let began = Instant::now();
        let vm = host.create(browser(new_id(), 512)).await.expect("a VM");
        took.push(ms(began.elapsed()));
        wanted.insert(vm.id);
    }
    figure("manager: create of a fake VM", "ms", &took, None);
    figure(&format!("manager: memory with {vms} fake VMs"), "MB", &[resident_mb()], Some(60.0));
    drop(host);

    let began = Instant::now();
    let host = open();
    let report = host.reclaim(&wanted).await.expect("reclaimed");
    assert!(report.destroyed.is_empty(), "VMs that are wanted stay");
    let mut left: Vec<VmId> = wanted.iter().copied().collect();
    while !left.is_empty() {
        let some = left.split_off(left.len().saturating_sub(AT_ONCE));
        let all = some.into_iter().map(|id| {
            let host = host.clone();
            tokio::spawn(async move { host.adopt(id).await })
        });
        for one in all.collect::<Vec<_>>() {
            one.await.expect("no panic").expect("adopted");
        }
    }
    figure(&format!("manager: reconcile of {vms} VMs at start"), "ms", &[ms(began.elapsed())], Some(2000.0));
    host.reclaim(&HashSet::new()).await.expect("reclaimed");
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a figure");
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
    kib * 1024.0 / 1e6
}
