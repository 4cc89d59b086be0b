//! The states of a session and what exists in each.

use serde::{Deserialize, Serialize};

use crate::{ids::VmId, wire::UrlYields};

use super::{SessionError, State};

/// Where a session is. `by_ms` is always the deadline, milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub(super) enum Phase {
    Queued { position: Option<u32>, by_ms: u64 },
    Booting { vm: VmId, by_ms: u64 },
    Preparing { vm: VmId, desktop: Desktop, url: Url },
    AwaitingUser { vm: VmId, desktop: Desktop, yields: UrlYields, page: Page, by_ms: u64, end_ms: u64 },
    Collecting { vm: VmId, by_ms: u64 },
    Sealing { browser: BrowserVm, by_ms: u64 },
    Delivering { browser: BrowserVm, delivery: Delivery },
    Leaving { outcome: Outcome, tries: u32, by_ms: u64 },
    Closing { outcome: Outcome, release: Release },
    Closed { outcome: Outcome },
}

/// The browser VM's desktop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Desktop {
    /// The lane has no use for it.
    Off,
    Coming {
        by_ms: u64,
    },
    Ready,
}

/// The sign-in URL, while waiting for it and the desktop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Url {
    Coming { by_ms: u64 },
    Known { yields: UrlYields },
}

/// The sign-in page in the VM's browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Page {
    /// Not asked for: no desktop yet, or given up in a lane that can do without.
    Closed,
    Opening {
        tries: u32,
        by_ms: u64,
    },
    Open,
}

/// What is left to be done with a browser VM that is no longer needed for anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BrowserVm {
    Held { vm: VmId },
    Releasing { release: Release },
    Gone,
}

/// A release that is repeated until the VM is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Release {
    pub(super) vm: VmId,
    pub(super) tries: u32,
    pub(super) by_ms: u64,
}

/// The way of a sealed credential into the CLI VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Delivery {
    Transferring {
        tries: u32,
        by_ms: u64,
    },
    /// A try failed; the next one starts at the deadline.
    Pausing {
        tries: u32,
        by_ms: u64,
    },
    Verifying {
        by_ms: u64,
    },
}

/// How it went, and when that was settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) at_ms: u64,
    pub(super) end: End,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub(super) enum End {
    Succeeded,
    Failed { error: SessionError },
    Expired { error: SessionError },
    Cancelled,
}

impl Outcome {
    pub(super) fn error(&self) -> Option<&SessionError> {
        match &self.end {
            End::Failed { error } | End::Expired { error } => Some(error),
            End::Succeeded | End::Cancelled => None,
        }
    }

    pub(super) fn state(&self) -> State {
        match self.end {
            End::Succeeded => State::Succeeded,
            End::Failed { .. } => State::Failed,
            End::Expired { .. } => State::Expired,
            End::Cancelled => State::Cancelled,
        }
    }
}

impl Desktop {
    fn deadline(self) -> Option<u64> {
        match self {
            Self::Coming { by_ms } => Some(by_ms),
            Self::Off | Self::Ready => None,
        }
    }
}

impl BrowserVm {
    fn deadline(self) -> Option<u64> {
        match self {
            Self::Releasing { release } => Some(release.by_ms),
            Self::Held { .. } | Self::Gone => None,
        }
    }

    pub(super) fn vm(self) -> Option<VmId> {
        match self {
            Self::Held { vm } => Some(vm),
            Self::Releasing { release } => Some(release.vm),
            Self::Gone => None,
        }
    }
}

impl Phase {
    pub(super) fn deadline(&self) -> Option<u64> {
        let earliest =
            |first: u64, others: [Option<u64>; 2]| others.into_iter().flatten().fold(first, u64::min);
        match *self {
            Self::Queued { by_ms, .. }
            | Self::Booting { by_ms, .. }
            | Self::Collecting { by_ms, .. }
            | Self::Sealing { by_ms, .. }
            | Self::Leaving { by_ms, .. }
            | Self::Closing { release: Release { by_ms, .. }, .. } => Some(by_ms),
            Self::Preparing { desktop, url: Url::Coming { by_ms }, .. } => {
                Some(earliest(by_ms, [desktop.deadline(), None]))
            }
            Self::Preparing { desktop, url: Url::Known { .. }, .. } => desktop.deadline(),
            Self::AwaitingUser { desktop, page, by_ms, .. } => {
                let page = match page {
                    Page::Opening { by_ms, .. } => Some(by_ms),
                    Page::Closed | Page::Open => None,
                };
                Some(earliest(by_ms, [desktop.deadline(), page]))
            }
            Self::Delivering { browser, delivery } => {
                let (Delivery::Transferring { by_ms, .. }
                | Delivery::Pausing { by_ms, .. }
                | Delivery::Verifying { by_ms }) = delivery;
                Some(earliest(by_ms, [browser.deadline(), None]))
            }
            Self::Closed { .. } => None,
        }
    }

    pub(super) fn held_vm(&self) -> Option<VmId> {
        match *self {
            Self::Booting { vm, .. }
            | Self::Preparing { vm, .. }
            | Self::AwaitingUser { vm, .. }
            | Self::Collecting { vm, .. }
            | Self::Closing { release: Release { vm, .. }, .. } => Some(vm),
            Self::Sealing { browser, .. } | Self::Delivering { browser, .. } => browser.vm(),
            Self::Queued { .. } | Self::Leaving { .. } | Self::Closed { .. } => None,
        }
    }

    pub(super) fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Leaving { outcome, .. } | Self::Closing { outcome, .. } | Self::Closed { outcome } => {
                Some(outcome)
            }
            Self::Queued { .. }
            | Self::Booting { .. }
            | Self::Preparing { .. }
            | Self::AwaitingUser { .. }
            | Self::Collecting { .. }
            | Self::Sealing { .. }
            | Self::Delivering { .. } => None,
        }
    }
}
