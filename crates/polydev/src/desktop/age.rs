//! How old a picture is when it comes to the controller. Pure: time is an argument.
//!
//! A picture carries when the screen was read by the guest's clock. Guests that share the host's kernel share its clock,
//! so the difference is the age. Another guest's clock is off by an amount nobody knows: then the fastest way that a
//! picture took lately counts as no way at all, and only what others took longer is added to the guest's own work. Such
//! figures are too small by that fastest way (a copy between guest and host, below a millisecond).

use std::time::Duration;

/// An age above this is a clock that was set, not a picture that was late.
const AGE_MAX: Duration = Duration::from_secs(10);
/// How long the fastest way counts; clocks drift.
const WINDOW_US: i64 = 30_000_000;

/// Tells the ages of one guest's pictures.
#[derive(Debug)]
pub(super) struct Ages {
    clock: GuestClock,
}

#[derive(Debug)]
enum GuestClock {
    Shared,
    /// The smallest difference of the present window and of the former one, and when the present one began.
    Own {
        fastest: Option<i64>,
        former: Option<i64>,
        since_us: i64,
    },
}

impl Ages {
    pub(super) fn new(shares_clock: bool) -> Self {
        let own = GuestClock::Own { fastest: None, former: None, since_us: i64::MIN };
        Self { clock: if shares_clock { GuestClock::Shared } else { own } }
    }

    /// The age of a picture that arrived at `arrived_us` by the host's clock, microseconds since the Unix epoch.
    pub(super) fn age(&mut self, captured_us: u64, work_us: u32, arrived_us: u64) -> Option<Duration> {
        let captured = i64::try_from(captured_us).ok()?;
        let arrived = i64::try_from(arrived_us).ok()?;
        let work = i64::from(work_us);
        let way = arrived.checked_sub(captured)?.checked_sub(work)?;
        let over = match &mut self.clock {
            GuestClock::Shared => way,
            GuestClock::Own { fastest, former, since_us } => {
                if arrived.saturating_sub(*since_us) > WINDOW_US {
                    (*former, *fastest, *since_us) = (*fastest, None, arrived);
                }
                let least = fastest.map_or(way, |least| least.min(way));
                *fastest = Some(least);
                let least = former.map_or(least, |former| former.min(least));
                if way.saturating_sub(least) > i64::try_from(AGE_MAX.as_micros()).unwrap_or(i64::MAX) {
                    (*former, *fastest) = (None, Some(way));
                }
                way.saturating_sub(least)
            }
        };
        let age = u64::try_from(over.checked_add(work)?).ok().map(Duration::from_micros)?;
        (age <= AGE_MAX).then_some(age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn with_one_clock_the_age_is_the_difference() {
        let mut ages = Ages::new(true);
        assert_eq!(ages.age(1_000_000, 4000, 1_009_000), Some(Duration::from_millis(9)));
        assert_eq!(ages.age(0, 4000, 1_700_000_000_000_000), None, "a guest without a clock");
        assert_eq!(ages.age(2_000_000, 0, 1_000_000), None, "from the future");
    }

    proptest! {
        #[test]
        fn with_a_clock_of_its_own_the_age_is_right_but_for_the_fastest_way(
            offset in -1_000_000_000_000_i64..1_000_000_000_000,
            ways in prop::collection::vec(100..50_000_i64, 1..50),
        ) {
            let mut ages = Ages::new(false);
            let mut host_us = 1_700_000_000_000_000_i64;
            let mut fastest = i64::MAX;
            for way in ways {
                host_us += 33_000;
                fastest = fastest.min(way);
                let age = ages.age((host_us + offset) as u64, 4000, (host_us + 4000 + way) as u64).unwrap();
                prop_assert_eq!(age, Duration::from_micros((4000 + way - fastest) as u64));
            }
        }
    }

    #[test]
    fn a_clock_that_is_set_does_not_spoil_the_figures_for_good() {
        let mut ages = Ages::new(false);
        assert!(ages.age(10_000_000_000, 1000, 10_000_001_500).is_some());
        // The guest's clock was set an hour back.
        let later = ages.age(10_000_000_000 - 3_600_000_000 + 33_000, 1000, 10_000_034_500);
        assert_eq!(later, None);
        assert_eq!(
            ages.age(10_000_000_000 - 3_600_000_000 + 66_000, 1000, 10_000_067_700),
            Some(Duration::from_micros(1200))
        );
    }
}
