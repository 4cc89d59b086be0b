//! What others see of a session.

use serde::{Deserialize, Serialize};

use super::{
    Session, SessionError, Step, Steps,
    phase::{Outcome, Phase},
};

/// State as the API names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for a slot.
    Queued,
    /// VM, desktop and CLI are starting.
    Starting,
    /// It is the person's turn.
    AwaitingUser,
    /// The CLI says it is signed in; the credential is being stored, handed over and checked.
    Verifying,
    /// The CLI is signed in, in the CLI VM.
    Succeeded,
    /// Something broke.
    Failed,
    /// Somebody took too long.
    Expired,
    /// The person called it off.
    Cancelled,
}

impl State {
    /// Nothing but the release of the VM follows.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Starting | Self::AwaitingUser | Self::Verifying => false,
            Self::Succeeded | Self::Failed | Self::Expired | Self::Cancelled => true,
        }
    }

    /// As it is written in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::AwaitingUser => "awaiting_user",
            Self::Verifying => "verifying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How the person reaches the sign-in page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// In the browser VM's browser, streamed to them.
    #[default]
    StreamedBrowser,
    /// In their own browser; they bring back the dead loopback address or the code.
    CallbackRelay,
    /// Anywhere; they type a code there.
    DeviceCode,
}

impl Lane {
    /// As it is written in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StreamedBrowser => "streamed_browser",
            Self::CallbackRelay => "callback_relay",
            Self::DeviceCode => "device_code",
        }
    }
}

/// A session as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    /// State.
    pub state: State,
    /// The newest step.
    pub step: Option<Step>,
    /// Lane.
    pub lane: Lane,
    /// Steps with their times.
    pub steps: Steps,
    /// Why it did not succeed.
    pub error: Option<SessionError>,
    /// Place in the queue, 1 = next.
    pub queue_position: Option<u32>,
    /// When the outcome was settled, milliseconds since the Unix epoch.
    pub ended_at_ms: Option<u64>,
    /// The browser VM is gone, or there never was one.
    pub closed: bool,
}

impl Session {
    /// What others see.
    pub fn view(&self) -> SessionView {
        let outcome = self.phase.outcome();
        SessionView {
            state: self.state(),
            step: self.steps.last(),
            lane: self.lane,
            steps: self.steps.clone(),
            error: outcome.and_then(Outcome::error).cloned(),
            queue_position: match self.phase {
                Phase::Queued { position, .. } => position,
                Phase::Booting { .. }
                | Phase::Preparing { .. }
                | Phase::AwaitingUser { .. }
                | Phase::Collecting { .. }
                | Phase::Sealing { .. }
                | Phase::Delivering { .. }
                | Phase::Leaving { .. }
                | Phase::Closing { .. }
                | Phase::Closed { .. } => None,
            },
            ended_at_ms: outcome.map(|outcome| outcome.at_ms),
            closed: self.is_closed(),
        }
    }

    /// State as the API names it.
    pub fn state(&self) -> State {
        match &self.phase {
            Phase::Queued { .. } => State::Queued,
            Phase::Booting { .. } | Phase::Preparing { .. } => State::Starting,
            Phase::AwaitingUser { .. } => State::AwaitingUser,
            Phase::Collecting { .. } | Phase::Sealing { .. } | Phase::Delivering { .. } => State::Verifying,
            Phase::Leaving { outcome, .. } | Phase::Closing { outcome, .. } | Phase::Closed { outcome } => {
                outcome.state()
            }
        }
    }

    /// Grows with every [`super::Effect::Publish`].
    pub fn version(&self) -> u64 {
        self.version
    }
}
