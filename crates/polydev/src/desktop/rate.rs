//! How much the encoder may make. Pure: time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// Of an estimate, the part that pictures may take; the rest is for retransmission and words.
const SHARE_PERCENT: u32 = 90;
/// Least that text can be read at.
const KBPS_MIN: u32 = 300;
/// Most that an encoder can be told.
const KBPS_MAX: u32 = 50_000;
/// Before anything is known of a path.
const KBPS_START: u32 = 4000;
/// A change by less than this part is not worth a word.
const CHANGE_PERCENT: u32 = 5;
/// The encoder is told at most this often; well below the 200 ms in which it has to follow.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// After a cut the queue needs a moment to show whether it was enough.
const CUT_EVERY: Duration = Duration::from_millis(500);
/// Without overflow for this long, more is tried.
const STEADY: Duration = Duration::from_secs(3);

/// What the encoder was told.
#[derive(Debug)]
pub(super) struct Rate {
    max_kbps: u32,
    target: u32,
    told: Option<(u32, Instant)>,
}

impl Rate {
    pub(super) fn new(max_kbps: u32) -> Self {
        let max_kbps = max_kbps.clamp(KBPS_MIN, KBPS_MAX);
        Self { max_kbps, target: KBPS_START.min(max_kbps), told: None }
    }

    /// What the path of the viewer that counts is thought to take now.
    pub(super) fn follow(&mut self, estimate_kbps: u32) {
        let share = u64::from(estimate_kbps) * u64::from(SHARE_PERCENT) / 100;
        self.target = u32::try_from(share).unwrap_or(u32::MAX).clamp(KBPS_MIN, self.max_kbps);
    }

    /// A new encoder knows nothing.
    pub(super) fn forget(&mut self) {
        self.told = None;
    }

    /// What the encoder is to be told now.
    pub(super) fn tell(&mut self, now: Instant) -> Option<u32> {
        if self.deadline(now)? > now {
            return None;
        }
        self.told = Some((self.target, now));
        Some(self.target)
    }

    /// When the encoder is to be told something.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        match self.told {
            None => Some(now),
            Some((told, at)) => {
                let change = u64::from(told.abs_diff(self.target)) * 100;
                let worth = change >= u64::from(told) * u64::from(CHANGE_PERCENT);
                (worth && told != self.target).then(|| at + TELL_EVERY)
            }
        }
    }
}

/// Finds out what a path takes that nobody measures: less when its queue overflows, more while it is used and steady.
#[derive(Debug)]
pub(super) struct Probe {
    max_kbps: u32,
    kbps: u32,
    overflowed: Option<Instant>,
    raised: Instant,
}

impl Probe {
    pub(super) fn new(max_kbps: u32, now: Instant) -> Self {
        let max_kbps = (max_kbps.clamp(KBPS_MIN, KBPS_MAX) * 100).div_ceil(SHARE_PERCENT);
        Self {
            max_kbps,
            kbps: (KBPS_START * 100 / SHARE_PERCENT).min(max_kbps),
            overflowed: None,
            raised: now,
        }
    }

    pub(super) fn estimate(&self) -> u32 {
        self.kbps
    }

    /// The queue overflowed.
    pub(super) fn overflow(&mut self, now: Instant) {
        if self.overflowed.is_some_and(|at| now.duration_since(at) < CUT_EVERY) {
            return;
        }
        self.overflowed = Some(now);
        self.kbps = (self.kbps * 7 / 10).max(KBPS_MIN);
    }

    /// So much went through lately. Only a rate that was used says anything about a higher one.
    pub(super) fn used(&mut self, kbps: f64, now: Instant) {
        let steady_since = self.overflowed.map_or(self.raised, |at| at.max(self.raised));
        if now.duration_since(steady_since) >= STEADY && kbps * 2.0 >= f64::from(self.kbps) {
            self.raised = now;
            self.kbps = (self.kbps * 5 / 4).min(self.max_kbps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_encoder_follows_within_200_ms_and_stays_within_its_limits(
            estimates in prop::collection::vec((0..100_000_u32, 0..300_u64), 1..60),
            max in 300..20_000_u32,
        ) {
            let (mut rate, mut now) = (Rate::new(max), Instant::now());
            let mut told: Vec<(u32, Instant)> = Vec::new();
            for (estimate, gap) in estimates {
                rate.follow(estimate);
                let changed = now;
                let end = now + Duration::from_millis(gap);
                while let Some(due) = rate.deadline(now).filter(|due| *due <= end) {
                    now = now.max(due);
                    let kbps = rate.tell(now).expect("it is due");
                    prop_assert!((KBPS_MIN..=max).contains(&kbps));
                    prop_assert!(now - changed <= Duration::from_millis(200));
                    told.push((kbps, now));
                }
                now = end;
            }
            prop_assert!(told.windows(2).all(|pair| pair[1].1 - pair[0].1 >= TELL_EVERY));
            prop_assert!(told.windows(2).all(|pair| pair[1].0 != pair[0].0));
        }

        #[test]
        fn a_probe_stays_within_its_limits(steps in prop::collection::vec((any::<bool>(), 0..5000_u64), 0..200)) {
            let mut now = Instant::now();
            let mut probe = Probe::new(20_000, now);
            for (overflow, gap) in steps {
                now += Duration::from_millis(gap);
                if overflow {
                    probe.overflow(now);
                } else {
                    probe.used(f64::from(probe.estimate()), now);
                }
                prop_assert!((KBPS_MIN..=22_223).contains(&probe.estimate()));
            }
        }
    }

    #[test]
    fn small_changes_are_not_told() {
        let (mut rate, now) = (Rate::new(20_000), Instant::now());
        rate.follow(10_000);
        assert_eq!(rate.tell(now), Some(9000));
        rate.follow(10_300);
        assert_eq!(rate.tell(now + Duration::from_secs(1)), None);
        rate.follow(5000);
        assert_eq!(rate.tell(now + Duration::from_secs(1)), Some(4500));
    }

    #[test]
    fn a_path_that_is_not_used_is_not_thought_wider() {
        let start = Instant::now();
        let mut probe = Probe::new(20_000, start);
        let before = probe.estimate();
        probe.used(10.0, start + Duration::from_secs(60));
        assert_eq!(probe.estimate(), before);
        probe.used(f64::from(before), start + Duration::from_secs(60));
        assert!(probe.estimate() > before);
    }
}
