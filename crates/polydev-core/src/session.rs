//! One sign-in attempt as a pure event machine: [`Session::handle`] takes the time and what happened, and returns
//! what has to be done. It does no I/O, reads no clock and never sees a secret: URLs, codes and files stay with the
//! driver that feeds it.
//!
//! ```text
//!            RequestSlot        CreateVm          StartDesktop + StartLogin      OpenPage
//!  start ──▶ Queued ───────────▶ Booting ────────▶ Preparing ──────────────────▶ AwaitingUser
//!              │   slot granted          VM ready      URL and desktop, in           │ login ended signed in
//!              │                                       either order; or device code  ▼ FetchCredential
//!              │                                                                 Collecting
//!              │                                                                     │ fetched
//!              │   any fault, deadline, cancel:                                      ▼ Seal
//!              │   from every state with a VM                                     Sealing
//!              │                                                                     │ sealed
//!              ▼                                                                     ▼ ReleaseVm + Transfer
//!           Leaving ──slot granted after all──▶ Closing ◀──VM still there── Delivering {transfer, verify}
//!              │ left the queue                   │ VM gone                          │ VM gone already
//!              └─────────────────────────────────▶└──────────────▶ Closed ◀──────────┘
//! ```
//!
//! - *Queued*: waits for a slot. *Leaving*: gave up waiting; repeats `LeaveQueue` until the queue lets go.
//! - *Booting*: the VM is being created. *Preparing*: desktop and login start in parallel.
//! - *AwaitingUser*: the person signs in. *Collecting*, *Sealing*: the files are read, then sealed and stored.
//! - *Delivering*: the sealed files go to the CLI VM and its status command is run, while the browser VM is released.
//! - *Closing*: the outcome stands; `ReleaseVm` is repeated with growing pauses until the VM is gone. *Closed*: the end.
//!
//! Every state but `Closed` has a deadline ([`Session::next_deadline`]).

mod closing;
mod error;
mod event;
mod limits;
mod phase;
mod steps;
#[cfg(test)]
mod tests;
mod transition;
mod view;

pub use error::{SessionError, SessionErrorCode};
pub use event::{Effect, Event, FetchFailure, SealFailure, VmFailure};
pub use limits::Limits;
use phase::Phase;
pub use steps::{Step, StepTime, Steps};
pub use view::{Lane, SessionView, State};

use crate::ids::VmId;
use serde::{Deserialize, Serialize};

/// One sign-in attempt. Serialized whole as the row that survives a restart of the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    started_ms: u64,
    /// Highest time seen; wall clocks go backwards, sessions do not.
    clock_ms: u64,
    version: u64,
    lane: Lane,
    limits: Limits,
    steps: Steps,
    phase: Phase,
}

impl Session {
    /// A new session and the first effects. `now_ms` is milliseconds since the Unix epoch, here and everywhere.
    pub fn start(now_ms: u64, lane: Lane, limits: Limits) -> (Self, Vec<Effect>) {
        let phase = Phase::Queued { position: None, by_ms: now_ms.saturating_add(limits.queue_ms) };
        let session = Self {
            started_ms: now_ms,
            clock_ms: now_ms,
            version: 1,
            lane,
            limits,
            steps: Steps::default(),
            phase,
        };
        (session, vec![Effect::Publish, Effect::RequestSlot])
    }

    /// Takes in what happened. The effects are to be carried out in order; [`Effect::Publish`], when there is one,
    /// comes first, so that the row is on disk before anything outside changes. Events that mean nothing in the
    /// present state have no effect: the driver may report late or twice.
    pub fn handle(&mut self, now_ms: u64, event: Event) -> Vec<Effect> {
        self.clock_ms = self.clock_ms.max(now_ms);
        let before = (self.view(), self.phase.clone());
        let mut effects = Vec::new();
        if event == Event::DeadlineReached {
            // Two may have passed; each arrow moves its own deadline beyond the clock, so this ends.
            while self.next_deadline().is_some_and(|by_ms| by_ms <= self.clock_ms) {
                self.phase = self.next(self.phase.clone(), Event::DeadlineReached, &mut effects);
            }
        } else {
            self.phase = self.next(self.phase.clone(), event, &mut effects);
        }
        if before != (self.view(), self.phase.clone()) {
            self.version += 1;
            effects.insert(0, Effect::Publish);
        }
        effects
    }

    /// When [`Event::DeadlineReached`] is due; `None` only when closed.
    pub fn next_deadline(&self) -> Option<u64> {
        self.phase.deadline()
    }

    /// The browser VM that this session has to have released; `None` before there is one and when it is gone.
    pub fn held_vm(&self) -> Option<VmId> {
        self.phase.held_vm()
    }

    /// Whether a person can still call it off: not after the files went to be sealed.
    pub fn cancellable(&self) -> bool {
        match self.phase {
            Phase::Queued { .. }
            | Phase::Booting { .. }
            | Phase::Preparing { .. }
            | Phase::AwaitingUser { .. }
            | Phase::Collecting { .. } => true,
            Phase::Sealing { .. }
            | Phase::Delivering { .. }
            | Phase::Leaving { .. }
            | Phase::Closing { .. }
            | Phase::Closed { .. } => false,
        }
    }

    /// Nothing will ever happen again.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed { .. })
    }

    /// Milliseconds since the Unix epoch.
    pub fn started_ms(&self) -> u64 {
        self.started_ms
    }

    fn step(&mut self, step: Step) {
        self.steps.record(step, self.clock_ms - self.started_ms);
    }

    fn after(&self, pause_ms: u64) -> u64 {
        self.clock_ms.saturating_add(pause_ms)
    }
}
