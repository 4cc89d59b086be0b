//! One allocation: a relayed address, the peers its client has permissions for, and the channels to them.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use super::limits::{
    Bucket, CHANNEL_LIFETIME, CHANNELS_MAX, IDLE_MAX, PERMISSION_LIFETIME, PERMISSIONS_MAX, SESSION_MAX,
};

/// Channel numbers (RFC 8656 section 12; up to 0x4fff there, up to 0x7ffe before, and browsers still use those).
const CHANNEL_NUMBERS: std::ops::RangeInclusive<u16> = 0x4000..=0x7ffe;

/// A relayed address and what may go over it. `R` is the way out of that address.
#[derive(Debug)]
pub(super) struct Allocation<R> {
    /// Whose it is.
    pub(super) username: String,
    /// Key of the credential it was made with.
    pub(super) key: Zeroizing<[u8; 16]>,
    /// The request that made it, so that its repetition is answered and not refused.
    pub(super) transaction: [u8; 12],
    /// The relayed address on this machine.
    pub(super) relayed: SocketAddr,
    /// The way out.
    pub(super) relay: R,
    made: Instant,
    expires: Instant,
    used: Instant,
    permissions: Vec<(IpAddr, Instant)>,
    channels: Vec<Channel>,
    to_peers: Flow,
    to_client: Flow,
}

#[derive(Debug, Clone, Copy)]
struct Channel {
    number: u16,
    peer: SocketAddr,
    expires: Instant,
}

/// What may go in one direction.
#[derive(Debug)]
struct Flow {
    bytes: Bucket,
    datagrams: Bucket,
}

/// Most of everything in one direction of an allocation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) bytes_per_s: u32,
    pub(super) datagrams_per_s: u32,
}

/// Why a channel or a permission is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BindError {
    /// The number is out of range, or it or the peer is bound otherwise.
    Conflict,
    /// There are as many as may be.
    Full,
}

impl<R> Allocation<R> {
    pub(super) fn new(
        (username, key): (String, Zeroizing<[u8; 16]>),
        transaction: [u8; 12],
        (relayed, relay): (SocketAddr, R),
        rate: Rate,
        now: Instant,
    ) -> Self {
        let flow = || Flow {
            bytes: Bucket::new(rate.bytes_per_s, now),
            datagrams: Bucket::new(rate.datagrams_per_s, now),
        };
        Self {
            username,
            key,
            transaction,
            relayed,
            relay,
            made: now,
            expires: now,
            used: now,
            permissions: Vec::new(),
            channels: Vec::new(),
            to_peers: flow(),
            to_client: flow(),
        }
    }

    /// Whether it has ended: by its lifetime, because nobody uses it, or because it is very old.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let since = |then: Instant| now.saturating_duration_since(then);
        now >= self.expires || since(self.used) >= IDLE_MAX || since(self.made) >= SESSION_MAX
    }

    /// Lets it live from now for that long.
    pub(super) fn refresh(&mut self, lifetime: Duration, now: Instant) {
        self.expires = now + lifetime;
        self.used = now;
    }

    /// Lets datagrams to and from that address through for a while.
    pub(super) fn permit(&mut self, peer: IpAddr, now: Instant) -> Result<(), BindError> {
        self.used = now;
        self.permissions.retain(|(ip, expires)| *ip != peer && *expires > now);
        if self.permissions.len() >= PERMISSIONS_MAX {
            return Err(BindError::Full);
        }
        self.permissions.push((peer, now + PERMISSION_LIFETIME));
        Ok(())
    }

    /// Binds a channel, or binds it anew.
    pub(super) fn bind(&mut self, number: u16, peer: SocketAddr, now: Instant) -> Result<(), BindError> {
        self.channels.retain(|channel| channel.expires > now);
        let conflicts = |channel: &Channel| (channel.number == number) != (channel.peer == peer);
        if !CHANNEL_NUMBERS.contains(&number) || self.channels.iter().any(conflicts) {
            return Err(BindError::Conflict);
        }
        let known = self.channels.iter().any(|channel| channel.number == number);
        if !known && self.channels.len() >= CHANNELS_MAX {
            return Err(BindError::Full);
        }
        self.permit(peer.ip(), now)?;
        self.channels.retain(|channel| channel.number != number);
        self.channels.push(Channel { number, peer, expires: now + CHANNEL_LIFETIME });
        Ok(())
    }

    /// The peer of a channel.
    pub(super) fn peer_of(&self, number: u16, now: Instant) -> Option<SocketAddr> {
        let bound = self.channels.iter().find(|channel| channel.number == number && channel.expires > now);
        bound.map(|channel| channel.peer)
    }

    /// The channel to a peer.
    pub(super) fn channel_to(&self, peer: SocketAddr, now: Instant) -> Option<u16> {
        let bound = self.channels.iter().find(|channel| channel.peer == peer && channel.expires > now);
        bound.map(|channel| channel.number)
    }

    /// Whether a datagram of that size may go to that peer now.
    pub(super) fn passes_to(&mut self, peer: IpAddr, bytes: usize, now: Instant) -> bool {
        let passes = self.is_permitted(peer, now) && self.to_peers.take(bytes, now);
        if passes {
            self.used = now;
        }
        passes
    }

    /// Whether a datagram of that size may come from that peer now.
    pub(super) fn passes_from(&mut self, peer: IpAddr, bytes: usize, now: Instant) -> bool {
        let passes = self.is_permitted(peer, now) && self.to_client.take(bytes, now);
        if passes {
            self.used = now;
        }
        passes
    }

    fn is_permitted(&self, peer: IpAddr, now: Instant) -> bool {
        self.permissions.iter().any(|(ip, expires)| *ip == peer && *expires > now)
    }
}

impl Flow {
    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        self.datagrams.take(1, now) && self.bytes.take(bytes, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { bytes_per_s: 10_000, datagrams_per_s: 100 };

    fn allocation(now: Instant) -> Allocation<()> {
        let who = ("1:page".to_owned(), Zeroizing::new([0; 16]));
        let mut made = Allocation::new(who, [0; 12], ("127.0.0.1:50000".parse().unwrap(), ()), RATE, now);
        made.refresh(Duration::from_secs(600), now);
        made
    }

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::new("192.0.2.1".parse().unwrap(), port)
    }

    #[test]
    fn a_permission_is_for_one_address_and_ends() {
        let start = Instant::now();
        let mut allocation = allocation(start);
        assert!(!allocation.passes_to(peer(1).ip(), 100, start));
        allocation.permit(peer(1).ip(), start).unwrap();
        assert!(allocation.passes_to(peer(2).ip(), 100, start));
        assert!(!allocation.passes_from("192.0.2.2".parse().unwrap(), 100, start));
        let later = start + PERMISSION_LIFETIME;
        assert!(!allocation.passes_from(peer(1).ip(), 100, later));
        allocation.permit(peer(1).ip(), later).unwrap();
        assert!(allocation.passes_from(peer(1).ip(), 100, later));
    }

    #[test]
    fn a_channel_belongs_to_one_peer_until_it_ends() {
        let start = Instant::now();
        let mut allocation = allocation(start);
        assert_eq!(allocation.bind(0x4000, peer(1), start), Ok(()));
        assert_eq!(allocation.bind(0x4000, peer(1), start), Ok(()), "bound anew");
        assert_eq!(allocation.bind(0x4000, peer(2), start), Err(BindError::Conflict));
        assert_eq!(allocation.bind(0x4001, peer(1), start), Err(BindError::Conflict));
        assert_eq!(allocation.bind(0x3fff, peer(3), start), Err(BindError::Conflict));
        assert_eq!(allocation.bind(0x7fff, peer(3), start), Err(BindError::Conflict));
        assert_eq!(
            (allocation.peer_of(0x4000, start), allocation.channel_to(peer(1), start)),
            (Some(peer(1)), Some(0x4000))
        );
        let later = start + CHANNEL_LIFETIME;
        assert_eq!((allocation.peer_of(0x4000, later), allocation.channel_to(peer(1), later)), (None, None));
        assert_eq!(allocation.bind(0x4000, peer(2), later), Ok(()));
    }

    #[test]
    fn channels_and_permissions_are_bounded() {
        let start = Instant::now();
        let mut allocation = allocation(start);
        let bound = (0..100).filter(|n| allocation.bind(0x4000 + n, peer(1000 + n), start).is_ok()).count();
        assert_eq!(bound, CHANNELS_MAX);
        let permitted =
            (0..100_u8).filter(|n| allocation.permit([198, 51, 100, *n].into(), start).is_ok()).count();
        assert_eq!(permitted, PERMISSIONS_MAX - 1, "one is held by the channels");
    }

    #[test]
    fn it_ends_by_its_lifetime_by_disuse_and_by_age() {
        let start = Instant::now();
        let mut short = allocation(start);
        short.refresh(Duration::from_secs(10), start);
        assert!(
            !short.is_over(start + Duration::from_secs(9)) && short.is_over(start + Duration::from_secs(10))
        );
        assert!(allocation(start).is_over(start + IDLE_MAX));
        let mut old = allocation(start);
        let last = start + SESSION_MAX - Duration::from_secs(1);
        old.refresh(Duration::from_secs(600), last);
        assert!(!old.is_over(last) && old.is_over(last + Duration::from_secs(1)));
    }

    #[test]
    fn each_direction_has_its_own_rate() {
        let start = Instant::now();
        let mut allocation = allocation(start);
        allocation.permit(peer(1).ip(), start).unwrap();
        let sent = (0..1000).filter(|_| allocation.passes_to(peer(1).ip(), 10, start)).count();
        assert_eq!(sent, 200, "two seconds' worth of datagrams");
        let received = (0..1000).filter(|_| allocation.passes_from(peer(1).ip(), 1000, start)).count();
        assert_eq!(received, 20, "two seconds' worth of bytes");
    }
}
