//! The built-in STUN and TURN server, and ICE servers elsewhere.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use super::{ServerConfig, Settings};

/// The port after the controller's own and that of its media endpoint.
const PORT_OFFSET: u16 = 2;
/// RFC 8656 section 5.
const TLS_PORT: u16 = 5349;
const TTL_S: u64 = 600;
const TTL_MIN_S: u64 = 60;
const TTL_MAX_S: u64 = 24 * 60 * 60;
const ALLOCATIONS_MAX: usize = 256;
/// A browser makes several for each connection, one per way and network.
const ALLOCATIONS_PER_USER_MAX: usize = 64;
const CONNECTIONS_MAX: usize = 256;
const KBPS_MAX: u32 = 40_000;
const DATAGRAMS_PER_S: u32 = 10_000;
const REALM: &str = "polydev";

/// STUN and TURN.
#[derive(Debug, Clone)]
pub struct TurnConfig {
    /// Where the built-in server listens.
    pub listen: TurnListen,
    /// Where it listens for TLS, when there is a certificate.
    pub tls: Option<TurnTls>,
    /// The address that clients and peers see, when it is not the one that is listened on.
    pub public_address: Option<IpAddr>,
    /// The shared secret's file; one in the data directory unless given.
    pub secret_file: Option<PathBuf>,
    /// Realm of the credentials.
    pub realm: String,
    /// How long a credential can be used to begin.
    pub ttl: Duration,
    /// Who may be a peer.
    pub relay_to: RelayTo,
    /// Most allocations at one time.
    pub allocations_max: usize,
    /// Most allocations of one caller.
    pub allocations_per_user_max: usize,
    /// Most stream connections of clients at one time.
    pub connections_max: usize,
    /// Most kbit/s over one allocation, each way.
    pub kbps_max: u32,
    /// Most datagrams per second over one allocation, each way.
    pub datagrams_per_s: u32,
    /// JSON file with ICE servers elsewhere.
    pub ice_servers_file: Option<PathBuf>,
}

/// Where the built-in server listens, UDP and TCP alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnListen {
    /// Nowhere.
    Off,
    /// There; any free port when that one is taken.
    Near(SocketAddr),
    /// Exactly there; port 0 takes any free one.
    At(SocketAddr),
}

/// TLS of the built-in server.
#[derive(Debug, Clone)]
pub struct TurnTls {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Certificates as PEM, the own one first.
    pub certificate_file: PathBuf,
    /// Its private key as PEM.
    pub key_file: PathBuf,
    /// The name in the certificate, by which clients then have to call it.
    pub name: Option<String>,
}

/// Who may be a peer of the built-in server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayTo {
    /// The own media endpoint alone.
    Endpoint,
    /// That, and public addresses.
    Public,
}

impl TurnConfig {
    pub(super) fn read(settings: &mut Settings, server: &ServerConfig) -> Self {
        let port = match server.listen.port() {
            0 => 0,
            port => port.checked_add(PORT_OFFSET).unwrap_or(0),
        };
        let near = SocketAddr::new(server.listen.ip(), port);
        let listen = match settings.optional("turn_listen") {
            None => TurnListen::Near(near),
            Some(Listen::Off) => TurnListen::Off,
            Some(Listen::At(address)) => TurnListen::At(address),
        };
        let public_address: Option<IpAddr> = settings.optional("turn_public_address");
        let at = match listen {
            TurnListen::Off => near,
            TurnListen::Near(address) | TurnListen::At(address) => address,
        };
        // An address that follows the server's is judged there.
        if matches!(listen, TurnListen::At(address) if address.ip().is_unspecified()) {
            settings.reject(
                "turn_listen",
                "give one address of this machine: relayed addresses are opened on it",
            );
        }
        if public_address.is_some_and(|public| public.is_unspecified() || public.is_ipv4() != at.is_ipv4()) {
            settings.reject("turn_public_address", "must be an address of the same family as turn.listen");
        }
        let ttl_s = settings.get("turn_ttl_s", TTL_S);
        if !(TTL_MIN_S..=TTL_MAX_S).contains(&ttl_s) {
            settings.reject("turn_ttl_s", format!("must be {TTL_MIN_S} to {TTL_MAX_S}"));
        }
        let realm = settings.get("turn_realm", REALM.to_owned());
        if realm.is_empty() || realm.len() > 120 || realm.chars().any(|c| c.is_control() || c == '"') {
            settings.reject("turn_realm", "must be 1 to 120 characters without quotes");
        }
        let config = Self {
            listen,
            tls: tls(settings, at),
            public_address,
            secret_file: settings.optional("turn_secret_file"),
            realm,
            ttl: Duration::from_secs(ttl_s),
            relay_to: settings.get("turn_relay_to", RelayTo::Endpoint),
            allocations_max: at_least_one(settings, "turn_allocations_max", ALLOCATIONS_MAX),
            allocations_per_user_max: at_least_one(
                settings,
                "turn_allocations_per_user_max",
                ALLOCATIONS_PER_USER_MAX,
            ),
            connections_max: at_least_one(settings, "turn_connections_max", CONNECTIONS_MAX),
            kbps_max: settings.get("turn_kbps_max", KBPS_MAX),
            datagrams_per_s: settings.get("turn_datagrams_per_s", DATAGRAMS_PER_S),
            ice_servers_file: settings.optional("turn_ice_servers_file"),
        };
        // The bucket holds two seconds of it and must hold a datagram; at most what counts in 32 bits.
        if !(64..=8_000_000).contains(&config.kbps_max) {
            settings.reject("turn_kbps_max", "must be 64 to 8000000");
        }
        if config.datagrams_per_s == 0 {
            settings.reject("turn_datagrams_per_s", "must be at least 1");
        }
        config
    }
}

fn tls(settings: &mut Settings, at: SocketAddr) -> Option<TurnTls> {
    let default = SocketAddr::new(at.ip(), if at.port() == 0 { 0 } else { TLS_PORT });
    let listen: Option<SocketAddr> = settings.optional("turn_tls_listen");
    let name: Option<String> = settings.optional("turn_tls_name");
    match (settings.optional("turn_certificate_file"), settings.optional("turn_key_file")) {
        (Some(certificate_file), Some(key_file)) => {
            Some(TurnTls { listen: listen.unwrap_or(default), certificate_file, key_file, name })
        }
        (None, None) => {
            if listen.is_some() || name.is_some() {
                settings.reject("turn_tls_listen", "TLS needs certificate_file and key_file");
            }
            None
        }
        (Some(_), None) => {
            settings.reject("turn_certificate_file", "needs key_file too");
            None
        }
        (None, Some(_)) => {
            settings.reject("turn_key_file", "needs certificate_file too");
            None
        }
    }
}

fn at_least_one(settings: &mut Settings, setting: &'static str, default: usize) -> usize {
    let value = settings.get(setting, default);
    if value == 0 {
        settings.reject(setting, "must be at least 1");
    }
    value
}

enum Listen {
    Off,
    At(SocketAddr),
}

impl FromStr for Listen {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::At).map_err(|_| "must be an address with a port, or `off`"),
        }
    }
}

impl FromStr for RelayTo {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "endpoint" => Ok(Self::Endpoint),
            "public" => Ok(Self::Public),
            _ => Err("must be `endpoint` or `public`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigError};

    fn load(flags: &[(&'static str, &str)]) -> Result<TurnConfig, ConfigError> {
        let flags = flags.iter().map(|(setting, text)| (*setting, (*text).to_owned()));
        Config::load(None, [], flags).map(|config| config.turn)
    }

    #[test]
    fn it_is_on_by_default_beside_the_controller() {
        let turn = load(&[]).unwrap();
        assert_eq!(turn.listen, TurnListen::Near("127.0.0.1:4002".parse().unwrap()));
        assert_eq!((turn.relay_to, turn.ttl.as_secs()), (RelayTo::Endpoint, 600));
        let turn = load(&[("listen", "127.0.0.1:0")]).unwrap();
        assert_eq!(turn.listen, TurnListen::Near("127.0.0.1:0".parse().unwrap()));
        assert_eq!(load(&[("turn_listen", "off")]).unwrap().listen, TurnListen::Off);
    }

    #[test]
    fn tls_needs_both_files_and_has_its_port() {
        let files = [("turn_certificate_file", "/c.pem"), ("turn_key_file", "/k.pem")];
        let turn = load(&[files[0], files[1], ("turn_listen", "127.0.0.1:3478")]).unwrap();
        assert_eq!(turn.tls.unwrap().listen.to_string(), "127.0.0.1:5349");
        for alone in [files[0], files[1], ("turn_tls_listen", "127.0.0.1:1"), ("turn_tls_name", "a.example")]
        {
            assert_eq!(load(&[alone]).unwrap_err().0.len(), 1, "{alone:?}");
        }
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let error = load(&[
            ("turn_listen", "0.0.0.0:3478"),
            ("turn_public_address", "2001:db8::1"),
            ("turn_ttl_s", "5"),
            ("turn_relay_to", "everybody"),
            ("turn_allocations_max", "0"),
            ("turn_kbps_max", "1"),
            ("turn_realm", "a\"b"),
        ])
        .unwrap_err();
        assert_eq!(error.0.len(), 7, "{error}");
    }
}
