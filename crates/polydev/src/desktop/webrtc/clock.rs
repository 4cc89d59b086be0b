//! Times of pictures as RTP has them: 90 kHz, from when the screen was read.

use std::time::{Duration, Instant};

use str0m::media::MediaTime;

/// A picture is not older than that; if its time says so, the guest's clock was set.
const AGE_MAX: Duration = Duration::from_secs(5);
const TICKS_PER_MS: u64 = 90;

/// Turns the guest's times into those of one RTP stream, which never go back.
#[derive(Debug, Default)]
pub(super) struct MediaClock {
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    ticks: u64,
    captured_us: u64,
    at: Instant,
}

impl MediaClock {
    /// The time of a picture that was read from the screen at `captured_us` and is sent now.
    pub(super) fn time(&mut self, captured_us: u64, now: Instant) -> MediaTime {
        let ticks = match self.last {
            None => TICKS_PER_MS,
            Some(last) => {
                let passed = now - last.at;
                let told = captured_us.checked_sub(last.captured_us).map(Duration::from_micros);
                // Where the guest's clock was set, or the guest is another one, the time that passed here stands in.
                let step = told.filter(|told| told.abs_diff(passed) < AGE_MAX).unwrap_or(passed);
                let ticks = u64::try_from(step.as_micros() * 90 / 1000).unwrap_or(TICKS_PER_MS);
                last.ticks + ticks.max(1)
            }
        };
        self.last = Some(Last { ticks, captured_us, at: now });
        MediaTime::from_90khz(ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_follow_the_screen_and_survive_a_clock_that_is_set() {
        let mut clock = MediaClock::default();
        let start = Instant::now();
        let mut time = |captured_ms: u64, passed_ms: u64| {
            clock.time(captured_ms * 1000, start + Duration::from_millis(passed_ms)).numer()
        };
        let first = time(1_000_000, 0);
        assert_eq!(time(1_000_033, 40) - first, 33 * 90, "when it was read counts, not when it is sent");
        assert_eq!(time(1_000_033, 40) - first, 33 * 90 + 1, "it always goes on");
        assert_eq!(time(5, 140) - first, 133 * 90 + 1, "back by a quarter of an hour");
        assert_eq!(time(9_000_000, 240) - first, 233 * 90 + 1, "on by hours");
    }
}
