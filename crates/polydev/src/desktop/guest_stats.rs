//! What the counters of the guest's desktop program say about the last second.

use polydev_core::desktop::GuestStats;
use tokio::time::Instant;

/// Longest time between two reports that belong together; figures of a longer one are no news.
const GAP_MAX_S: f64 = 10.0;

/// Follows the counters of one program.
#[derive(Debug, Default)]
pub(super) struct GuestFigures {
    last: Option<(GuestStats, Instant)>,
    /// CPU of the program, share of one core.
    pub(super) cpu: Option<f64>,
    /// CPU of the encoder per picture, milliseconds.
    pub(super) encode_ms: Option<f64>,
}

impl GuestFigures {
    /// Takes the counters; gives what was added since they last came. A guest whose counters go back has lied or
    /// started anew: that adds nothing.
    pub(super) fn take(&mut self, stats: GuestStats, now: Instant) -> GuestStats {
        let Some((last, at)) = self.last.replace((stats, now)) else { return GuestStats::default() };
        let seconds = now.saturating_duration_since(at).as_secs_f64();
        let less = |new: u64, old: u64| new.saturating_sub(old);
        let added = GuestStats {
            frames: less(stats.frames, last.frames),
            keyframes: less(stats.keyframes, last.keyframes),
            merged: less(stats.merged, last.merged),
            bytes: less(stats.bytes, last.bytes),
            capture_cpu_us: less(stats.capture_cpu_us, last.capture_cpu_us),
            encode_cpu_us: less(stats.encode_cpu_us, last.encode_cpu_us),
            cpu_us: less(stats.cpu_us, last.cpu_us),
            inputs: less(stats.inputs, last.inputs),
            inputs_failed: less(stats.inputs_failed, last.inputs_failed),
        };
        // No program uses more than every core there is.
        const CORES_MAX: f64 = 1024.0;
        let cores = added.cpu_us as f64 / 1e6 / seconds;
        if !(f64::EPSILON..=GAP_MAX_S).contains(&seconds) || cores > CORES_MAX {
            return GuestStats::default();
        }
        self.cpu = Some(cores);
        self.encode_ms =
            (added.frames > 0).then(|| added.encode_cpu_us as f64 / 1000.0 / added.frames as f64);
        added
    }

    /// The program has gone.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn shares_are_of_the_time_between_two_reports() {
        let (start, mut figures) = (Instant::now(), GuestFigures::default());
        let at = |frames, cpu_us, encode_cpu_us| GuestStats {
            frames,
            cpu_us,
            encode_cpu_us,
            ..GuestStats::default()
        };
        assert_eq!(figures.take(at(100, 1_000_000, 500_000), start), GuestStats::default());
        figures.take(at(130, 1_200_000, 620_000), start + Duration::from_secs(1));
        assert_eq!((figures.cpu, figures.encode_ms), (Some(0.2), Some(4.0)));
        let added = figures.take(at(0, u64::MAX, 0), start + Duration::from_secs(2));
        assert_eq!(added, GuestStats::default(), "nobody has that many cores");
    }
}
