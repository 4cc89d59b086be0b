//! A small host: preamble, yamux, requests, events and terminals.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    io,
    path::Path,
    sync::{Arc, Mutex},
    task::Poll,
};

use polydev_core::wire::{
    AgentEvent, AgentFrame, EgressReply, Identity, PROTOCOL_VERSION, Refusal, Reply, Request, RequestFrame,
    StreamHeader, frame, preamble, pty,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

use crate::guest::LIMIT;

type Stream = Compat<yamux::Stream>;
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Reply, Refusal>>>>>;

/// A connection to an agent.
pub(crate) struct Client {
    open: mpsc::UnboundedSender<oneshot::Sender<Stream>>,
    requests: tokio::io::WriteHalf<Stream>,
    waiting: Waiting,
    next: u64,
    events: mpsc::UnboundedReceiver<AgentEvent>,
    passed: VecDeque<AgentEvent>,
    /// What the agent asked to connect to.
    pub(crate) egress: mpsc::UnboundedReceiver<(String, u16)>,
    pub(crate) hello: Reply,
}

impl Client {
    pub(crate) async fn connect(path: &Path) -> io::Result<Self> {
        let mut socket = UnixStream::connect(path).await?;
        let hello = preamble::encode([7; 16]);
        socket.write_all(&hello).await?;
        let mut echo = [0; preamble::LEN];
        socket.read_exact(&mut echo).await?;
        assert_eq!(echo, hello, "the agent echoes the preamble");
        let connection =
            yamux::Connection::new(socket.compat(), yamux::Config::default(), yamux::Mode::Client);
        let (open, wanted) = mpsc::unbounded_channel();
        let (asked, egress) = mpsc::unbounded_channel();
        tokio::spawn(drive(connection, wanted, asked));

        let mut control = open_stream(&open).await?;
        control.write_all(&frame::encode(&StreamHeader::Control).expect("frame")).await?;
        let (mut reader, requests) = tokio::io::split(control);
        let waiting = Waiting::default();
        let (sender, events) = mpsc::unbounded_channel();
        let answers = waiting.clone();
        tokio::spawn(async move {
            while let Some(message) = read_frame::<AgentFrame>(&mut reader).await {
                match message {
                    AgentFrame::Reply { id, result } => {
                        if let Some(waiting) = answers.lock().expect("lock").remove(&id) {
                            let _ = waiting.send(result);
                        }
                    }
                    AgentFrame::Event { event } => {
                        let _ = sender.send(event);
                    }
                }
            }
            answers.lock().expect("lock").clear();
        });
        let passed = VecDeque::new();
        let mut client =
            Self { open, requests, waiting, next: 1, events, passed, egress, hello: Reply::Done };
        client.hello = client.ask(Request::Hello { version: PROTOCOL_VERSION }).await.expect("hello");
        Ok(client)
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn ask(&mut self, request: Request) -> Result<Reply, Refusal> {
        let id = self.next;
        self.next += 1;
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().expect("lock").insert(id, sender);
        let bytes = frame::encode(&RequestFrame { id, request }).expect("frame");
        self.requests.write_all(&bytes).await.expect("send");
        self.requests.flush().await.expect("send");
        tokio::time::timeout(LIMIT, receiver).await.expect("answer in time").expect("connection stays")
    }

    /// Runs a shell script as the CLI user.
    pub(crate) async fn sh(&mut self, script: &str) -> (i32, String) {
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        match self.ask(Request::Run { argv, env: Default::default(), timeout_ms: 20_000 }).await.expect("run")
        {
            Reply::Ran { exit_code, stdout, stderr } => (exit_code, stdout + &stderr),
            other => panic!("not an answer to run: {other:?}"),
        }
    }

    pub(crate) async fn identify(&mut self, egress: bool) {
        let identity = Identity {
            hostname: "polydev-test".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            unix_time_ms: 1_800_000_000_000,
            entropy: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into(),
            env: [("FROM_IDENTITY".to_owned(), "yes".to_owned())].into(),
            egress,
        };
        self.ask(Request::Identify(identity)).await.expect("identify");
    }

    /// The next event for which `wanted` says yes; others are dropped.
    pub(crate) async fn event<T>(&mut self, wanted: impl Fn(&AgentEvent) -> Option<T>) -> T {
        let found = tokio::time::timeout(LIMIT, async {
            loop {
                let event = self.events.recv().await.expect("connection stays");
                if let Some(found) = wanted(&event) {
                    return found;
                }
                self.passed.push_back(event);
            }
        });
        let found = found.await;
        found.unwrap_or_else(|_| panic!("the event did not come; instead: {:?}", self.passed))
    }

    /// Events that came while another one was waited for.
    pub(crate) fn passed(&self) -> &VecDeque<AgentEvent> {
        &self.passed
    }

    pub(crate) async fn stream(&self, header: StreamHeader) -> Stream {
        let mut stream = open_stream(&self.open).await.expect("stream");
        stream.write_all(&frame::encode(&header).expect("frame")).await.expect("header");
        stream.flush().await.expect("header");
        stream
    }

    pub(crate) async fn terminal(&self, id: u32) -> Terminal {
        Terminal { stream: self.stream(StreamHeader::Pty { id }).await, decoder: pty::Decoder::default() }
    }
}

/// An attached terminal.
pub(crate) struct Terminal {
    stream: Stream,
    decoder: pty::Decoder,
}

impl Terminal {
    pub(crate) async fn send(&mut self, frame: pty::PtyFrame) {
        self.stream.write_all(&frame.encode()).await.expect("send");
        self.stream.flush().await.expect("send");
    }

    pub(crate) async fn recv(&mut self) -> Option<pty::PtyFrame> {
        loop {
            if let Some(frame) = self.decoder.next().expect("sound frames") {
                return Some(frame);
            }
            let mut chunk = [0; 4096];
            match tokio::time::timeout(LIMIT, self.stream.read(&mut chunk)).await.expect("output in time") {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.extend(&chunk[..count]),
            }
        }
    }

    /// Reads until the output so far holds `text`; gives it back.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.recv().await {
                Some(pty::PtyFrame::Data(bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                other => panic!("terminal ended with {other:?} after {seen:?}"),
            }
        }
        seen
    }
}

async fn open_stream(open: &mpsc::UnboundedSender<oneshot::Sender<Stream>>) -> io::Result<Stream> {
    let (sender, receiver) = oneshot::channel();
    let gone = || io::Error::from(io::ErrorKind::NotConnected);
    open.send(sender).map_err(|_| gone())?;
    receiver.await.map_err(|_| gone())
}

async fn read_frame<T: serde::de::DeserializeOwned>(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<T> {
    let mut prefix = [0; frame::PREFIX];
    stream.read_exact(&mut prefix).await.ok()?;
    let mut body = vec![0; frame::body_len(prefix).expect("sound frame")];
    stream.read_exact(&mut body).await.ok()?;
    Some(frame::decode(&body).expect("sound frame"))
}

async fn drive(
    mut connection: yamux::Connection<Compat<UnixStream>>,
    mut wanted: mpsc::UnboundedReceiver<oneshot::Sender<Stream>>,
    asked: mpsc::UnboundedSender<(String, u16)>,
) {
    let mut opening: Option<oneshot::Sender<Stream>> = None;
    let mut client_gone = false;
    loop {
        let inbound = poll_fn(|cx| {
            loop {
                if opening.is_none() && !client_gone {
                    match wanted.poll_recv(cx) {
                        Poll::Ready(Some(next)) => opening = Some(next),
                        Poll::Ready(None) => client_gone = true,
                        Poll::Pending => {}
                    }
                }
                if client_gone {
                    return Poll::Ready(None);
                }
                if opening.is_none() {
                    break;
                }
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        drop(opening.take().map(|waiting| waiting.send(stream.compat())))
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(None),
                    Poll::Pending => break,
                }
            }
            connection.poll_next_inbound(cx).map(|next| next.and_then(Result::ok))
        });
        let Some(stream) = inbound.await else { return };
        tokio::spawn(answer_egress(stream.compat(), asked.clone()));
    }
}

/// Answers as a far end would: a page to an HTTP request, anything else in upper case. Refuses hosts that begin with
/// `refused`.
async fn answer_egress(mut stream: Stream, asked: mpsc::UnboundedSender<(String, u16)>) {
    let Some(StreamHeader::Egress { host, port }) = read_frame(&mut stream).await else { return };
    let refused = host.starts_with("refused");
    let _ = asked.send((host, port));
    let reply =
        if refused { EgressReply::Refused { reason: "policy".into() } } else { EgressReply::Connected };
    let _ = stream.write_all(&frame::encode(&reply).expect("frame")).await;
    let _ = stream.flush().await;
    if !refused {
        let mut received = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            received.extend_from_slice(&chunk[..count]);
            if received.starts_with(b"GET ") && received.ends_with(b"\r\n\r\n") {
                let page = "<title>Test sign-in</title><body style='background:#eee'><h1>Sign in</h1>";
                let length = page.len();
                let head =
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length:";
                let _ = stream.write_all(format!("{head} {length}\r\n\r\n{page}").as_bytes()).await;
                received.clear();
                break;
            }
        }
        received.make_ascii_uppercase();
        let _ = stream.write_all(&received).await;
    }
    let _ = stream.shutdown().await;
}
