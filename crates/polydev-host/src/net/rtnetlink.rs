//! The few requests of rtnetlink(7) that a slot's network is made by. One socket, one request, one answer.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with},
};

// linux/netlink.h and linux/rtnetlink.h
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const AF_INET: u8 = 2;
const HEADER: usize = 16;
/// Longest answer to one request.
const ANSWER_MAX: usize = 8 << 10;

// linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;

// linux/if_addr.h, linux/neighbour.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_HOST: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;

/// A socket to the network namespace in which it was opened.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A link's name, hardware address and longest packet.
pub(super) struct Link<'a> {
    pub(super) name: &'a str,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
}

impl Netlink {
    /// To the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE.
            None,
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes a veth pair whose other end is in another namespace from the start.
    pub(super) fn add_veth(
        &mut self,
        near: &Link<'_>,
        far: &Link<'_>,
        far_ns: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &ifinfo(0, 0));
        message.link(near);
        let info = message.open(IFLA_LINKINFO);
        message.attribute(IFLA_INFO_KIND, b"veth");
        let data = message.open(IFLA_INFO_DATA);
        let peer = message.open(VETH_INFO_PEER);
        message.bytes.extend_from_slice(&ifinfo(0, 0));
        message.link(far);
        message.attribute(IFLA_NET_NS_FD, &far_ns.as_raw_fd().to_ne_bytes());
        message.close(peer);
        message.close(data);
        message.close(info);
        self.ask(message)
    }

    /// Sets a link up, with another hardware address and longest packet if given.
    pub(super) fn set_up(&mut self, index: u32, link: Option<&Link<'_>>) -> io::Result<()> {
        if let Some(link) = link {
            // The address of a device that is up cannot always be changed.
            let mut message = Message::new(RTM_NEWLINK, 0, &ifinfo(index, 0));
            message.link(link);
            self.ask(message)?;
        }
        self.ask(Message::new(RTM_NEWLINK, 0, &ifinfo(index, IFF_UP)))
    }

    /// Gives a link an address.
    pub(super) fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let [a, b, c, d] = index.to_ne_bytes();
        let body = [AF_INET, prefix, 0, RT_SCOPE_UNIVERSE, a, b, c, d];
        let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body);
        message.attribute(IFA_LOCAL, &address.octets());
        message.attribute(IFA_ADDRESS, &address.octets());
        self.ask(message)
    }

    /// Routes everything to a gateway.
    pub(super) fn add_default_route(&mut self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let body = route(RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RTN_UNICAST);
        let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body);
        message.attribute(RTA_GATEWAY, &gateway.octets());
        message.attribute(RTA_OIF, &index.to_ne_bytes());
        self.ask(message)
    }

    /// Makes every address one of this namespace's own (AnyIP), so that nothing is ever passed on.
    pub(super) fn own_every_address(&mut self, loopback: u32) -> io::Result<()> {
        let body = route(RT_TABLE_LOCAL, RT_SCOPE_HOST, RTN_LOCAL);
        let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body);
        message.attribute(RTA_OIF, &loopback.to_ne_bytes());
        self.ask(message)
    }

    /// Tells for good which hardware address a neighbour has, so that none is ever asked for.
    pub(super) fn add_neighbour(&mut self, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
        // struct ndmsg: family, padding, index, state, flags, type.
        let mut body = vec![AF_INET, 0, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        body.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
        body.extend_from_slice(&[0, RTN_UNICAST]);
        let mut message = Message::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body);
        message.attribute(NDA_DST, &address.octets());
        message.attribute(NDA_LLADDR, &mac);
        self.ask(message)
    }

    fn ask(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        let bytes = message.finish(self.sequence);
        send(&self.socket, &bytes, SendFlags::empty())?;
        let mut answer = [0; ANSWER_MAX];
        loop {
            let (_, count) = match recv(&self.socket, &mut answer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                received => received?,
            };
            if let Some(result) = acknowledged(&answer[..count.min(ANSWER_MAX)], self.sequence) {
                return result;
            }
        }
    }
}

/// What a datagram says about the request with this number; `None` if nothing.
fn acknowledged(mut datagram: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let word = |at: usize, bytes: &[u8]| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    while let Some(length) = word(0, datagram) {
        let length = usize::try_from(length).ok()?;
        let message = datagram.get(..length).filter(|it| it.len() >= HEADER)?;
        if message[4..6] == NLMSG_ERROR.to_ne_bytes() && word(8, message) == Some(sequence) {
            let code = word(HEADER, message)?.cast_signed();
            return Some(if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) });
        }
        datagram = datagram.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// struct ifinfomsg: family, padding, type, index, flags, which flags to change.
fn ifinfo(index: u32, flags: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..].copy_from_slice(&flags.to_ne_bytes());
    body
}

/// struct rtmsg of the route to everywhere.
fn route(table: u8, scope: u8, kind: u8) -> [u8; 12] {
    [AF_INET, 0, 0, 0, table, RTPROT_STATIC, scope, kind, 0, 0, 0, 0]
}

/// A request that is being put together (netlink(7)): header, fixed part, attributes aligned to four bytes.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend_from_slice(body);
        Self { bytes }
    }

    fn link(&mut self, link: &Link<'_>) {
        self.attribute(IFLA_IFNAME, &[link.name.as_bytes(), b"\0"].concat());
        self.attribute(IFLA_ADDRESS, &link.mac);
        self.attribute(IFLA_MTU, &link.mtu.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let at = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(at);
    }

    /// Begins an attribute; everything up to [`Message::close`] is its value.
    fn open(&mut self, kind: u16) -> usize {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) {
        let length = u16::try_from(self.bytes.len() - at).expect("requests are some hundred bytes");
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("requests are some hundred bytes");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_aligned_and_their_length_is_that_of_the_value() {
        let mut message = Message::new(RTM_NEWLINK, 0, &ifinfo(7, 0));
        let outer = message.open(IFLA_LINKINFO);
        message.attribute(IFLA_INFO_KIND, b"veth1");
        message.close(outer);
        let bytes = message.finish(9);
        assert_eq!(bytes.len(), HEADER + 16 + 4 + 12);
        assert_eq!(bytes[..4], 48u32.to_ne_bytes());
        assert_eq!(bytes[8..12], 9u32.to_ne_bytes());
        assert_eq!(bytes[32..34], 16u16.to_ne_bytes(), "the padding within belongs to it");
        assert_eq!(bytes[36..38], 9u16.to_ne_bytes(), "the padding behind does not");
    }

    #[test]
    fn only_the_answer_to_this_request_counts() {
        let answer = |sequence: u32, code: i32| {
            let mut bytes = vec![0; HEADER];
            bytes[..4].copy_from_slice(&36u32.to_ne_bytes());
            bytes[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
            bytes.extend_from_slice(&code.to_ne_bytes());
            bytes.resize(36, 0);
            bytes
        };
        assert!(acknowledged(&answer(4, 0), 5).is_none());
        assert!(acknowledged(&answer(5, 0), 5).unwrap().is_ok());
        let both = [answer(4, 0), answer(5, -1)].concat();
        let error = acknowledged(&both, 5).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    proptest! {
        #[test]
        fn rubbish_is_no_answer_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = acknowledged(&bytes, 1);
        }
    }
}
