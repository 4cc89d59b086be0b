//! Makes connections: to a public address, or through a user's upstream proxy. Never one instead of the other.

pub(super) mod http_connect;
mod socks5;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use polydev_host::EgressRefused;
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time::timeout};

use super::{
    head::HeadError,
    public::is_public,
    target::Target,
    upstream::{Scheme, Upstream},
};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);
/// How long an upstream may take to answer once it is connected to; it connects to the target meanwhile.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(15);
const ADDRESSES_TRIED_MAX: usize = 4;
/// After this much silence the kernel asks whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Why a connection was not made. Says nothing about where an upstream is or what it is told.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// No such name.
    #[error("the name does not resolve")]
    Unknown,
    /// It resolves to what must not be reached.
    #[error("the name leads to an address that is not public, or is this machine's")]
    Inside,
    /// Nobody listens, no way there.
    #[error("it cannot be connected to: {0}")]
    Connect(io::ErrorKind),
    /// It takes too long.
    #[error("it did not answer in time")]
    TimedOut,
    /// The upstream's own name does not resolve.
    #[error("the upstream proxy's name does not resolve")]
    UpstreamUnknown,
    /// The upstream cannot be connected to.
    #[error("the upstream proxy cannot be connected to: {0}")]
    UpstreamConnect(io::ErrorKind),
    /// The upstream does not answer.
    #[error("the upstream proxy did not answer in time")]
    UpstreamTimedOut,
    /// HTTP 407, or SOCKS authentication failed.
    #[error("the upstream proxy does not take the user name and password")]
    UpstreamLogin,
    /// HTTP 403 and the like, or "not allowed by ruleset".
    #[error("the upstream proxy forbids it")]
    UpstreamForbids,
    /// It could not connect to the target.
    #[error("the upstream proxy could not reach it: {0}")]
    UpstreamFailed(&'static str),
    /// It is no such proxy.
    #[error("the upstream proxy does not speak its protocol: {0}")]
    UpstreamProtocol(&'static str),
}

impl From<DialError> for EgressRefused {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Inside => Self::Policy(error.to_string()),
            other => Self::Unreachable(other.to_string()),
        }
    }
}

/// A connection to a public host. Names are resolved once, and what was judged is what is connected to.
pub(super) async fn direct(target: &Target, port: u16) -> Result<TcpStream, DialError> {
    let found = match target {
        Target::Address(address) => vec![SocketAddr::new(*address, port)],
        Target::Name(name) => resolve(name, port).await.map_err(|fault| match fault {
            Unresolved::Unknown => DialError::Unknown,
            Unresolved::TimedOut => DialError::TimedOut,
        })?,
    };
    judge(&found)?;
    first(&found).await.map_err(|fault| match fault {
        NotMade::Refused(kind) => DialError::Connect(kind),
        NotMade::TimedOut => DialError::TimedOut,
    })
}

/// A connection to a service of this machine that a route names.
pub(super) async fn routed(to: SocketAddr) -> Result<TcpStream, DialError> {
    first(&[to]).await.map_err(|fault| match fault {
        NotMade::Refused(kind) => DialError::Connect(kind),
        NotMade::TimedOut => DialError::TimedOut,
    })
}

/// A connection to the target, made by the upstream, which resolves the name too.
pub(super) async fn through(upstream: &Upstream, target: &Target, port: u16) -> Result<TcpStream, DialError> {
    let stream = reach(upstream).await?;
    let handshake = async {
        match upstream.scheme {
            Scheme::Http => http_connect::ask(stream, upstream, target, port).await,
            Scheme::Socks5 => socks5::ask(stream, upstream, target, port).await,
        }
    };
    timeout(HANDSHAKE_LIMIT, handshake).await.map_err(|_| DialError::UpstreamTimedOut)?
}

/// A connection to the upstream itself.
pub(super) async fn reach(upstream: &Upstream) -> Result<TcpStream, DialError> {
    let found = match &upstream.host {
        Target::Address(address) => vec![SocketAddr::new(*address, upstream.port)],
        Target::Name(name) => resolve(name, upstream.port).await.map_err(|fault| match fault {
            Unresolved::Unknown => DialError::UpstreamUnknown,
            Unresolved::TimedOut => DialError::UpstreamTimedOut,
        })?,
    };
    first(&found).await.map_err(|fault| match fault {
        NotMade::Refused(kind) => DialError::UpstreamConnect(kind),
        NotMade::TimedOut => DialError::UpstreamTimedOut,
    })
}

/// Small messages go at once, and a side that is gone is noticed. Failing to set either costs only that.
pub(super) fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
}

/// One inner address among public ones is a sign of rebinding: all are refused then.
fn judge(found: &[SocketAddr]) -> Result<(), DialError> {
    let outside = |address: &SocketAddr| is_public(address.ip()) && !is_own(address.ip());
    if found.iter().all(outside) { Ok(()) } else { Err(DialError::Inside) }
}

/// Whether an address is this machine's, however public. The kernel binds to none but its own, unless it was told to.
fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let lax = || fs::read_to_string(format!("/proc/sys/net/{family}/ip_nonlocal_bind"));
    let listed = || if_addrs::get_if_addrs().is_ok_and(|all| all.iter().any(|one| one.ip() == address));
    UdpSocket::bind((address, 0)).is_ok() && (lax().is_ok_and(|lax| lax.trim() == "0") || listed())
}

enum Unresolved {
    Unknown,
    TimedOut,
}

async fn resolve(name: &str, port: u16) -> Result<Vec<SocketAddr>, Unresolved> {
    let lookup = timeout(RESOLVE_LIMIT, tokio::net::lookup_host((name, port))).await;
    let found: Vec<_> = lookup.map_err(|_| Unresolved::TimedOut)?.map_err(|_| Unresolved::Unknown)?.collect();
    if found.is_empty() { Err(Unresolved::Unknown) } else { Ok(found) }
}

enum NotMade {
    Refused(io::ErrorKind),
    TimedOut,
}

/// The first of the addresses that answers; all together have one limit.
async fn first(addresses: &[SocketAddr]) -> Result<TcpStream, NotMade> {
    let trying = async {
        let mut last = NotMade::TimedOut;
        for address in addresses.iter().take(ADDRESSES_TRIED_MAX) {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    tune(&stream);
                    return Ok(stream);
                }
                Err(error) => last = NotMade::Refused(error.kind()),
            }
        }
        Err(last)
    };
    timeout(CONNECT_LIMIT, trying).await.unwrap_or(Err(NotMade::TimedOut))
}

fn no_head(error: HeadError) -> DialError {
    match error {
        HeadError::Ended => DialError::UpstreamProtocol("it closed the connection"),
        HeadError::TooLong => DialError::UpstreamProtocol("its answer has no end"),
        HeadError::Io(error) => broken(error),
    }
}

fn broken(error: io::Error) -> DialError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => DialError::UpstreamProtocol("it closed the connection"),
        kind => DialError::UpstreamConnect(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_machine_is_never_reached_directly() {
        let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = service.local_addr().unwrap().port();
        for host in
            ["127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1", "0.0.0.0", "169.254.169.254", "10.0.0.1"]
        {
            let refused = direct(&Target::parse(host).unwrap(), port).await.unwrap_err();
            assert!(matches!(refused, DialError::Inside), "{host}: {refused}");
        }
    }

    /// Runs the named test again in a network namespace of its own; true in there, and where none can be made.
    fn in_own_namespace(test: &str) -> bool {
        const INNER: &str = "POLYDEV_TEST_IN_NAMESPACE";
        if std::env::var_os(INNER).is_some() {
            return true;
        }
        let mut again = std::process::Command::new("unshare");
        again.arg("--net").arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
        assert!(again.env(INNER, "1").status().unwrap().success(), "see above");
        false
    }

    #[tokio::test]
    async fn this_machine_is_not_reached_by_its_public_addresses_either() {
        const TEST: &str = "egress::dial::tests::this_machine_is_not_reached_by_its_public_addresses_either";
        if !rustix::process::geteuid().is_root() {
            println!("skipped: network namespaces need root");
            return;
        }
        if !in_own_namespace(TEST) {
            return;
        }
        for words in [
            "link set lo up",
            "link add outside type veth peer name beyond",
            "link set outside up",
            "address add 93.184.216.34/24 dev outside",
            "address add 93.184.216.35/24 dev outside",
            "address add 2606:2800:220:1::34/64 dev outside nodad",
        ] {
            assert!(std::process::Command::new("ip").args(words.split(' ')).status().unwrap().success());
        }
        let service = tokio::net::TcpListener::bind("[::]:0").await.unwrap();
        let port = service.local_addr().unwrap().port();
        for own in ["93.184.216.34", "93.184.216.35", "2606:2800:220:1::34"] {
            TcpStream::connect((own, port)).await.expect("the service is there");
            let refused = direct(&Target::parse(own).unwrap(), port).await.unwrap_err();
            assert!(matches!(refused, DialError::Inside), "{own}: {refused}");
        }
        for lax in ["0", "1"] {
            std::fs::write("/proc/sys/net/ipv4/ip_nonlocal_bind", lax).unwrap();
            std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", lax).unwrap();
            let judged = |text: &str| judge(&[SocketAddr::new(text.parse().unwrap(), port)]);
            for own in ["93.184.216.34", "93.184.216.35", "::ffff:93.184.216.35", "2606:2800:220:1::34"] {
                assert!(judged(own).is_err(), "{own}");
            }
            for other in ["93.184.216.36", "2606:2800:220:1::36", "1.1.1.1"] {
                judged(other).unwrap();
            }
        }
    }

    #[test]
    fn one_inner_address_among_public_ones_spoils_them_all() {
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 443);
        judge(&[at("1.1.1.1"), at("2606:4700::1111")]).unwrap();
        assert!(matches!(judge(&[at("1.1.1.1"), at("192.168.1.1")]), Err(DialError::Inside)));
    }
}
