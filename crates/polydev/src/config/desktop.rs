//! The live desktop: where its media come in, who may watch and how good the picture may be.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::desktop::talk::ClipboardPolicy;

use super::Settings;

const VIEWERS_MAX: usize = 8;
/// A browser in a VM paints 30 times a second; whatever else changes need not wait for that.
const MAX_FPS: u8 = 60;
const MAX_KBPS: u32 = 20_000;
/// More names than that are a mistake, and would make every answer long.
const PUBLIC_ADDRESSES_MAX: usize = 8;

/// How desktops are shown.
#[derive(Debug, Clone)]
pub struct DesktopConfig {
    /// Address and port of the media endpoint, UDP and TCP; port 0 takes any free one. Other than the API it may be
    /// reachable from outside: nothing gets an answer there without the credentials that the API hands out.
    pub listen: SocketAddr,
    /// Addresses under which that endpoint is reached besides: those of a NAT in front of it.
    pub public_addresses: Vec<IpAddr>,
    /// Which way clipboard texts go.
    pub clipboard: ClipboardPolicy,
    /// Most viewers of one desktop.
    pub viewers_max: usize,
    /// Most frames per second.
    pub max_fps: u8,
    /// Most kbit/s for one viewer.
    pub max_kbps: u32,
}

impl DesktopConfig {
    /// `server` is where the API listens: the endpoint is beside it unless told otherwise.
    pub(super) fn read(settings: &mut Settings, server: SocketAddr) -> Self {
        // Port 65535 has no next one: any free port then.
        let port = if server.port() == 0 { 0 } else { server.port().checked_add(1).unwrap_or(0) };
        let config = Self {
            listen: settings.get("desktop_listen", SocketAddr::new(server.ip(), port)),
            public_addresses: settings.get("desktop_public_addresses", Addresses(Vec::new())).0,
            clipboard: settings.get("desktop_clipboard", ClipboardPolicy::Both),
            viewers_max: settings.get("desktop_viewers_max", VIEWERS_MAX),
            max_fps: settings.get("desktop_max_fps", MAX_FPS),
            max_kbps: settings.get("desktop_max_kbps", MAX_KBPS),
        };
        if config.listen.ip().is_multicast() {
            settings.reject("desktop_listen", "must be an address of this machine");
        }
        if !(1..=64).contains(&config.viewers_max) {
            settings.reject("desktop_viewers_max", "must be 1 to 64");
        }
        if !(1..=60).contains(&config.max_fps) {
            settings.reject("desktop_max_fps", "must be 1 to 60");
        }
        if !(300..=100_000).contains(&config.max_kbps) {
            settings.reject("desktop_max_kbps", "must be 300 to 100000");
        }
        config
    }
}

/// Addresses with commas between them.
struct Addresses(Vec<IpAddr>);

impl FromStr for Addresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let addresses = names
            .map(|name| name.parse::<IpAddr>().map_err(|_| format!("`{name}` is no IP address")))
            .collect::<Result<BTreeSet<_>, _>>()?;
        if addresses.len() > PUBLIC_ADDRESSES_MAX {
            return Err(format!("at most {PUBLIC_ADDRESSES_MAX} addresses"));
        }
        match addresses.iter().find(|address| address.is_unspecified() || address.is_multicast()) {
            Some(address) => Err(format!("nobody can connect to {address}")),
            None => Ok(Self(addresses.into_iter().collect())),
        }
    }
}

impl FromStr for ClipboardPolicy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "both" => Ok(Self::Both),
            "in" => Ok(Self::In),
            "out" => Ok(Self::Out),
            "off" => Ok(Self::Off),
            _ => Err("must be `both`, `in`, `out` or `off`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, ConfigError};

    fn load(flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
        Config::load(None, [], flags.iter().map(|(name, text)| (*name, (*text).to_owned())))
    }

    fn listen(flags: &[(&'static str, &str)]) -> String {
        load(flags).unwrap().desktop.listen.to_string()
    }

    #[test]
    fn media_come_in_beside_the_api_unless_told_otherwise() {
        assert_eq!(listen(&[]), "127.0.0.1:4001");
        assert_eq!(listen(&[("listen", "[::1]:5000")]), "[::1]:5001");
        assert_eq!(listen(&[("listen", "127.0.0.1:0")]), "127.0.0.1:0");
        assert_eq!(listen(&[("listen", "127.0.0.1:65535")]), "127.0.0.1:0");
        assert_eq!(listen(&[("desktop_listen", "[::]:7000")]), "[::]:7000");
    }

    #[test]
    fn public_addresses_are_a_list_without_doubles() {
        let config = load(&[("desktop_public_addresses", "203.0.113.7, 2001:db8::1,203.0.113.7")]).unwrap();
        let texts: Vec<_> = config.desktop.public_addresses.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["203.0.113.7", "2001:db8::1"]);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (name, text, said) in [
            ("desktop_listen", "here", "desktop_listen"),
            ("desktop_listen", "224.0.0.1:1", "address of this machine"),
            ("desktop_public_addresses", "example.test", "no IP address"),
            ("desktop_public_addresses", "0.0.0.0", "nobody can connect"),
            ("desktop_clipboard", "maybe", "`both`, `in`, `out` or `off`"),
            ("desktop_viewers_max", "0", "1 to 64"),
            ("desktop_max_fps", "61", "1 to 60"),
            ("desktop_max_kbps", "100", "300 to 100000"),
        ] {
            let error = load(&[(name, text)]).unwrap_err().to_string();
            assert!(error.contains(said), "{name} = {text}: {error}");
        }
    }
}
