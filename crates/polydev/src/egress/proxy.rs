//! One connection at a user's proxy port: an HTTP proxy (`CONNECT`, and plain requests one per connection) for
//! programs on this machine that are to have the user's way out.
//!
//! Everybody on the machine can connect to loopback, so that the port asks for the user's proxy token as the password
//! of `Proxy-Authorization: Basic`; the user name is of no meaning. Nobody without it learns anything but that.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use polydev_core::ids::UserId;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_util::io::InspectReader;
use zeroize::Zeroizing;

use super::{
    Gate, Owner, Refusal,
    dial::{self, DialError, http_connect::status_of},
    head::read_head,
    policy::{Asker, Verdict},
    ports::Meter,
    request::{Asked, BadRequest, Forward, What, answered},
    upstream::Scheme,
};
use crate::store::egress::EgressRecord;

/// How long a client may take to say what it wants, and an upstream to begin its answer to a plain request.
const HEAD_LIMIT: Duration = Duration::from_secs(15);
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// Most heads before that of the answer.
const HINTS_MAX: usize = 8;
/// How long an answer is waited for whose client says nothing more, as one does that has left.
const LEFT_LIMIT: Duration = Duration::from_secs(600);
/// How long a client may take to read a refusal.
const LINGER: Duration = Duration::from_secs(2);
/// What the proxy calls itself (RFC 9209).
const NAME: &str = "polydev";

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("no proxy token, or a wrong one")]
    Login,
    #[error(transparent)]
    Bad(#[from] BadRequest),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the target did not answer: {0}")]
    Answer(io::ErrorKind),
}

impl From<DialError> for Failed {
    fn from(error: DialError) -> Self {
        Self::Refused(Refusal::Dial(error))
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(gate: &Gate, user: &UserId, meter: &Meter, mut client: TcpStream) {
    let Ok(Ok(head)) = timeout(HEAD_LIMIT, read_head(&mut client)).await else { return };
    let outcome = match answer(gate, user, &head, &mut client).await {
        Ok(Carry { far, first, sent }) => {
            meter.connected.fetch_add(1, Ordering::Relaxed);
            match sent {
                None => carry(meter, client, far, first).await,
                Some(sent) => {
                    meter.bytes_out.fetch_add(sent, Ordering::Relaxed);
                    relay(meter, client, far, first).await
                }
            }
        }
        Err(failed) => {
            meter.refused.fetch_add(1, Ordering::Relaxed);
            tracing::info!(%user, error = %failed, "proxy port refused a request");
            refuse(&mut client, &failed).await
        }
    };
    if let Err(error) = outcome {
        tracing::trace!(%user, %error, "connection of a proxy port ended");
    }
}

/// What is to be carried between the client and a target.
struct Carry {
    far: TcpStream,
    /// What the client is told first.
    first: Zeroizing<Vec<u8>>,
    /// How long the request was that has been sent; without one the client speaks for itself.
    sent: Option<u64>,
}

async fn answer(gate: &Gate, user: &UserId, head: &[u8], client: &mut TcpStream) -> Result<Carry, Failed> {
    let asked = Asked::read(head)?;
    let record = gate.store.egress(user).await.map_err(Refusal::from)?;
    // Whoever has no policy has no port; it is being closed.
    let record = record.ok_or(Failed::Login)?;
    if !asked.login.as_ref().is_some_and(|login| opens(login, &record)) {
        return Err(Failed::Login);
    }
    let owner = Owner { user: user.clone(), asker: Asker::ProxyPort, provider: None };
    match &asked.what {
        What::Tunnel => {
            let far = gate.connect(&owner, Some(&record), &asked.target, asked.port).await?;
            let first = b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec();
            Ok(Carry { far, first: Zeroizing::new(first), sent: None })
        }
        What::Forward(forward) => {
            let verdict = gate.decide(&owner, Some(&record), &asked.target, asked.port);
            let upstream = if verdict == Verdict::Upstream { gate.upstream(&record)? } else { None };
            let http_proxy = upstream.as_ref().filter(|upstream| upstream.scheme() == Scheme::Http);
            let far = match http_proxy {
                Some(upstream) => dial::reach(upstream).await?,
                None => gate.connect(&owner, Some(&record), &asked.target, asked.port).await?,
            };
            let head = forward.head(upstream.as_ref());
            exchange(client, far, forward, &head, http_proxy.is_some()).await
        }
    }
}

/// Sends a plain request and reads the head of its answer.
async fn exchange(
    client: &mut TcpStream,
    mut far: TcpStream,
    forward: &Forward,
    head: &[u8],
    by_proxy: bool,
) -> Result<Carry, Failed> {
    let answering = async {
        far.write_all(head).await?;
        let body = tokio::io::copy(&mut client.take(forward.body_bytes), &mut far).await?;
        far.flush().await?;
        io::Result::Ok(body.saturating_add(u64::try_from(head.len()).unwrap_or(u64::MAX)))
    };
    let sent = timeout(ANSWER_LIMIT, answering).await;
    let sent = sent
        .map_err(|_| Failed::Answer(io::ErrorKind::TimedOut))?
        .map_err(|error| Failed::Answer(error.kind()))?;
    let mut hints = 0;
    loop {
        let first = timeout(ANSWER_LIMIT, read_head(&mut far)).await;
        let first = first.map_err(|_| Failed::Answer(io::ErrorKind::TimedOut))?;
        let first = first.map_err(|_| Failed::Answer(io::ErrorKind::InvalidData))?;
        match status_of(&first)? {
            // The upstream's question for a password is no business of the client's.
            407 if by_proxy => return Err(DialError::UpstreamLogin.into()),
            // Before the answer (RFC 9110 section 15.2). No change of protocol was asked for.
            100 | 102..=199 if hints < HINTS_MAX => {
                hints += 1;
                client.write_all(&first).await.map_err(|error| Failed::Answer(error.kind()))?;
            }
            100..=199 => return Err(Failed::Answer(io::ErrorKind::InvalidData)),
            _ => {
                let first = answered(&first).ok_or(Failed::Answer(io::ErrorKind::InvalidData))?;
                return Ok(Carry { far, first, sent: Some(sent) });
            }
        }
    }
}

/// Whether a `Proxy-Authorization` carries the user's token.
fn opens(login: &str, record: &EgressRecord) -> bool {
    let pair = login.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
    let pair = pair.and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok()).map(Zeroizing::new);
    let token = pair.as_ref().and_then(|pair| pair.splitn(2, |byte| *byte == b':').nth(1));
    token.is_some_and(|token| bool::from(Sha256::digest(token).ct_eq(&record.proxy_token_hash)))
}

async fn carry(
    meter: &Meter,
    mut client: TcpStream,
    far: TcpStream,
    first: Zeroizing<Vec<u8>>,
) -> io::Result<()> {
    client.write_all(&first).await?;
    let count = |counter: &AtomicU64, bytes: &[u8]| {
        counter.fetch_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
    };
    let mut client = InspectReader::new(client, |bytes: &[u8]| count(&meter.bytes_out, bytes));
    let mut far = InspectReader::new(far, |bytes: &[u8]| count(&meter.bytes_in, bytes));
    copy_bidirectional(&mut client, &mut far).await.map(drop)
}

/// The rest of the answer to a plain request. What the client says further is for nobody: it would be read by whoever
/// answered, and has not been decided about.
async fn relay(
    meter: &Meter,
    mut client: TcpStream,
    far: TcpStream,
    first: Zeroizing<Vec<u8>>,
) -> io::Result<()> {
    client.write_all(&first).await?;
    let (mut from_client, mut to_client) = client.split();
    let (from_far, mut to_far) = far.into_split();
    let mut from_far = InspectReader::new(from_far, |bytes: &[u8]| {
        meter.bytes_in.fetch_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
    });
    let left = async {
        let mut rest = [0; 4096];
        while from_client.read(&mut rest).await? > 0 {}
        // It has said all, or it has left, which a server ends with that waits for more.
        to_far.shutdown().await?;
        sleep(LEFT_LIMIT).await;
        io::Result::Ok(())
    };
    tokio::select! {
        copied = tokio::io::copy(&mut from_far, &mut to_client) => copied.map(drop)?,
        left = left => return left,
    }
    to_client.shutdown().await
}

async fn refuse(client: &mut TcpStream, failed: &Failed) -> io::Result<()> {
    let (status, kind) = status(failed);
    let ask = match failed {
        Failed::Login => format!("Proxy-Authenticate: Basic realm=\"{NAME}\"\r\n"),
        _ => format!("Proxy-Status: {NAME}; error={kind}\r\n"),
    };
    let text = format!("{failed}\n");
    let head = format!(
        "HTTP/1.1 {status}\r\n{ask}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    client.write_all(head.as_bytes()).await?;
    client.shutdown().await?;
    // A body that nobody reads would have the kernel take the answer back.
    let mut rest = [0; 4096];
    let reading = async {
        while client.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    timeout(LINGER, reading).await.unwrap_or(Ok(()))
}

/// Status line and error type (RFC 9209 section 2.3) of a refusal.
fn status(failed: &Failed) -> (&'static str, &'static str) {
    const REQUEST: &str = "400 Bad Request";
    const FORBIDDEN: &str = "403 Forbidden";
    const GATEWAY: &str = "502 Bad Gateway";
    const TIMEOUT: &str = "504 Gateway Timeout";
    const OWN: &str = "500 Internal Server Error";
    match failed {
        Failed::Login => ("407 Proxy Authentication Required", "http_request_denied"),
        Failed::Bad(BadRequest::Length) => ("411 Length Required", "http_request_error"),
        Failed::Bad(BadRequest::Trace) => ("405 Method Not Allowed", "http_request_denied"),
        Failed::Bad(BadRequest::Form | BadRequest::Host) => (REQUEST, "http_request_error"),
        Failed::Answer(io::ErrorKind::TimedOut) => (TIMEOUT, "http_response_timeout"),
        Failed::Answer(_) => (GATEWAY, "http_response_incomplete"),
        Failed::Refused(refusal) => match refusal {
            Refusal::Policy(_) => (FORBIDDEN, "http_request_denied"),
            Refusal::NoHost | Refusal::Stranger => (REQUEST, "http_request_error"),
            Refusal::Store(_) | Refusal::Sealed(_) | Refusal::Damaged(_) => (OWN, "proxy_internal_error"),
            Refusal::Dial(error) => match error {
                DialError::Inside => (FORBIDDEN, "destination_ip_prohibited"),
                DialError::Unknown => (GATEWAY, "dns_error"),
                DialError::Connect(_) => (GATEWAY, "connection_refused"),
                DialError::TimedOut => (TIMEOUT, "connection_timeout"),
                DialError::UpstreamUnknown | DialError::UpstreamConnect(_) => {
                    (GATEWAY, "destination_unavailable")
                }
                DialError::UpstreamTimedOut => (TIMEOUT, "connection_timeout"),
                DialError::UpstreamLogin => (GATEWAY, "proxy_configuration_error"),
                DialError::UpstreamForbids => (GATEWAY, "http_request_denied"),
                DialError::UpstreamFailed(_) => (GATEWAY, "destination_unavailable"),
                DialError::UpstreamProtocol(_) => (GATEWAY, "http_protocol_error"),
            },
        },
    }
}
