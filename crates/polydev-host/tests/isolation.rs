//! What a VM with a network device can reach: its gateway, and nothing else.
//!
//! Everything runs in an outer network namespace that has no way out. In it, test hosts own every address that is tried
//! and count what arrives. Needs root, an image and the guest programs; says so where they are missing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

#[path = "support/inside.rs"]
mod inside;
#[path = "support/leftovers.rs"]
#[allow(dead_code, reason = "shared with the contract suite")]
mod leftovers;
#[path = "support/machine.rs"]
#[allow(dead_code, reason = "shared with the contract suite")]
mod machine;
#[path = "support/program.rs"]
mod program;
#[path = "support/search.rs"]
mod search;
#[path = "support/sniffer.rs"]
mod sniffer;
#[path = "support/test_hosts.rs"]
mod test_hosts;

use std::{
    collections::HashSet,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use polydev_host::{Host, LogKind, NetworkChoice, Vm, net::remove_all};

use inside::{intrude, planted, shell, written};
use machine::{Kind, Machine, browser, new_id};
use search::Search;
use sniffer::{MARK, Sniffer};
use test_hosts::{ADDRESSES, Hosts, PASSWORD, SITE, TCP_PORTS, UDP_PORTS, Upstream};

/// Tells the copy of this program that runs in the outer namespace.
const INNER: &str = "POLYDEV_TEST_OUTER_NAMESPACE";
/// Throughput is measured with this much.
const DOWNLOAD_MIB: usize = 64;
/// Bytes of one that is not over before it is ended.
const ENDLESS: usize = 1 << 40;
const DESKTOP: (u16, u16) = (1280, 800);

mod container {
    use super::{Kind, NetworkChoice};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_vm_with_a_device_reaches_its_gateway_and_nothing_else() {
        super::reaches_its_gateway_and_nothing_else(
            Kind::Container,
            "container::a_vm_with_a_device_reaches_its_gateway_and_nothing_else",
        )
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_download_by_either_network_is_whole() {
        let test = "container::a_download_by_either_network_is_whole";
        super::throughput(Kind::Container, test, [NetworkChoice::Channel, NetworkChoice::Tap]).await;
    }
}

mod qemu {
    use super::{Kind, NetworkChoice};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_vm_with_a_device_reaches_its_gateway_and_nothing_else() {
        super::reaches_its_gateway_and_nothing_else(
            Kind::Qemu,
            "qemu::a_vm_with_a_device_reaches_its_gateway_and_nothing_else",
        )
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "boots an emulated VM twice: minutes"]
    async fn a_download_by_either_network_is_whole() {
        let test = "qemu::a_download_by_either_network_is_whole";
        super::throughput(Kind::Qemu, test, [NetworkChoice::Tap, NetworkChoice::Channel]).await;
    }
}

/// Runs the named test again in a network namespace of its own; true in there.
fn in_outer_namespace(test: &str) -> bool {
    if std::env::var_os(INNER).is_some() {
        return true;
    }
    let mut again = Command::new("unshare");
    again.arg("--net").arg(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture", "--include-ignored"]).env(INNER, "1");
    assert!(again.status().unwrap().success(), "see above");
    false
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// In the network namespace that a file names.
fn within<T: Send + 'static>(namespace: &Path, work: impl FnOnce() -> T + Send + 'static) -> T {
    let file = std::fs::File::open(namespace).unwrap();
    let kind = rustix::thread::LinkNameSpaceType::Network;
    std::thread::spawn(move || {
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(kind)).unwrap();
        work()
    })
    .join()
    .unwrap()
}

fn tap_machine(kind: Kind) -> Option<Machine> {
    let mut machine = Machine::new(kind, 4)?;
    machine.config.network = NetworkChoice::Tap;
    Some(machine)
}

async fn finish(machine: &Machine, host: Host) {
    host.reclaim(&HashSet::new()).await.unwrap();
    drop(host);
    remove_all(&machine.config.run_dir).unwrap();
    machine.assert_nothing_left();
}

/// A slot's namespace, where its gateway is.
fn gateway_of(machine: &Machine, vm: &Vm) -> PathBuf {
    machine.config.run_dir.join(format!("netns/{}", vm.slot.index()))
}

/// What a guest might want to change about its gateway's namespace.
fn settings(namespace: &Path) -> String {
    let shown = |what: &[&str]| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace.display())).args(["--", "ip", "-o"]).args(what);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let shown =
        [shown(&["address"]), shown(&["route", "show", "table", "all"]), shown(&["neighbour"])].concat();
    assert!(shown.contains("169.254.0.21 dev"), "{shown}");
    shown
}

async fn reaches_its_gateway_and_nothing_else(kind: Kind, test: &str) {
    if machine::missing(&kind).is_none() && !in_outer_namespace(test) {
        return;
    }
    let Some(mut machine) = tap_machine(kind) else { return };
    inside::bring(&mut machine);
    let hosts = Hosts::start(ip);
    let upstream = Upstream::start();
    let host = machine.host_with(Arc::new(upstream.clone())).await;
    let emulated = host.status().driver.contains("emulated");
    if emulated {
        host.prepare_templates(2, 2048, DESKTOP).await.unwrap();
    }
    let vm = host.create(browser(new_id())).await.unwrap();
    let other = host.create(browser(new_id())).await.unwrap();
    for vm in [&vm, &other] {
        let log = host.read_log(vm.id, LogKind::Driver, 10_000).await.unwrap();
        assert!(!emulated || log.contains("restored from template"), "{log}");
    }

    // The test can fail: from outside every test host is reached, and what carries the mark is seen.
    hosts.assert_reachable();
    let outside = Sniffer::here();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.send_to(format!("{MARK} control").as_bytes(), "10.1.2.3:1").unwrap();
    outside.assert_sees(["control"]);
    // The other VM listens, too.
    let own = gateway_of(&machine, &vm);
    let (near, beyond) = (Sniffer::of(&own), Sniffer::of(&gateway_of(&machine, &other)));
    let neighbour = matches!(machine.kind, Kind::Container)
        .then(|| within(&gateway_of(&machine, &other).with_extension("guest"), Hosts::listen_here));

    // From inside, as the person: by Node, which opens sockets as it likes.
    let probes = serde_json::json!([ADDRESSES, TCP_PORTS, UDP_PORTS]);
    let (code, answered) =
        shell(&vm, &format!("node -e '{}'", inside::NODE_PROBE.replace("PROBES", &probes.to_string()))).await;
    assert_eq!((code, answered.trim()), (0, "[]"), "some address answered");

    // As root, by frames that claim to be somebody else, and with other addresses than it was given.
    let before = settings(&own);
    let kinds = intrude(&machine, &vm).await;
    assert!(kinds.len() > 20, "{kinds:?}");
    near.assert_sees(kinds.iter().map(String::as_str).chain(["tcp", "udp"]));
    assert_eq!(settings(&own), before, "the gateway believed something");
    beyond.assert_saw_nothing();
    outside.assert_saw_nothing();
    hosts.assert_untouched();
    if let Some(neighbour) = &neighbour {
        neighbour.assert_untouched();
    }
    let asked = upstream.asked();
    assert!(asked.iter().all(|(_, allowed)| !allowed), "nothing was let through so far: {asked:?}");

    what_is_allowed_works(&host, &vm, &upstream).await;
    the_password_is_nowhere(&machine, &vm).await;
    hosts.assert_untouched();

    // The next manager finds the network again and opens the gateway.
    let id = vm.id;
    drop((vm, other, host));
    let host = machine.host_with(Arc::new(upstream.clone())).await;
    let adopted = host.adopt(id).await.unwrap();
    let (code, printed) = shell(&adopted, &format!("curl -sS -m 40 --retry 3 http://{SITE}/")).await;
    assert!(code == 0 && printed.contains(test_hosts::CONTENT), "after a restart: {code} {printed:?}");
    drop(adopted);
    finish(&machine, host).await;
}

/// However a program goes about it.
async fn what_is_allowed_works(host: &Host, vm: &Vm, upstream: &Upstream) {
    let works = async |what: &str, script: String| {
        let (code, printed) = shell(vm, &script).await;
        assert!(code == 0 && printed.contains(test_hosts::CONTENT), "{what}: {code} {printed:?}");
    };
    works("a name", format!("curl -sS -m 40 http://{SITE}/")).await;
    works("a bare address and Host", format!("curl -sS -m 40 -H 'Host: {SITE}' http://93.184.216.34/")).await;
    works("Node", format!("node -e 'fetch(\"http://{SITE}/\").then(r => r.text()).then(console.log)'")).await;
    works("CONNECT", format!("curl -sS -m 40 -p -x http://169.254.0.22:3128 http://{SITE}/")).await;
    let _ = shell(vm, &format!("curl -skS -m 40 --resolve {SITE}:443:93.184.216.34 https://{SITE}/")).await;
    let hello = upstream.first_bytes(443);
    let named = memchr::memmem::find(&hello, SITE.as_bytes()).is_some();
    assert!(hello.starts_with(&[22, 3]) && named, "a TLS hello arrives whole");
    let (code, _) = shell(vm, "curl -sS -m 40 http://forbidden.test/").await;
    assert_ne!(code, 0, "what policy forbids does not answer");
    let (_, status) =
        shell(vm, "curl -s -m 40 -p -x http://169.254.0.22:3128 -w '%{http_connect}' http://forbidden.test/")
            .await;
    assert_eq!(status, "403");
    let usage = host.egress_usage(vm.id).unwrap();
    assert!(usage.connections >= 5 && usage.refused >= 2 && usage.bytes_down > 100, "{usage:?}");
    assert!(upstream.authorised() >= 5, "all of it went through the upstream proxy, with its password");

    // As fast as it goes: what has arrived already is read to its end first.
    let script = format!("curl -sS -m 40 -o /dev/null http://{SITE}/{ENDLESS}");
    let (ended, ()) = tokio::join!(shell(vm, &script), async {
        while host.egress_usage(vm.id).unwrap().bytes_down < usage.bytes_down + 1000 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        host.end_connections(vm.id);
    });
    // A transfer that is cut short, or a reset; not curl's own limit.
    assert!([18, 56].contains(&ended.0), "a connection that was ended: {ended:?}");
}

/// In no memory of the guest and no file it could have written. What was put there for the search to find is found.
async fn the_password_is_nowhere(machine: &Machine, vm: &Vm) {
    let began = Instant::now();
    let places = planted(machine, vm).await;
    let mut search = Search::of(places.iter().map(String::as_str).chain([PASSWORD]));
    written(machine, vm, &mut search);
    println!(
        "searched {} MiB of memory in {} processes and {} MiB in {} files in {} ms",
        search.memory_bytes >> 20,
        search.processes,
        search.file_bytes >> 20,
        search.files,
        began.elapsed().as_millis()
    );
    assert_eq!(search.missed, Vec::<String>::new(), "all of it was looked at");
    for place in &places {
        assert!(search.found.contains_key(place), "{place} is there and was not found: {search:?}");
    }
    assert_eq!(search.found.get(PASSWORD), None);
}

/// Downloads through the gateway and through the guest channel; prints how fast each is.
async fn throughput(kind: Kind, test: &str, modes: [NetworkChoice; 2]) {
    if machine::missing(&kind).is_none() && !in_outer_namespace(test) {
        return;
    }
    if std::env::var_os(INNER).is_some() {
        ip(&["link", "set", "lo", "up"]);
    }
    for mode in modes {
        let Some(mut machine) = tap_machine(kind.clone()) else { return };
        machine.config.network = mode;
        machine.config.egress_limits.bytes_per_second = 0;
        download(&machine, mode).await;
    }
}

async fn download(machine: &Machine, mode: NetworkChoice) {
    let upstream = Upstream::start();
    let host = machine.host_with(Arc::new(upstream.clone())).await;
    let began = Instant::now();
    let vm = host.create(browser(new_id())).await.unwrap();
    println!("{mode:?}: created in {} ms", began.elapsed().as_millis());
    let bytes = DOWNLOAD_MIB << 20;
    let script = format!(
        "curl -sS -m 100 -o /dev/null -w '%{{size_download}} %{{speed_download}}' http://{SITE}/{bytes}"
    );
    let (code, printed) = shell(&vm, &script).await;
    assert_eq!(code, 0, "{printed}");
    let (size, speed) = printed.trim().split_once(' ').unwrap();
    assert_eq!(size.parse::<usize>().unwrap(), bytes);
    println!(
        "{mode:?}: {DOWNLOAD_MIB} MiB at {:.1} MiB/s",
        speed.parse::<f64>().unwrap() / f64::from(1 << 20)
    );
    drop(vm);
    finish(machine, host).await;
}

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a test host may take to be reached from where it can be.
const REACH_LIMIT: Duration = Duration::from_secs(10);
