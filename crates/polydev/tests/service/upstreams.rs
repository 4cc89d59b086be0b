//! Real upstream proxies for tests: HTTP (`CONNECT` and plain requests) and SOCKS 5, with and without a login. All
//! lead every name to one service, so that who reaches it has come through them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

/// What a proxy was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `CONNECT`, `socks5`, or the method of a plain request.
    pub(crate) how: String,
    /// `host:port`, or the whole address of a plain request.
    pub(crate) what: String,
    /// The head of a plain request as it came.
    pub(crate) head: String,
}

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

/// What a proxy does with those it lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Serve,
    /// Answers 403, or "not allowed by ruleset".
    Forbid,
    /// Answers something else than its protocol.
    Babble,
}

/// How a proxy is set up.
#[derive(Clone)]
struct Setup {
    login: Option<(&'static str, &'static str)>,
    to: SocketAddr,
    manner: Manner,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Proxy {
    pub(crate) async fn http(
        login: Option<(&'static str, &'static str)>,
        to: SocketAddr,
        manner: Manner,
    ) -> Self {
        Self::start(login, to, manner, |setup, client| async move { drop(setup.http(client).await) }).await
    }

    pub(crate) async fn socks5(
        login: Option<(&'static str, &'static str)>,
        to: SocketAddr,
        manner: Manner,
    ) -> Self {
        Self::start(login, to, manner, |setup, client| async move { drop(setup.socks5(client).await) }).await
    }

    /// What it was asked for so far by those it let in.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Places it was asked for so far.
    pub(crate) fn places(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.what).collect()
    }

    /// Takes no more connections.
    pub(crate) async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn start<F: Future<Output = ()> + Send + 'static>(
        login: Option<(&'static str, &'static str)>,
        to: SocketAddr,
        manner: Manner,
        serve: fn(Setup, TcpStream) -> F,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let setup = Setup { login, to, manner, seen: Arc::clone(&seen) };
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(setup.clone(), client));
            }
        });
        Self { address, seen, task }
    }
}

impl Setup {
    fn note(&self, how: &str, what: &str, head: &str) {
        let seen = Seen { how: how.to_owned(), what: what.to_owned(), head: head.to_owned() };
        self.seen.lock().unwrap().push(seen);
    }

    async fn http(self, client: TcpStream) -> std::io::Result<()> {
        let mut client = BufReader::new(client);
        if self.manner == Manner::Babble {
            return client.write_all(b"220 mail.example.test ESMTP\r\n\r\n").await;
        }
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if client.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let mut words = head.split(' ');
        let (how, what) = (words.next().unwrap(), words.next().unwrap());
        let wanted = self.login.map(|(user, password)| {
            format!("\r\nProxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
        });
        if wanted.is_some_and(|wanted| !head.contains(&wanted)) {
            let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"upstream\"\r\nContent-Length: 0\r\n\r\n";
            return client.write_all(answer).await;
        }
        self.note(how, what, &head);
        if self.manner == Manner::Forbid {
            return client.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
        }
        let mut far = TcpStream::connect(self.to).await?;
        if how == "CONNECT" {
            // In one piece with the first bytes of the target: a client must not lose those.
            client.write_all(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n").await?;
        } else {
            far.write_all(head.as_bytes()).await?;
        }
        copy_bidirectional(&mut client, &mut far).await.map(drop)
    }

    async fn socks5(self, mut client: TcpStream) -> std::io::Result<()> {
        if self.manner == Manner::Babble {
            return client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
        let [_, count] = read(&mut client).await?;
        let mut methods = vec![0; usize::from(count)];
        client.read_exact(&mut methods).await?;
        let method = if self.login.is_some() { 2 } else { 0 };
        if !methods.contains(&method) {
            return client.write_all(&[5, 0xff]).await;
        }
        client.write_all(&[5, method]).await?;
        if let Some((user, password)) = self.login {
            let [_, length] = read(&mut client).await?;
            let found_user = text(&mut client, length).await?;
            let [length] = read(&mut client).await?;
            let found = (found_user, text(&mut client, length).await?);
            let good = (found.0.as_str(), found.1.as_str()) == (user, password);
            client.write_all(&[1, u8::from(!good)]).await?;
            if !good {
                return Ok(());
            }
        }
        let [_, _, _, kind] = read(&mut client).await?;
        let host = match kind {
            1 => Ipv4Addr::from(read::<4>(&mut client).await?).to_string(),
            _ => {
                let [length] = read(&mut client).await?;
                text(&mut client, length).await?
            }
        };
        let port = u16::from_be_bytes(read(&mut client).await?);
        self.note("socks5", &format!("{host}:{port}"), "");
        if self.manner == Manner::Forbid {
            return client.write_all(&[5, 2, 0, 1, 0, 0, 0, 0, 0, 0]).await;
        }
        let mut far = TcpStream::connect(self.to).await?;
        // A name as the bound address: its length has to be read to find the end of the answer.
        client.write_all(b"\x05\x00\x00\x03\x04exit\x00\x01").await?;
        copy_bidirectional(&mut client, &mut far).await.map(drop)
    }
}

async fn read<const N: usize>(stream: &mut TcpStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn text(stream: &mut TcpStream, length: u8) -> std::io::Result<String> {
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(String::from_utf8(bytes).unwrap())
}

/// A service that says hello first, and then every line back.
pub(crate) async fn parrot() -> SocketAddr {
    serve(|client| async move {
        let mut client = BufReader::new(client);
        client.write_all(b"hello\n").await?;
        let mut line = String::new();
        while client.read_line(&mut line).await? > 0 {
            client.write_all(line.as_bytes()).await?;
            line.clear();
        }
        Ok(())
    })
    .await
}

/// A web server that answers every request with its head and body as text.
pub(crate) async fn mirror() -> SocketAddr {
    serve(|client| async move {
        let mut client = BufReader::new(client);
        let mut text = String::new();
        while !text.ends_with("\r\n\r\n") {
            if client.read_line(&mut text).await? == 0 {
                return Ok(());
            }
        }
        let lower = text.to_ascii_lowercase();
        let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let mut body = vec![0; length.map_or(0, |text| text.trim().parse().unwrap())];
        client.read_exact(&mut body).await?;
        text.push_str(&String::from_utf8(body).unwrap());
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
        client.write_all((head + &text).as_bytes()).await
    })
    .await
}

async fn serve<F: Future<Output = std::io::Result<()>> + Send + 'static>(
    answer: fn(TcpStream) -> F,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(answer(client));
        }
    });
    address
}
