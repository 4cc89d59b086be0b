//! Names and limits of slot networks. What the guest sees is in [`polydev_core::guest::network`].

use std::{net::Ipv4Addr, time::Duration};

/// A microVM's end of the network, in the slot's namespace.
pub const TAP: &str = "tap0";
/// The gateway's end where the guest is a container.
pub const VETH: &str = "vm0";
/// Directory of the namespaces, in the run directory.
pub const NAMESPACES: &str = "netns";
/// Ending of the name of a container's own namespace.
pub const GUEST_SUFFIX: &str = ".guest";

/// First of the addresses that stand for names: a block that is never routed (RFC 2544).
pub(crate) const FIRST_NAME: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// How many of them there are.
pub(crate) const NAME_ADDRESSES: u32 = (1 << 17) - 2;
/// TCP ports that are taken at any address.
pub(crate) const PORTS: [u16; 2] = [80, 443];
pub(crate) const DNS_PORT: u16 = 53;

/// How long a guest may take to say which name it wants.
pub(crate) const FIRST_WORDS_LIMIT: Duration = Duration::from_secs(10);
/// Most bytes that are read for it.
pub(crate) const FIRST_WORDS_MAX: usize = 16 << 10;
/// How long the handler may take to connect.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How long a DNS connection may stay silent.
pub(crate) const DNS_SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// Most DNS connections at one time.
pub(crate) const DNS_CONNECTIONS_MAX: usize = 16;

/// When fewer networks than this lie ready, more are made ahead.
pub(crate) const LOW_MARK: usize = 2;
/// Until so many lie ready.
pub(crate) const HIGH_MARK: usize = 4;
