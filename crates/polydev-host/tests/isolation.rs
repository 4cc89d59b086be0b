//! What a VM with a network device can reach: its gateway, and nothing else.
//!
//! Everything runs in an outer network namespace that has no way out. In it, test hosts own every address that is tried
//! and count what arrives. Needs root, an image and the guest programs; says so where they are missing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

#[path = "support/leftovers.rs"]
#[allow(dead_code, reason = "shared with the contract suite")]
mod leftovers;
#[path = "support/machine.rs"]
#[allow(dead_code, reason = "shared with the contract suite")]
mod machine;
#[path = "support/test_hosts.rs"]
mod test_hosts;

use std::{
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use polydev_core::wire::{Reply, Request};
use polydev_host::{Host, NetworkMode, Vm, net::remove_all};

use machine::{Kind, Machine, browser, new_id};
use test_hosts::{ADDRESSES, Hosts, PASSWORD, SITE, TCP_PORTS, UDP_PORTS, Upstream};

/// Tells the copy of this program that runs in the outer namespace.
const INNER: &str = "POLYDEV_TEST_OUTER_NAMESPACE";
/// Throughput is measured with this much.
const DOWNLOAD_MIB: usize = 64;

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

/// In the network namespace that a file names, as root with all rights: more than a guest has.
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

/// Runs a shell command in a VM; its exit code and what it printed.
async fn shell(vm: &Vm, script: &str) -> (i32, String) {
    let argv = ["bash", "-c", script].map(str::to_owned).to_vec();
    let request = Request::Run { argv, env: Default::default(), timeout_ms: 120_000 };
    match vm.agent.request(request).await.unwrap() {
        Reply::Ran { exit_code, stdout, .. } => (exit_code, stdout),
        other => panic!("{script}: {other:?}"),
    }
}

fn tap_machine(kind: Kind) -> Option<Machine> {
    if let Some(reason) = machine::missing(&kind) {
        println!("SKIPPED: {reason}");
        return None;
    }
    let mut machine = Machine::new(kind, 4)?;
    machine.config.network = NetworkMode::Tap;
    Some(machine)
}

async fn finish(machine: &Machine, host: Host) {
    host.reclaim(&Default::default()).await.unwrap();
    drop(host);
    remove_all(&machine.config.run_dir).unwrap();
    machine.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_with_a_device_reaches_its_gateway_and_nothing_else() {
    if machine::missing(&Kind::Container).is_none()
        && !in_outer_namespace("a_container_with_a_device_reaches_its_gateway_and_nothing_else")
    {
        return;
    }
    let Some(machine) = tap_machine(Kind::Container) else { return };
    let hosts = Hosts::start(ip);
    let upstream = Upstream::start();
    let host = machine.host_with(Arc::new(upstream.clone())).await;
    let vm = host.create(browser(new_id())).await.unwrap();
    let other = host.create(browser(new_id())).await.unwrap();
    let guest_of = |vm: &Vm| machine.config.run_dir.join(format!("netns/{}.guest", vm.slot.index()));

    // The test can fail: from outside every test host is reached.
    hosts.assert_reachable();

    // The other VM listens, too.
    let neighbour = within(&guest_of(&other), Hosts::listen_here);

    // From inside, as the person: by Node, which opens sockets as it likes.
    let probe = format!(
        r#"const net = require('net'), dgram = require('dgram');
const [addresses, tcp, udp] = {probes};
const jobs = [];
for (const host of addresses) for (const port of tcp) jobs.push(new Promise(done => {{
  const socket = net.connect({{ host, port }});
  const end = what => {{ socket.destroy(); done(what && `${{host}} ${{port}}`); }};
  socket.setTimeout(4000, () => end());
  socket.on('error', () => end());
  socket.on('connect', () => socket.write('GET / HTTP/1.1\r\nHost: ' + host + '\r\n\r\n'));
  socket.on('data', () => end(true));
  socket.on('close', () => done());
}}));
for (const host of addresses) for (const port of udp) jobs.push(new Promise(done => {{
  const socket = dgram.createSocket(host.includes(':') ? 'udp6' : 'udp4');
  socket.on('error', () => done());
  socket.on('message', () => done(`${{host}} udp ${{port}}`));
  socket.send('x', port, host, () => setTimeout(() => {{ try {{ socket.close(); }} catch {{}} done(); }}, 1000));
}}));
Promise.all(jobs).then(all => {{ console.log(JSON.stringify(all.filter(Boolean))); process.exit(0); }});"#,
        probes = serde_json::json!([ADDRESSES, TCP_PORTS, UDP_PORTS]),
    );
    let (code, answered) = shell(&vm, &format!("node -e '{}'", probe.replace('\'', "\""))).await;
    assert_eq!((code, answered.trim()), (0, "[]"), "some address answered");

    // As root of the guest's network, with other addresses and routes than it was given.
    let guest = guest_of(&vm);
    within(&guest, || {
        let tried: &[&[&str]] = &[
            &["address", "add", "10.9.9.9/32", "dev", "eth0"],
            &["route", "replace", "default", "via", "169.254.0.22", "dev", "eth0", "src", "10.9.9.9"],
        ];
        for arguments in tried {
            ip(arguments);
        }
        if std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0").is_ok() {
            ip(&["-6", "address", "add", "fd00::21/64", "dev", "eth0", "nodad"]);
            ip(&["-6", "route", "add", "default", "via", "fd00::22", "dev", "eth0", "onlink"]);
        }
        test_hosts::try_everything();
        ip(&["route", "replace", "default", "via", "169.254.0.22", "dev", "eth0"]);
        ip(&["address", "del", "10.9.9.9/32", "dev", "eth0"]);
    });
    hosts.assert_untouched();
    neighbour.assert_untouched();
    let asked = upstream.asked();
    assert!(asked.iter().all(|(_, allowed)| !allowed), "nothing was let through so far: {asked:?}");

    // What is allowed works, however a program goes about it.
    let works = async |what: &str, script: String| {
        let (code, printed) = shell(&vm, &script).await;
        assert!(code == 0 && printed.contains(test_hosts::CONTENT), "{what}: {code} {printed:?}");
    };
    works("a name", format!("curl -sS -m 20 http://{SITE}/")).await;
    works("a bare address and Host", format!("curl -sS -m 20 -H 'Host: {SITE}' http://93.184.216.34/")).await;
    works("Node", format!("node -e 'fetch(\"http://{SITE}/\").then(r => r.text()).then(console.log)'")).await;
    works("CONNECT", format!("curl -sS -m 20 -p -x http://169.254.0.22:3128 http://{SITE}/")).await;
    let _ = shell(&vm, &format!("curl -skS -m 20 --resolve {SITE}:443:93.184.216.34 https://{SITE}/")).await;
    let hello = upstream.first_bytes(443);
    assert!(hello.starts_with(&[22, 3]) && find(&hello, SITE.as_bytes()), "a TLS hello arrives whole");
    let (code, _) = shell(&vm, "curl -sS -m 20 http://forbidden.test/").await;
    assert_ne!(code, 0, "what policy forbids does not answer");
    let (_, status) = shell(
        &vm,
        "curl -s -m 20 -p -x http://169.254.0.22:3128 -w '%{http_connect}' http://forbidden.test/",
    )
    .await;
    assert_eq!(status, "403");
    let usage = host.egress_usage(vm.id).unwrap();
    assert!(usage.connections >= 5 && usage.refused >= 2 && usage.bytes_down > 100, "{usage:?}");
    assert!(upstream.authorised() >= 5, "all of it went through the upstream proxy, with its password");

    // The password is in no file, environment or command line of the guest.
    let cut = PASSWORD.len() / 2;
    let search = format!(
        "printf '%s%s\\n' '{}' '{}' | grep -rlsaFf - / --exclude-dir=sys --exclude-dir=usr --exclude-dir=task \
         --exclude=kcore --exclude=kmsg --exclude='*pagemap' --exclude=mem --exclude-dir=bus -D skip; \
         env; tr '\\0' '\\n' < /proc/1/cmdline",
        &PASSWORD[..cut],
        &PASSWORD[cut..]
    );
    let (_, found) = shell(&vm, &format!("timeout 60 bash -c {}", quoted(&search))).await;
    assert!(!found.contains(PASSWORD), "{found}");
    let files: Vec<_> =
        found.lines().filter(|line| line.starts_with('/') && !line.starts_with("/proc/")).collect();
    assert!(files.is_empty() || files.iter().all(|it| it.contains("polydev-agent")), "{files:?}");
    hosts.assert_untouched();

    // The next manager finds the network again and opens the gateway.
    let id = vm.id;
    drop((vm, other, host));
    let host = machine.host_with(Arc::new(upstream.clone())).await;
    let adopted = host.adopt(id).await.unwrap();
    let (code, printed) = shell(&adopted, &format!("curl -sS -m 20 --retry 3 http://{SITE}/")).await;
    assert!(code == 0 && printed.contains(test_hosts::CONTENT), "after a restart: {code} {printed:?}");
    drop(adopted);
    finish(&machine, host).await;
}

/// Downloads through the gateway and through the guest channel; prints how fast each is.
async fn throughput(kind: Kind, mode: NetworkMode) {
    let Some(mut machine) = tap_machine(kind) else { return };
    machine.config.network = mode;
    machine.config.egress_limits.bytes_per_second = 0;
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
    finish(&machine, host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_by_either_network_of_a_container_is_whole() {
    if machine::missing(&Kind::Container).is_none()
        && !in_outer_namespace("a_download_by_either_network_of_a_container_is_whole")
    {
        return;
    }
    if std::env::var_os(INNER).is_some() {
        ip(&["link", "set", "lo", "up"]);
    }
    for mode in [NetworkMode::Channel, NetworkMode::Tap] {
        throughput(Kind::Container, mode).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "boots an emulated VM twice: minutes"]
async fn a_download_by_either_network_of_an_emulated_vm_is_whole() {
    if machine::missing(&Kind::Qemu).is_none()
        && !in_outer_namespace("a_download_by_either_network_of_an_emulated_vm_is_whole")
    {
        return;
    }
    if std::env::var_os(INNER).is_some() {
        ip(&["link", "set", "lo", "up"]);
    }
    for mode in [NetworkMode::Tap, NetworkMode::Channel] {
        throughput(Kind::Qemu, mode).await;
    }
}

fn quoted(script: &str) -> String {
    format!("'{}'", script.replace('\'', r"'\''"))
}

fn find(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// How long a test host may take to be reached from where it can be.
const REACH_LIMIT: Duration = Duration::from_secs(10);
