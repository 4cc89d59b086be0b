//! One connection from its preamble to its end. Runs inside the link task, which owns it alone.

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use polydev_core::wire::{
    AgentEvent, AgentFrame, ErrorCode, PROTOCOL_VERSION, Refusal, Reply, Request, RequestFrame, StreamHeader,
    frame, preamble,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    AgentError,
    egress::Gate,
    link::{ByteStream, LinkOptions, LinkState},
};

/// How long opening a stream may take.
pub(super) const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Pause between preambles while no echo comes.
const PREAMBLE_EVERY: Duration = Duration::from_millis(200);
/// How long the answer to hello may take.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Requests waiting to be written.
const CALLS: usize = 32;
/// Most streams on one connection, both directions.
const STREAMS: usize = 512;
/// Most bytes all streams may buffer on the host.
const RECEIVE_WINDOW: usize = 160 << 20;

/// Why a session ended.
pub(super) enum Ended {
    /// The connection broke or the agent broke the protocol; may be tried again.
    Lost(&'static str),
    /// The agent will not talk to this host, however often it is asked.
    Refused(Refusal),
}

/// What handles of a running session use.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) calls: mpsc::Sender<Call>,
    pub(super) open: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) op: &'static str,
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Result<Reply, AgentError>>,
}

type Pending = Arc<Mutex<HashMap<u64, Waiting>>>;

struct Waiting {
    op: &'static str,
    kind: ReplyKind,
    reply: oneshot::Sender<Result<Reply, AgentError>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyKind {
    Done,
    Hello,
    Files,
    Ran,
    Pty,
    Log,
}

/// Speaks the protocol on `io` until the connection ends; publishes the session in `state` once hello is answered.
pub(super) async fn run(
    io: Box<dyn ByteStream>,
    options: &LinkOptions,
    events: &broadcast::Sender<AgentEvent>,
    state: &watch::Sender<LinkState>,
) -> Ended {
    let Ok(io) = synchronise(io).await else { return Ended::Lost("no preamble") };
    let mut config = yamux::Config::default();
    config.set_max_num_streams(STREAMS).set_max_connection_receive_window(Some(RECEIVE_WINDOW));
    let connection = yamux::Connection::new(io.compat(), config, yamux::Mode::Client);
    let (open, opens) = mpsc::channel(CALLS);
    tokio::select! {
        () = multiplex(connection, opens, Gate::new(options)) => Ended::Lost("connection closed"),
        ended = control(open, options, events, state) => ended,
    }
}

/// Sends a preamble again and again until the agent echoes it. The agent drops the copies it did not need.
async fn synchronise(mut io: Box<dyn ByteStream>) -> io::Result<Synchronised> {
    let nonce = *Uuid::new_v4().as_bytes();
    let mut scanner = preamble::Scanner::default();
    let mut buffer = [0; 4096];
    loop {
        // A virtio-serial port that the guest has not opened takes what fits into a socket, then lets this wait.
        io.write_all(&preamble::encode(nonce)).await?;
        io.flush().await?;
        let resend = Instant::now() + PREAMBLE_EVERY;
        while let Ok(read) = timeout_at(resend, io.read(&mut buffer)).await {
            let count = read?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for (index, byte) in buffer[..count].iter().enumerate() {
                if scanner.push(*byte).map_err(io::Error::other)? == Some(nonce) {
                    return Ok(Synchronised { early: buffer[index + 1..count].to_vec(), io });
                }
            }
        }
    }
}

/// A connection whose first bytes have been read already.
struct Synchronised {
    early: Vec<u8>,
    io: Box<dyn ByteStream>,
}

impl AsyncRead for Synchronised {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early[..count]);
        self.early.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Synchronised {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Drives yamux: hands out streams that are asked for, and gives streams of the agent to the gate.
async fn multiplex(
    mut connection: yamux::Connection<Compat<Synchronised>>,
    mut opens: mpsc::Receiver<oneshot::Sender<yamux::Stream>>,
    gate: Gate,
) {
    let mut asked: Option<oneshot::Sender<yamux::Stream>> = None;
    let mut running = JoinSet::new();
    loop {
        let inbound = poll_fn(|cx| {
            loop {
                while let Poll::Ready(Some(_)) = running.poll_join_next(cx) {}
                if asked.is_none()
                    && let Poll::Ready(Some(give)) = opens.poll_recv(cx)
                {
                    asked = Some(give);
                }
                if asked.is_some() {
                    match connection.poll_new_outbound(cx) {
                        Poll::Ready(Ok(stream)) => {
                            // The caller may have given up waiting; dropping the stream closes it.
                            if let Some(give) = asked.take() {
                                let _ = give.send(stream);
                            }
                            continue;
                        }
                        Poll::Ready(Err(error)) => {
                            tracing::debug!(%error, "no stream could be opened");
                            asked = None;
                            return Poll::Ready(None);
                        }
                        Poll::Pending => {}
                    }
                }
                return connection.poll_next_inbound(cx);
            }
        })
        .await;
        match inbound {
            Some(Ok(stream)) => drop(running.spawn(gate.clone().serve(stream))),
            Some(Err(error)) => {
                tracing::debug!(%error, "connection to the agent failed");
                return;
            }
            None => return,
        }
    }
}

/// Runs the control stream: hello, then requests and events.
async fn control(
    open: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    options: &LinkOptions,
    events: &broadcast::Sender<AgentEvent>,
    state: &watch::Sender<LinkState>,
) -> Ended {
    let (give, stream) = oneshot::channel();
    if open.send(give).await.is_err() {
        return Ended::Lost("connection closed");
    }
    let Ok(stream) = stream.await else { return Ended::Lost("connection closed") };
    let (mut reader, mut writer) = tokio::io::split(stream.compat());
    let hello = RequestFrame { id: 0, request: Request::Hello { version: PROTOCOL_VERSION } };
    let answer = async {
        send(&mut writer, &StreamHeader::Control).await?;
        send(&mut writer, &hello).await?;
        receive(&mut reader).await
    };
    match timeout(HELLO_LIMIT * options.slow_factor, answer).await {
        Ok(Ok(AgentFrame::Reply { id: 0, result: Ok(Reply::Hello { version: PROTOCOL_VERSION, .. }) })) => {}
        Ok(Ok(AgentFrame::Reply { id: 0, result: Err(refusal) })) => return Ended::Refused(refusal),
        Ok(Ok(AgentFrame::Reply { id: 0, result: Ok(Reply::Hello { version, .. }) })) => {
            return Ended::Refused(Refusal {
                code: ErrorCode::VersionMismatch,
                message: format!("agent speaks version {version}, host {PROTOCOL_VERSION}"),
            });
        }
        Ok(Ok(_)) => return Ended::Lost("hello was answered with something else"),
        Ok(Err(_)) => return Ended::Lost("connection closed during hello"),
        Err(_) => return Ended::Lost("hello was not answered in time"),
    }
    let (calls, queue) = mpsc::channel(CALLS);
    state.send_replace(LinkState::Up(Arc::new(Session { calls, open })));
    let pending = Pending::default();
    tokio::select! {
        () = send_calls(&mut writer, queue, &pending) => Ended::Lost("writing to the agent failed"),
        () = take_frames(&mut reader, &pending, events) => Ended::Lost("reading from the agent failed"),
    }
}

async fn send_calls(
    writer: &mut (impl AsyncWrite + Unpin),
    mut queue: mpsc::Receiver<Call>,
    pending: &Pending,
) {
    let mut next_id = 1;
    while let Some(Call { op, request, reply }) = queue.recv().await {
        let (id, kind) = (next_id, reply_kind(&request));
        next_id += 1;
        let bytes = match frame::encode(&RequestFrame { id, request }) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) => {
                let refusal = Refusal { code: ErrorCode::BadRequest, message: error.to_string() };
                let _ = reply.send(Err(AgentError::Refused { op, refusal }));
                continue;
            }
        };
        {
            let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.retain(|_, waiting| !waiting.reply.is_closed());
            pending.insert(id, Waiting { op, kind, reply });
        }
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

async fn take_frames(
    reader: &mut (impl AsyncRead + Unpin),
    pending: &Pending,
    events: &broadcast::Sender<AgentEvent>,
) {
    loop {
        match receive(reader).await {
            Ok(AgentFrame::Event { event }) => {
                // Nobody listening is fine.
                let _ = events.send(event);
            }
            Ok(AgentFrame::Reply { id, result }) => {
                let waiting = pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                // An answer that nobody waits for any more came after its deadline.
                let Some(Waiting { op, kind, reply }) = waiting else { continue };
                let result = match result {
                    Ok(answer) if kind_of(&answer) == kind => Ok(answer),
                    Ok(_) => Err(AgentError::Protocol { op }),
                    Err(refusal) => Err(AgentError::Refused { op, refusal }),
                };
                let _ = reply.send(result);
            }
            Err(error) => {
                tracing::debug!(%error, "control stream ended");
                return;
            }
        }
    }
}

async fn send<T: serde::Serialize>(writer: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let bytes = frame::encode(message).map_err(io::Error::other)?;
    writer.write_all(&bytes).await?;
    writer.flush().await
}

/// Reads one frame; its body is wiped afterwards, since it may hold a credential.
pub(crate) async fn receive<T: serde::de::DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin),
) -> io::Result<T> {
    let mut prefix = [0; frame::PREFIX];
    reader.read_exact(&mut prefix).await?;
    let mut body = Zeroizing::new(vec![0; frame::body_len(prefix).map_err(io::Error::other)?]);
    reader.read_exact(&mut body).await?;
    // The parser's own message would quote guest bytes.
    frame::decode(&body).map_err(|_| io::Error::other("frame is not the message expected"))
}

/// The request's name, for errors and logs.
pub(super) fn op_name(request: &Request) -> &'static str {
    match request {
        Request::Hello { .. } => "hello",
        Request::Identify(_) => "identify",
        Request::StartDesktop { .. } => "start_desktop",
        Request::OpenPage { .. } => "open_page",
        Request::StartLogin(_) => "start_login",
        Request::LoginInput { .. } => "login_input",
        Request::ReplayCallback { .. } => "replay_callback",
        Request::CancelLogin => "cancel_login",
        Request::PutFiles { .. } => "put_files",
        Request::GetFiles { .. } => "get_files",
        Request::Run { .. } => "run",
        Request::OpenPty { .. } => "open_pty",
        Request::ClosePty { .. } => "close_pty",
        Request::ReadLog { .. } => "read_log",
        Request::Quiesce => "quiesce",
        Request::PowerOff => "power_off",
    }
}

/// How long the answer may take.
pub(super) fn limit(request: &Request, slow_factor: u32) -> Duration {
    let (own, answer_s) = match request {
        Request::Run { timeout_ms, .. } => (Duration::from_millis(*timeout_ms), 10),
        Request::Quiesce => (Duration::ZERO, 30),
        Request::ReplayCallback { .. } | Request::CancelLogin => (Duration::ZERO, 15),
        Request::PutFiles { .. }
        | Request::GetFiles { .. }
        | Request::StartLogin(_)
        | Request::OpenPty { .. }
        | Request::PowerOff => (Duration::ZERO, 10),
        Request::Hello { .. }
        | Request::Identify(_)
        | Request::StartDesktop { .. }
        | Request::OpenPage { .. }
        | Request::LoginInput { .. }
        | Request::ClosePty { .. }
        | Request::ReadLog { .. } => (Duration::ZERO, 5),
    };
    own + Duration::from_secs(answer_s) * slow_factor
}

fn reply_kind(request: &Request) -> ReplyKind {
    match request {
        Request::Hello { .. } => ReplyKind::Hello,
        Request::GetFiles { .. } => ReplyKind::Files,
        Request::Run { .. } => ReplyKind::Ran,
        Request::OpenPty { .. } => ReplyKind::Pty,
        Request::ReadLog { .. } => ReplyKind::Log,
        Request::Identify(_)
        | Request::StartDesktop { .. }
        | Request::OpenPage { .. }
        | Request::StartLogin(_)
        | Request::LoginInput { .. }
        | Request::ReplayCallback { .. }
        | Request::CancelLogin
        | Request::PutFiles { .. }
        | Request::ClosePty { .. }
        | Request::Quiesce
        | Request::PowerOff => ReplyKind::Done,
    }
}

fn kind_of(reply: &Reply) -> ReplyKind {
    match reply {
        Reply::Done => ReplyKind::Done,
        Reply::Hello { .. } => ReplyKind::Hello,
        Reply::Files { .. } => ReplyKind::Files,
        Reply::Ran { .. } => ReplyKind::Ran,
        Reply::Pty { .. } => ReplyKind::Pty,
        Reply::Log { .. } => ReplyKind::Log,
    }
}
