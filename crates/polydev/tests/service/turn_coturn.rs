//! Another implementation's client tools, those of Debian's `coturn`, judge the server.

use std::{
    net::{SocketAddr, UdpSocket},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::turn_client::{SECRET, World};

const CLIENT: &str = "/usr/bin/turnutils_uclient";
const PEER: &str = "/usr/bin/turnutils_peer";
const CLIENTS: u32 = 2;
const MESSAGES: u32 = 40;
/// Five seconds are waits of the tool's own.
const DEADLINE: Duration = Duration::from_secs(90);
const ATTEMPTS: usize = 5;

/// The tools' own echo peer; it ends with the test. It listens on two ports, as RTP and RTCP once did.
struct Peer {
    child: Child,
    address: SocketAddr,
}

impl Peer {
    /// Waits until it sends something back.
    fn start() -> Self {
        for _ in 0..ATTEMPTS {
            let probe = UdpSocket::bind("127.0.0.1:0").unwrap();
            probe.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let above = address.port().checked_add(1).map(|port| UdpSocket::bind(("127.0.0.1", port)));
            if above.is_none_or(|bound| bound.is_err()) {
                continue;
            }
            let port = address.port().to_string();
            let mut command = Command::new(PEER);
            command.args(["-L", "127.0.0.1", "-p", &port]).stdout(Stdio::null()).stderr(Stdio::null());
            let mut peer = Self { child: command.spawn().unwrap(), address };
            let start = Instant::now();
            while start.elapsed() < DEADLINE && peer.child.try_wait().unwrap().is_none() {
                probe.send_to(b"ping", address).unwrap();
                if probe.recv(&mut [0; 64]).is_ok() {
                    return peer;
                }
            }
        }
        panic!("the peer does not start");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the client; gives all it printed.
async fn run(arguments: Vec<String>) -> String {
    let running = tokio::task::spawn_blocking(move || {
        let mut command = Command::new("timeout");
        command.arg(DEADLINE.as_secs().to_string()).arg(CLIENT).args(&arguments);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text + &String::from_utf8_lossy(&output.stderr)
    });
    running.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coturns_client_loses_nothing_over_udp_tcp_and_tls() {
    for tool in [CLIENT, PEER] {
        if !std::path::Path::new(tool).exists() {
            eprintln!("skipped: {tool} is not there; Debian's coturn has it");
            return;
        }
    }
    let peer = Peer::start();
    let both = vec![peer.address, SocketAddr::new(peer.address.ip(), peer.address.port() + 1)];
    let world = World::try_open(&[]).unwrap();
    world.turn.relay_to_endpoint(Arc::new(move || both.clone()));
    let (port, tls_port) = (world.turn.listen().unwrap().port(), world.turn.tls_listen().unwrap().port());
    let server = &world.turn.ice_servers("page")[0];
    let issued = ["-u", server.username.as_ref().unwrap(), "-w", server.credential.as_ref().unwrap()];
    // The tool makes the time-limited credential itself, from the shared secret.
    let shared = ["-u", "tool", "-W", SECRET];
    for (way, port, credentials) in [
        (&[][..], port, issued),
        (&["-s"][..], port, shared),
        (&["-t"][..], port, issued),
        (&["-t", "-S"][..], tls_port, shared),
    ] {
        let (before, port) = (world.turn.stats(), port.to_string());
        let [peer_port, messages, clients] =
            [u32::from(peer.address.port()), MESSAGES, CLIENTS].map(|number| number.to_string());
        let arguments = ["-c", "-X", "-l", "171", "-z", "5", "-e", "127.0.0.1", "-r", &peer_port]
            .into_iter()
            .chain(["-n", &messages, "-m", &clients, "-p", &port])
            .chain(credentials)
            .chain(way.iter().copied())
            .chain(["127.0.0.1"]);
        let said = run(arguments.map(str::to_owned).collect()).await;
        let all = CLIENTS * MESSAGES;
        let counts = format!("tot_send_msgs={all}, tot_recv_msgs={all}");
        assert!(said.contains(&counts), "{way:?}: {counts} is missing in\n{said}");
        assert!(said.contains("Total lost packets 0 (0.000000%)"), "{way:?}\n{said}");
        let stats = world.turn.stats();
        assert_eq!(stats.datagrams_dropped, 0, "{way:?}");
        assert!(stats.datagrams_relayed - before.datagrams_relayed >= u64::from(2 * all), "{way:?}");
    }
    world.turn.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coturns_client_gets_nowhere_with_a_wrong_secret_or_to_a_forbidden_peer() {
    if !std::path::Path::new(CLIENT).exists() {
        eprintln!("skipped: {CLIENT} is not there; Debian's coturn has it");
        return;
    }
    let world = World::open("127.0.0.1:9".parse().unwrap(), &[]);
    let port = world.turn.listen().unwrap().port().to_string();
    for (secret, word) in [("FAKE-wrong-secret", "Cannot complete Allocation"), (SECRET, "error 403")] {
        let arguments =
            ["-c", "-X", "-n", "1", "-e", "127.0.0.1", "-r", "22", "-p", &port, "-u", "tool", "-W", secret];
        let said = run(arguments.iter().chain(&["127.0.0.1"]).map(|part| (*part).to_owned()).collect()).await;
        assert!(said.contains(word), "{word} is missing in\n{said}");
        assert!(!said.contains("Total lost packets"), "{said}");
    }
    assert_eq!(world.turn.stats().datagrams_relayed, 0);
    world.turn.shut_down().await;
}
