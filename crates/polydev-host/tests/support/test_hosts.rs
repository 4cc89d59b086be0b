//! Hosts that own every address a guest may try, and the proxy that its connections are to leave by.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use polydev_core::ids::VmId;
use polydev_host::{EgressHandler, EgressRefused};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A metadata service, private networks, a slot's name, a VM's own address, a public one, loopback, and IPv6.
pub(crate) const ADDRESSES: [&str; 9] = [
    "10.1.2.3",
    "172.16.5.5",
    "192.168.1.1",
    "192.168.100.2",
    "169.254.169.254",
    "169.254.0.21",
    "93.184.216.34",
    "2606:2800:220::1",
    "fd12::1",
];
/// SSH, DNS, the web, a controller and something else.
pub(crate) const TCP_PORTS: [u16; 6] = [22, 53, 80, 443, 4000, 8080];
pub(crate) const UDP_PORTS: [u16; 2] = [53, 9999];
/// The only host that policy allows.
pub(crate) const SITE: &str = "site.test";
pub(crate) const CONTENT: &str = "content of the allowed site";
/// Of the upstream proxy.
pub(crate) const PASSWORD: &str = "FAKE-upstream-password-4711";
const MULTICAST: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const ANSWER_LIMIT: Duration = Duration::from_millis(1500);

/// Listeners on every address and port of a namespace.
pub(crate) struct Hosts {
    arrived: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Hosts {
    /// In a namespace without a way out: gives it all addresses, then listens.
    pub(crate) fn start(ip: impl Fn(&[&str])) -> Self {
        ip(&["link", "set", "lo", "up"]);
        for address in ADDRESSES {
            let prefix = if address.contains(':') { "128" } else { "32" };
            ip(&["address", "add", &format!("{address}/{prefix}"), "dev", "lo"]);
        }
        Self::listen_here()
    }

    /// Listens on all addresses of the calling thread's namespace.
    pub(crate) fn listen_here() -> Self {
        let hosts = Self { arrived: Arc::default() };
        for port in TCP_PORTS {
            let Ok(listener) =
                TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))
            else {
                continue;
            };
            let arrived = Arc::clone(&hosts.arrived);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let local = stream.local_addr().unwrap();
                    count(&arrived, format!("tcp {} {}", local.ip().to_canonical(), local.port()));
                    let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                }
            });
        }
        for port in UDP_PORTS {
            let socket =
                UdpSocket::bind(("::", port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port))).unwrap();
            let _ = socket.join_multicast_v4(&MULTICAST, &Ipv4Addr::LOCALHOST);
            let arrived = Arc::clone(&hosts.arrived);
            std::thread::spawn(move || {
                let mut packet = [0; 512];
                while let Ok((length, from)) = socket.recv_from(&mut packet) {
                    count(&arrived, format!("udp {port}"));
                    let _ = socket.send_to(&packet[..length], from);
                }
            });
        }
        hosts
    }

    /// Reaches each of them from here, then forgets that.
    pub(crate) fn assert_reachable(&self) {
        let answered = reach();
        let wanted = ADDRESSES.len() * (TCP_PORTS.len() + UDP_PORTS.len());
        assert_eq!(answered.len(), wanted, "every test host answers where it can be reached: {answered:?}");
        let counted = self.arrived.lock().unwrap().len();
        assert!(counted >= ADDRESSES.len() * TCP_PORTS.len() + UDP_PORTS.len(), "and counts: {counted}");
        self.arrived.lock().unwrap().clear();
    }

    pub(crate) fn assert_untouched(&self) {
        let arrived = self.arrived.lock().unwrap();
        assert!(arrived.is_empty(), "{arrived:?}");
    }
}

fn count(arrived: &Mutex<BTreeMap<String, u64>>, what: String) {
    *arrived.lock().unwrap().entry(what).or_default() += 1;
}

/// Everything that answers from the calling thread's namespace.
fn reach() -> Vec<String> {
    let mut probes = Vec::new();
    for address in ADDRESSES {
        let ip: IpAddr = address.parse().unwrap();
        for port in TCP_PORTS {
            probes.push((SocketAddr::new(ip, port), true));
        }
        for port in UDP_PORTS {
            probes.push((SocketAddr::new(ip, port), false));
        }
    }
    let own = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    std::thread::scope(|scope| {
        let running: Vec<_> = probes
            .into_iter()
            .map(|(to, tcp)| {
                let own = &own;
                scope.spawn(move || {
                    let kind = rustix::thread::LinkNameSpaceType::Network;
                    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(own), Some(kind))
                        .unwrap();
                    let answered = if tcp { tcp_answers(to) } else { udp_answers(to) };
                    answered.then(|| format!("{} {to}", if tcp { "tcp" } else { "udp" }))
                })
            })
            .collect();
        running.into_iter().filter_map(|it| it.join().unwrap()).collect()
    })
}

fn tcp_answers(to: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&to, ANSWER_LIMIT) else { return false };
    stream.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: 10.1.2.3\r\n\r\n");
    stream.read(&mut [0; 16]).is_ok_and(|count| count > 0)
}

fn udp_answers(to: SocketAddr) -> bool {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let Ok(socket) = UdpSocket::bind(any) else { return false };
    socket.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
    socket.send_to(b"x", to).is_ok() && socket.recv_from(&mut [0; 16]).is_ok()
}

/// A proxy with a password that leads to the allowed site, and the handler that uses it.
#[derive(Clone)]
pub(crate) struct Upstream {
    proxy: SocketAddr,
    authorised: Arc<AtomicU64>,
    asked: Arc<Mutex<Vec<(String, bool)>>>,
    first_bytes: Arc<Mutex<BTreeMap<u16, Vec<u8>>>>,
}

impl Upstream {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = listener.local_addr().unwrap();
        let (authorised, asked, first_bytes) = Default::default();
        let upstream = Self { proxy, authorised, asked, first_bytes };
        let serving = upstream.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let upstream = serving.clone();
                std::thread::spawn(move || upstream.serve(stream));
            }
        });
        upstream
    }

    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let head = read_head(&mut stream)?;
        if !head.contains(&format!("Proxy-Authorization: {PASSWORD}")) {
            return None;
        }
        self.authorised.fetch_add(1, Ordering::Relaxed);
        let port: u16 = head.split([' ', ':']).nth(2)?.parse().ok()?;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
        if port == 443 {
            let mut first = vec![0; 4096];
            let count = stream.read(&mut first).ok()?;
            first.truncate(count);
            self.first_bytes.lock().unwrap().insert(port, first);
            return None;
        }
        let request = read_head(&mut stream)?;
        let size = request.split([' ', '/']).nth(2).and_then(|size| size.parse::<u64>().ok());
        let length = size.unwrap_or(CONTENT.len() as u64);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        match size {
            Some(size) => std::io::copy(&mut std::io::repeat(b'x').take(size), &mut stream).map(drop).ok(),
            None => stream.write_all(CONTENT.as_bytes()).ok(),
        }
    }

    /// Who was asked for, and whether that was allowed.
    pub(crate) fn asked(&self) -> Vec<(String, bool)> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn authorised(&self) -> u64 {
        self.authorised.load(Ordering::Relaxed)
    }

    /// The first bytes that came for a port, once they have.
    pub(crate) fn first_bytes(&self, port: u16) -> Vec<u8> {
        let deadline = Instant::now() + super::REACH_LIMIT;
        loop {
            if let Some(bytes) = self.first_bytes.lock().unwrap().get(&port) {
                return bytes.clone();
            }
            assert!(Instant::now() < deadline, "nothing came for port {port}: {:?}", self.asked());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[async_trait]
impl EgressHandler for Upstream {
    async fn connect(
        &self,
        _vm: VmId,
        host: &str,
        port: u16,
    ) -> Result<tokio::net::TcpStream, EgressRefused> {
        let allowed = host == SITE;
        self.asked.lock().unwrap().push((format!("{host}:{port}"), allowed));
        if !allowed {
            return Err(EgressRefused::Policy(host.to_owned()));
        }
        let connect = async {
            let mut stream = tokio::net::TcpStream::connect(self.proxy).await?;
            let ask = format!("CONNECT {host}:{port} HTTP/1.1\r\nProxy-Authorization: {PASSWORD}\r\n\r\n");
            stream.write_all(ask.as_bytes()).await?;
            let mut answer = [0; b"HTTP/1.1 200 OK\r\n\r\n".len()];
            stream.read_exact(&mut answer).await?;
            std::io::Result::Ok(stream)
        };
        connect.await.map_err(|error| EgressRefused::Unreachable(error.to_string()))
    }
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}
