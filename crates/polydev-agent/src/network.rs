//! The network device, where the VM has one: set up by system calls, without a program started or a packet sent.
//!
//! The host's gateway is the device's only other end. It answers names, takes connections and decides about them; the
//! agent only asks it what became of them.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use polydev_core::{
    dns::is_host_name,
    guest::{
        NETWORK_OPTION, NETWORK_VARIABLE,
        network::{
            ADDRESS, DEVICE, GATEWAY, GATEWAY_MAC, MTU, PREFIX, PROXY_PORT, REFUSALS_PATH, TRAFFIC_PATH,
            Traffic,
        },
    },
};
use rustix::net::{AddressFamily, SocketType, socket};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::{Surroundings, agent::Agent};

/// How long the gateway may take to answer.
const GATEWAY_LIMIT: Duration = Duration::from_secs(5);
/// Longest answer of the gateway.
const ANSWER_MAX: u64 = 4096;
/// Pause before the gateway is asked again for what it refuses: its process is being replaced.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Whether the VM has a network device.
pub(crate) fn is_there(surroundings: Surroundings) -> bool {
    match surroundings {
        Surroundings::Vm => std::fs::read_to_string("/proc/cmdline")
            .is_ok_and(|line| line.split_whitespace().any(|word| word == NETWORK_OPTION)),
        Surroundings::Container => std::env::var_os(NETWORK_VARIABLE).is_some_and(|value| value == "tap"),
    }
}

/// Gives the device its address and its only neighbour. A container's has both.
pub(crate) fn set_up() -> io::Result<()> {
    for which in ["all", "default"] {
        // A kernel without IPv6 has nothing to switch off.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
    }
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mask = Ipv4Addr::from(u32::MAX << (32 - u32::from(PREFIX)));
    let mut mtu = request();
    mtu.ifr_ifru.ifru_mtu = MTU.cast_signed();
    ask(&socket, libc::SIOCSIFMTU, &mut mtu)?;
    for (what, address) in [(libc::SIOCSIFADDR, ADDRESS), (libc::SIOCSIFNETMASK, mask)] {
        let mut setting = request();
        setting.ifr_ifru.ifru_addr = internet(address);
        ask(&socket, what, &mut setting)?;
    }
    let mut flags = request();
    ask(&socket, libc::SIOCGIFFLAGS, &mut flags)?;
    // SAFETY: SIOCGIFFLAGS filled this field.
    unsafe { flags.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    ask(&socket, libc::SIOCSIFFLAGS, &mut flags)?;
    // SAFETY: an all-zero arpreq and an all-zero rtentry are valid.
    let (mut neighbour, mut route): (libc::arpreq, libc::rtentry) = unsafe { std::mem::zeroed() };
    neighbour.arp_pa = internet(GATEWAY);
    neighbour.arp_ha.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in neighbour.arp_ha.sa_data.iter_mut().zip(GATEWAY_MAC) {
        *to = from.cast_signed();
    }
    neighbour.arp_flags = libc::ATF_PERM | libc::ATF_COM;
    neighbour.arp_dev = name();
    ask(&socket, libc::SIOCSARP, &mut neighbour)?;
    route.rt_dst = internet(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = internet(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = internet(GATEWAY);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    match ask(&socket, libc::SIOCADDRT, &mut route) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// What became of a host's connections, as the gateway counts them; nothing where it cannot be asked.
pub(crate) async fn traffic(host: &str) -> Traffic {
    let asked = async {
        let mut answer = String::new();
        get(&format!("{TRAFFIC_PATH}{host}")).await?.take(ANSWER_MAX).read_to_string(&mut answer).await?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        io::Result::Ok(serde_json::from_str(body)?)
    };
    timeout(GATEWAY_LIMIT, asked).await.ok().and_then(Result::ok).unwrap_or_default()
}

/// Passes every host on that the gateway refuses, for as long as it runs.
pub(crate) async fn report_refusals(agent: Rc<Agent>) {
    loop {
        // The gateway's process ends or is replaced: asked again.
        let _ = follow_refusals(&agent).await;
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn follow_refusals(agent: &Rc<Agent>) -> io::Result<()> {
    let stream = timeout(GATEWAY_LIMIT, get(REFUSALS_PATH)).await??;
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines.next_line().await? {
        if is_host_name(&line) {
            agent.catcher.report(agent, &line, "the gateway refuses it");
        }
    }
    Ok(())
}

async fn get(path: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect((GATEWAY, PROXY_PORT)).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).await?;
    Ok(stream)
}

/// An interface request for the device.
fn request() -> libc::ifreq {
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = name();
    request
}

fn name() -> [libc::c_char; libc::IFNAMSIZ] {
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(DEVICE.bytes()) {
        *to = from.cast_signed();
    }
    name
}

/// A struct sockaddr_in in the place of a struct sockaddr (ip(7)): family, port, address.
fn internet(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..].iter_mut().zip(address.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

fn ask<T>(socket: &OwnedFd, what: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: every request above takes a pointer to a live structure of the kind it is called with.
    match unsafe { libc::ioctl(socket.as_raw_fd(), what as libc::Ioctl, argument as *mut T) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
