//! How often a caller may ask: fixed windows, one for routes made for polling, one for all others.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::config::LimitsConfig;

/// Most callers remembered; beyond that expired windows are dropped first, then all.
const CALLERS_MAX: usize = 10_000;

/// Class of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum RouteClass {
    /// Made for being asked again and again, or for signalling.
    Polling,
    /// Everything else.
    Other,
}

/// Counts requests.
#[derive(Debug)]
pub struct RateLimiter {
    limits: LimitsConfig,
    windows: Mutex<HashMap<(RouteClass, String), Window>>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    ends_ms: u64,
    count: u32,
}

impl RateLimiter {
    /// A limiter without history.
    pub fn new(limits: LimitsConfig) -> Self {
        Self { limits, windows: Mutex::default() }
    }

    /// Counts a request. `Err` holds the time until the caller may ask again.
    pub(super) fn count(&self, class: RouteClass, caller: &str, now_ms: u64) -> Result<(), Duration> {
        let (max, length) = match class {
            RouteClass::Polling => (self.limits.polling_max, self.limits.polling_window),
            RouteClass::Other => (self.limits.requests_max, self.limits.window),
        };
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= CALLERS_MAX {
            windows.retain(|_, window| window.ends_ms > now_ms);
            if windows.len() >= CALLERS_MAX {
                windows.clear();
            }
        }
        let ends_ms = now_ms + u64::try_from(length.as_millis()).unwrap_or(u64::MAX / 2);
        let fresh = Window { ends_ms, count: 0 };
        let window = windows.entry((class, caller.to_owned())).or_insert(fresh);
        // A clock that was set back must not lock a caller out.
        if window.ends_ms <= now_ms || window.ends_ms > ends_ms {
            *window = fresh;
        }
        if window.count >= max {
            return Err(Duration::from_millis(window.ends_ms - now_ms));
        }
        window.count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> RateLimiter {
        let config = crate::config::Config::load(
            None,
            [("RATE_LIMIT_MAX_REQUESTS".into(), "2".into()), ("RATE_LIMIT_WINDOW_MS".into(), "1000".into())],
            [],
        );
        RateLimiter::new(config.unwrap().limits)
    }

    #[test]
    fn the_one_too_many_is_told_how_long_to_wait_and_passes_then() {
        let limiter = limiter();
        assert!(limiter.count(RouteClass::Other, "a", 0).is_ok());
        assert!(limiter.count(RouteClass::Other, "a", 400).is_ok());
        assert_eq!(limiter.count(RouteClass::Other, "a", 600), Err(Duration::from_millis(400)));
        assert!(limiter.count(RouteClass::Other, "b", 600).is_ok(), "callers do not share a window");
        assert!(limiter.count(RouteClass::Polling, "a", 600).is_ok(), "polling has its own window");
        assert!(limiter.count(RouteClass::Other, "a", 1000).is_ok());
    }
}
