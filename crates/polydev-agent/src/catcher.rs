//! The way out: catches names and TCP connections of the guest's programs and passes them to the host as streams.
//!
//! ```text
//! program --DNS--> own address per name --connect--> listener --egress stream {host, port}--> host decides
//! ```

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
    time::Duration,
};

use polydev_core::{
    dns::{self, Names},
    guest::network::Traffic,
    wire::{AgentEvent, EgressReply, StreamHeader},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::AbortHandle,
    time::{Instant, timeout},
};

use crate::{
    agent::Agent,
    mux::{Stream, read_frame, write_frame},
    network,
};

const RESOLVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 53), 53);
const PORTS: [u16; 2] = [80, 443];
/// First address handed out; they go up to 127.127.255.255.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 1);
const ADDRESSES: u32 = (1 << 22) - 2;
/// Most hosts whose traffic is counted.
const HOSTS_MAX: usize = 4096;
/// Most connections at one time, each direction of DNS over TCP included.
const CONNECTIONS_MAX: usize = 256;
const BUFFER: usize = 16 << 10;
/// How long a connection waits for a host to come back.
const HOST_LIMIT: Duration = Duration::from_secs(10);
/// How long the host may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(40);
/// A refused host is reported at most this often.
const REPORT_PAUSE: Duration = Duration::from_secs(60);
/// Most hosts whose refusal is remembered.
const REPORTS_MAX: usize = 128;
/// How long a DNS connection may stay silent.
const DNS_LIMIT: Duration = Duration::from_secs(10);

/// State of the way out.
pub(crate) struct Catcher {
    tasks: RefCell<Vec<AbortHandle>>,
    names: RefCell<Names>,
    traffic: RefCell<HashMap<String, Traffic>>,
    reported: RefCell<BTreeMap<String, Instant>>,
    connections: Cell<u64>,
}

impl Default for Catcher {
    fn default() -> Self {
        Self {
            tasks: RefCell::default(),
            names: RefCell::new(Names::new(FIRST, ADDRESSES, 0)),
            traffic: RefCell::default(),
            reported: RefCell::default(),
            connections: Cell::default(),
        }
    }
}

/// Opens or closes the way out.
pub(crate) async fn set_allowed(agent: &Rc<Agent>, allowed: bool) -> io::Result<()> {
    let running = !agent.catcher.tasks.borrow().is_empty();
    if !allowed {
        for task in agent.catcher.tasks.take() {
            task.abort();
        }
        return Ok(());
    }
    if running {
        return Ok(());
    }
    if network::is_there(agent.surroundings) {
        // Names and connections are the gateway's.
        let task = tokio::task::spawn_local(network::report_refusals(agent.clone())).abort_handle();
        agent.catcher.tasks.borrow_mut().push(task);
        return Ok(());
    }
    let udp = UdpSocket::bind(RESOLVER).await?;
    let tcp = TcpListener::bind(RESOLVER).await?;
    let limit = Rc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = vec![
        tokio::task::spawn_local(answer_datagrams(agent.clone(), udp)).abort_handle(),
        tokio::task::spawn_local(accept(agent.clone(), tcp, limit.clone(), answer_stream)).abort_handle(),
    ];
    for port in PORTS {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
        tasks.push(
            tokio::task::spawn_local(accept(agent.clone(), listener, limit.clone(), carry)).abort_handle(),
        );
    }
    *agent.catcher.tasks.borrow_mut() = tasks;
    Ok(())
}

impl Catcher {
    /// What went to and came from one host.
    pub(crate) async fn traffic(&self, agent: &Agent, host: &str) -> Traffic {
        if network::is_there(agent.surroundings) {
            return network::traffic(host).await;
        }
        self.traffic.borrow().get(host).copied().unwrap_or_default()
    }

    fn count(&self, host: &str, change: impl FnOnce(&mut Traffic)) {
        let mut traffic = self.traffic.borrow_mut();
        if traffic.len() >= HOSTS_MAX && !traffic.contains_key(host) {
            traffic.clear();
        }
        change(traffic.entry(host.to_owned()).or_default());
    }

    /// Says that a host was refused, not too often.
    pub(crate) fn report(&self, agent: &Agent, host: &str, why: &str) {
        if self.may_report(host) {
            agent.log.note("egress", format_args!("{host} refused: {why}"));
            agent.events.emit(AgentEvent::EgressRefused { host: host.to_owned() });
        }
    }

    fn may_report(&self, host: &str) -> bool {
        let mut reported = self.reported.borrow_mut();
        let now = Instant::now();
        reported.retain(|_, at| now.duration_since(*at) < REPORT_PAUSE);
        if reported.contains_key(host) || reported.len() >= REPORTS_MAX {
            return false;
        }
        reported.insert(host.to_owned(), now);
        true
    }
}

async fn answer_datagrams(agent: Rc<Agent>, socket: UdpSocket) {
    let mut packet = vec![0; dns::PACKET_MAX];
    loop {
        let Ok((count, from)) = socket.recv_from(&mut packet).await else {
            // An ICMP error of an earlier answer, nothing that lasts.
            tokio::task::yield_now().await;
            continue;
        };
        let reply =
            dns::answer(&packet[..count], |name| Some(agent.catcher.names.borrow_mut().address_of(name)));
        if let Some(reply) = reply {
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

async fn accept<F: Future<Output = io::Result<()>> + 'static>(
    agent: Rc<Agent>,
    listener: TcpListener,
    limit: Rc<Semaphore>,
    serve: impl Fn(Rc<Agent>, TcpStream) -> F,
) {
    loop {
        let Ok(()) = limit.acquire().await.map(tokio::sync::SemaphorePermit::forget) else { return };
        let Ok((socket, _)) = listener.accept().await else {
            limit.add_permits(1);
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let serving = serve(agent.clone(), socket);
        let limit = limit.clone();
        tokio::task::spawn_local(async move {
            // Either side may end a connection at any time; that is no fault to report.
            let _ = serving.await;
            limit.add_permits(1);
        });
    }
}

async fn answer_stream(agent: Rc<Agent>, mut socket: TcpStream) -> io::Result<()> {
    loop {
        let Ok(len) = timeout(DNS_LIMIT, socket.read_u16()).await else { return Ok(()) };
        let mut packet = vec![0; usize::from(len?)];
        timeout(DNS_LIMIT, socket.read_exact(&mut packet)).await??;
        let reply = dns::answer(&packet, |name| Some(agent.catcher.names.borrow_mut().address_of(name)));
        let Some(reply) = reply else { return Ok(()) };
        let mut out = u16::try_from(reply.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
        out.extend_from_slice(&reply);
        socket.write_all(&out).await?;
    }
}

/// Carries one connection to the host and back.
async fn carry(agent: Rc<Agent>, socket: TcpStream) -> io::Result<()> {
    let destination = socket.local_addr()?;
    let IpAddr::V4(address) = destination.ip() else { return Ok(()) };
    let host = agent.catcher.names.borrow().name_of(address).map(str::to_owned);
    let Some(host) = host else { return Ok(()) };
    let number = agent.catcher.connections.get() + 1;
    agent.catcher.connections.set(number);
    let result = connect(&agent, &host, destination.port()).await;
    let stream = match result {
        Ok(stream) => stream,
        Err(why) => {
            agent.catcher.count(&host, |traffic| traffic.refused += 1);
            agent.catcher.report(&agent, &host, &why);
            // A reset instead of an orderly end: programs then say "connection refused or reset", not "empty answer".
            let _ = socket.set_zero_linger();
            return Ok(());
        }
    };
    agent.catcher.count(&host, |traffic| traffic.connected += 1);
    let _ = socket.set_nodelay(true);
    let (mut from_program, mut to_program) = socket.into_split();
    let (mut from_host, mut to_host) = tokio::io::split(stream);
    let back = |count: usize| agent.catcher.count(&host, |traffic| traffic.bytes_back += count as u64);
    let (out, home) = tokio::join!(
        pump(&mut from_program, &mut to_host, |_| {}),
        pump(&mut from_host, &mut to_program, back)
    );
    out.and(home)
}

async fn connect(agent: &Rc<Agent>, host: &str, port: u16) -> Result<Stream, String> {
    let opener = timeout(HOST_LIMIT, async {
        loop {
            let came = agent.host_came.notified();
            let present = agent.opener.borrow().clone();
            if let Some(opener) = present {
                return opener;
            }
            came.await;
        }
    });
    let opener = opener.await.map_err(|_| "no host is connected".to_owned())?;
    let asked = timeout(CONNECT_LIMIT, async {
        let mut stream = opener.open().await?;
        write_frame(&mut stream, &StreamHeader::Egress { host: host.to_owned(), port }).await?;
        let reply = read_frame::<EgressReply>(&mut stream).await?;
        io::Result::Ok((stream, reply))
    });
    match asked.await {
        Ok(Ok((stream, Some(EgressReply::Connected)))) => Ok(stream),
        Ok(Ok((_, Some(EgressReply::Refused { reason })))) => Err(reason),
        Ok(Ok((_, None))) => Err("the host closed the stream".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the host did not answer".to_owned()),
    }
}

/// Copies one direction to its end and passes the end on.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    passed: impl Fn(usize),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let copied = loop {
        match from.read(&mut buffer).await {
            Ok(0) => break Ok(()),
            Ok(count) => {
                passed(count);
                if let Err(error) = to.write_all(&buffer[..count]).await {
                    break Err(error);
                }
                if let Err(error) = to.flush().await {
                    break Err(error);
                }
            }
            Err(error) => break Err(error),
        }
    };
    let ended = to.shutdown().await;
    copied.and(ended)
}
