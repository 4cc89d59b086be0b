//! Replays a callback address on the guest's loopback, where the vendor's program waits for it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use polydev_core::url_rule::HttpUrl;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Programs exchange the code before they answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Most bytes of an answer.
const ANSWER_MAX: u64 = 256 << 10;
/// Most local redirects followed; one program ends only once its final page was fetched.
const REDIRECTS_MAX: usize = 2;

/// Fetches the address and what it redirects to on the same listener. Gives the first answer's status.
pub(crate) async fn replay(url: &HttpUrl<'_>) -> io::Result<u16> {
    let target = |url: &HttpUrl<'_>| match url.query {
        Some(query) => format!("{}?{query}", url.path),
        None => url.path.to_owned(),
    };
    let authority = format!("{}:{}", url.host, url.port);
    let first = get(&url.host, url.port, &authority, &target(url)).await?;
    let mut location = first.location;
    for _ in 0..REDIRECTS_MAX {
        let Some(next) = location.take() else { break };
        let absolute = if next.starts_with('/') { format!("http://{authority}{next}") } else { next };
        let Ok(next) = HttpUrl::parse(&absolute) else { break };
        if next.secure || !next.is_loopback() || next.port != url.port {
            break;
        }
        // The code was taken already; this only fetches the page that says so.
        location = get(&next.host, next.port, &authority, &target(&next))
            .await
            .ok()
            .and_then(|answer| answer.location);
    }
    Ok(first.status)
}

struct Answer {
    status: u16,
    location: Option<String>,
}

async fn get(host: &str, port: u16, authority: &str, target: &str) -> io::Result<Answer> {
    let mut socket = connect(host, port).await?;
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: {authority}\r\nAccept: text/html\r\nConnection: close\r\n\r\n"
    );
    let exchange = timeout(ANSWER_LIMIT, async {
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let read = (&mut socket).take(ANSWER_MAX).read_to_end(&mut answer).await;
        // Some listeners reset the connection once they have answered.
        match read {
            Err(error) if answer.is_empty() => Err(error),
            _ => Ok(answer),
        }
    });
    let answer = exchange.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    parse(&answer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the program's answer is not HTTP"))
}

/// IPv4 and IPv6, since programs listen on either; a refused attempt reaches no listener and disturbs none.
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let (first, second) = if host == "[::1]" { (v6, v4) } else { (v4, v6) };
    match TcpStream::connect(first).await {
        Ok(socket) => Ok(socket),
        Err(error) => TcpStream::connect(second).await.map_err(|_| error),
    }
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(answer.len());
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let location = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("location"))
        .map(|(_, value)| value.trim().to_owned())
        .filter(|_| (300..400).contains(&status));
    Some(Answer { status, location })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn the_callback_and_the_local_page_it_leads_to_are_fetched_once_each() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let program = async {
            let mut asked = Vec::new();
            for answer in
                ["HTTP/1.1 302 Found\r\nLocation: /success?id=FAKE\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\ndone"]
            {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = [0; 512];
                let count = socket.read(&mut request).await.unwrap();
                asked.push(String::from_utf8_lossy(&request[..count]).lines().next().unwrap().to_owned());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        };
        let url = format!("http://localhost:{port}/cb?code=FAKE&state=s");
        let parsed = HttpUrl::parse(&url).unwrap();
        let (asked, status) = tokio::join!(program, replay(&parsed));
        assert_eq!(status.unwrap(), 302);
        assert_eq!(asked, ["GET /cb?code=FAKE&state=s HTTP/1.1", "GET /success?id=FAKE HTTP/1.1"]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_redirect_to_another_place_is_not_followed_and_nobody_listening_is_an_error() {
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let program = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 512]).await;
            socket.write_all(b"HTTP/1.1 302 Found\r\nLocation: https://a.test/\r\n\r\n").await.unwrap();
        };
        let url = format!("http://localhost:{port}/cb");
        let parsed = HttpUrl::parse(&url).unwrap();
        let ((), status) = tokio::join!(program, replay(&parsed));
        assert_eq!(status.unwrap(), 302);
        drop(listener);
        assert!(replay(&parsed).await.is_err());
    }
}
