//! HTTP `CONNECT` (RFC 9110 section 9.3.6).

use tokio::{io::AsyncWriteExt, net::TcpStream};
use zeroize::Zeroizing;

use super::{DialError, broken, no_head};
use crate::egress::{head::read_head, target::Target, upstream::Upstream};

/// Header fields of an answer that are looked at.
const HEADERS_MAX: usize = 64;

pub(super) async fn ask(
    mut stream: TcpStream,
    upstream: &Upstream,
    target: &Target,
    port: u16,
) -> Result<TcpStream, DialError> {
    let to = target.authority(port);
    let login = upstream.login.as_ref().map(|login| login.basic());
    let mut request = Zeroizing::new(String::with_capacity(2048));
    for part in ["CONNECT ", &to, " HTTP/1.1\r\nHost: ", &to, "\r\n"] {
        request.push_str(part);
    }
    if let Some(login) = &login {
        for part in ["Proxy-Authorization: ", login, "\r\n"] {
            request.push_str(part);
        }
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let head = read_head(&mut stream).await.map_err(no_head)?;
    judge(status_of(&head)?)?;
    Ok(stream)
}

/// Status of an answer's head.
pub(in crate::egress) fn status_of(head: &[u8]) -> Result<u16, DialError> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut fields);
    match answer.parse(head) {
        Ok(_) => answer.code.ok_or(DialError::UpstreamProtocol("its answer has no status")),
        Err(_) => Err(DialError::UpstreamProtocol("its answer is no HTTP")),
    }
}

/// What a status says about a `CONNECT`.
fn judge(status: u16) -> Result<(), DialError> {
    match status {
        200..=299 => Ok(()),
        407 => Err(DialError::UpstreamLogin),
        401 | 403 | 405 | 451 => Err(DialError::UpstreamForbids),
        404 => Err(DialError::UpstreamFailed("not found")),
        408 | 504 => Err(DialError::UpstreamFailed("it did not answer in time")),
        429 => Err(DialError::UpstreamFailed("too many requests")),
        500..=599 => Err(DialError::UpstreamFailed("it says that it could not")),
        _ => Err(DialError::UpstreamProtocol("its status fits no CONNECT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_apart_by_its_status() {
        let told = |line: &str| status_of(format!("{line}\r\n\r\n").as_bytes()).and_then(judge);
        told("HTTP/1.1 200 Connection established").unwrap();
        assert!(matches!(told("HTTP/1.1 407 Proxy Authentication Required"), Err(DialError::UpstreamLogin)));
        assert!(matches!(told("HTTP/1.0 403 Forbidden"), Err(DialError::UpstreamForbids)));
        assert!(matches!(told("HTTP/1.1 502 Bad Gateway"), Err(DialError::UpstreamFailed(_))));
        assert!(matches!(told("HTTP/1.1 302 Found"), Err(DialError::UpstreamProtocol(_))));
        assert!(matches!(told("SSH-2.0-OpenSSH_9.2"), Err(DialError::UpstreamProtocol(_))));
    }
}
