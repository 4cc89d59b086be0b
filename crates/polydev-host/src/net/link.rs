//! Makes one slot's network.
//!
//! ```text
//!   microVM                                   container `<slot>.guest`
//!   eth0 169.254.0.21 (in the guest)          eth0 169.254.0.21
//!     │                                         │
//! ┌───┼──────────────── <slot> ─────┐       ┌───┼─────────────── <slot> ──────┐
//! │ tap0 169.254.0.22   local 0/0 lo│       │ vm0 169.254.0.22   local 0/0 lo │
//! └─────────── gateway's sockets ───┘       └─────────── gateway's sockets ───┘
//! ```
//!
//! Nothing else is in there and nothing is forwarded: whatever address a guest dials is one of the namespace's own. A
//! packet with a false source claims one of these, too, and the kernel drops it.

use std::{fs::File, io, os::fd::OwnedFd, path::Path};

use polydev_core::guest::network::{ADDRESS, DEVICE, GATEWAY, GATEWAY_MAC, MAC, MTU, PREFIX};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    ioctl::{IntegerSetter, Updater, ioctl},
};

use super::{
    NetworkError,
    constants::{TAP, VETH},
    namespace,
    rtnetlink::{Link, Netlink},
};

/// The index of `lo` in every namespace.
const LOOPBACK: u32 = 1;
/// Of every namespace we make. A new one takes some of these over from the machine's own.
const SETTINGS: [(&str, &str); 15] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_forward", "0"),
    ("ipv4/icmp_echo_ignore_all", "1"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/accept_local", "0"),
    ("ipv4/conf/default/accept_local", "0"),
    ("ipv4/conf/all/route_localnet", "0"),
    ("ipv4/conf/default/route_localnet", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    // What one guest has in flight is in the machine's memory: least, first and most bytes of a connection each way. Round
    // trips to the gateway take no time, so that a small window is no brake.
    ("ipv4/tcp_rmem", "4096 131072 524288"),
    ("ipv4/tcp_wmem", "4096 65536 524288"),
];

// linux/if_tun.h: _IOW('T', 202, int) and _IOW('T', 203, int).
const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
const TUNSETPERSIST: rustix::ioctl::Opcode = 0x4004_54cb;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFNAMSIZ: usize = 16;

/// struct ifreq with the flags of a TUN device.
#[repr(C)]
struct TunRequest {
    name: [u8; IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

/// What is at the guest's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// A TAP for the VMM.
    Tap,
    /// A veth pair with one end in a container's own namespace.
    Veth,
}

/// Makes a network with a TAP and names its namespace. Leaves the calling thread in there.
pub(super) fn make_tap(slot: u8, name: &Path) -> Result<(), NetworkError> {
    connect_tap(slot)?;
    namespace::name(name).map_err(NetworkError::os(format!("name a network namespace {}", name.display())))
}

/// Makes a network with a veth pair and names its namespaces, the container's first.
pub(super) fn make_veth(name: &Path, guest_name: &Path) -> Result<(), NetworkError> {
    let own = connect_veth()?;
    namespace::name(guest_name)
        .map_err(NetworkError::os(format!("name a network namespace {}", guest_name.display())))?;
    namespace::enter(&own).map_err(NetworkError::os("enter a network namespace"))?;
    namespace::name(name).map_err(NetworkError::os(format!("name a network namespace {}", name.display())))
}

/// Makes a network without a name: it ends with the calling thread.
pub(super) fn make_nameless(kind: LinkKind) -> Result<(), NetworkError> {
    match kind {
        LinkKind::Tap => connect_tap(0),
        LinkKind::Veth => connect_veth().map(drop),
    }
}

/// Leaves the calling thread in the new namespace.
fn connect_tap(slot: u8) -> Result<(), NetworkError> {
    namespace::enter_new().map_err(NetworkError::os("make a network namespace"))?;
    settle().map_err(NetworkError::os("set up a network namespace"))?;
    let tap = open_tap().map_err(|error| match error {
        Errno::NOENT | Errno::NXIO | Errno::NODEV => NetworkError::NoTun,
        Errno::BUSY => NetworkError::TapInUse { tap: TAP, slot },
        other => NetworkError::os("make a TAP")(other),
    })?;
    drop(tap);
    let connect = || -> io::Result<()> {
        let mut netlink = Netlink::open()?;
        let index = namespace::link_index(TAP)?;
        near_end(&mut netlink, index, Some(&Link { name: TAP, mac: GATEWAY_MAC, mtu: MTU }))
    };
    connect().map_err(NetworkError::os("set a TAP up"))
}

/// Leaves the calling thread in the container's namespace, and returns the gateway's.
fn connect_veth() -> Result<File, NetworkError> {
    let enter = |what: &str| namespace::enter_new().map_err(NetworkError::os(what.to_owned()));
    let guest = enter("make a container's network namespace")?;
    settle().map_err(NetworkError::os("set up a container's network namespace"))?;
    let own = enter("make a network namespace")?;
    settle().map_err(NetworkError::os("set up a network namespace"))?;
    let connect = || -> io::Result<()> {
        let mut netlink = Netlink::open()?;
        let near = Link { name: VETH, mac: GATEWAY_MAC, mtu: MTU };
        let far = Link { name: DEVICE, mac: MAC, mtu: MTU };
        netlink.add_veth(&near, &far, std::os::fd::AsFd::as_fd(&guest))?;
        near_end(&mut netlink, namespace::link_index(VETH)?, None)?;
        namespace::enter(&guest)?;
        let mut netlink = Netlink::open()?;
        let index = namespace::link_index(DEVICE)?;
        netlink.set_up(index, None)?;
        netlink.add_address(index, ADDRESS, PREFIX)?;
        netlink.add_neighbour(index, GATEWAY, GATEWAY_MAC)?;
        netlink.add_default_route(index, GATEWAY)
    };
    connect().map_err(NetworkError::os("set a veth pair up"))?;
    Ok(own)
}

/// What every namespace of ours has.
fn settle() -> io::Result<()> {
    for (setting, value) in SETTINGS {
        namespace::set(setting, value)?;
    }
    Netlink::open()?.set_up(LOOPBACK, None)
}

/// The gateway's end of a link.
fn near_end(netlink: &mut Netlink, index: u32, link: Option<&Link<'_>>) -> io::Result<()> {
    netlink.set_up(index, link)?;
    netlink.add_address(index, GATEWAY, PREFIX)?;
    netlink.add_neighbour(index, ADDRESS, MAC)?;
    netlink.own_every_address(LOOPBACK)
}

/// Makes a TAP that stays when its last user closes it. With a header for offloading, as every VMM wants it.
fn open_tap() -> Result<OwnedFd, Errno> {
    let tun = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut request =
        TunRequest { name: [0; IFNAMSIZ], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    request.name[..TAP.len()].copy_from_slice(TAP.as_bytes());
    // SAFETY: TUNSETIFF reads and writes a live struct ifreq, TUNSETPERSIST takes a number.
    unsafe {
        ioctl(&tun, Updater::<TUNSETIFF, TunRequest>::new(&mut request))?;
        ioctl(&tun, IntegerSetter::<TUNSETPERSIST>::new_usize(1))?;
    }
    Ok(tun)
}
