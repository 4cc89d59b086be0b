//! The agent's side of the guest channel, without a guest behind it.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use polydev_core::wire::{
    AgentEvent, AgentFrame, DesktopState, EgressReply, ErrorCode, FileRead, PROTOCOL_VERSION, Refusal, Reply,
    Request, RequestFrame, StreamHeader, frame, preamble,
    pty::{Decoder, PtyFrame},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy_bidirectional, duplex},
    net::{UnixListener, UnixStream},
    sync::{Notify, broadcast, mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

use super::desktop::FakeDesktop;
use crate::agent::receive;

/// A CLI user's files, shared by all VMs of that user.
pub type Files = Arc<Mutex<BTreeMap<String, FileRead>>>;
type Wanted = oneshot::Sender<yamux::Stream>;

/// One fake agent.
pub struct FakeAgent {
    files: Files,
    /// Where the files are kept beyond this process, if anywhere.
    #[cfg(feature = "chaos")]
    store: Option<std::path::PathBuf>,
    /// Its process ends with it.
    #[cfg(feature = "chaos")]
    alone: bool,
    requests: Mutex<Vec<Request>>,
    events: broadcast::Sender<AgentEvent>,
    opens: Mutex<Option<mpsc::Sender<Wanted>>>,
    drop_connection: broadcast::Sender<()>,
    desktop: FakeDesktop,
    /// A desktop that is started is painted at once.
    paints: bool,
    painted: AtomicBool,
    hangs_when_named: AtomicBool,
    power_off: Notify,
    /// Its VM stands still: nothing is read or written, and no connection ends.
    still: watch::Sender<bool>,
    ended: AtomicBool,
}

impl FakeAgent {
    pub(in crate::driver) fn new(files: Files, paints: bool) -> Self {
        let (events, _) = broadcast::channel(64);
        let (drop_connection, _) = broadcast::channel(1);
        Self {
            files,
            #[cfg(feature = "chaos")]
            store: None,
            #[cfg(feature = "chaos")]
            alone: false,
            requests: Mutex::default(),
            events,
            opens: Mutex::default(),
            drop_connection,
            desktop: FakeDesktop::new(),
            paints,
            painted: AtomicBool::new(false),
            hangs_when_named: AtomicBool::new(false),
            power_off: Notify::new(),
            still: watch::Sender::new(false),
            ended: AtomicBool::new(false),
        }
    }

    /// One that is a process of its own.
    #[cfg(feature = "chaos")]
    pub(crate) fn alone(files: Files, store: Option<std::path::PathBuf>) -> Self {
        Self { store, alone: true, ..Self::new(files, true) }
    }

    #[cfg(feature = "chaos")]
    fn is_powered_off(&self) -> bool {
        self.alone && lock(&self.requests).last() == Some(&Request::PowerOff)
    }

    /// What it was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.requests).clone()
    }

    /// From now on it takes an identity and never says so.
    pub fn hang_when_named(&self) {
        self.hangs_when_named.store(true, Ordering::Relaxed);
    }

    /// Returns when it is told to power off.
    pub async fn powered_off(&self) {
        self.power_off.notified().await;
    }

    /// Its desktop program.
    pub fn desktop(&self) -> &FakeDesktop {
        &self.desktop
    }

    pub(super) fn emit(&self, event: AgentEvent) {
        // Without a connection there is nobody to tell.
        let _ = self.events.send(event);
    }

    /// Nothing that is asked from now on is answered, whatever its tasks are doing at this moment.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    pub(super) fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(super) fn stand_still(&self, still: bool) {
        self.still.send_replace(still);
    }

    pub(super) fn drop_connection(&self) {
        let _ = self.drop_connection.send(());
    }

    pub(super) async fn egress(&self, host: &str, port: u16) -> Option<(EgressReply, DuplexStream)> {
        let opens = lock(&self.opens).clone()?;
        let (give, stream) = oneshot::channel();
        opens.send(give).await.ok()?;
        let mut stream = stream.await.ok()?.compat();
        let header = StreamHeader::Egress { host: host.to_owned(), port };
        stream.write_all(&frame::encode(&header).ok()?).await.ok()?;
        stream.flush().await.ok()?;
        let reply = receive(&mut stream).await.ok()?;
        let (near, mut far) = duplex(64 << 10);
        tokio::spawn(async move { copy_bidirectional(&mut stream, &mut far).await });
        Some((reply, near))
    }

    /// Serves one host after the other; the newest wins.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener) {
        let mut current = JoinSet::new();
        while let Ok((host, _)) = listener.accept().await {
            current.abort_all();
            let agent = Arc::clone(&self);
            current.spawn(async move { agent.session_as_it_goes_on(host).await });
        }
    }

    /// Speaks with one host whenever its VM does not stand still.
    async fn session_as_it_goes_on(self: Arc<Self>, host: UnixStream) -> io::Result<()> {
        let mut still = self.still.subscribe();
        let mut session = pin!(self.session(host));
        loop {
            // The sender is part of the agent, which the session holds.
            let _ = still.wait_for(|still| !still).await;
            tokio::select! {
                ended = &mut session => return ended,
                _ = still.wait_for(|still| *still) => {}
            }
        }
    }

    /// Speaks with one host.
    pub(in crate::driver) async fn session(self: Arc<Self>, mut host: UnixStream) -> io::Result<()> {
        let mut scanner = preamble::Scanner::default();
        let nonce = loop {
            if let Some(nonce) = scanner.push(host.read_u8().await?).map_err(io::Error::other)? {
                break nonce;
            }
        };
        host.write_all(&preamble::encode(nonce)).await?;
        let connection = yamux::Connection::new(host.compat(), yamux::Config::default(), yamux::Mode::Server);
        let (open, opens) = mpsc::channel(8);
        *lock(&self.opens) = Some(open);
        let mut dropped = self.drop_connection.subscribe();
        tokio::select! {
            result = Arc::clone(&self).multiplex(connection, opens) => result,
            _ = dropped.recv() => Ok(()),
        }
    }

    async fn multiplex(
        self: Arc<Self>,
        mut connection: yamux::Connection<Compat<UnixStream>>,
        mut opens: mpsc::Receiver<Wanted>,
    ) -> io::Result<()> {
        let mut streams = JoinSet::new();
        let mut asked: Option<Wanted> = None;
        loop {
            let inbound = poll_fn(|cx| {
                if asked.is_none()
                    && let Poll::Ready(Some(give)) = opens.poll_recv(cx)
                {
                    asked = Some(give);
                }
                if asked.is_some()
                    && let Poll::Ready(Ok(stream)) = connection.poll_new_outbound(cx)
                    && let Some(give) = asked.take()
                {
                    let _ = give.send(stream);
                    cx.waker().wake_by_ref();
                }
                connection.poll_next_inbound(cx)
            })
            .await;
            let Some(stream) = inbound else { return Ok(()) };
            let (agent, stream) = (Arc::clone(&self), stream.map_err(io::Error::other)?);
            streams.spawn(async move { agent.stream(stream.compat()).await });
        }
    }

    async fn stream(self: Arc<Self>, mut stream: Compat<yamux::Stream>) -> io::Result<()> {
        match receive(&mut stream).await? {
            StreamHeader::Control => self.control(stream).await,
            StreamHeader::Vnc => {
                stream.write_all(b"RFB 003.008\n").await?;
                stream.flush().await?;
                // Echoes, so that both directions can be seen to work.
                let (mut reader, mut writer) = tokio::io::split(stream);
                tokio::io::copy(&mut reader, &mut writer).await?;
                writer.shutdown().await
            }
            StreamHeader::Desktop => self.desktop.serve(stream).await,
            StreamHeader::Pty { .. } => echo_terminal(stream).await,
            StreamHeader::Egress { .. } => Ok(()),
        }
    }

    async fn control(&self, stream: Compat<yamux::Stream>) -> io::Result<()> {
        let mut events = self.events.subscribe();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (ask, mut asked) = mpsc::channel(8);
        let read = async move {
            while let Ok(request) = receive::<RequestFrame>(&mut reader).await {
                if ask.send(request).await.is_err() {
                    break;
                }
            }
        };
        let answer = async {
            loop {
                let message = tokio::select! {
                    request = asked.recv() => match request {
                        Some(_) if self.ended() => return Ok(()),
                        Some(RequestFrame { id, request }) => {
                            let named = matches!(request, Request::Identify(_));
                            let result = self.answer(request);
                            if named && self.hangs_when_named.load(Ordering::Relaxed) {
                                continue;
                            }
                            AgentFrame::Reply { id, result }
                        }
                        None => return Ok(()),
                    },
                    event = events.recv() => match event {
                        Ok(event) => AgentFrame::Event { event },
                        Err(_) => continue,
                    },
                };
                writer.write_all(&frame::encode(&message).map_err(io::Error::other)?).await?;
                writer.flush().await?;
                #[cfg(feature = "chaos")]
                if self.is_powered_off() {
                    std::process::exit(0);
                }
            }
        };
        tokio::select! {
            () = read => Ok(()),
            result = answer => result,
        }
    }

    fn answer(&self, request: Request) -> Result<Reply, Refusal> {
        lock(&self.requests).push(request.clone());
        match request {
            Request::Hello { .. } => {
                let painted = self.painted.load(Ordering::Relaxed);
                let desktop = DesktopState { painted, ..DesktopState::default() };
                if painted {
                    // As a real one says how things stand to whoever connects.
                    self.emit(AgentEvent::Desktop { state: desktop });
                }
                Ok(Reply::Hello {
                    version: PROTOCOL_VERSION,
                    agent: "fake".to_owned(),
                    boot_id: String::new(),
                    uptime_ms: 0,
                    login_running: false,
                    desktop,
                    ptys: Vec::new(),
                })
            }
            Request::StartDesktop { .. } => {
                if self.paints && !self.painted.swap(true, Ordering::Relaxed) {
                    let state = DesktopState { painted: true, ..DesktopState::default() };
                    self.emit(AgentEvent::Desktop { state });
                }
                Ok(Reply::Done)
            }
            Request::PutFiles { files } => {
                for file in files {
                    lock(&self.files).insert(
                        file.path.clone(),
                        FileRead { path: file.path, mode: file.mode, data: file.data },
                    );
                }
                #[cfg(feature = "chaos")]
                if let Some(path) = &self.store {
                    crate::driver::chaos::store(path, &self.files)
                        .map_err(|error| Refusal { code: ErrorCode::Os, message: error.to_string() })?;
                }
                Ok(Reply::Done)
            }
            Request::GetFiles { files } => {
                let all = lock(&self.files);
                let mut found = Vec::new();
                for wanted in files {
                    match all.get(&wanted.path) {
                        Some(file) => found.push(file.clone()),
                        None if wanted.optional => {}
                        None => {
                            return Err(Refusal {
                                code: ErrorCode::NotFound,
                                message: "no such file".to_owned(),
                            });
                        }
                    }
                }
                Ok(Reply::Files { files: found })
            }
            Request::Run { argv, .. } => Ok(Reply::Ran {
                exit_code: 0,
                stdout: format!("{}\n", argv.join(" ")),
                stderr: String::new(),
            }),
            Request::OpenPty { .. } => Ok(Reply::Pty { id: 1 }),
            Request::ReadLog { .. } => Ok(Reply::Log { text: "fake agent log\n".to_owned() }),
            Request::Identify(_)
            | Request::OpenPage { .. }
            | Request::StartLogin(_)
            | Request::LoginInput { .. }
            | Request::ReplayCallback { .. }
            | Request::CancelLogin
            | Request::ClosePty { .. }
            | Request::Quiesce => Ok(Reply::Done),
            Request::PowerOff => {
                self.power_off.notify_one();
                Ok(Reply::Done)
            }
        }
    }
}

/// Gives typed input back, ends on a line `exit`.
async fn echo_terminal(mut stream: Compat<yamux::Stream>) -> io::Result<()> {
    let (mut decoder, mut buffer) = (Decoder::default(), [0; 4096]);
    loop {
        while let Some(frame) = decoder.next().map_err(io::Error::other)? {
            let reply = match frame {
                PtyFrame::Data(input) if input == b"exit\n" => PtyFrame::Exit(0),
                PtyFrame::Data(input) => PtyFrame::Data(input),
                PtyFrame::Resize { cols, rows } => PtyFrame::Data(format!("{cols}x{rows}").into_bytes()),
                PtyFrame::Exit(_) => return Ok(()),
            };
            stream.write_all(&reply.encode()).await?;
            stream.flush().await?;
        }
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => decoder.extend(&buffer[..count]),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
