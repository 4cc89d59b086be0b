//! A token bucket that may go into debt. Pure: time is an argument.

use std::time::{Duration, Instant};

/// Longest wait that one debt asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How much of something may happen per second, some of it at once.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    per_second: f64,
    most: f64,
    left: f64,
    at: Option<Instant>,
}

impl Bucket {
    /// `per_second` on average, `burst` at once. Zero per second: no limit.
    pub(crate) fn new(per_second: u64, burst: u64) -> Self {
        let most = burst.max(1) as f64;
        Self { per_second: per_second as f64, most, left: most, at: None }
    }

    /// Takes an amount, whether it is there or not, and says how long to wait before taking more.
    pub(crate) fn take(&mut self, amount: u64, now: Instant) -> Duration {
        if self.per_second <= 0.0 {
            return Duration::ZERO;
        }
        let since = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        self.left = (self.left + since.as_secs_f64() * self.per_second).min(self.most) - amount as f64;
        // Debt is bounded by the wait, so that one big amount does not close the way for minutes.
        self.left = self.left.max(-self.per_second * LONGEST_WAIT.as_secs_f64());
        if self.left >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.left / self.per_second) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_is_free_and_what_follows_waits() {
        let now = Instant::now();
        let mut bucket = Bucket::new(10, 5);
        for _ in 0..5 {
            assert_eq!(bucket.take(1, now), Duration::ZERO);
        }
        assert_eq!(bucket.take(1, now), Duration::from_millis(100));
        assert_eq!(bucket.take(1, now + Duration::from_secs(1)), Duration::ZERO);
        assert!(Bucket::new(0, 1).take(u64::MAX, now).is_zero(), "zero is no limit");
    }

    proptest! {
        #[test]
        fn who_waits_as_told_never_exceeds_rate_and_burst(
            rate in 1u64..10_000, burst in 1u64..10_000, takes in prop::collection::vec((0u64..10_000, 0u64..2_000), 1..60),
        ) {
            let begin = Instant::now();
            let (mut now, mut total) = (begin, 0);
            let mut bucket = Bucket::new(rate, burst);
            for (amount, pause_ms) in takes {
                // More than the longest wait repays is forgiven; that much is taken by nobody.
                let amount = amount.min(rate * 5);
                now += Duration::from_millis(pause_ms);
                let wait = bucket.take(amount, now);
                total += amount;
                prop_assert!(wait <= LONGEST_WAIT);
                now += wait;
                let allowed = burst as f64 + (now - begin).as_secs_f64() * rate as f64;
                prop_assert!(total as f64 <= allowed + 1.0, "{total} of {allowed}");
            }
        }
    }
}
