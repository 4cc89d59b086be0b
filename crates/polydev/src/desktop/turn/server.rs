//! The server without its sockets: takes what clients and peers sent, and says what to send on (RFC 8656).
//!
//! Time and the opening of relayed addresses come from outside. Nothing here waits, and every table has a bound.

mod requests;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
    time::Instant,
};

use super::{
    allocation::{Allocation, Rate},
    credentials::{Claim, Secret},
    limits::{DATAGRAM_MAX, Sources},
    peers::Peers,
    stats::{Counters, add, count},
    stun::{Builder, Class, Message, attribute, method, read_channel, write_channel},
};

/// How a client reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Transport {
    Udp,
    Tcp,
    Tls,
}

/// A client, by the transport and address it comes from. The server's own address is one per transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) transport: Transport,
    pub(super) address: SocketAddr,
}

/// The time, on the clock that lifetimes go by and on the one that credentials go by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) at: Instant,
    pub(super) unix_s: u64,
}

/// Which port a relayed address is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    Any,
    Even,
}

/// Sizes of the server.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    pub(super) realm: String,
    /// Allocations in all.
    pub(super) allocations_max: usize,
    /// Allocations of one caller.
    pub(super) allocations_per_user_max: usize,
    /// What goes over one allocation.
    pub(super) rate: Rate,
}

/// What to do about something that came from a client.
#[derive(Debug)]
pub(super) enum Outcome<R> {
    /// Nothing.
    Silence,
    /// Send this to the client.
    Answer(Vec<u8>),
    /// Begin to take datagrams of peers on that relayed address, and send the answer.
    Opened { answer: Vec<u8>, relayed: SocketAddr, relay: R },
    /// Send that part of what came to the peer.
    Relay { relay: R, peer: SocketAddr, data: Range<usize> },
}

/// All allocations. `R` is the way out of a relayed address; dropping the last one closes it.
#[derive(Debug)]
pub(super) struct Server<R> {
    bounds: Bounds,
    secret: Arc<Secret>,
    peers: Arc<Peers>,
    counters: Arc<Counters>,
    /// Address that clients and peers see in place of the own one, behind a one-to-one NAT.
    public: Option<IpAddr>,
    allocations: HashMap<Client, Allocation<R>>,
    sources: Sources,
}

impl<R: Clone> Server<R> {
    pub(super) fn new(
        bounds: Bounds,
        public: Option<IpAddr>,
        secret: Arc<Secret>,
        peers: Arc<Peers>,
        counters: Arc<Counters>,
    ) -> Self {
        let (allocations, sources) = (HashMap::new(), Sources::default());
        Self { bounds, secret, peers, counters, public, allocations, sources }
    }

    /// Takes one message or frame of a client's. `open` makes a relayed address.
    pub(super) fn hear_client(
        &mut self,
        client: Client,
        bytes: &[u8],
        now: Now,
        open: impl FnOnce(Port) -> io::Result<(SocketAddr, R)>,
    ) -> Outcome<R> {
        // The two topmost bits tell channel data from messages (RFC 8656 section 12).
        if bytes.first().is_some_and(|first| first >> 6 == 1) {
            return self.channel_data(client, bytes, now.at);
        }
        let Ok(message) = Message::parse(bytes) else {
            count(&self.counters.malformed);
            return Outcome::Silence;
        };
        match (message.class, message.method) {
            (Class::Request, method::BINDING) => self.binding(client, &message, now.at),
            (Class::Request, _) => self.request(client, &message, now, open),
            (Class::Indication, method::SEND) => self.send_indication(client, &message, now.at),
            // Keep-alives, and answers to questions that were never asked.
            (Class::Indication | Class::Success | Class::Error, _) => Outcome::Silence,
        }
    }

    /// Takes a datagram of a peer's. Gives what to send to the client.
    pub(super) fn hear_peer(
        &mut self,
        client: Client,
        relayed: SocketAddr,
        peer: SocketAddr,
        data: &[u8],
        now: Instant,
    ) -> Option<Vec<u8>> {
        let allocation = self.allocations.get_mut(&client).filter(|found| found.relayed == relayed)?;
        let peer = canonical(peer);
        let passes = !allocation.is_over(now)
            && self.peers.may_relay(peer)
            && allocation.passes_from(peer.ip(), data.len(), now);
        if !passes {
            count(&self.counters.datagrams_dropped);
            return None;
        }
        count(&self.counters.datagrams_relayed);
        add(&self.counters.bytes_to_clients, data.len());
        if let Some(number) = allocation.channel_to(peer, now) {
            return Some(write_channel(number, data, client.transport != Transport::Udp));
        }
        let mut transaction = [0; 12];
        getrandom::fill(&mut transaction).ok()?;
        let indication = Builder::new(Class::Indication, method::DATA, transaction)
            .with_address(attribute::XOR_PEER_ADDRESS, peer)
            .with(attribute::DATA, data);
        Some(indication.finish(None, false))
    }

    /// Whether the client has an allocation.
    pub(super) fn has_allocation(&self, client: Client) -> bool {
        self.allocations.contains_key(&client)
    }

    /// The client's connection has ended, and what it had with it.
    pub(super) fn client_gone(&mut self, client: Client) {
        self.remove(client);
    }

    /// Takes back what is over.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.allocations.retain(|_, allocation| !allocation.is_over(now));
        self.note_count();
        self.sources.sweep(now);
    }

    /// Ends all allocations.
    pub(super) fn clear(&mut self) {
        self.allocations.clear();
        self.note_count();
    }

    fn remove(&mut self, client: Client) {
        if self.allocations.remove(&client).is_some() {
            self.note_count();
        }
    }

    fn note_count(&self) {
        let count = u64::try_from(self.allocations.len()).unwrap_or(u64::MAX);
        self.counters.allocations.store(count, std::sync::atomic::Ordering::Relaxed);
    }

    /// How many allocations a caller has, whatever credentials they were made with.
    fn count_of(&self, caller: &str) -> usize {
        let is_callers = |allocation: &&Allocation<R>| {
            Claim::read(&allocation.username).is_some_and(|claim| claim.caller == caller)
        };
        self.allocations.values().filter(is_callers).count()
    }

    fn binding(&mut self, client: Client, request: &Message<'_>, now: Instant) -> Outcome<R> {
        if !self.sources.may_be_answered(client.address.ip(), now) {
            return Outcome::Silence;
        }
        let mapped = canonical(client.address);
        let answer = Builder::success(request).with_address(attribute::XOR_MAPPED_ADDRESS, mapped);
        Outcome::Answer(answer.finish(None, request.fingerprinted))
    }

    fn channel_data(&mut self, client: Client, bytes: &[u8], now: Instant) -> Outcome<R> {
        let Some((number, data)) = read_channel(bytes) else {
            count(&self.counters.malformed);
            return Outcome::Silence;
        };
        let Some(allocation) = self.allocations.get(&client) else { return self.drop_datagram() };
        let Some(peer) = allocation.peer_of(number, now) else { return self.drop_datagram() };
        self.relay(client, peer, 4..4 + data.len(), now)
    }

    fn send_indication(&mut self, client: Client, message: &Message<'_>, now: Instant) -> Outcome<R> {
        let mut data = None;
        for (kind, value, at) in message.attributes() {
            match kind {
                attribute::DATA => data = data.or(Some(at..at + value.len())),
                attribute::XOR_PEER_ADDRESS | attribute::OPTIONAL_FROM.. => {}
                // What has to be understood and is not makes an indication void (RFC 8489 section 6.3.2).
                _ => return self.drop_datagram(),
            }
        }
        let Some((peer, data)) = message.address(attribute::XOR_PEER_ADDRESS).zip(data) else {
            return self.drop_datagram();
        };
        self.relay(client, canonical(peer), data, now)
    }

    fn relay(&mut self, client: Client, peer: SocketAddr, data: Range<usize>, now: Instant) -> Outcome<R> {
        let Some(allocation) = self.allocations.get_mut(&client) else { return self.drop_datagram() };
        let passes = !allocation.is_over(now)
            && data.len() <= DATAGRAM_MAX
            && peer.is_ipv4() == allocation.relayed.is_ipv4()
            // Asked each time: the endpoint's addresses may have changed since the permission.
            && self.peers.may_relay(peer)
            && allocation.passes_to(peer.ip(), data.len(), now);
        if !passes {
            return self.drop_datagram();
        }
        count(&self.counters.datagrams_relayed);
        add(&self.counters.bytes_to_peers, data.len());
        Outcome::Relay { relay: allocation.relay.clone(), peer, data }
    }

    fn drop_datagram(&self) -> Outcome<R> {
        count(&self.counters.datagrams_dropped);
        Outcome::Silence
    }
}

/// An IPv4 address that came in an IPv6 one counts as what it is.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
