//! A sign-in as others see it: in memory for the API's handlers, in the database across restarts, as JSON outside.

use polydev_core::{
    ids::{ProviderId, SessionId, Slot, UserId, VmId},
    session::{Lane, Session},
    wire::UrlYields,
};
use polydev_host::Vm;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::{clock::rfc3339, store::sessions::SessionRecord};

/// What is stored of a sign-in. No address and no code of the sign-in is in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) machine: Session,
    pub(super) slot: Option<Slot>,
    pub(super) browser_vm: Option<VmId>,
    pub(super) cli_vm: Option<VmId>,
}

/// The newest sign-in address; a secret until the sign-in is over.
#[derive(Clone)]
pub(super) struct Captured {
    pub(super) url: Zeroizing<String>,
    pub(super) yields: UrlYields,
}

/// How a sign-in stands.
#[derive(Clone)]
pub struct Shown {
    /// Its id.
    pub id: SessionId,
    /// Whose.
    pub user: UserId,
    /// For which tool.
    pub provider: ProviderId,
    /// The browser VM while it can be looked at.
    pub vm: Option<Vm>,
    pub(super) kept: Kept,
    pub(super) device: Option<DeviceCode>,
    pub(super) captured: Option<Captured>,
}

/// A page and the code to type there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeviceCode {
    /// The page.
    pub url: String,
    /// The code.
    pub code: String,
}

/// Why a sign-in did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SessionErrorDto {
    /// Stable code.
    pub code: String,
    /// One line for a person.
    pub title: String,
    /// What exactly happened.
    pub detail: String,
}

/// A step and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepDto {
    /// `vm_requested`, `vm_ready`, `cli_started`, `url_captured`, `desktop_ready`, `user_active`, `callback_seen`,
    /// `credential_seen`, `sealed`, `transferred` or `closed`.
    #[schema(value_type = String)]
    pub step: polydev_core::session::Step,
    /// Milliseconds since the session was created.
    pub at_ms: u64,
}

/// A sign-in in the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(title = "Session")]
pub struct SessionDto {
    /// Always true.
    pub success: bool,
    /// Its id.
    pub session_id: String,
    /// Whose.
    pub user_id: String,
    /// For which tool: canonical id.
    pub provider: String,
    /// `queued`, `starting`, `awaiting_user`, `verifying`, `succeeded`, `failed`, `expired` or `cancelled`.
    pub state: String,
    /// The newest step.
    #[schema(value_type = Option<String>)]
    pub step: Option<polydev_core::session::Step>,
    /// `streamed_browser`, `callback_relay` or `device_code`.
    pub lane: String,
    /// Steps in the order in which they were reached.
    pub steps: Vec<StepDto>,
    /// Why it did not succeed.
    pub error: Option<SessionErrorDto>,
    /// Name of the browser VM's place; not an address that can be reached.
    #[serde(rename = "browserIP")]
    pub browser_ip: Option<String>,
    /// The page with the live browser.
    #[serde(rename = "novncURL")]
    pub novnc_url: String,
    /// A page and the code to type there.
    pub device: Option<DeviceCode>,
    /// The browser VM.
    pub browser_vm_id: Option<String>,
    /// The CLI VM that got the credential.
    pub cli_vm_id: Option<String>,
    /// Place in the queue, 1 = next.
    pub queue_position: Option<u32>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub ended_at: Option<String>,
    /// Nothing will change any more; the browser VM is gone.
    pub closed: bool,
    /// Grows with every change.
    pub version: u64,
}

impl Shown {
    pub(super) fn new(record: &SessionRecord, kept: Kept) -> Self {
        let (id, user, provider) = (record.id, record.user.clone(), record.provider.clone());
        Self { id, user, provider, vm: None, kept, device: None, captured: None }
    }

    /// A stored sign-in that nobody drives any more.
    pub(super) fn of_record(record: &SessionRecord) -> Option<Self> {
        Some(Self::new(record, serde_json::from_str(&record.snapshot).ok()?))
    }

    /// The outcome is settled.
    pub fn is_final(&self) -> bool {
        self.kept.machine.state().is_final()
    }

    /// Nothing will change any more.
    pub fn is_closed(&self) -> bool {
        self.kept.machine.is_closed()
    }

    /// Grows with every change.
    pub fn version(&self) -> u64 {
        self.kept.machine.version()
    }

    /// The newest sign-in address. Not for logs.
    pub fn sign_in_url(&self) -> Option<&str> {
        self.captured.as_ref().map(|captured| captured.url.as_str())
    }

    /// As the API shows it.
    pub fn dto(&self, base_url: &str) -> SessionDto {
        let view = self.kept.machine.view();
        let step = |time: &polydev_core::session::StepTime| StepDto { step: time.step, at_ms: time.at_ms };
        SessionDto {
            success: true,
            session_id: self.id.to_string(),
            user_id: self.user.to_string(),
            provider: self.provider.to_string(),
            state: view.state.as_str().to_owned(),
            step: view.step,
            lane: view.lane.as_str().to_owned(),
            steps: view.steps.as_slice().iter().map(step).collect(),
            error: view.error.map(|error| SessionErrorDto {
                code: error.code.as_str().to_owned(),
                title: error.code.title().to_owned(),
                detail: error.detail,
            }),
            browser_ip: self.kept.slot.map(|slot| slot.address().to_string()),
            novnc_url: format!("{base_url}/session/{}", self.id),
            device: self.device.clone(),
            browser_vm_id: self.kept.browser_vm.map(|id| id.to_string()),
            cli_vm_id: self.kept.cli_vm.map(|id| id.to_string()),
            queue_position: view.queue_position,
            created_at: rfc3339(self.kept.machine.started_ms()),
            ended_at: view.ended_at_ms.map(rfc3339),
            closed: view.closed,
            version: self.version(),
        }
    }

    /// Whether a device code is the way of this sign-in.
    pub fn lane(&self) -> Lane {
        self.kept.machine.view().lane
    }
}
