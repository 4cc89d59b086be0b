//! The routes file: `[[route]]` tables with `host` (exact, or `*.suffix`), `port` and `to` (a loopback address).

use std::{net::SocketAddr, path::Path};

use serde::Deserialize;

/// A routes file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// It cannot be read.
    #[error("egress routes {path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no routes file.
    #[error("egress routes: {0}")]
    Parse(#[from] toml::de::Error),
    /// A route leads out of this machine's loopback.
    #[error("egress route of {host}: target {to} is not a loopback address")]
    NotLoopback {
        /// Of which host.
        host: String,
        /// Where to.
        to: SocketAddr,
    },
    /// A host that is no host name.
    #[error("egress route of `{host}`: not a host name or `*.suffix`")]
    Host {
        /// The text.
        host: String,
    },
}

/// Which hosts are played by a loopback service. Exact hosts win over suffixes, longer suffixes over shorter ones.
#[derive(Debug, Clone, Default)]
pub struct Routes(Vec<Route>);

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    host: String,
    port: u16,
    to: SocketAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoutesFile {
    #[serde(default)]
    route: Vec<Route>,
}

impl Routes {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, RouteError> {
        let read = std::fs::read_to_string(path);
        Self::parse(&read.map_err(|source| RouteError::Read { path: path.display().to_string(), source })?)
    }

    /// Reads a text.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        let mut routes = toml::from_str::<RoutesFile>(text)?.route;
        for route in &mut routes {
            route.host.make_ascii_lowercase();
            let name = route.host.strip_prefix("*.").unwrap_or(&route.host);
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if name.is_empty() || !name.chars().all(good) {
                return Err(RouteError::Host { host: route.host.clone() });
            }
            if !route.to.ip().is_loopback() {
                return Err(RouteError::NotLoopback { host: route.host.clone(), to: route.to });
            }
        }
        routes.sort_by_key(|route| (route.host.starts_with('*'), std::cmp::Reverse(route.host.len())));
        Ok(Self(routes))
    }

    /// Where a lower-case host name and a port lead.
    pub fn target(&self, host: &str, port: u16) -> Option<SocketAddr> {
        let fits = |route: &&Route| {
            let matches = match route.host.strip_prefix('*') {
                Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
                None => host == route.host,
            };
            matches && route.port == port
        };
        self.0.iter().find(fits).map(|route| route.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_hosts_win_over_suffixes_and_a_suffix_is_not_its_own_subdomain() {
        let text = "[[route]]\nhost='*.example.test'\nport=443\nto='127.0.0.1:1'\n\
                    [[route]]\nhost='a.example.test'\nport=443\nto='127.0.0.1:2'\n";
        let routes = Routes::parse(text).unwrap();
        let port = |host| routes.target(host, 443).map(|to| to.port());
        assert_eq!(port("a.example.test"), Some(2));
        assert_eq!(port("b.example.test"), Some(1));
        assert_eq!(port("example.test"), None);
        assert_eq!(port("badexample.test"), None);
    }

    #[test]
    fn routes_out_of_the_machine_and_unknown_keys_are_refused() {
        let out = Routes::parse("[[route]]\nhost='a.test'\nport=443\nto='192.0.2.1:443'\n");
        assert!(matches!(out, Err(RouteError::NotLoopback { .. })));
        assert!(matches!(
            Routes::parse("[[route]]\nhost='a/b'\nport=1\nto='127.0.0.1:1'\n"),
            Err(RouteError::Host { .. })
        ));
        assert!(Routes::parse("[[rout]]\nhost='a.test'\n").is_err());
    }
}
