//! What VMs may reach besides the policy, and where users' proxy ports are.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    str::FromStr,
    time::Duration,
};

use polydev_core::provider::is_host_pattern;

use super::Settings;

const PROXY_PORTS: PortRange = PortRange { first: 10_000, last: 20_000 };
/// Below are the ports that only root may open.
const PORT_MIN: u16 = 1024;
const PORT_REST_S: u64 = 24 * 60 * 60;

/// Egress beyond the policy.
#[derive(Debug, Clone)]
pub struct EgressConfig {
    /// Which VMs reach listed hosts only.
    pub strict: Strict,
    /// Hosts that every provider's list has too.
    pub hosts: Vec<String>,
    /// Address of users' proxy ports.
    pub proxy_listen: IpAddr,
    /// Their numbers.
    pub proxy_ports: PortRange,
    /// How long a port of a removed user is given to nobody.
    pub proxy_port_rest: Duration,
}

/// Which VMs reach the hosts only that providers list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strict {
    /// None: sign-in pages lead to identity providers that nobody can list.
    Off,
    /// Browser VMs: the hosts of the tool that is signed in.
    SignIn,
    /// CLI VMs too: the hosts of all tools.
    All,
}

/// Numbers of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Whether it has this port.
    pub fn contains(self, port: u16) -> bool {
        self.ports().contains(&port)
    }

    /// All of them.
    pub fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl EgressConfig {
    pub(super) fn read(settings: &mut Settings) -> Self {
        Self {
            strict: settings.get("egress_strict", Strict::Off),
            hosts: settings.get("egress_hosts", Hosts::default()).0,
            proxy_listen: settings.get("proxy_listen", IpAddr::V4(Ipv4Addr::LOCALHOST)),
            proxy_ports: settings.get("proxy_ports", PROXY_PORTS),
            proxy_port_rest: Duration::from_secs(settings.get("proxy_port_rest_s", PORT_REST_S)),
        }
    }
}

impl FromStr for Strict {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" | "false" => Ok(Self::Off),
            "sign_in" | "true" => Ok(Self::SignIn),
            "all" => Ok(Self::All),
            _ => Err("must be `off`, `sign_in` or `all`"),
        }
    }
}

impl FromStr for PortRange {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ends =
            text.split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        match ends {
            Some((first, last)) if PORT_MIN <= first && first <= last => Ok(Self { first, last }),
            _ => Err("must be two ports from 1024 on, as in `10000-20000`"),
        }
    }
}

#[derive(Default)]
struct Hosts(Vec<String>);

impl FromStr for Hosts {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hosts = text.split(',').map(str::trim).filter(|host| !host.is_empty());
        let hosts: Vec<String> = hosts.map(str::to_owned).collect();
        match hosts.iter().find(|host| !is_host_pattern(host)) {
            Some(bad) => {
                Err(format!("{bad:?} is no lower-case host name; `.example.com` means all below it"))
            }
            None => Ok(Self(hosts)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_hosts_are_read_strictly() {
        let range: PortRange = "10000-10001".parse().unwrap();
        assert_eq!(range.ports().collect::<Vec<_>>(), [10_000, 10_001]);
        for bad in ["", "10000", "2-1", "80-90", "10001-10000", "1024-70000", "a-b"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
        assert_eq!("a.test, .b.test,".parse::<Hosts>().unwrap().0, ["a.test", ".b.test"]);
        for bad in ["https://a.test", "A.test", "*.a.test", "a", "..a.test"] {
            assert!(bad.parse::<Hosts>().is_err(), "{bad}");
        }
    }
}
