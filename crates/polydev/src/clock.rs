//! The time, so that tests can hold it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Where the time comes from.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// The machine's wall clock.
    System,
    /// A fixed wall-clock time at `start`, going on with the runtime's clock, which a test can pause.
    Runtime {
        /// Milliseconds since the Unix epoch at `start`.
        base_unix_ms: u64,
        /// When that was.
        start: Instant,
    },
}

impl Clock {
    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        match self {
            Self::System => millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            Self::Runtime { base_unix_ms, start } => base_unix_ms + millis(start.elapsed()),
        }
    }

    /// The same for the database, whose integers are signed.
    pub fn now_db(&self) -> i64 {
        i64::try_from(self.now_ms()).unwrap_or(i64::MAX)
    }
}

/// RFC 3339 in UTC with milliseconds.
pub fn rfc3339(unix_ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
