//! What somebody asked to be connected to, in one spelling.

use std::net::IpAddr;

use super::public::is_public;

/// Longest host name (RFC 1035).
const NAME_MAX: usize = 253;
/// Zones of the machine and its local network (RFC 6761, RFC 6762, RFC 8375, and `internal` by ICANN's resolution of 2024).
const LOCAL_ZONES: [&str; 5] = ["localhost", "local", "internal", "home.arpa", "localdomain"];

/// A host to be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// By a lower-case name without a dot at its end.
    Name(String),
    /// By address.
    Address(IpAddr),
}

impl Target {
    /// Reads a host as programs write it. `None` if it is neither an address nor a plain name; a name that ends in a
    /// number is an address in a spelling that every resolver reads in its own way, so it is none.
    pub(super) fn parse(host: &str) -> Option<Self> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical()));
        }
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        let labels = || name.split('.');
        let plain = name.len() <= NAME_MAX
            && labels().all(|label| (1..=63).contains(&label.len()) && label.bytes().all(good));
        let last = labels().next_back()?;
        let number = last.bytes().all(|b| b.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
        (plain && !number).then_some(Self::Name(name))
    }

    /// Whether it is inside by its very spelling: an address that is not public, or a name of a local zone.
    pub(super) fn is_inside(&self) -> bool {
        match self {
            Self::Address(address) => !is_public(*address),
            Self::Name(name) => {
                let rest = |zone: &&str| name.strip_suffix(*zone);
                let in_zone = |rest: &str| rest.is_empty() || rest.ends_with('.');
                !name.contains('.') || LOCAL_ZONES.iter().filter_map(rest).any(in_zone)
            }
        }
    }

    /// As a lower-case text, for lists and routes.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Address(address) => address.to_string(),
        }
    }

    /// As in `host:port`.
    pub(super) fn authority(&self, port: u16) -> String {
        match self {
            Self::Address(IpAddr::V6(address)) => format!("[{address}]:{port}"),
            other => format!("{}:{port}", other.text()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_has_one_spelling() {
        let text = |host: &str| Target::parse(host).map(|target| target.authority(443));
        assert_eq!(text("Auth.Example.test.").as_deref(), Some("auth.example.test:443"));
        assert_eq!(text("[2606:4700::1111]").as_deref(), Some("[2606:4700::1111]:443"));
        assert_eq!(text("::ffff:10.0.0.1").as_deref(), Some("10.0.0.1:443"));
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "a/b",
            "a@b",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "1.2.3.4.5",
            "a\r\nb",
        ] {
            assert_eq!(text(bad), None, "{bad:?}");
        }
        assert_eq!(text(&"a".repeat(64)), None);
        assert_eq!(text(&["a"; 128].join(".")), None);
    }

    #[test]
    fn what_is_inside_is_told_by_its_spelling() {
        for host in [
            "localhost",
            "a.localhost",
            "printer.local",
            "metadata.google.internal",
            "router",
            "10.0.0.1",
            "::1",
            "169.254.169.254",
        ] {
            assert!(Target::parse(host).unwrap().is_inside(), "{host}");
        }
        for host in ["example.test", "notlocalhost.test", "mylocal.example", "1.1.1.1", "2606:4700::1111"] {
            assert!(!Target::parse(host).unwrap().is_inside(), "{host}");
        }
    }
}
