//! Slot networks as the kernel sees them: made, found, given back. Needs root; says so where it is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use polydev_core::ids::Slot;
use polydev_host::net::{LinkKind, NetworkError, Networks, measure, remove_all, try_out};

const LIMIT: Duration = Duration::from_secs(20);

/// A run directory whose namespaces go with it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: needs root");
            return None;
        }
        Some(Self(tempfile::Builder::new().prefix("pd-").tempdir_in("/tmp").unwrap()))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path().join("netns")).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|it| it.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = remove_all(self.path());
    }
}

/// Which namespace has the slot's name.
fn inode(networks: &Networks, index: u8) -> u64 {
    fs::metadata(networks.namespace(slot(index))).unwrap().ino()
}

fn slot(index: u8) -> Slot {
    Slot::new(index).unwrap()
}

/// What `ip` shows in a namespace. The tool only looks; everything was made without it.
fn shown(namespace: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg("--").args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_slots_network_is_a_dead_end_with_constant_addresses() {
    let Some(place) = Place::new() else { return };
    for kind in [LinkKind::Tap, LinkKind::Veth] {
        let networks = Networks::open(place.path(), 4);
        networks.take(slot(1), kind).await.unwrap();
        let namespace = networks.namespace(slot(1));
        let device = if kind == LinkKind::Tap { "tap0" } else { "vm0" };
        let links = shown(&namespace, &["ip", "-br", "link"]);
        let mut names: Vec<_> = links.lines().map(|line| line.split([' ', '@']).next().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["lo", device], "{links}");
        assert!(links.contains("02:fc:00:00:00:06"), "{links}");
        assert!(shown(&namespace, &["ip", "address"]).contains("inet 169.254.0.22/30"));
        let neighbours = shown(&namespace, &["ip", "neighbour"]);
        assert!(neighbours.contains("169.254.0.21") && neighbours.contains("PERMANENT"), "{neighbours}");
        for foreign in ["8.8.8.8", "10.1.2.3", "169.254.169.254", "192.168.1.1"] {
            let route = shown(&namespace, &["ip", "route", "get", foreign]);
            assert!(route.starts_with("local "), "{foreign}: {route}");
        }
        let setting = |name: &str| shown(&namespace, &["cat", &format!("/proc/sys/net/{name}")]);
        assert_eq!(setting("ipv4/ip_forward").trim(), "0");
        assert_eq!(setting("ipv4/icmp_echo_ignore_all").trim(), "1");
        if Path::new("/proc/sys/net/ipv6").exists() {
            assert_eq!(setting("ipv6/conf/all/disable_ipv6").trim(), "1");
            assert!(shown(&namespace, &["ip", "-6", "address"]).is_empty());
        }
        if kind == LinkKind::Veth {
            let guest = place.path().join("netns/1.guest");
            let route = shown(&guest, &["ip", "route", "get", "8.8.8.8"]);
            assert!(route.contains("via 169.254.0.22 dev eth0 src 169.254.0.21"), "{route}");
            assert!(shown(&guest, &["ip", "link"]).contains("02:fc:00:00:00:05"));
        } else {
            assert!(
                shown(&namespace, &["ip", "-d", "link", "show", "tap0"]).contains("vnet_hdr on persist on")
            );
        }
        networks.give_back(slot(1)).await.unwrap();
        assert!(place.names().is_empty(), "{:?}", place.names());
    }
}

#[tokio::test]
async fn networks_outlive_their_manager_and_strangers_are_swept() {
    let Some(place) = Place::new() else { return };
    let first = Networks::open(place.path(), 8);
    for index in [1, 2] {
        first.take(slot(index), LinkKind::Veth).await.unwrap();
    }
    let before = inode(&first, 1);
    drop(first);

    // A removal that was cut short, and a file of before a reboot.
    fs::write(place.path().join("netns/7"), "").unwrap();
    let next = Networks::open(place.path(), 8);
    next.note(slot(1));
    let mut swept = next.sweep().await.unwrap();
    swept.sort();
    let names: Vec<_> = swept.iter().map(|it| it.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["2", "2.guest", "7"]);
    assert_eq!(place.names(), ["1", "1.guest"]);
    let after = inode(&next, 1);
    assert_eq!(before, after, "the namespace of a VM that was found is left as it is");

    // Whoever takes a slot never gets what a VM of before left in it. The kernel gives the number of a namespace that is
    // gone to the next one: this one stays until they are compared.
    let held = fs::File::open(next.namespace(slot(1))).unwrap();
    next.take(slot(1), LinkKind::Veth).await.unwrap();
    let anew = inode(&next, 1);
    assert_ne!(before, anew);
    drop(held);
}

#[tokio::test]
async fn networks_are_made_ahead_for_the_lowest_free_slots() {
    let Some(place) = Place::new() else { return };
    let mut networks = Networks::open(place.path(), 3);
    networks.note(slot(1));
    networks.make_ahead(LinkKind::Tap);
    let ready = async |wanted: usize| {
        let deadline = Instant::now() + LIMIT;
        while networks.ready() != wanted {
            assert!(Instant::now() < deadline, "{} lie ready, not {wanted}", networks.ready());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    ready(2).await;
    assert_eq!(place.names(), ["2", "3"]);
    let ahead = inode(&networks, 2);
    networks.take(slot(2), LinkKind::Tap).await.unwrap();
    let taken = inode(&networks, 2);
    assert_eq!(ahead, taken, "what lay ready is what is taken");
    assert_eq!(networks.ready(), 1);
    networks.give_back(slot(2)).await.unwrap();
    ready(2).await;
}

#[tokio::test]
async fn a_network_that_cannot_be_named_leaves_nothing_and_says_what_failed() {
    let Some(place) = Place::new() else { return };
    fs::write(place.path().join("netns"), "no directory").unwrap();
    let networks = Networks::open(place.path(), 1);
    let error = networks.take(slot(1), LinkKind::Tap).await.unwrap_err();
    assert!(matches!(&error, NetworkError::Os { op, .. } if op.contains("netns")), "{error}");
}

#[tokio::test]
async fn networks_that_can_be_made_can_be_tried_out_before() {
    let Some(_place) = Place::new() else { return };
    for kind in [LinkKind::Tap, LinkKind::Veth] {
        try_out(kind).await.unwrap();
    }
}

#[tokio::test]
async fn setting_slots_up_takes_milliseconds() {
    let Some(place) = Place::new() else { return };
    for kind in [LinkKind::Tap, LinkKind::Veth] {
        let mut took = measure(place.path(), kind, 50).await.unwrap();
        took.sort();
        println!("{kind:?}: p50 {:.2} ms, p90 {:.2} ms of {}", ms(took[25]), ms(took[45]), took.len());
        assert!(place.names().is_empty());
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
