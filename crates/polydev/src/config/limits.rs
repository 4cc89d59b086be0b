//! How much a caller may do.

use std::time::Duration;

use super::Settings;

const REQUESTS_MAX: u32 = 1000;
const WINDOW_MS: u64 = 15 * 60 * 1000;
const POLLING_MAX: u32 = 10_000;
const POLLING_WINDOW_MS: u64 = 60 * 1000;
const QUEUE_WAIT_S: u64 = 120;
const WEBSOCKETS_PER_VM: usize = 8;

/// Limits.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// Requests per caller and window.
    pub requests_max: u32,
    /// Length of the window.
    pub window: Duration,
    /// Requests per caller and polling window, on routes made for polling.
    pub polling_max: u32,
    /// Length of the polling window.
    pub polling_window: Duration,
    /// Most sessions that wait for a slot; 0 = a start without a free slot is refused.
    pub queue_max: usize,
    /// Longest wait for a slot.
    pub queue_wait: Duration,
    /// Most WebSockets on one VM.
    pub websockets_per_vm: usize,
}

impl LimitsConfig {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let limits = Self {
            requests_max: settings.get("rate_limit_requests", REQUESTS_MAX),
            window: Duration::from_millis(settings.get("rate_limit_window_ms", WINDOW_MS)),
            polling_max: settings.get("rate_limit_polling_requests", POLLING_MAX),
            polling_window: Duration::from_millis(
                settings.get("rate_limit_polling_window_ms", POLLING_WINDOW_MS),
            ),
            queue_max: settings.get("queue_max", 0),
            queue_wait: Duration::from_secs(settings.get("queue_wait_s", QUEUE_WAIT_S)),
            websockets_per_vm: settings.get("websockets_per_vm", WEBSOCKETS_PER_VM),
        };
        if limits.requests_max == 0 || limits.polling_max == 0 {
            settings.reject("rate_limit_requests", "must be at least 1");
        }
        if limits.window.is_zero() || limits.polling_window.is_zero() {
            settings.reject("rate_limit_window_ms", "must be at least 1");
        }
        limits
    }
}
