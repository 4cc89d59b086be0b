//! A user's upstream proxy: `http://user:password@host:port` or `socks5://...`.
//!
//! Nothing here prints the credentials: neither `Debug` nor an error does.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use zeroize::Zeroizing;

use super::target::Target;

/// Longest user name and password (RFC 1929: their lengths are one byte).
const LOGIN_MAX: usize = 255;

/// How it is talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP `CONNECT` (RFC 9110 section 9.3.6).
    Http,
    /// SOCKS version 5 (RFC 1928); names are resolved by the proxy.
    Socks5,
}

impl Scheme {
    /// As it is written in an address.
    pub fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Socks5 => "socks5",
        }
    }
}

/// An upstream proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Upstream {
    pub(super) scheme: Scheme,
    pub(super) host: Target,
    pub(super) port: u16,
    pub(super) login: Option<Login>,
}

/// What the proxy wants to be told.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: Zeroizing<String>,
    pub(super) password: Zeroizing<String>,
}

/// Why a text is no upstream proxy. Holds nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamFault {
    /// Another scheme, or none.
    #[error("an upstream proxy is http://user:password@host:port or socks5://user:password@host:port")]
    Scheme,
    /// More than a proxy's address has.
    #[error("an upstream proxy's address ends with its port")]
    Rest,
    /// No host or port.
    #[error("an upstream proxy's address needs a host and a port")]
    Place,
    /// User name and password.
    #[error(
        "user name and password of an upstream proxy are 1 to 255 bytes each, percent-encoded, without control characters; no colon in the name"
    )]
    Login,
}

impl Upstream {
    /// Reads an address.
    pub fn parse(text: &str) -> Result<Self, UpstreamFault> {
        let (scheme, rest) = text.trim().split_once("://").ok_or(UpstreamFault::Scheme)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            // With an `h` it says in some programs what is meant here anyway: the proxy resolves names.
            "socks5" | "socks5h" => Scheme::Socks5,
            _ => return Err(UpstreamFault::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(UpstreamFault::Rest);
        }
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(Login::parse(login)?), place),
            None => (None, rest),
        };
        let (host, port) = place.rsplit_once(':').ok_or(UpstreamFault::Place)?;
        // An IPv6 address without brackets has lost its last part to the port.
        if host.contains(':') != host.starts_with('[') {
            return Err(UpstreamFault::Place);
        }
        let host = Target::parse(host).ok_or(UpstreamFault::Place)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(UpstreamFault::Place)?;
        Ok(Self { scheme, host, port, login })
    }

    /// How it is talked to.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Its host.
    pub fn host(&self) -> String {
        self.host.text()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is told a user name and a password.
    pub fn has_login(&self) -> bool {
        self.login.is_some()
    }

    /// The whole address, credentials included, for the vault.
    pub(super) fn to_secret(&self) -> Zeroizing<String> {
        // Every byte may take three: a buffer that grows leaves copies behind.
        let mut out = Zeroizing::new(String::with_capacity(6 * LOGIN_MAX + 300));
        out.push_str(self.scheme.word());
        out.push_str("://");
        if let Some(Login { user, password }) = &self.login {
            out.extend(utf8_percent_encode(user, NON_ALPHANUMERIC));
            out.push(':');
            out.extend(utf8_percent_encode(password, NON_ALPHANUMERIC));
            out.push('@');
        }
        out.push_str(&self.host.authority(self.port));
        out
    }
}

impl Login {
    fn parse(text: &str) -> Result<Self, UpstreamFault> {
        let (user, password) = text.split_once(':').ok_or(UpstreamFault::Login)?;
        let decode = |part: &str| {
            let decoded = percent_decode_str(part).decode_utf8().ok()?;
            let good = (1..=LOGIN_MAX).contains(&decoded.len()) && !decoded.contains(char::is_control);
            good.then(|| Zeroizing::new(decoded.into_owned()))
        };
        let user = decode(user).filter(|user| !user.contains(':')).ok_or(UpstreamFault::Login)?;
        Ok(Self { user, password: decode(password).ok_or(UpstreamFault::Login)? })
    }

    /// Value of `Proxy-Authorization` (RFC 7617).
    pub(super) fn basic(&self) -> Zeroizing<String> {
        let pair = Zeroizing::new(format!("{}:{}", *self.user, *self.password));
        let encoded = Zeroizing::new(STANDARD.encode(pair.as_bytes()));
        Zeroizing::new(format!("Basic {}", *encoded))
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upstream({}://{})", self.scheme.word(), self.host.authority(self.port))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_kinds_are_read_with_and_without_credentials() {
        let upstream = Upstream::parse("http://ada:FAKE%40pass%3Aword@Proxy.Example.test:3128/").unwrap();
        assert_eq!(
            (upstream.scheme(), upstream.host(), upstream.port()),
            (Scheme::Http, "proxy.example.test".to_owned(), 3128)
        );
        let login = upstream.login.as_ref().unwrap();
        assert_eq!((login.user.as_str(), login.password.as_str()), ("ada", "FAKE@pass:word"));
        assert!(!format!("{upstream:?}").contains("FAKE"));
        let upstream = Upstream::parse("socks5h://[::1]:1080").unwrap();
        assert_eq!((upstream.scheme(), upstream.has_login()), (Scheme::Socks5, false));
        assert_eq!(*upstream.to_secret(), "socks5://[::1]:1080");
    }

    #[test]
    fn what_is_no_upstream_is_told_why_without_repeating_it() {
        let cases = [
            ("proxy.test:3128", UpstreamFault::Scheme),
            ("https://proxy.test:3128", UpstreamFault::Scheme),
            ("http://proxy.test:3128/path", UpstreamFault::Rest),
            ("http://proxy.test", UpstreamFault::Place),
            ("http://proxy.test:0", UpstreamFault::Place),
            ("http://::1:3128", UpstreamFault::Place),
            ("http://pro xy.test:3128", UpstreamFault::Place),
            ("http://FAKEuser@proxy.test:3128", UpstreamFault::Login),
            ("http://FAKEuser:@proxy.test:3128", UpstreamFault::Login),
            ("http://FAKE%3Auser:FAKEpass@proxy.test:3128", UpstreamFault::Login),
            ("http://FAKEuser:FAKE%0d%0apass@proxy.test:3128", UpstreamFault::Login),
        ];
        for (text, fault) in cases {
            let found = Upstream::parse(text).unwrap_err();
            assert_eq!(found, fault, "{text}");
            assert!(!found.to_string().contains("FAKE"));
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_reads_as_the_same_upstream(user in "[^:\\pC]{1,40}", password in "\\PC{1,40}", port in 1..=u16::MAX) {
            let login = Some(Login { user: Zeroizing::new(user), password: Zeroizing::new(password) });
            let upstream = Upstream { scheme: Scheme::Socks5, host: Target::Name("proxy.test".to_owned()), port, login };
            prop_assert_eq!(Upstream::parse(&upstream.to_secret()).unwrap(), upstream);
        }
    }
}
