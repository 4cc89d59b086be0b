//! Client of one VM's agent: requests, events, terminals and the VNC stream over one multiplexed connection.
//!
//! The client outlives a lost connection: while the VM lives it connects again by itself, and only requests that
//! were under way fail. Guest bytes are untrusted: every size is capped, nothing the agent sends can panic here.

mod desktop;
mod egress;
mod link;
mod painting;
mod session;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use polydev_core::wire::{
    AgentEvent, Refusal, Reply, Request, StreamHeader, frame,
    pty::{Decoder, MAX_PAYLOAD, PtyFrame},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::{broadcast, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::{
    compat::{Compat, FuturesAsyncReadCompatExt},
    task::AbortOnDropHandle,
};

pub use desktop::{DesktopReader, DesktopWriter};
use link::LinkState;
pub use link::{ByteStream, Connector, LinkOptions};
#[cfg(feature = "fake")]
pub(crate) use session::receive;
use session::{Call, Session};

use crate::{
    host::VmEnd,
    remote::fault::{self, StaticName},
};

/// Events kept for a slow receiver.
const EVENT_BACKLOG: usize = 256;
/// How long the reason of a VM's end may take longer than the end of its connection.
const REASON_LIMIT: Duration = Duration::from_secs(1);
/// Bytes buffered in each direction of a VNC stream.
const VNC_BUFFER: usize = 256 << 10;

/// A request that got no good answer.
#[derive(Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentError {
    /// The agent said no.
    #[error("agent refused {op}: {refusal}")]
    Refused {
        /// Which request.
        #[serde(deserialize_with = "fault::name")]
        op: StaticName,
        /// Why.
        refusal: Refusal,
    },
    /// The connection is gone; the VM may be too.
    #[error("connection to the agent is closed")]
    Closed,
    /// No answer in time.
    #[error("no answer to {op} within {limit_ms} ms")]
    TimedOut {
        /// Which request.
        #[serde(deserialize_with = "fault::name")]
        op: StaticName,
        /// The limit.
        limit_ms: u64,
    },
    /// The agent answered something that does not belong to the request.
    #[error("agent gave a wrong kind of answer to {op}")]
    Protocol {
        /// Which request.
        #[serde(deserialize_with = "fault::name")]
        op: StaticName,
    },
}

/// Handle to the connection; clones share it. The connection ends with its last handle.
#[derive(Clone)]
pub struct AgentClient {
    shared: Arc<Shared>,
}

struct Shared {
    state: watch::Receiver<LinkState>,
    events: broadcast::Sender<AgentEvent>,
    /// Receives from the start: an agent says how things stand right after hello, before anybody could subscribe.
    first_receiver: Mutex<Option<broadcast::Receiver<AgentEvent>>>,
    slow_factor: u32,
    end: watch::Sender<Option<VmEnd>>,
    task: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AgentClient({:?})", *self.shared.state.borrow())
    }
}

/// A terminal's two directions.
pub struct PtyStream {
    stream: Compat<yamux::Stream>,
    decoder: Decoder,
    buffer: Vec<u8>,
    ended: bool,
}

impl std::fmt::Debug for PtyStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PtyStream(ended: {})", self.ended)
    }
}

impl AgentClient {
    /// Connects and says hello, trying again until `limit` is over or the connector says that the VM is gone.
    pub async fn connect(
        connector: Arc<dyn Connector>,
        options: LinkOptions,
        limit: Duration,
    ) -> Result<Self, AgentError> {
        let (events, first) = broadcast::channel(EVENT_BACKLOG);
        let slow_factor = options.slow_factor;
        let (state, task) = link::spawn(connector, options, events.clone());
        let client = Self {
            shared: Arc::new(Shared {
                state,
                events,
                first_receiver: Mutex::new(Some(first)),
                slow_factor,
                end: watch::Sender::new(None),
                task: owned(task),
            }),
        };
        match timeout_at(Instant::now() + limit, client.session("hello")).await {
            Ok(Ok(_)) => Ok(client),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(timed_out("hello", limit)),
        }
    }

    /// Sends a request and waits for its answer, at most as long as that kind of request may take.
    ///
    /// While the connection is being made again, waits for it within the same limit. Dropping the future does not
    /// take the request back.
    pub async fn request(&self, request: Request) -> Result<Reply, AgentError> {
        let (op, limit) = (session::op_name(&request), session::limit(&request, self.shared.slow_factor));
        let answer = async {
            let session = self.session(op).await?;
            let (reply, answer) = oneshot::channel();
            session.calls.send(Call { op, request, reply }).await.map_err(|_| AgentError::Closed)?;
            answer.await.unwrap_or(Err(AgentError::Closed))
        };
        timeout_at(Instant::now() + limit, answer).await.unwrap_or_else(|_| Err(timed_out(op, limit)))
    }

    /// Events from now on; the first caller gets those since the connection was made too. A slow receiver loses the
    /// oldest, never blocks the agent.
    pub fn events(&self) -> broadcast::Receiver<AgentEvent> {
        let first = self.shared.first_receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| self.shared.events.subscribe())
    }

    /// Events from now on; leaves those of before to the first caller of [`Self::events`].
    pub(crate) fn events_from_now(&self) -> broadcast::Receiver<AgentEvent> {
        self.shared.events.subscribe()
    }

    /// Whether the connection has ended for good.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(*self.shared.state.borrow(), LinkState::Gone(_)) || self.shared.task.is_finished()
    }

    /// Raw bytes of the guest's VNC server.
    pub async fn vnc(&self) -> Result<DuplexStream, AgentError> {
        let mut guest = self.open("vnc", StreamHeader::Vnc).await?;
        let (near, mut far) = tokio::io::duplex(VNC_BUFFER);
        // Ends when either side does, at the latest with the connection: the stream then reads end of file.
        tokio::spawn(async move {
            if let Err(error) = tokio::io::copy_bidirectional(&mut guest, &mut far).await {
                tracing::debug!(%error, "vnc stream ended");
            }
        });
        Ok(near)
    }

    /// The guest's desktop program.
    pub async fn desktop(&self) -> Result<(DesktopReader, DesktopWriter), AgentError> {
        Ok(desktop::split(self.open("desktop", StreamHeader::Desktop).await?))
    }

    /// Attaches to a terminal that [`Request::OpenPty`] opened.
    pub async fn attach_pty(&self, id: u32) -> Result<PtyStream, AgentError> {
        let stream = self.open("pty", StreamHeader::Pty { id }).await?;
        Ok(PtyStream { stream, decoder: Decoder::default(), buffer: vec![0; MAX_PAYLOAD], ended: false })
    }

    /// Ends the connection now, for all handles: another process takes over, or the VM is about to go.
    pub(crate) fn sever(&self) {
        self.shared.task.abort();
    }

    /// Ends the connection because the VM has ended.
    pub(crate) fn vm_ended(&self, end: VmEnd) {
        self.shared.end.send_replace(Some(end));
        self.sever();
    }

    /// Why the VM ended, if it did so by itself. To be asked when the connection has ended: the reason may come a moment
    /// later, and is waited for.
    pub async fn end(&self) -> Option<VmEnd> {
        let mut end = self.shared.end.subscribe();
        timeout_at(Instant::now() + REASON_LIMIT, end.wait_for(Option::is_some))
            .await
            .ok()?
            .ok()
            .and_then(|end| *end)
    }

    /// Returns when the VM is gone. A connection that was lost while the VM lives is made again and does not count.
    pub async fn closed(&self) {
        let mut state = self.shared.state.clone();
        // An error means that the link task is gone, and with it the connection.
        let _ = state.wait_for(|state| matches!(state, LinkState::Gone(_))).await;
    }

    async fn session(&self, op: &'static str) -> Result<Arc<Session>, AgentError> {
        let mut state = self.shared.state.clone();
        let state = state.wait_for(|state| !matches!(state, LinkState::Connecting)).await;
        match state.as_deref() {
            Ok(LinkState::Up(session)) => Ok(Arc::clone(session)),
            Ok(LinkState::Gone(Some(refusal))) => Err(AgentError::Refused { op, refusal: refusal.clone() }),
            Ok(LinkState::Gone(None) | LinkState::Connecting) | Err(_) => Err(AgentError::Closed),
        }
    }

    async fn open(
        &self,
        op: &'static str,
        header: StreamHeader,
    ) -> Result<Compat<yamux::Stream>, AgentError> {
        let limit = session::OPEN_LIMIT * self.shared.slow_factor;
        let opening = async {
            let session = self.session(op).await?;
            let (give, stream) = oneshot::channel();
            session.open.send(give).await.map_err(|_| AgentError::Closed)?;
            let mut stream = stream.await.map_err(|_| AgentError::Closed)?.compat();
            let header = frame::encode(&header).map_err(|_| AgentError::Protocol { op })?;
            stream.write_all(&header).await.map_err(|_| AgentError::Closed)?;
            stream.flush().await.map_err(|_| AgentError::Closed)?;
            Ok(stream)
        };
        timeout_at(Instant::now() + limit, opening).await.unwrap_or_else(|_| Err(timed_out(op, limit)))
    }
}

impl PtyStream {
    /// The next frame; `None` at the end. Cancel-safe.
    pub async fn recv(&mut self) -> Option<PtyFrame> {
        loop {
            if self.ended {
                return None;
            }
            match self.decoder.next() {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "agent sent a malformed terminal frame");
                    self.ended = true;
                    return None;
                }
            }
            match self.stream.read(&mut self.buffer).await {
                Ok(0) | Err(_) => self.ended = true,
                Ok(count) => self.decoder.extend(&self.buffer[..count]),
            }
        }
    }

    /// Sends input or a new size. Input longer than one frame may carry is split.
    pub async fn send(&mut self, frame: PtyFrame) -> Result<(), AgentError> {
        let bytes: Vec<u8> = match frame {
            PtyFrame::Data(data) => {
                data.chunks(MAX_PAYLOAD).flat_map(|part| PtyFrame::Data(part.to_vec()).encode()).collect()
            }
            PtyFrame::Resize { .. } | PtyFrame::Exit(_) => frame.encode(),
        };
        self.stream.write_all(&bytes).await.map_err(|_| AgentError::Closed)?;
        self.stream.flush().await.map_err(|_| AgentError::Closed)
    }
}

fn owned(task: JoinHandle<()>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(task)
}

fn timed_out(op: &'static str, limit: Duration) -> AgentError {
    AgentError::TimedOut { op, limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
}
