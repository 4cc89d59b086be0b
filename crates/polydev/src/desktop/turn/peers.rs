//! Whom the server relays to. A relay is a way around every firewall between the internet and this machine's own
//! networks, so by default there is exactly one peer: polydev's own media endpoint.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use crate::{config::RelayTo, egress::is_public};

/// Gives the addresses on which the own media endpoint receives, as they are now.
pub type EndpointAddresses = Arc<dyn Fn() -> Vec<SocketAddr> + Send + Sync>;

/// How long the endpoint's addresses are taken to be the same; they are asked about for each datagram.
const ADDRESSES_KEPT: Duration = Duration::from_secs(2);

/// Who may be a peer.
pub(super) struct Peers {
    relay_to: RelayTo,
    /// Addresses of this server, on which other things of this machine may listen.
    own: Vec<IpAddr>,
    endpoint: OnceLock<EndpointAddresses>,
    kept: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
}

impl Peers {
    pub(super) fn new(relay_to: RelayTo, own: Vec<IpAddr>) -> Self {
        Self { relay_to, own, endpoint: OnceLock::new(), kept: Mutex::default() }
    }

    /// Says where the media endpoint is. Only the first call counts.
    pub(super) fn set_endpoint(&self, addresses: EndpointAddresses) {
        // A second endpoint would be a mistake of the caller's, and the first one goes on working.
        let _ = self.endpoint.set(addresses);
    }

    /// Whether datagrams may be exchanged with exactly that address and port.
    pub(super) fn may_relay(&self, peer: SocketAddr) -> bool {
        self.is_endpoint(|address| *address == peer) || self.is_public_peer(peer.ip())
    }

    /// Whether a permission may be given. Its port does not count (RFC 8656 section 9.2), but browsers send the real
    /// one, and refusing a wrong one at once says more than dropping its datagrams later.
    pub(super) fn may_permit(&self, peer: SocketAddr) -> bool {
        if peer.port() != 0 {
            return self.may_relay(peer);
        }
        self.is_endpoint(|address| address.ip() == peer.ip()) || self.is_public_peer(peer.ip())
    }

    fn is_endpoint(&self, wanted: impl FnMut(&SocketAddr) -> bool) -> bool {
        let Some(addresses) = self.endpoint.get() else { return false };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |(at, _): &&mut (Instant, Vec<SocketAddr>)| at.elapsed() < ADDRESSES_KEPT;
        match kept.as_mut().filter(is_fresh) {
            Some((_, known)) => known.iter().any(wanted),
            None => kept.insert((Instant::now(), addresses())).1.iter().any(wanted),
        }
    }

    fn is_public_peer(&self, ip: IpAddr) -> bool {
        match self.relay_to {
            RelayTo::Endpoint => false,
            RelayTo::Public => is_public(ip) && !self.own.contains(&ip.to_canonical()),
        }
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("relay_to", &self.relay_to).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: &str = "10.1.2.3:4001";

    fn peers(relay_to: RelayTo) -> Peers {
        let peers = Peers::new(relay_to, vec!["198.51.99.7".parse().unwrap()]);
        peers.set_endpoint(Arc::new(|| vec![ENDPOINT.parse().unwrap()]));
        peers
    }

    #[test]
    fn the_own_endpoint_is_a_peer_on_its_port_only() {
        for relay_to in [RelayTo::Endpoint, RelayTo::Public] {
            let peers = peers(relay_to);
            assert!(
                peers.may_relay(ENDPOINT.parse().unwrap()) && peers.may_permit(ENDPOINT.parse().unwrap())
            );
            assert!(peers.may_permit("10.1.2.3:0".parse().unwrap()));
            for other in ["10.1.2.3:4002", "10.1.2.3:22", "10.1.2.4:4001"] {
                let other = other.parse().unwrap();
                assert!(!peers.may_relay(other) && !peers.may_permit(other), "{other}");
            }
        }
    }

    #[test]
    fn public_peers_are_relayed_to_only_where_that_is_wanted() {
        let public = "1.1.1.1:3478".parse().unwrap();
        assert!(!peers(RelayTo::Endpoint).may_relay(public));
        assert!(peers(RelayTo::Public).may_relay(public));
        assert!(!peers(RelayTo::Public).may_relay("198.51.99.7:443".parse().unwrap()), "this machine itself");
    }

    #[test]
    fn no_policy_leads_into_private_or_special_networks() {
        let forbidden = [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::a00:1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ];
        for relay_to in [RelayTo::Endpoint, RelayTo::Public] {
            let peers = peers(relay_to);
            for ip in forbidden {
                for port in [0, 80, 4001] {
                    let peer = SocketAddr::new(ip.parse().unwrap(), port);
                    assert!(!peers.may_permit(peer) && !peers.may_relay(peer), "{peer} {relay_to:?}");
                }
            }
        }
    }

    #[test]
    fn before_there_is_an_endpoint_nobody_is_a_peer() {
        let peers = Peers::new(RelayTo::Endpoint, Vec::new());
        assert!(!peers.may_relay(ENDPOINT.parse().unwrap()));
    }
}
