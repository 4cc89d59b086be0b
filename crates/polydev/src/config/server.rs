//! Where the controller listens and how long its links and cookies are good.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::Settings;

/// Port of the controller unless another is given.
const DEFAULT_PORT: u16 = 4000;
const LINK_TTL_S: u64 = 15 * 60;
const COOKIE_TTL_S: u64 = 12 * 60 * 60;

/// Where it listens.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Loopback address and port; port 0 takes any free one.
    pub listen: SocketAddr,
    /// How long a one-time link can be opened.
    pub link_ttl: Duration,
    /// How long a page stays signed in.
    pub cookie_ttl: Duration,
}

impl ServerConfig {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_PORT);
        let listen = settings.get("listen", default);
        if !listen.ip().is_loopback() {
            settings.reject(
                "listen",
                format!("{listen} is not a loopback address; polydev listens on 127.0.0.1 or [::1] only"),
            );
        }
        Self {
            listen,
            link_ttl: Duration::from_secs(settings.get("link_ttl_s", LINK_TTL_S)),
            cookie_ttl: Duration::from_secs(settings.get("cookie_ttl_s", COOKIE_TTL_S)),
        }
    }
}
