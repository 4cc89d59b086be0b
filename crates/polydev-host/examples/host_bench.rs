//! Measures the host for `cargo xtask bench host`: one part per call, one line of JSON per figure on standard output.
//!
//! `host_bench PART QUICK`; parts are `slot`, `disk`, `container`, `qemu`, `manager` and `firecracker`. What a part
//! needs and does not find is said on standard error, and then there are no figures.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that cannot go on has to stop")]

#[path = "host_bench/firecracker.rs"]
mod firecracker;
#[path = "host_bench/manager.rs"]
mod manager;
#[path = "host_bench/real.rs"]
mod real;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use polydev_core::{ids::VmId, wire::Identity};
use polydev_host::{
    CreateVm, DriverChoice, EgressLimits, Host, HostConfig, NetworkChoice, NoEgress, Resources, VmKind,
    measure_user_disk,
    net::{self, LinkKind},
};
use serde_json::json;

/// The desktop of a browser VM.
const DESKTOP_PX: (u16, u16) = (1280, 800);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.get(1).is_some_and(|it| it == "true");
    match arguments.first().map(String::as_str) {
        Some("slot") => slot(quick).await,
        Some("disk") => disk(quick).await,
        Some("container") => real::container(quick).await,
        Some("qemu") => real::qemu(quick).await,
        Some("manager") => manager::measure(if quick { 50 } else { 200 }).await,
        Some("firecracker") => firecracker::measure(if quick { 5 } else { 20 }).await,
        other => panic!("no part {other:?}"),
    }
}

/// One figure: samples in `unit`, of which the median is to be at most `goal`.
fn figure(name: &str, unit: &str, samples: &[f64], goal: Option<f64>) {
    println!("{}", json!({ "name": name, "unit": unit, "samples": samples, "goal": goal }));
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

async fn slot(quick: bool) {
    let rounds = if quick { 5 } else { 50 };
    for (name, kind) in [("TAP", LinkKind::Tap), ("veth pair", LinkKind::Veth)] {
        let place = Place::new();
        match net::measure(place.dir(), kind, rounds).await {
            Ok(took) => {
                let samples: Vec<f64> = took.into_iter().map(ms).collect();
                figure(&format!("slot set-up, {name}"), "ms", &samples, Some(10.0));
            }
            Err(error) => eprintln!("skipped: {error}"),
        }
    }
}

async fn disk(quick: bool) {
    let rounds = if quick { 5 } else { 20 };
    for gib in [1_u64, 16, 64] {
        let place = Place::new();
        let (first, later) =
            measure_user_disk(&place.dir().join("user"), rounds, gib << 30).await.expect("a disk");
        let in_ms = |all: &[Duration]| all.iter().map(|took| ms(*took)).collect::<Vec<_>>();
        figure(&format!("user's disk of {gib} GiB, first use"), "ms", &in_ms(&first), Some(10.0));
        figure(&format!("user's disk of {gib} GiB, later"), "ms", &in_ms(&later), Some(10.0));
    }
}

/// Directories of one host, removed at the end.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        // Short: unix sockets live below it.
        Self(tempfile::Builder::new().prefix("pd-").tempdir_in("/tmp").expect("a directory"))
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn config(&self, driver: DriverChoice, slots: u8) -> HostConfig {
        let path = |variable: &str| PathBuf::from(std::env::var_os(variable).unwrap_or_default());
        let guest = path("POLYDEV_GUEST_DIR");
        HostConfig {
            driver,
            data_dir: self.dir().join("data"),
            run_dir: self.dir().join("run"),
            image_dir: path("POLYDEV_IMAGE_DIR"),
            agent_path: guest.join("polydev-agent"),
            desktop_path: guest.join("polydev-desktop"),
            overlay_dir: None,
            slots,
            log_bytes_max: 1 << 20,
            log_vms_max: 300,
            keep_failed: false,
            network: NetworkChoice::Channel,
            egress_limits: EgressLimits::default(),
            firecracker: Default::default(),
            capacity: None,
            resources: Resources::default(),
        }
    }

    /// `None`, said aloud, where the driver does not work.
    async fn host(&self, driver: DriverChoice, slots: u8) -> Option<Host> {
        match Host::open(self.config(driver, slots), Arc::new(NoEgress)).await {
            Ok(host) => Some(host),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }
}

fn browser(id: VmId, memory_mib: u32) -> CreateVm {
    CreateVm { id, kind: VmKind::Browser, vcpus: 2, memory_mib, identity: Identity::of(id, "vm") }
}

fn new_id() -> VmId {
    VmId::from_uuid(uuid::Uuid::new_v4())
}
