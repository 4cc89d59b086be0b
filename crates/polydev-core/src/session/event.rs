//! What can happen to a session, and what it can ask for.

use crate::{
    ids::VmId,
    wire::{LoginEnd, UrlYields},
};

use super::Lane;

/// Something happened. `detail` is always for a person and for the log, and holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Still no slot; this is the place in the queue, 1 = next.
    QueuePosition(u32),
    /// The queue takes no more.
    QueueFull,
    /// A slot is ours. The driver drew the VM's id.
    SlotGranted(VmId),
    /// [`Effect::LeaveQueue`] is done: no slot will be granted any more.
    LeftQueue,
    /// The VM's agent answered and took its identity.
    VmReady,
    /// The VM could not be created, or it ended by itself and that was noticed.
    VmFailed {
        /// Class.
        cause: VmFailure,
        /// In words.
        detail: String,
    },
    /// The connection to the agent is gone for good, or the VM died.
    AgentGone,
    /// The screen shows a browser window.
    DesktopReady,
    /// The desktop cannot be started.
    DesktopFailed {
        /// In words.
        detail: String,
    },
    /// The CLI runs.
    LoginStarted,
    /// The agent refused to start the login.
    LoginRefused {
        /// In words.
        detail: String,
    },
    /// The sign-in page's address is known; the driver keeps it.
    UrlCaptured(UrlYields),
    /// A page and a code to type there are known; the driver keeps them.
    DeviceCode,
    /// The sign-in page is on the screen.
    PageOpen,
    /// The sign-in page did not come up, after the agent's own tries.
    PageFailed {
        /// In words.
        detail: String,
    },
    /// The person clicked or typed something.
    UserActive,
    /// The browser reached the CLI's loopback listener.
    CallbackSeen,
    /// A credential file that fulfils its rule was written.
    CredentialSeen,
    /// The CLI's login is over.
    LoginEnded(LoginEnd),
    /// The credential files were read; the driver holds them. Unless the answer is [`Effect::Seal`], it drops them.
    Fetched,
    /// The credential files could not be read.
    FetchFailed {
        /// Class.
        cause: FetchFailure,
        /// In words.
        detail: String,
    },
    /// The credential is sealed and stored.
    Sealed,
    /// The credential could not be sealed or stored.
    SealFailed {
        /// Class.
        cause: SealFailure,
        /// In words.
        detail: String,
    },
    /// The files are in the CLI VM.
    Transferred,
    /// The files did not reach the CLI VM.
    TransferFailed {
        /// In words.
        detail: String,
    },
    /// The CLI's own status command in the CLI VM says signed in.
    Verified,
    /// It says something else, or could not be run.
    VerifyFailed {
        /// In words.
        detail: String,
    },
    /// The person wants another way to the sign-in page.
    LaneChosen(Lane),
    /// The person calls it off.
    Cancel,
    /// The controller was restarted; sent once to every session that is loaded from the store.
    Restarted,
    /// The browser VM and all it had are gone.
    VmGone,
    /// [`super::Session::next_deadline`] may have passed.
    DeadlineReached,
}

/// Why a VM could not be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmFailure {
    /// Another one was faster.
    NoSlot,
    /// No golden image.
    ImageMissing,
    /// A damaged golden image.
    ImageDamaged,
    /// The driver does not work here.
    DriverUnusable,
    /// The disk is full.
    NoSpace,
    /// It ended before its agent answered, or anything else.
    StartFailed,
    /// Its agent did not answer in time.
    TimedOut,
    /// It ended by itself later.
    Died,
}

/// Why credential files could not be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FetchFailure {
    /// A file is missing, is no valid document or lacks a required key.
    Incomplete,
    /// The agent could not read it.
    Unreadable,
}

/// Why a credential could not be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SealFailure {
    /// The disk is full.
    NoSpace,
    /// Anything else.
    Other,
}

/// Something to do. The driver answers each with an event, except where it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Store the session's row, then show it to whoever watches. No answer.
    Publish,
    /// Get a slot: [`Event::QueuePosition`] any number of times, then [`Event::SlotGranted`] or [`Event::QueueFull`].
    RequestSlot,
    /// Stop waiting for a slot: [`Event::LeftQueue`], or [`Event::SlotGranted`] if it came first. Repeated until then.
    LeaveQueue,
    /// Create the browser VM: [`Event::VmReady`] or [`Event::VmFailed`].
    CreateVm(VmId),
    /// Start the desktop: [`Event::DesktopReady`] or [`Event::DesktopFailed`].
    StartDesktop(VmId),
    /// Start the CLI's login: [`Event::LoginStarted`] or [`Event::LoginRefused`], later [`Event::LoginEnded`].
    StartLogin(VmId),
    /// Open the newest page of that kind in the VM's browser: [`Event::PageOpen`] or [`Event::PageFailed`].
    OpenPage(VmId, UrlYields),
    /// Read the credential files: [`Event::Fetched`] or [`Event::FetchFailed`].
    FetchCredential(VmId),
    /// Seal and store what was fetched: [`Event::Sealed`] or [`Event::SealFailed`].
    Seal,
    /// Open the stored credential and put it into the CLI VM, which is created if need be: [`Event::Transferred`] or
    /// [`Event::TransferFailed`]. Idempotent.
    Transfer,
    /// Run the CLI's status command in the CLI VM: [`Event::Verified`] or [`Event::VerifyFailed`].
    Verify,
    /// Destroy the browser VM: [`Event::VmGone`]. Idempotent; repeated until then.
    ReleaseVm {
        /// Which.
        vm: VmId,
        /// The session did not succeed: what is left of the VM may be kept for a look.
        failed: bool,
    },
}
