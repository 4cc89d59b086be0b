//! STUN and TURN (RFC 8489, RFC 8656) for viewers whose way to the media endpoint is blocked, and the list of ICE
//! servers that pages get.
//!
//! ```text
//! page --UDP, TCP or TLS--> listener --> server (allocations, permissions, limits) --> relayed address --> endpoint
//! ```
//!
//! Whoever uses it shows a credential that the API made a short while ago. It relays to the own media endpoint and,
//! unless an operator wants more, to nothing else. It never logs credentials or what it relays.

mod allocation;
mod credentials;
mod external;
mod limits;
mod peers;
mod server;
mod sockets;
mod stats;
mod stun;
mod tls;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use crate::{
    clock::Clock,
    config::{TurnConfig, TurnListen},
};

pub use peers::EndpointAddresses;
pub use stats::TurnStats;

use allocation::Rate;
use credentials::{Secret, pseudonym};
use external::External;
use peers::Peers;
use server::{Bounds, Server};
use sockets::Shared;
use stats::Counters;

/// Name of the own secret's file in the data directory.
const SECRET_FILE: &str = "turn-secret";

/// One entry of a page's `iceServers`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct IceServer {
    /// Where it is, as `stun:`, `turn:` or `turns:` addresses.
    pub urls: Vec<String>,
    /// Name to use there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password to use there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
}

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// The shared secret.
    #[error("TURN secret in {path}: {source}")]
    Secret {
        /// Which file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An address cannot be listened on.
    #[error("TURN: listen on {listen}: {source}")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Certificate and key.
    #[error("TURN: {path}: {what}")]
    Tls {
        /// Which file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// The list of servers elsewhere.
    #[error("ICE servers in {path}: {}", .faults.join("; "))]
    IceServers {
        /// Which file.
        path: String,
        /// What is wrong.
        faults: Vec<String>,
    },
}

/// The built-in server, when it is on, and the ICE servers that pages are told of.
pub struct Turn {
    own: Option<Own>,
    external: External,
    ttl: Duration,
    clock: Clock,
}

/// The built-in server.
struct Own {
    shared: Arc<Shared>,
    peers: Arc<Peers>,
    secret: Arc<Secret>,
    listen: SocketAddr,
    tls_listen: Option<SocketAddr>,
    /// Host of `turn:` addresses.
    host: String,
    /// Host of `turns:` addresses.
    tls_host: String,
}

impl Turn {
    /// Reads secrets and certificates, binds, and begins to serve. Needs a runtime.
    pub fn open(config: &TurnConfig, data_dir: &Path, clock: Clock) -> Result<Self, TurnError> {
        let external =
            config.ice_servers_file.as_deref().map(External::read).transpose()?.unwrap_or_default();
        let (wanted, any_port) = match config.listen {
            TurnListen::Off => return Ok(Self { own: None, external, ttl: config.ttl, clock }),
            TurnListen::Near(address) => (address, Some(SocketAddr::new(address.ip(), 0))),
            TurnListen::At(address) => (address, None),
        };
        let secret = match &config.secret_file {
            Some(file) => Secret::open(file, false)?,
            None => Secret::open(&data_dir.join(SECRET_FILE), true)?,
        };
        let acceptor = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let at = |listen| move |source| TurnError::Listen { listen, source };
        let bound = sockets::bind_both(wanted).or_else(|error| match any_port {
            Some(any) if error.kind() == io::ErrorKind::AddrInUse => sockets::bind_both(any),
            _ => Err(error),
        });
        let (udp, tcp) = bound.map_err(at(wanted))?;
        let listen = tcp.local_addr().map_err(at(wanted))?;
        let tls = match (&config.tls, acceptor) {
            (Some(tls), Some(acceptor)) => {
                Some((sockets::bind_tcp(tls.listen).map_err(at(tls.listen))?, acceptor))
            }
            _ => None,
        };
        let tls_listen =
            tls.as_ref().map(|(listener, _)| listener.local_addr()).transpose().map_err(at(wanted))?;

        let public = config.public_address;
        let own_ips: Vec<IpAddr> = [listen.ip()].into_iter().chain(public).collect();
        let counters = Arc::new(Counters::default());
        let (secret, peers) = (Arc::new(secret), Arc::new(Peers::new(config.relay_to, own_ips)));
        let bounds = Bounds {
            realm: config.realm.clone(),
            allocations_max: config.allocations_max,
            allocations_per_user_max: config.allocations_per_user_max,
            rate: Rate { bytes_per_s: config.kbps_max / 8 * 1000, datagrams_per_s: config.datagrams_per_s },
        };
        let server =
            Server::new(bounds, public, Arc::clone(&secret), Arc::clone(&peers), Arc::clone(&counters));
        let shared = Shared::new(server, counters, clock, listen.ip(), config.connections_max);
        shared.start(udp, tcp, tls);
        tracing::info!(%listen, tls = tls_listen.map(tracing::field::display), "STUN and TURN");

        let host = host_text(public.unwrap_or(listen.ip()));
        let named = config.tls.as_ref().and_then(|tls| tls.name.clone());
        let tls_host = named.unwrap_or_else(|| host.clone());
        let own = Own { shared, peers, secret, listen, tls_listen, host, tls_host };
        Ok(Self { own: Some(own), external, ttl: config.ttl, clock })
    }

    /// Says where the own media endpoint is. Until then nothing is relayed to it. Only the first call counts.
    pub fn relay_to_endpoint(&self, addresses: EndpointAddresses) {
        if let Some(own) = &self.own {
            own.peers.set_endpoint(addresses);
        }
    }

    /// How long a credential can be used to begin. What has begun goes on.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// ICE servers for `caller`, with fresh credentials that name it by a pseudonym.
    pub fn ice_servers(&self, caller: &str) -> Vec<IceServer> {
        let until_s = self.clock.now_ms() / 1000 + self.ttl.as_secs();
        let caller = pseudonym(caller);
        let own = self.own.iter().map(|own| {
            let credential = own.secret.credential(&caller, until_s);
            IceServer {
                urls: own.urls(),
                username: Some(credential.username),
                credential: Some(credential.password.to_string()),
            }
        });
        own.chain(self.external.list(&caller, until_s)).collect()
    }

    /// Where the built-in server listens for UDP and TCP.
    pub fn listen(&self) -> Option<SocketAddr> {
        self.own.as_ref().map(|own| own.listen)
    }

    /// Where it listens for TLS.
    pub fn tls_listen(&self) -> Option<SocketAddr> {
        self.own.as_ref()?.tls_listen
    }

    /// What the built-in server has counted; nothing but zeros when it is off.
    pub fn stats(&self) -> TurnStats {
        self.own.as_ref().map(|own| own.shared.counters.look()).unwrap_or_default()
    }

    /// Ends the built-in server and waits until its sockets are closed.
    pub async fn shut_down(&self) {
        if let Some(own) = &self.own {
            own.shared.shut_down().await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            own.shared.stop.cancel();
        }
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("listen", &self.listen()).finish_non_exhaustive()
    }
}

impl Own {
    fn urls(&self) -> Vec<String> {
        let (host, port) = (&self.host, self.listen.port());
        let mut urls = vec![
            format!("stun:{host}:{port}"),
            format!("turn:{host}:{port}?transport=udp"),
            format!("turn:{host}:{port}?transport=tcp"),
        ];
        if let Some(tls) = self.tls_listen {
            urls.push(format!("turns:{}:{}?transport=tcp", self.tls_host, tls.port()));
        }
        urls
    }
}

fn host_text(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}
