//! Which viewer a packet is for.
//!
//! A binding request of ICE names its viewer (the local part of its USERNAME, RFC 8445 section 7.2.2). Once a viewer has
//! verified one, everything from the same address is for it. Nothing else reaches anybody: it costs two look-ups.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use str0m::net::Protocol;
use tokio::sync::mpsc;

/// Addresses a viewer may come from at one time; a page has a handful of network paths.
const REMOTES_MAX: usize = 32;
/// Bytes of the header of a STUN message (RFC 8489 section 5).
const STUN_HEADER: usize = 20;
const STUN_BINDING_REQUEST: [u8; 2] = [0, 1];
const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
const STUN_USERNAME: u16 = 0x0006;

/// A packet that came in.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) protocol: Protocol,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) received: Instant,
    pub(super) data: Vec<u8>,
}

/// Who sends: a way to the endpoint and an address.
type Remote = (Protocol, SocketAddr);

/// Where to send a viewer's packets. Numbers are never used again.
pub(super) type ViewerKey = u64;

/// All viewers of the endpoint.
#[derive(Debug, Default)]
pub(super) struct Routes {
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    viewers: HashMap<ViewerKey, Viewer>,
    names: HashMap<String, ViewerKey>,
    remotes: HashMap<Remote, ViewerKey>,
    next: ViewerKey,
}

#[derive(Debug)]
struct Viewer {
    inbox: mpsc::Sender<Packet>,
    names: Vec<String>,
    remotes: VecDeque<Remote>,
}

impl Routes {
    /// Adds a viewer, known to nobody yet.
    pub(super) fn add(&self, inbox: mpsc::Sender<Packet>) -> ViewerKey {
        let mut tables = self.lock();
        tables.next += 1;
        let key = tables.next;
        tables.viewers.insert(key, Viewer { inbox, names: Vec::new(), remotes: VecDeque::new() });
        key
    }

    /// From now on binding requests to this name are for the viewer. A former name stays good for what is on its way.
    pub(super) fn name(&self, key: ViewerKey, ufrag: &str) {
        /// The present one and the one before an ICE restart.
        const NAMES_MAX: usize = 2;
        let mut tables = self.lock();
        let Tables { viewers, names, .. } = &mut *tables;
        let Some(viewer) = viewers.get_mut(&key) else { return };
        if viewer.names.iter().any(|known| known == ufrag) {
            return;
        }
        if viewer.names.len() == NAMES_MAX {
            names.remove(&viewer.names.remove(0));
        }
        viewer.names.push(ufrag.to_owned());
        names.insert(ufrag.to_owned(), key);
    }

    /// The viewer has verified a binding request from there.
    pub(super) fn verified(&self, key: ViewerKey, remote: Remote) {
        let mut tables = self.lock();
        let Tables { viewers, remotes, .. } = &mut *tables;
        let former = remotes.get(&remote).copied();
        if former == Some(key) || !viewers.contains_key(&key) {
            return;
        }
        if let Some(viewer) = former.and_then(|former| viewers.get_mut(&former)) {
            viewer.remotes.retain(|known| *known != remote);
        }
        let Some(viewer) = viewers.get_mut(&key) else { return };
        if viewer.remotes.len() == REMOTES_MAX
            && let Some(oldest) = viewer.remotes.pop_front()
        {
            remotes.remove(&oldest);
        }
        viewer.remotes.push_back(remote);
        remotes.insert(remote, key);
    }

    /// Whether this address is the viewer's.
    pub(super) fn is_verified(&self, key: ViewerKey, remote: Remote) -> bool {
        self.lock().remotes.get(&remote) == Some(&key)
    }

    /// Forgets the viewer.
    pub(super) fn remove(&self, key: ViewerKey) {
        let mut tables = self.lock();
        if let Some(viewer) = tables.viewers.remove(&key) {
            viewer.names.iter().for_each(|name| {
                tables.names.remove(name);
            });
            viewer.remotes.iter().for_each(|remote| {
                tables.remotes.remove(remote);
            });
        }
    }

    /// Hands a packet to its viewer. False if it is nobody's; one that the viewer has no room for is lost, as it may be
    /// on any network.
    pub(super) fn dispatch(&self, packet: Packet) -> bool {
        let tables = self.lock();
        let key = match binding_request_to(&packet.data) {
            Some(name) => tables.names.get(name),
            None => tables.remotes.get(&(packet.protocol, packet.source)),
        };
        let Some(viewer) = key.and_then(|key| tables.viewers.get(key)) else { return false };
        // Full: lost. Closed: the viewer is about to be removed.
        let _ = viewer.inbox.try_send(packet);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The local name that a binding request is addressed to, if it is one.
fn binding_request_to(packet: &[u8]) -> Option<&str> {
    let (header, mut attributes) = packet.split_at_checked(STUN_HEADER)?;
    if header[..2] != STUN_BINDING_REQUEST || header[4..8] != STUN_COOKIE {
        return None;
    }
    while let Some((head, rest)) = attributes.split_first_chunk::<4>() {
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = rest.get(..len)?;
        if kind == STUN_USERNAME {
            return std::str::from_utf8(value).ok()?.split_once(':').map(|(local, _)| local);
        }
        attributes = rest.get(len.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UDP: Protocol = Protocol::Udp;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn packet(port: u16, data: Vec<u8>) -> Packet {
        Packet {
            protocol: UDP,
            source: address(port),
            destination: address(1),
            received: Instant::now(),
            data,
        }
    }

    fn request(username: &str) -> Vec<u8> {
        let mut message = [&STUN_BINDING_REQUEST[..], &[0, 0], &STUN_COOKIE, &[7; 12]].concat();
        // Another attribute, of three bytes and one of padding, comes first.
        message.extend([0x80, 0x22, 0, 3, b'a', b'b', b'c', 0]);
        message.extend(STUN_USERNAME.to_be_bytes());
        message.extend(u16::try_from(username.len()).unwrap().to_be_bytes());
        message.extend(username.as_bytes());
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    #[test]
    fn a_binding_request_finds_its_viewer_and_other_packets_only_after_it_was_verified() {
        let routes = Routes::default();
        let (inbox, mut packets) = mpsc::channel(8);
        let key = routes.add(inbox);
        routes.name(key, "FAKEname");
        let media = vec![0x80, 0xc8, 0, 0];
        assert!(!routes.dispatch(packet(9, media.clone())), "nobody is known by that address");
        assert!(routes.dispatch(packet(9, request("FAKEname:peer"))));
        assert!(!routes.dispatch(packet(9, request("FAKEother:peer"))));
        assert!(!routes.dispatch(packet(9, media.clone())), "not verified yet");
        routes.verified(key, (UDP, address(9)));
        assert!(routes.is_verified(key, (UDP, address(9))));
        assert!(routes.dispatch(packet(9, media.clone())));
        assert!(!routes.dispatch(packet(10, media.clone())));
        assert_eq!(std::iter::from_fn(|| packets.try_recv().ok()).count(), 2);
        routes.remove(key);
        assert!(!routes.dispatch(packet(9, media)));
        assert!(!routes.dispatch(packet(9, request("FAKEname:peer"))));
        assert!(routes.lock().remotes.is_empty() && routes.lock().names.is_empty());
    }

    #[test]
    fn an_address_that_another_viewer_verifies_changes_hands() {
        let routes = Routes::default();
        let [(first, _a), (second, mut b)] = [0, 1].map(|_| {
            let (inbox, packets) = mpsc::channel(8);
            (routes.add(inbox), packets)
        });
        routes.verified(first, (UDP, address(9)));
        routes.verified(second, (UDP, address(9)));
        routes.remove(first);
        assert!(routes.dispatch(packet(9, vec![0x80, 0, 0])));
        assert!(b.try_recv().is_ok());
    }

    #[test]
    fn addresses_and_names_of_one_viewer_are_few() {
        let routes = Routes::default();
        let (inbox, _packets) = mpsc::channel(8);
        let key = routes.add(inbox);
        (0..200).for_each(|port| routes.verified(key, (UDP, address(port))));
        (0..10).for_each(|name| routes.name(key, &format!("FAKE{name}")));
        assert_eq!(routes.lock().remotes.len(), REMOTES_MAX);
        assert_eq!(routes.lock().names.len(), 2);
        assert!(routes.is_verified(key, (UDP, address(199))), "the newest stay");
        routes.verified(99, (UDP, address(1)));
        assert_eq!(routes.lock().remotes.len(), REMOTES_MAX, "a viewer that is gone verifies nothing");
    }

    proptest! {
        #[test]
        fn random_datagrams_are_nobodys(
            mut data in prop::collection::vec(any::<u8>(), 0..200),
            like_stun in any::<bool>(),
        ) {
            let routes = Routes::default();
            let (inbox, _packets) = mpsc::channel(8);
            let key = routes.add(inbox);
            routes.name(key, "FAKEname");
            if like_stun && data.len() >= STUN_HEADER {
                data[..2].copy_from_slice(&STUN_BINDING_REQUEST);
                data[4..8].copy_from_slice(&STUN_COOKIE);
            }
            prop_assert!(!routes.dispatch(packet(9, data)));
        }
    }
}
