//! How often something may happen: a bucket of tokens that fills at a steady pace.

use std::time::Duration;

use tokio::time::Instant;

/// Lets through a burst, and then a steady rate.
#[derive(Debug)]
pub(super) struct Bucket {
    burst: f64,
    per_second: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let (burst, per_second) = (f64::from(burst), f64::from(per_second));
        Self { burst, per_second, tokens: burst, filled: now }
    }

    /// Whether one more may happen now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed: Duration = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.per_second).min(self.burst);
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_more_than_the_burst_and_the_rate_pass(gaps_us in prop::collection::vec(0..5_000_u64, 1..4000)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(1000, 50, start);
            let (mut now, mut passed) = (start, 0_u32);
            for gap in gaps_us {
                now += Duration::from_micros(gap);
                passed += u32::from(bucket.take(now));
            }
            let allowed = 50.0 + (now - start).as_secs_f64() * 1000.0 + 1.0;
            prop_assert!(f64::from(passed) <= allowed, "{} of {}", passed, allowed);
        }
    }

    #[test]
    fn who_keeps_to_the_rate_is_never_refused() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, 1, start);
        assert!((0..5000).all(|at| bucket.take(start + Duration::from_millis(at))));
    }
}
