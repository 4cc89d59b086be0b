//! The gateway's HTTP proxy: CONNECT for programs that are told of it, and the agent's question what became of a
//! host's connections.

use std::{io, sync::Arc};

use polydev_core::guest::network::{REFUSALS_PATH, TRAFFIC_PATH};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::broadcast::error::RecvError,
    time::timeout,
};

use super::{Shared, first_words::host_name};
use crate::{
    egress::{EgressRefused, Place},
    net::constants::{FIRST_WORDS_LIMIT, FIRST_WORDS_MAX},
};

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Tunnel { host: String, port: u16 },
    Traffic { host: String },
    Refusals,
    Nonsense,
}

/// Serves one connection to its end.
pub(super) async fn serve(shared: Arc<Shared>, mut socket: TcpStream, place: Place) -> io::Result<()> {
    let mut head = Vec::new();
    let read = timeout(FIRST_WORDS_LIMIT, read_head(&mut socket, &mut head)).await;
    let Ok(Some(end)) = read.map_err(io::Error::other).and_then(|read| read) else {
        return answer(&mut socket, "400 Bad Request", "no request").await;
    };
    match asked(&head[..end]) {
        Asked::Nonsense => answer(&mut socket, "400 Bad Request", "only CONNECT name:port").await,
        Asked::Traffic { host } => {
            let traffic = serde_json::to_string(&shared.guest.account.traffic(&host))?;
            answer(&mut socket, "200 OK", &traffic).await
        }
        Asked::Refusals => tell_refusals(&shared, &mut socket).await,
        Asked::Tunnel { host, port } => match shared.connect(&host, port).await {
            Ok(mut far) => {
                socket.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
                let _ = socket.set_nodelay(true);
                far.write_all(&head[end..]).await?;
                shared.guest.account.carry(&host, &mut socket, far, place).await
            }
            // The reason may name what the host looks like from inside; the guest learns the kind only.
            Err(EgressRefused::Policy(_)) => answer(&mut socket, "403 Forbidden", "policy forbids it").await,
            Err(EgressRefused::Unreachable(_)) => answer(&mut socket, "502 Bad Gateway", "unreachable").await,
        },
    }
}

/// Says each host that is refused from now on, one a line, until the agent hangs up.
async fn tell_refusals(shared: &Shared, socket: &mut TcpStream) -> io::Result<()> {
    let mut refusals = shared.refusals.subscribe();
    socket.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await?;
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            refused = refusals.recv() => match refused {
                Ok(host) => socket.write_all(format!("{host}\n").as_bytes()).await?,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok(()),
            },
            read = socket.read(&mut ignored) => {
                if read? == 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// Reads a request's head; where it ends, or `None` if it never does.
async fn read_head(socket: &mut TcpStream, head: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            return Ok(Some(end + 4));
        }
        if head.len() >= FIRST_WORDS_MAX || socket.read_buf(head).await? == 0 {
            return Ok(None);
        }
    }
}

fn asked(head: &[u8]) -> Asked {
    let read = || {
        let line = std::str::from_utf8(head).ok()?.lines().next()?;
        let mut words = line.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if !version.starts_with("HTTP/1.") || words.next().is_some() {
            return None;
        }
        if method == "GET" && target == REFUSALS_PATH {
            return Some(Asked::Refusals);
        }
        if method == "GET" {
            return Some(Asked::Traffic { host: host_name(target.strip_prefix(TRAFFIC_PATH)?)? });
        }
        let (host, port) = target.rsplit_once(':').filter(|_| method == "CONNECT")?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        Some(Asked::Tunnel { host: host_name(host)?, port })
    };
    read().unwrap_or(Asked::Nonsense)
}

async fn answer(socket: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    let text =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    timeout(FIRST_WORDS_LIMIT, socket.write_all(text.as_bytes())).await??;
    socket.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_tunnels_to_names_with_ports_and_the_agents_question_make_sense() {
        let tunnel = |host: &str, port| Asked::Tunnel { host: host.to_owned(), port };
        assert_eq!(asked(b"CONNECT API.test:443 HTTP/1.1\r\nHost: x\r\n\r\n"), tunnel("api.test", 443));
        assert_eq!(asked(b"CONNECT 10.0.0.1:22 HTTP/1.0\r\n\r\n"), tunnel("10.0.0.1", 22));
        let traffic = Asked::Traffic { host: "a.test".to_owned() };
        assert_eq!(asked(b"GET /traffic/a.test HTTP/1.1\r\n\r\n"), traffic);
        assert_eq!(asked(b"GET /refusals HTTP/1.1\r\n\r\n"), Asked::Refusals);
        for nonsense in [
            "GET http://a.test/ HTTP/1.1",
            "CONNECT a.test HTTP/1.1",
            "CONNECT a.test:0 HTTP/1.1",
            "CONNECT a.test:443",
            "CONNECT [::1]:443 HTTP/1.1",
            "POST /traffic/a.test HTTP/1.1",
            "CONNECT a.test:443 HTTP/1.1 x",
            "",
        ] {
            assert_eq!(asked(format!("{nonsense}\r\n\r\n").as_bytes()), Asked::Nonsense, "{nonsense}");
        }
    }

    proptest! {
        #[test]
        fn rubbish_is_nonsense_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(asked(&bytes), Asked::Nonsense);
        }
    }
}
