//! Browser VMs on the golden image.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use polydev_core::{
    ids::VmId,
    wire::{AgentEvent, Request},
};
use polydev_host::{DriverChoice, Host, Vm, VmKind, WarmPlan};
use tokio::time::{sleep, timeout};

#[path = "../../tests/support/picture.rs"]
mod picture;

use self::picture::Picture;
use super::{DESKTOP_PX, Place, browser, figure, ms, new_id};

const MEMORY_MIB: u32 = 2048;
const LIMIT: Duration = Duration::from_secs(600);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How many are restored at the same time.
const CROWD: usize = 20;

pub(super) async fn container(quick: bool) {
    let place = Place::new();
    let Some(host) = place.host(DriverChoice::Container, 4).await else { return };
    let rounds = if quick { 3 } else { 15 };
    let mut cold = Vec::new();
    // The first one fills caches.
    for round in 0..=rounds.min(5) {
        let (took, id) = ready(&host, new_id()).await;
        if round > 0 {
            cold.push(took.0);
        }
        host.destroy(id).await.expect("destroyed");
    }
    figure("container cold: request -> browser ready", "ms", &cold, None);
    let (vcpus, memory_mib) = (2, MEMORY_MIB);
    host.set_warm(WarmPlan { low: 1, high: 1, vcpus, memory_mib, desktop_px: DESKTOP_PX });
    let mut warm = Vec::new();
    for _ in 0..rounds {
        until("a warm VM", || host.status().warm > 0).await;
        let began = Instant::now();
        let id = host.draw(&VmKind::Browser, vcpus, memory_mib).await;
        let drawn = began.elapsed();
        let ((took, _), id) = ready(&host, id).await;
        warm.push(took + ms(drawn));
        host.destroy(id).await.expect("destroyed");
    }
    figure("container warm: request -> browser ready", "ms", &warm, Some(300.0));
    clear(host).await;
}

pub(super) async fn qemu(quick: bool) {
    let place = Place::new();
    let crowd = if quick { 4 } else { CROWD };
    let Some(host) = place.host(DriverChoice::Qemu, 24).await else { return };
    host.prepare_templates(2, MEMORY_MIB, DESKTOP_PX).await.expect("a template");
    let (mut responsive, mut pictures) = (Vec::new(), Vec::new());
    for round in 0..=(if quick { 3 } else { 10 }) {
        let ((ready_ms, picture_ms), id) = ready(&host, new_id()).await;
        if round > 0 {
            responsive.push(ready_ms);
            pictures.push(picture_ms);
        }
        host.destroy(id).await.expect("destroyed");
    }
    figure("qemu restore -> responsive browser", "ms", &responsive, Some(800.0));
    figure("qemu restore -> whole picture", "ms", &pictures, Some(2500.0));
    let all: Vec<_> = (0..crowd)
        .map(|_| {
            let host = host.clone();
            tokio::spawn(async move { ready(&host, new_id()).await })
        })
        .collect();
    let mut together = Vec::new();
    for one in all {
        // One that does not complete ends the measurement.
        together.push(one.await.expect("it completes").0.0);
    }
    figure(&format!("{crowd} restores at the same time"), "ms", &together, None);
    clear(host).await;
}

/// Creates a browser VM and uses it: milliseconds until its browser is known to be painted, and until a whole picture
/// has arrived.
async fn ready(host: &Host, id: VmId) -> ((f64, f64), VmId) {
    let began = Instant::now();
    let vm = host.create(browser(id, MEMORY_MIB)).await.expect("a VM");
    painted(&vm).await;
    let ready = began.elapsed();
    let seen = Picture::of(vm.agent.vnc().await.expect("a desktop"));
    let Picture { size, colours } = timeout(LIMIT, seen).await.expect("a picture");
    assert_eq!(size, DESKTOP_PX);
    assert!(colours > 2, "the picture shows no browser");
    ((ms(ready), ms(began.elapsed())), id)
}

async fn painted(vm: &Vm) {
    let mut events = vm.agent.events();
    let (width, height) = DESKTOP_PX;
    vm.agent.request(Request::StartDesktop { width, height }).await.expect("a desktop");
    let painted =
        async { while !matches!(events.recv().await, Ok(AgentEvent::Desktop { state }) if state.painted) {} };
    timeout(LIMIT, painted).await.expect("a painted desktop");
}

async fn clear(host: Host) {
    host.set_warm(WarmPlan { low: 0, high: 0, vcpus: 2, memory_mib: MEMORY_MIB, desktop_px: DESKTOP_PX });
    for vm in host.list().await.expect("a list") {
        host.destroy(vm.id).await.expect("destroyed");
    }
    host.reclaim(&HashSet::new()).await.expect("nothing is left");
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LIMIT, "no {what} within {} s", LIMIT.as_secs());
        sleep(LOOK_AGAIN).await;
    }
}
