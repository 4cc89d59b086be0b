//! The addresses that are announced to pages.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use str0m::{Candidate, net::TcpType};

/// More addresses than that make every connection slower, not surer.
const ADDRESSES_MAX: usize = 12;

/// How a page reaches the endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announced {
    /// Addresses of this machine.
    own: Vec<IpAddr>,
    /// Addresses of a NAT that leads here.
    public: Vec<IpAddr>,
    port: u16,
}

impl Announced {
    /// `listen` as it is bound. Where it is every address, those of the interfaces count as they are now.
    pub(super) fn now(listen: SocketAddr, public: &[IpAddr]) -> Self {
        let own = match listen.ip() {
            ip if !ip.is_unspecified() => vec![ip.to_canonical()],
            IpAddr::V4(_) => interfaces().into_iter().filter(IpAddr::is_ipv4).collect(),
            IpAddr::V6(_) => interfaces(),
        };
        let public = public.iter().copied().filter(|ip| !own.contains(ip)).collect();
        Self { own, public, port: listen.port() }
    }

    /// One candidate for UDP and one for TCP of each address. The page's ICE sorts out which work.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for ip in &self.own {
            let address = SocketAddr::new(*ip, self.port);
            candidates.extend(Candidate::builder().udp().host(address).build());
            candidates.extend(Candidate::builder().tcp().host(address).tcptype(TcpType::Passive).build());
        }
        for ip in &self.public {
            let address = SocketAddr::new(*ip, self.port);
            // Packets to it arrive at an address of this machine.
            let Some(base) = self.own.iter().find(|own| own.is_ipv4() == ip.is_ipv4()) else { continue };
            let base = SocketAddr::new(*base, self.port);
            candidates.extend(Candidate::builder().udp().server_reflexive(address, base).build());
            candidates.extend(
                Candidate::builder().tcp().server_reflexive(address, base).tcptype(TcpType::Passive).build(),
            );
        }
        candidates
    }
}

/// Addresses of this machine that others may reach; loopback only if there is nothing else.
fn interfaces() -> Vec<IpAddr> {
    let all = if_addrs::get_if_addrs().unwrap_or_else(|error| {
        tracing::warn!(%error, "interfaces cannot be listed; pages are told the loopback address only");
        Vec::new()
    });
    let reachable: BTreeSet<IpAddr> = all
        .iter()
        .map(if_addrs::Interface::ip)
        .filter(|ip| !ip.is_loopback() && !is_link_local(*ip))
        .collect();
    if reachable.is_empty() {
        return vec![IpAddr::from([127, 0, 0, 1])];
    }
    reachable.into_iter().take(ADDRESSES_MAX).collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(listen: &str, public: &[&str]) -> Vec<String> {
        let public: Vec<IpAddr> = public.iter().map(|ip| ip.parse().unwrap()).collect();
        let announced = Announced::now(listen.parse().unwrap(), &public);
        announced
            .candidates()
            .iter()
            .map(|candidate| {
                let kind = if candidate.tcptype().is_some() { "passive" } else { "" };
                format!("{} {} {kind}", candidate.proto(), candidate.addr())
            })
            .collect()
    }

    #[test]
    fn the_address_listened_on_is_announced_for_udp_and_passive_tcp() {
        assert_eq!(texts("127.0.0.1:4001", &[]), ["udp 127.0.0.1:4001 ", "tcp 127.0.0.1:4001 passive"]);
        assert_eq!(texts("[::1]:4001", &[]), ["udp [::1]:4001 ", "tcp [::1]:4001 passive"]);
    }

    #[test]
    fn public_addresses_are_announced_once_and_only_of_a_family_that_is_listened_on() {
        let texts = texts("192.0.2.1:4001", &["203.0.113.7", "192.0.2.1", "2001:db8::1"]);
        assert_eq!(
            texts,
            [
                "udp 192.0.2.1:4001 ",
                "tcp 192.0.2.1:4001 passive",
                "udp 203.0.113.7:4001 ",
                "tcp 203.0.113.7:4001 passive"
            ]
        );
    }

    #[test]
    fn listening_everywhere_announces_addresses_that_can_be_connected_to() {
        let announced = Announced::now("[::]:4001".parse().unwrap(), &[]);
        assert!(!announced.own.is_empty());
        assert!(announced.own.iter().all(|ip| !ip.is_unspecified() && !is_link_local(*ip)));
        assert!(announced.own.len() <= ADDRESSES_MAX);
        assert!(announced.own.iter().all(IpAddr::is_ipv4) || announced.own.iter().any(IpAddr::is_ipv6));
    }
}
