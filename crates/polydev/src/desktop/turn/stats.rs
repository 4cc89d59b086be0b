//! What the server counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// A look at the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TurnStats {
    /// Allocations that exist now.
    pub allocations: u64,
    /// Stream connections (TCP and TLS) of clients that exist now.
    pub connections: u64,
    /// Allocations made since the start.
    pub allocations_made: u64,
    /// Allocations refused for a limit.
    pub allocations_refused: u64,
    /// Requests with a credential that is forged, expired or of somebody else.
    pub credentials_refused: u64,
    /// Peers that policy forbids.
    pub peers_refused: u64,
    /// Bytes from clients to peers.
    pub bytes_to_peers: u64,
    /// Bytes from peers to clients.
    pub bytes_to_clients: u64,
    /// Datagrams relayed, both ways.
    pub datagrams_relayed: u64,
    /// Datagrams that were dropped: over a limit, without permission, or because the receiver was too slow.
    pub datagrams_dropped: u64,
    /// Messages that were no STUN or TURN.
    pub malformed: u64,
}

macro_rules! counters {
    ($($name:ident),+ $(,)?) => {
        /// The counters themselves.
        #[derive(Debug, Default)]
        pub(super) struct Counters { $(pub(super) $name: AtomicU64),+ }

        impl Counters {
            /// A look at them.
            pub(super) fn look(&self) -> TurnStats {
                TurnStats { $($name: self.$name.load(Ordering::Relaxed)),+ }
            }
        }
    };
}

counters!(
    allocations,
    connections,
    allocations_made,
    allocations_refused,
    credentials_refused,
    peers_refused,
    bytes_to_peers,
    bytes_to_clients,
    datagrams_relayed,
    datagrams_dropped,
    malformed,
);

/// Counts one more.
pub(super) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Counts so many more.
pub(super) fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(u64::try_from(amount).unwrap_or(u64::MAX), Ordering::Relaxed);
}
