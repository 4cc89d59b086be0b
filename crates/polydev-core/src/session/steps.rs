//! The steps of a sign-in and when each was first reached.

use serde::{Deserialize, Serialize};

/// Milestones in their usual order; some come in another order, some not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A slot was granted and the VM asked for.
    VmRequested,
    /// The VM's agent took its identity.
    VmReady,
    /// The CLI runs.
    CliStarted,
    /// The sign-in URL, or page and code, is known.
    UrlCaptured,
    /// The screen shows a browser window.
    DesktopReady,
    /// The person did something.
    UserActive,
    /// The browser reached the CLI's loopback listener.
    CallbackSeen,
    /// The credential file is complete.
    CredentialSeen,
    /// The credential is sealed and stored.
    Sealed,
    /// The credential is in the CLI VM.
    Transferred,
    /// The browser VM and all it had are gone.
    Closed,
}

/// A step and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepTime {
    /// Which.
    pub step: Step,
    /// Milliseconds since the session's start.
    pub at_ms: u64,
}

/// Steps in the order in which they were reached, each at most once; times never decrease.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Steps(Vec<StepTime>);

impl Steps {
    /// Only the first time counts.
    pub(super) fn record(&mut self, step: Step, at_ms: u64) {
        if self.at(step).is_none() {
            self.0.push(StepTime { step, at_ms });
        }
    }

    /// When a step was reached.
    pub fn at(&self, step: Step) -> Option<u64> {
        self.0.iter().find(|reached| reached.step == step).map(|reached| reached.at_ms)
    }

    /// The newest step.
    pub fn last(&self) -> Option<Step> {
        self.0.last().map(|reached| reached.step)
    }

    /// All of them.
    pub fn as_slice(&self) -> &[StepTime] {
        &self.0
    }
}
