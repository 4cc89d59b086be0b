//! SOCKS version 5 (RFC 1928) with user name and password (RFC 1929). Names are sent as names.

use std::net::IpAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use zeroize::Zeroizing;

use super::{DialError, broken};
use crate::egress::{
    target::Target,
    upstream::{Login, Upstream},
};

const VERSION: u8 = 5;
const LOGIN_VERSION: u8 = 1;
const CONNECT: u8 = 1;
const NO_LOGIN: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NONE_FITS: u8 = 0xff;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

pub(super) async fn ask(
    mut stream: TcpStream,
    upstream: &Upstream,
    target: &Target,
    port: u16,
) -> Result<TcpStream, DialError> {
    agree(&mut stream, upstream.login.as_ref()).await?;
    stream.write_all(&request(target, port)).await.map_err(broken)?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.map_err(broken)?;
    let [version, reply, _, kind] = answer;
    if version != VERSION {
        return Err(DialError::UpstreamProtocol("its answer is no SOCKS 5"));
    }
    judge(reply)?;
    // The address that the proxy uses on its other side, and its port: of no use here, but in the way.
    let length = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => usize::from(stream.read_u8().await.map_err(broken)?),
        _ => return Err(DialError::UpstreamProtocol("its answer has an address of no known kind")),
    };
    let mut rest = vec![0; length + 2];
    stream.read_exact(&mut rest).await.map_err(broken)?;
    Ok(stream)
}

async fn agree(stream: &mut TcpStream, login: Option<&Login>) -> Result<(), DialError> {
    let methods: &[u8] = match login {
        Some(_) => &[VERSION, 1, USER_AND_PASSWORD],
        None => &[VERSION, 1, NO_LOGIN],
    };
    stream.write_all(methods).await.map_err(broken)?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.map_err(broken)?;
    match (answer, login) {
        ([VERSION, USER_AND_PASSWORD], Some(login)) => sign_in(stream, login).await,
        ([VERSION, NO_LOGIN], None) => Ok(()),
        ([VERSION, NONE_FITS], _) => Err(DialError::UpstreamLogin),
        _ => Err(DialError::UpstreamProtocol("its answer is no SOCKS 5")),
    }
}

async fn sign_in(stream: &mut TcpStream, login: &Login) -> Result<(), DialError> {
    let length = |text: &str| u8::try_from(text.len()).expect("both were checked when they were read");
    let mut message = Zeroizing::new(Vec::with_capacity(3 + 2 * usize::from(u8::MAX)));
    message.push(LOGIN_VERSION);
    for text in [&login.user, &login.password] {
        message.push(length(text));
        message.extend_from_slice(text.as_bytes());
    }
    stream.write_all(&message).await.map_err(broken)?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.map_err(broken)?;
    if answer[1] == 0 { Ok(()) } else { Err(DialError::UpstreamLogin) }
}

fn request(target: &Target, port: u16) -> Vec<u8> {
    let mut out = vec![VERSION, CONNECT, 0];
    match target {
        Target::Name(name) => {
            out.extend([NAME, u8::try_from(name.len()).expect("names are at most 253 bytes long")]);
            out.extend_from_slice(name.as_bytes());
        }
        Target::Address(IpAddr::V4(address)) => {
            out.push(IPV4);
            out.extend(address.octets());
        }
        Target::Address(IpAddr::V6(address)) => {
            out.push(IPV6);
            out.extend(address.octets());
        }
    }
    out.extend(port.to_be_bytes());
    out
}

/// RFC 1928 section 6.
fn judge(reply: u8) -> Result<(), DialError> {
    match reply {
        0 => Ok(()),
        2 => Err(DialError::UpstreamForbids),
        3 => Err(DialError::UpstreamFailed("no way to the network")),
        4 => Err(DialError::UpstreamFailed("no way to the host")),
        5 => Err(DialError::UpstreamFailed("connection refused")),
        6 => Err(DialError::UpstreamFailed("it did not answer in time")),
        1 | 7 | 8 => Err(DialError::UpstreamFailed("it says that it could not")),
        _ => Err(DialError::UpstreamProtocol("its answer has no known meaning")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_as_names_and_addresses_as_addresses() {
        let sent = |host: &str| request(&Target::parse(host).unwrap(), 443);
        assert_eq!(sent("a.test"), [&[5, 1, 0, 3, 6][..], b"a.test", &[1, 187]].concat());
        assert_eq!(sent("1.2.3.4"), [5, 1, 0, 1, 1, 2, 3, 4, 1, 187]);
        assert_eq!(sent("2606::1").len(), 4 + 16 + 2);
    }

    #[test]
    fn a_reply_is_told_apart_by_its_number() {
        judge(0).unwrap();
        assert!(matches!(judge(2), Err(DialError::UpstreamForbids)));
        assert!(matches!(judge(5), Err(DialError::UpstreamFailed("connection refused"))));
        assert!(matches!(judge(9), Err(DialError::UpstreamProtocol(_))));
    }
}
