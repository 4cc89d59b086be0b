//! Client of one VM's agent: requests, events, terminals and the VNC stream over one multiplexed connection.

use polydev_core::wire::{AgentEvent, Refusal, Reply, Request, pty::PtyFrame};
use tokio::{io::DuplexStream, sync::broadcast};

/// A request that got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent said no.
    #[error("agent refused {op}: {refusal}")]
    Refused {
        /// Which request.
        op: &'static str,
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
        op: &'static str,
        /// The limit.
        limit_ms: u64,
    },
    /// The agent answered something that does not belong to the request.
    #[error("agent gave a wrong kind of answer to {op}")]
    Protocol {
        /// Which request.
        op: &'static str,
    },
}

/// Handle to the connection; clones share it.
#[derive(Debug, Clone)]
pub struct AgentClient {}

/// A terminal's two directions.
#[derive(Debug)]
pub struct PtyStream {}

impl AgentClient {
    /// Sends a request and waits for its answer, at most as long as that kind of request may take.
    pub async fn request(&self, request: Request) -> Result<Reply, AgentError> {
        let _ = request;
        Err(AgentError::Closed)
    }

    /// Events from now on. A slow receiver loses the oldest, never blocks the agent.
    pub fn events(&self) -> broadcast::Receiver<AgentEvent> {
        broadcast::channel(1).1
    }

    /// Raw bytes of the guest's VNC server.
    pub async fn vnc(&self) -> Result<DuplexStream, AgentError> {
        Err(AgentError::Closed)
    }

    /// Attaches to a terminal that [`Request::OpenPty`] opened.
    pub async fn attach_pty(&self, id: u32) -> Result<PtyStream, AgentError> {
        let _ = id;
        Err(AgentError::Closed)
    }

    /// Returns when the connection is gone.
    pub async fn closed(&self) {}
}

impl PtyStream {
    /// The next frame; `None` at the end.
    pub async fn recv(&mut self) -> Option<PtyFrame> {
        None
    }
    /// Sends input or a new size.
    pub async fn send(&mut self, frame: PtyFrame) -> Result<(), AgentError> {
        let _ = frame;
        Err(AgentError::Closed)
    }
}
