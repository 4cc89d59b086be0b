//! How much a client may make the server do.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Longest datagram that is relayed; media and data channels stay below 1500 bytes.
pub(super) const DATAGRAM_MAX: usize = 8 << 10;
/// Peers that one allocation may have permissions for.
pub(super) const PERMISSIONS_MAX: usize = 32;
/// Channels of one allocation.
pub(super) const CHANNELS_MAX: usize = 32;
/// RFC 8656 section 9.
pub(super) const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// RFC 8656 section 12.
pub(super) const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);
/// RFC 8656 section 7.2.
pub(super) const LIFETIME_DEFAULT_S: u32 = 600;
/// Longest that is granted; clients refresh.
pub(super) const LIFETIME_MAX_S: u32 = 3600;
/// An allocation over which neither data nor a request went for so long is taken back. Live clients refresh their
/// permissions at least that often.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(360);
/// An allocation may outlive the credential it was made with, but not by more than this.
pub(super) const SESSION_MAX: Duration = Duration::from_secs(12 * 60 * 60);
/// Answers to who has not shown a credential, per second and address: a forged source is not worth much.
const ANSWERS_PER_S: u32 = 100;
/// Allocations begun per second and address.
const ALLOCATIONS_PER_S: u32 = 10;
/// Bursts are of that many seconds.
const BURST_S: f64 = 2.0;
/// Addresses that are watched at one time.
const SOURCES_MAX: usize = 4096;

/// Lets through a burst, then a steady rate, of things that weigh differently.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: f64,
    level: f64,
    filled: Instant,
}

impl Bucket {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, level: per_second * BURST_S, filled: now }
    }

    /// Whether `amount` may pass now.
    pub(super) fn take(&mut self, amount: usize, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = self.filled.max(now);
        self.level = (self.level + passed * self.per_second).min(self.per_second * BURST_S);
        let amount = f64::from(u32::try_from(amount).unwrap_or(u32::MAX));
        let passes = self.level >= amount;
        if passes {
            self.level -= amount;
        }
        passes
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.take(0, now);
        self.level >= self.per_second * BURST_S
    }
}

/// What each address does.
#[derive(Debug, Default)]
pub(super) struct Sources {
    known: HashMap<IpAddr, Source>,
}

#[derive(Debug)]
struct Source {
    answers: Bucket,
    allocations: Bucket,
}

impl Sources {
    /// Whether somebody without a credential gets an answer.
    pub(super) fn may_be_answered(&mut self, from: IpAddr, now: Instant) -> bool {
        self.source(from, now).is_some_and(|source| source.answers.take(1, now))
    }

    /// Whether one more allocation may be begun from there.
    pub(super) fn may_allocate(&mut self, from: IpAddr, now: Instant) -> bool {
        self.source(from, now).is_some_and(|source| source.allocations.take(1, now))
    }

    /// Forgets who has been quiet.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.known.retain(|_, source| !(source.answers.is_full(now) && source.allocations.is_full(now)));
    }

    /// `None` when more addresses are busy at one time than are watched.
    fn source(&mut self, from: IpAddr, now: Instant) -> Option<&mut Source> {
        let key = network(from);
        if self.known.len() >= SOURCES_MAX && !self.known.contains_key(&key) {
            return None;
        }
        Some(self.known.entry(key).or_insert_with(|| Source {
            answers: Bucket::new(ANSWERS_PER_S, now),
            allocations: Bucket::new(ALLOCATIONS_PER_S, now),
        }))
    }
}

/// One customer of a provider: an IPv4 address, or an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_a_burst_and_then_its_rate_through() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, start);
        assert!(bucket.take(2000, start) && !bucket.take(1, start));
        assert!(bucket.take(500, start + Duration::from_millis(500)));
        assert!(!bucket.take(2, start + Duration::from_millis(501)));
        assert!(!bucket.take(2001, start + Duration::from_secs(60)), "more than a burst");
    }

    #[test]
    fn each_address_has_a_share_and_a_flood_of_addresses_costs_no_memory() {
        let (start, mut sources) = (Instant::now(), Sources::default());
        let [noisy, quiet] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let answered = (0..1000).filter(|_| sources.may_be_answered(noisy, start)).count();
        assert_eq!(answered, 200);
        assert!(sources.may_be_answered(quiet, start));
        for host in 0..100_000_u32 {
            sources.may_be_answered(IpAddr::from(host.to_be_bytes()), start);
        }
        assert_eq!(sources.known.len(), SOURCES_MAX);
        sources.sweep(start + Duration::from_secs(3));
        assert!(sources.known.is_empty());
    }

    #[test]
    fn addresses_of_one_ipv6_network_share() {
        let parse = |text: &str| network(text.parse().unwrap());
        assert_eq!(parse("2001:db8:1:2:3::4"), parse("2001:db8:1:2:ffff::"));
        assert_ne!(parse("2001:db8:1:2::"), parse("2001:db8:1:3::"));
        assert_eq!(parse("::ffff:192.0.2.1"), parse("192.0.2.1"));
    }
}
