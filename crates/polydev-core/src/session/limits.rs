//! How long each state of a session may last.

use serde::{Deserialize, Serialize};

/// Tries to open the sign-in page, the first included. Each of them is several tries of the agent.
pub(super) const PAGE_TRIES: u32 = 3;
/// Tries to hand the credential over, the first included.
pub(super) const TRANSFER_TRIES: u32 = 3;
const BACK_OFF_FIRST_MS: u64 = 1_000;
const BACK_OFF_MAX_MS: u64 = 60_000;

/// Deadlines, in milliseconds. The defaults leave room for an emulated CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Waiting for a slot.
    pub queue_ms: u64,
    /// Creating the browser VM.
    pub boot_ms: u64,
    /// From the VM being ready to a painted browser window.
    pub desktop_ms: u64,
    /// From the VM being ready to the sign-in URL.
    pub url_ms: u64,
    /// One try to open the sign-in page.
    pub page_ms: u64,
    /// Without a sign of the person.
    pub user_ms: u64,
    /// The person's part as a whole, whatever they do.
    pub user_total_ms: u64,
    /// From the complete credential file to the end of the CLI.
    pub settle_ms: u64,
    /// Reading the credential files.
    pub fetch_ms: u64,
    /// Sealing and storing.
    pub seal_ms: u64,
    /// One hand-over, the start of the CLI VM included.
    pub transfer_ms: u64,
    /// The CLI's status command.
    pub verify_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const SECOND: u64 = 1_000;
        const MINUTE: u64 = 60 * SECOND;
        Self {
            queue_ms: 10 * MINUTE,
            boot_ms: 3 * MINUTE,
            desktop_ms: 3 * MINUTE,
            url_ms: 2 * MINUTE,
            page_ms: 2 * MINUTE,
            user_ms: 15 * MINUTE,
            user_total_ms: 60 * MINUTE,
            settle_ms: 2 * MINUTE,
            fetch_ms: 30 * SECOND,
            seal_ms: 30 * SECOND,
            transfer_ms: 4 * MINUTE,
            verify_ms: 2 * MINUTE,
        }
    }
}

/// Pause before a repetition: doubles from one second to one minute.
pub(super) fn back_off_ms(tries: u32) -> u64 {
    BACK_OFF_FIRST_MS.checked_shl(tries.min(32)).unwrap_or(BACK_OFF_MAX_MS).min(BACK_OFF_MAX_MS)
}
