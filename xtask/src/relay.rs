//! A bad network for UDP, in user space: everything between a client and one server passes a relay that delays, drops and
//! limits it. The same seed drops the same packets.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io::{self, BufRead, Write},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::random::Random;

const PACKET_MAX: usize = 65_536;
const CLIENTS_MAX: usize = 16;
/// A router's buffer: what would wait longer is dropped.
const QUEUE_MAX: Duration = Duration::from_millis(200);
/// Packets under way, both ways together.
const UNDER_WAY_MAX: usize = 10_000;
/// Changed conditions hold after this long at the latest.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What the network is like, each way.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Conditions {
    /// Half of the round trip.
    pub(crate) delay_ms: f64,
    /// Share of the packets that is lost at random; 100 = nothing passes.
    pub(crate) loss_percent: f64,
    /// Bytes of UDP payload per time.
    pub(crate) kbit_per_second: Option<f64>,
}

/// What has passed so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Passed {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Lost at random.
    pub(crate) lost: u64,
    /// Dropped because too much waited.
    pub(crate) overflowed: u64,
}

/// A relay; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Where clients send to.
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    conditions: Mutex<Conditions>,
    passed: Mutex<Passed>,
}

impl Relay {
    /// Relays from an address of this machine to a server; port 0 = any.
    pub(crate) fn start(
        listen: SocketAddr,
        server: SocketAddr,
        conditions: Conditions,
        seed: u64,
    ) -> Result<Self> {
        let socket = UdpSocket::bind(listen).with_context(|| format!("bind {listen}"))?;
        socket.set_nonblocking(true).context("prepare a socket")?;
        let address = socket.local_addr().context("learn the relay's port")?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            conditions: Mutex::new(conditions),
            passed: Mutex::default(),
        });
        let worker = Worker {
            socket,
            server,
            shared: shared.clone(),
            clients: VecDeque::new(),
            next_client: 0,
            under_way: BinaryHeap::new(),
            number: 0,
            free_at: [Instant::now(); 2],
            random: Random::new(seed),
        };
        let thread = thread::spawn(move || {
            if let Err(error) = worker.run() {
                eprintln!("relay: {error:#}");
            }
        });
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// From now on.
    pub(crate) fn set(&self, conditions: Conditions) {
        *self.shared.conditions.lock().unwrap_or_else(PoisonError::into_inner) = conditions;
    }

    pub(crate) fn passed(&self) -> Passed {
        *self.shared.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has told its own failure.
            let _ = thread.join();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    ToServer,
    ToClient,
}

#[derive(Debug)]
struct Client {
    number: u64,
    address: SocketAddr,
    /// The server tells clients apart by their addresses.
    socket: UdpSocket,
}

/// In the order in which they leave.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct UnderWay {
    due: Instant,
    number: u64,
    client: u64,
    way: Way,
    packet: Vec<u8>,
}

struct Worker {
    socket: UdpSocket,
    server: SocketAddr,
    shared: Arc<Shared>,
    clients: VecDeque<Client>,
    next_client: u64,
    under_way: BinaryHeap<Reverse<UnderWay>>,
    number: u64,
    /// When the line is free again, each way.
    free_at: [Instant; 2],
    random: Random,
}

impl Worker {
    fn run(mut self) -> Result<()> {
        let mut buffer = vec![0; PACKET_MAX];
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.send_what_is_due();
            self.wait()?;
            while let Some((length, from)) = received(self.socket.recv_from(&mut buffer))? {
                let client = self.client_of(from)?;
                self.accept(client, Way::ToServer, &buffer[..length]);
            }
            for at in 0..self.clients.len() {
                while let Some(length) = received(self.clients[at].socket.recv(&mut buffer))? {
                    self.accept(self.clients[at].number, Way::ToClient, &buffer[..length]);
                }
            }
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        let next = self.under_way.peek().map(|Reverse(packet)| packet.due);
        let until_next = next.map_or(LOOK_AGAIN, |due| due.saturating_duration_since(Instant::now()));
        let timeout = Timespec::try_from(until_next.min(LOOK_AGAIN)).context("a short time")?;
        let sockets = [&self.socket].into_iter().chain(self.clients.iter().map(|client| &client.socket));
        let fds: Vec<BorrowedFd<'_>> = sockets.map(AsFd::as_fd).collect();
        let mut fds: Vec<PollFd<'_>> =
            fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("wait for packets"),
        }
    }

    fn client_of(&mut self, address: SocketAddr) -> Result<u64> {
        if let Some(client) = self.clients.iter().find(|client| client.address == address) {
            return Ok(client.number);
        }
        if self.clients.len() == CLIENTS_MAX {
            self.clients.pop_front();
        }
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("bind a socket for a client")?;
        socket.connect(self.server).with_context(|| format!("reach {}", self.server))?;
        socket.set_nonblocking(true).context("prepare a socket")?;
        let number = self.next_client;
        self.next_client += 1;
        self.clients.push_back(Client { number, address, socket });
        Ok(number)
    }

    fn accept(&mut self, client: u64, way: Way, packet: &[u8]) {
        let conditions = *self.shared.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut passed = self.shared.passed.lock().unwrap_or_else(PoisonError::into_inner);
        if self.random.unit() * 100.0 < conditions.loss_percent {
            passed.lost += 1;
            return;
        }
        let now = Instant::now();
        let free_at = &mut self.free_at[way as usize];
        let begins = now.max(*free_at);
        let lasts = conditions.kbit_per_second.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(packet.len() as f64 * 8.0 / (rate.max(1.0) * 1000.0))
        });
        let waits = begins + lasts - now;
        if (!lasts.is_zero() && waits > QUEUE_MAX) || self.under_way.len() == UNDER_WAY_MAX {
            passed.overflowed += 1;
            return;
        }
        *free_at = begins + lasts;
        passed.packets += 1;
        passed.bytes += packet.len() as u64;
        self.number += 1;
        self.under_way.push(Reverse(UnderWay {
            due: *free_at + Duration::from_secs_f64(conditions.delay_ms / 1000.0),
            number: self.number,
            client,
            way,
            packet: packet.to_vec(),
        }));
    }

    fn send_what_is_due(&mut self) {
        let now = Instant::now();
        while self.under_way.peek().is_some_and(|Reverse(packet)| packet.due <= now) {
            let Some(Reverse(sent)) = self.under_way.pop() else { return };
            // A client that went away meanwhile gets nothing.
            let Some(client) = self.clients.iter().find(|client| client.number == sent.client) else {
                continue;
            };
            // What cannot be sent is lost, as on any network.
            let _ = match sent.way {
                Way::ToServer => client.socket.send(&sent.packet),
                Way::ToClient => self.socket.send_to(&sent.packet, client.address),
            };
        }
    }
}

/// What there is; a peer without a listener is a lost packet.
fn received<T>(result: io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).context("receive"),
    }
}

/// `relay --to ADDRESS [--listen ADDRESS] [--seed N] [CONDITIONS]`: prints where it listens as one line of JSON, takes
/// other conditions as lines of JSON on standard input, answers each with what has passed, and ends with its input.
pub(crate) fn relay(arguments: &[String]) -> Result<()> {
    let mut listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (mut server, mut seed, mut conditions) = (None, 1, Conditions::default());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let value = rest.next().with_context(|| format!("{argument} needs a value"))?;
        let text = || format!("{argument} {value}");
        match argument.as_str() {
            "--to" => server = Some(value.parse().with_context(text)?),
            "--listen" => listen = value.parse().with_context(text)?,
            "--seed" => seed = value.parse().with_context(text)?,
            "--conditions" => conditions = serde_json::from_str(value).with_context(text)?,
            _ => bail!("unknown option {argument}; there are --to, --listen, --seed and --conditions"),
        }
    }
    let relay = Relay::start(listen, server.context("--to is missing")?, conditions, seed)?;
    let mut out = io::stdout();
    writeln!(out, "{}", serde_json::json!({ "listen": relay.address }))
        .context("say where the relay listens")?;
    for line in io::stdin().lock().lines() {
        relay.set(serde_json::from_str(&line.context("read conditions")?).context("read conditions")?);
        writeln!(out, "{}", serde_json::json!(relay.passed())).context("say what has passed")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn local() -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        socket.set_read_timeout(Some(LIMIT)).expect("set");
        socket
    }

    fn relay_to(server: &UdpSocket, conditions: Conditions) -> Relay {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Relay::start(any, server.local_addr().expect("bound"), conditions, 7).expect("it starts")
    }

    #[test]
    fn packets_pass_both_ways_no_sooner_than_the_delay() {
        let (server, client) = (local(), local());
        let delay = Duration::from_millis(30);
        let relay = relay_to(&server, Conditions { delay_ms: 30.0, ..Conditions::default() });
        let mut buffer = [0; 16];
        let began = Instant::now();
        client.send_to(b"there", relay.address).expect("sent");
        let (length, from) = server.recv_from(&mut buffer).expect("it arrives");
        assert_eq!(&buffer[..length], b"there");
        assert!(began.elapsed() >= delay);
        server.send_to(b"back", from).expect("sent");
        let (length, from) = client.recv_from(&mut buffer).expect("it arrives");
        assert_eq!((&buffer[..length], from), (&b"back"[..], relay.address));
        assert!(began.elapsed() >= 2 * delay);
    }

    #[test]
    fn two_clients_get_their_own_answers() {
        let (server, one, two) = (local(), local(), local());
        let relay = relay_to(&server, Conditions::default());
        let mut buffer = [0; 16];
        one.send_to(b"one", relay.address).expect("sent");
        let (_, address_of_one) = server.recv_from(&mut buffer).expect("it arrives");
        two.send_to(b"two", relay.address).expect("sent");
        let (_, address_of_two) = server.recv_from(&mut buffer).expect("it arrives");
        server.send_to(b"for two", address_of_two).expect("sent");
        server.send_to(b"for one", address_of_one).expect("sent");
        let length = one.recv(&mut buffer).expect("it arrives");
        assert_eq!(&buffer[..length], b"for one");
        let length = two.recv(&mut buffer).expect("it arrives");
        assert_eq!(&buffer[..length], b"for two");
    }

    #[test]
    fn the_asked_share_is_lost_and_a_blocked_way_opens_again() {
        let (server, client) = (local(), local());
        let relay = relay_to(&server, Conditions { loss_percent: 100.0, ..Conditions::default() });
        let seen = |wanted: u64| {
            let deadline = Instant::now() + LIMIT;
            loop {
                let Passed { packets, lost, .. } = relay.passed();
                if packets + lost >= wanted {
                    return (packets, lost);
                }
                assert!(Instant::now() < deadline, "{packets} passed, {lost} were lost");
                thread::sleep(Duration::from_millis(1));
            }
        };
        client.send_to(b"lost", relay.address).expect("sent");
        assert_eq!(seen(1), (0, 1));
        relay.set(Conditions { loss_percent: 20.0, ..Conditions::default() });
        for number in 0..1000 {
            client.send_to(b"maybe", relay.address).expect("sent");
            // One after the other, so that no socket's buffer overflows.
            seen(number + 2);
        }
        let (_, lost) = seen(1001);
        assert!((150..250).contains(&lost), "{lost} of 1000 were lost");
    }

    #[test]
    fn a_limited_line_takes_its_time_and_drops_what_would_wait_too_long() {
        let (server, client) = (local(), local());
        // 1000 bytes take 80 ms: the third packet would wait 240 ms.
        let relay = relay_to(&server, Conditions { kbit_per_second: Some(100.0), ..Conditions::default() });
        let began = Instant::now();
        for _ in 0..3 {
            client.send_to(&[0; 1000], relay.address).expect("sent");
        }
        let mut buffer = [0; 2000];
        server.recv(&mut buffer).expect("it arrives");
        server.recv(&mut buffer).expect("it arrives");
        assert!(began.elapsed() >= Duration::from_millis(150));
        assert_eq!(relay.passed().overflowed, 1);
    }
}
