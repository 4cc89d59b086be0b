//! The first picture of a browser VM's desktop.

use std::time::Duration;

use polydev_core::wire::{AgentEvent, PROTOCOL_VERSION, Reply, Request};
use tokio::{sync::broadcast::error::RecvError, time::timeout};

use super::{AgentClient, AgentError};

impl AgentClient {
    /// Starts the desktop and waits for its first picture.
    pub(crate) async fn paint(&self, (width, height): (u16, u16), limit: Duration) -> Result<(), AgentError> {
        let mut events = self.events_from_now();
        self.request(Request::StartDesktop { width, height }).await?;
        if self.painted().await? {
            return Ok(());
        }
        let first_picture = async {
            loop {
                match events.recv().await {
                    Ok(AgentEvent::Desktop { state }) if state.painted => return Ok(()),
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Err(AgentError::Closed),
                }
            }
        };
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        tokio::select! {
            painted = timeout(limit, first_picture) => {
                painted.unwrap_or(Err(AgentError::TimedOut { op: "start_desktop", limit_ms }))
            }
            () = self.closed() => Err(AgentError::Closed),
        }
    }

    /// Whether the desktop shows a picture now.
    pub(crate) async fn painted(&self) -> Result<bool, AgentError> {
        match self.request(Request::Hello { version: PROTOCOL_VERSION }).await? {
            Reply::Hello { desktop, .. } => Ok(desktop.painted),
            _ => Err(AgentError::Protocol { op: "hello" }),
        }
    }
}
