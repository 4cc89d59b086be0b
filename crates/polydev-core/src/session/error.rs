//! Why a session did not succeed: stable codes for programs, a title and a detail for people.

use serde::{Deserialize, Serialize};

use crate::scrub::scrub;

/// The fault that ended a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionError {
    /// Stable code.
    pub code: SessionErrorCode,
    /// What exactly happened; holds no secret.
    pub detail: String,
}

impl SessionError {
    /// The detail is scrubbed once more on its way in, whoever wrote it.
    pub fn new(code: SessionErrorCode, detail: impl AsRef<str>) -> Self {
        Self { code, detail: scrub(detail.as_ref()) }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $title:literal;)+) => {
        /// Stable codes. New ones may be added; the meaning of one never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum SessionErrorCode {
            $($(#[$doc])* #[serde(rename = $code)] $name,)+
        }
        impl SessionErrorCode {
            /// Every code, for documentation and for tests.
            pub const ALL: &[Self] = &[$(Self::$name),+];
            /// As it is written in the API and in the store.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code),+ }
            }
            /// One line for a person.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title),+ }
            }
        }
    };
}

codes! {
    /// All slots are in use and the queue takes no more.
    NoSlot = "no_slot", "All machines are in use";
    /// No slot came free in time.
    QueueTimeout = "queue_timeout", "No machine came free in time";
    /// There is no golden image.
    ImageMissing = "image_missing", "The machine image is not installed";
    /// The golden image is damaged.
    ImageDamaged = "image_damaged", "The machine image is damaged";
    /// The driver does not work on this host.
    DriverUnusable = "driver_unusable", "This host cannot run the machine";
    /// The host's disk is full.
    NoSpace = "no_space", "The disk is full";
    /// The browser VM did not start.
    VmStartFailed = "vm_start_failed", "The browser machine did not start";
    /// The browser VM did not start in time.
    VmStartTimeout = "vm_start_timeout", "The browser machine took too long to start";
    /// The browser VM or its agent went away.
    VmLost = "vm_lost", "The browser machine was lost";
    /// The desktop broke.
    DesktopFailed = "desktop_failed", "The browser did not start";
    /// The desktop did not come up in time.
    DesktopTimeout = "desktop_timeout", "The browser took too long to start";
    /// The CLI could not be started.
    CliNotStarted = "cli_not_started", "The tool could not be started";
    /// The CLI ended before it gave a sign-in page.
    CliExitedEarly = "cli_exited_early", "The tool ended before the sign-in began";
    /// The CLI gave no sign-in page in time.
    UrlTimeout = "url_timeout", "The tool gave no sign-in page";
    /// The sign-in page did not come up in the browser.
    PageFailed = "page_failed", "The sign-in page did not open";
    /// The person did nothing for too long.
    UserTimeout = "user_timeout", "The sign-in was not finished in time";
    /// The CLI gave up waiting, or hung after the sign-in.
    LoginTimedOut = "login_timed_out", "The tool stopped waiting for the sign-in";
    /// The CLI says that the sign-in failed.
    LoginFailed = "login_failed", "The tool did not accept the sign-in";
    /// The credential file lacks something.
    CredentialIncomplete = "credential_incomplete", "The tool left an incomplete sign-in";
    /// The credential file could not be read.
    CredentialUnreadable = "credential_unreadable", "The sign-in could not be read";
    /// The vault could not store the credential.
    SealFailed = "seal_failed", "The sign-in could not be stored";
    /// The credential is stored but did not reach the CLI VM.
    TransferFailed = "transfer_failed", "The sign-in is stored, but did not reach the workspace";
    /// The credential reached the CLI VM, where the CLI does not accept it.
    VerifyFailed = "verify_failed", "The tool does not accept the sign-in in the workspace";
    /// The controller was restarted in the middle.
    Interrupted = "interrupted", "The service was restarted during the sign-in";
}

impl std::fmt::Display for SessionErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
