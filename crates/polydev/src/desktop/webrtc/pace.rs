//! When the bandwidth of a viewer's path is estimated, and when that would only cost.
//!
//! ```text
//! still --a picture that is not small--> moving --nothing but small ones for a while--> still
//! ```
//! Estimating has a price: the library fills silence up to 50 kbit/s and probes above what is sent every few seconds. A
//! sign-in page stands still most of the time, so that price is paid while pictures flow only. What was learned is kept.
//! The library cannot be told to rest: from what the page says about the one small picture a second it makes an estimate
//! of its own, and fills up to that. So whatever it may have learned from the page meanwhile is taken from it again.
//! Nor is it believed when it thinks less of a path that hardly anything is sent over: of five packets one is lost easily.

use std::time::{Duration, Instant};

use str0m::bwe::Bitrate;

/// Assumed of a path that nothing is known of.
const FIRST_ESTIMATE: Bitrate = Bitrate::kbps(5000);
/// What is known is never taken for less: below it nothing can be read.
const LEAST_ESTIMATE: Bitrate = Bitrate::kbps(200);
/// Without pictures for so long, it stands still.
const STILL_AFTER: Duration = Duration::from_millis(1500);
/// Over this, pictures are what fills the path, and more of it is looked for.
const WINDOW: Duration = Duration::from_secs(1);
/// Bytes of pictures within a window that make looking for more worth it: 400 kbit.
const DEMAND_BYTES: usize = 50_000;
/// Bytes of a picture too small to make a difference: one packet.
const SMALL: usize = 1100;
/// What is sought when enough is known: next to nothing. Nothing at all would have the library look for it all the time.
const LITTLE: Bitrate = Bitrate::kbps(10);
/// What was sent so long ago counts a third of what is sent now.
const FLOW_OVER: Duration = Duration::from_millis(200);
/// So many times what is sent, or what is known, is far above it.
const FAR_ABOVE: f64 = 1.5;
/// The library tells the mean of what it estimated for so long; the nothing that it estimates at rest counts in it.
const SMOOTHED_OVER: Duration = Duration::from_secs(3);
/// The estimator wants to be woken 40 times a second even at rest. It, and whatever is due after it, waits longer by this.
const REST: Duration = Duration::from_millis(225);
/// The search for bandwidth after a picture that fills packets at the start of a connection.
const FIRST_SEARCH: Duration = Duration::from_secs(3);

/// What the library is to do from now on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pacing {
    /// Estimate nothing, fill nothing, and send at once whatever comes.
    Rest,
    /// Estimate from here on. The first picture may still leave at once: a person has just clicked, and waits for it.
    Estimate {
        /// What was known last.
        from: Bitrate,
    },
    /// Send no faster than estimated.
    Smooth,
    /// Find out whether the path takes so much.
    Seek(Bitrate),
}

/// The state of one viewer.
#[derive(Debug)]
pub(super) struct Pace {
    motion: Motion,
    estimate: Bitrate,
    /// What the library thinks.
    library: Bitrate,
    most: Bitrate,
    sent: Flow,
    /// Since when the path is used.
    begun: Option<Instant>,
    /// When the library was last put to rest.
    rested: Option<Instant>,
}

/// What is sent at the moment: a mean that forgets.
#[derive(Debug, Default)]
struct Flow {
    bytes: f64,
    at: Option<Instant>,
}

impl Flow {
    fn add(&mut self, now: Instant, bytes: usize) {
        self.bytes = self.left(now) + bytes as f64;
        self.at = Some(now);
    }

    fn rate(&self, now: Instant) -> Bitrate {
        Bitrate::bps((self.left(now) * 8.0 / FLOW_OVER.as_secs_f64()) as u64)
    }

    fn left(&self, now: Instant) -> f64 {
        self.at.map_or(0.0, |at| self.bytes * (-(now - at).as_secs_f64() / FLOW_OVER.as_secs_f64()).exp())
    }
}

#[derive(Debug)]
enum Motion {
    Still,
    Moving { last: Instant, window: Instant, bytes: usize, sought: Bitrate, is_smooth: bool },
}

impl Pace {
    pub(super) fn new(max_kbps: u32) -> Self {
        let most = Bitrate::kbps(u64::from(max_kbps));
        let estimate = FIRST_ESTIMATE.min(most);
        let (library, motion) = (estimate, Motion::Still);
        Self { motion, estimate, library, most, sent: Flow::default(), begun: None, rested: None }
    }

    /// What the path is thought to take.
    pub(super) fn estimate(&self) -> Bitrate {
        self.estimate
    }

    /// The library has a new estimate. `None` if it is not to be heeded.
    pub(super) fn estimated(&mut self, now: Instant, estimate: Bitrate) -> Option<Bitrate> {
        if matches!(self.motion, Motion::Still) || self.rested.is_some_and(|at| now - at < SMOOTHED_OVER) {
            return None;
        }
        self.library = estimate.max(LEAST_ESTIMATE).min(self.most);
        if self.library < self.estimate && self.library > self.sent.rate(now) * FAR_ABOVE {
            return None;
        }
        self.estimate = self.library;
        Some(self.estimate)
    }

    /// The page has said what arrived.
    pub(super) fn heard(&mut self, now: Instant) -> Option<Pacing> {
        match self.motion {
            Motion::Still => {
                self.rested.get_or_insert(now);
                Some(Pacing::Rest)
            }
            Motion::Moving { .. } => None,
        }
    }

    /// A picture of so many bytes is about to be sent.
    pub(super) fn sending(&mut self, now: Instant, size: usize) -> Option<Pacing> {
        self.sent.add(now, size);
        match &mut self.motion {
            Motion::Still if size <= SMALL => None,
            Motion::Still => {
                self.begun.get_or_insert(now);
                self.library = self.estimate;
                let sought = Bitrate::ZERO;
                self.motion =
                    Motion::Moving { last: now, window: now, bytes: size, sought, is_smooth: false };
                Some(Pacing::Estimate { from: self.estimate })
            }
            Motion::Moving { last, bytes, is_smooth, .. } => {
                *bytes += size;
                if size > SMALL {
                    *last = now;
                    if self.library * FAR_ABOVE < self.estimate {
                        self.library = self.estimate;
                        *is_smooth = false;
                        return Some(Pacing::Estimate { from: self.estimate });
                    }
                }
                (!std::mem::replace(is_smooth, true)).then_some(Pacing::Smooth)
            }
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Pacing> {
        let Motion::Moving { last, window, bytes, sought, .. } = &mut self.motion else { return None };
        if now - *last >= STILL_AFTER {
            (self.motion, self.rested) = (Motion::Still, Some(now));
            return Some(Pacing::Rest);
        }
        let is_first = self.begun.is_some_and(|begun| now - begun < FIRST_SEARCH);
        if now - *window < WINDOW && !(is_first && sought.is_zero()) {
            return None;
        }
        let wanted = is_first || *bytes >= DEMAND_BYTES;
        (*window, *bytes) = (now, 0);
        let target = match wanted {
            true => (self.estimate * 1.5).min(self.most),
            false if sought.is_zero() => Bitrate::ZERO,
            false => LITTLE,
        };
        if target == *sought {
            return None;
        }
        *sought = target;
        Some(Pacing::Seek(target))
    }

    /// When the library is to be woken that wants to be at `at`, be it for its estimator or for anything else.
    pub(super) fn wake(&self, now: Instant, at: Instant, is_estimator: bool) -> Instant {
        match self.motion {
            // What is due already is done, as something else may be due with it.
            Motion::Still if is_estimator && self.rested.is_some() && at > now => at + REST,
            Motion::Still => at,
            Motion::Moving { last, window, .. } => at.min(window + WINDOW).min(last + STILL_AFTER),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn keep_alive_pictures_wake_no_estimation() {
        let (mut pace, now) = (Pace::new(20_000), Instant::now());
        assert_eq!(pace.sending(now, 200), None);
        assert_eq!(pace.wake(now, now + 5 * MS, false), now + 5 * MS);
        assert_eq!(pace.heard(now), Some(Pacing::Rest), "what they teach is forgotten");
        assert_eq!(pace.estimated(now, Bitrate::kbps(1)), None);
        assert_eq!(pace.estimate(), FIRST_ESTIMATE);
    }

    #[test]
    fn a_picture_begins_estimating_from_what_was_known_and_stillness_ends_it() {
        let (mut pace, now) = (Pace::new(20_000), Instant::now());
        assert_eq!(pace.sending(now, 90_000), Some(Pacing::Estimate { from: FIRST_ESTIMATE }));
        assert_eq!(pace.tick(now), Some(Pacing::Seek(Bitrate::kbps(7500))), "a new path is searched at once");
        assert_eq!(pace.heard(now), None, "what the page says is heeded");
        assert_eq!(pace.estimated(now, Bitrate::kbps(1000)), Some(Bitrate::kbps(1000)));
        assert_eq!(
            pace.sending(now + 1400 * MS, 300),
            Some(Pacing::Smooth),
            "the second one keeps to the estimate"
        );
        assert_eq!(pace.sending(now + 1400 * MS, 300), None, "too small to count");
        assert_eq!(pace.tick(now + 1500 * MS), Some(Pacing::Rest));
        assert_eq!(pace.heard(now + 1600 * MS), Some(Pacing::Rest));
        assert_eq!(
            pace.estimated(now + 1600 * MS, Bitrate::kbps(1)),
            None,
            "what a resting library says is nothing"
        );
        let later = now + 60_000 * MS;
        assert_eq!(pace.sending(later, 5000), Some(Pacing::Estimate { from: Bitrate::kbps(1000) }));
        assert_eq!(pace.tick(later + 1000 * MS), None, "little was sent: nothing is sought");
    }

    #[test]
    fn a_resting_estimator_is_woken_less_often_and_delays_nothing_that_is_due() {
        let (mut pace, now) = (Pace::new(20_000), Instant::now());
        let soon = now + 25 * MS;
        assert_eq!(pace.wake(now, soon, true), soon, "it does not rest while the connection is being made");
        pace.heard(now);
        assert_eq!(pace.wake(now, soon, true), soon + REST);
        assert_eq!(pace.wake(now + 20 * MS, soon, true), soon + REST, "whatever comes meanwhile");
        assert_eq!(pace.wake(now, soon, false), soon);
        assert_eq!(pace.wake(soon, soon, true), soon);
        pace.sending(now, 90_000);
        assert_eq!(pace.wake(now, soon, true), soon);
        assert_eq!(pace.wake(now, now + 5000 * MS, false), now + WINDOW);
    }

    #[test]
    fn short_rests_do_not_wear_the_estimate_down() {
        let (mut pace, now) = (Pace::new(20_000), Instant::now());
        pace.sending(now, 90_000);
        assert_eq!(pace.tick(now + 1500 * MS), Some(Pacing::Rest));
        let estimate = Pacing::Estimate { from: FIRST_ESTIMATE };
        assert_eq!(pace.sending(now + 1600 * MS, 5000), Some(estimate));
        let mean = FIRST_ESTIMATE / 2.0;
        assert_eq!(pace.estimated(now + 1700 * MS, mean), None, "half of it is the rest's");
        assert_eq!(pace.estimate(), FIRST_ESTIMATE);
        pace.sending(now + 4400 * MS, 300_000);
        assert_eq!(pace.estimated(now + 4500 * MS, mean), Some(mean));
    }

    #[test]
    fn less_is_believed_of_a_path_only_when_that_much_is_sent() {
        let (mut pace, now) = (Pace::new(20_000), Instant::now());
        for step in 0..30 {
            pace.sending(now + 30 * MS * step, 5000);
        }
        let little = Bitrate::kbps(600);
        assert_eq!(pace.estimated(now + 1500 * MS, little), None, "nothing was sent for half a second");
        let again = Pacing::Estimate { from: FIRST_ESTIMATE };
        assert_eq!(pace.sending(now + 1600 * MS, 5000), Some(again), "the library has to think so, too");
        for step in 1..10 {
            pace.sending(now + 1600 * MS + 30 * MS * step, 5000);
        }
        assert_eq!(pace.estimated(now + 1900 * MS, little), Some(little), "more than that is sent");
    }

    #[test]
    fn more_is_sought_while_pictures_fill_the_path_but_never_more_than_is_allowed() {
        let (mut pace, now) = (Pace::new(6000), Instant::now());
        pace.sending(now, 90_000);
        assert_eq!(pace.tick(now), Some(Pacing::Seek(Bitrate::kbps(6000))));
        let mut sought = Vec::new();
        for step in 1..60 {
            let now = now + 100 * MS * step;
            pace.sending(now, 20_000);
            sought.extend(pace.tick(now));
        }
        assert_eq!(sought, [], "it seeks the same all the time");
        assert_eq!(pace.estimated(now + 6000 * MS, Bitrate::mbps(50)), Some(Bitrate::kbps(6000)));
    }

    #[test]
    fn enough_is_known_when_little_is_sent() {
        let (mut pace, now) = (Pace::new(20_000), Instant::now());
        pace.sending(now, 90_000);
        assert_eq!(pace.tick(now), Some(Pacing::Seek(Bitrate::kbps(7500))));
        let mut sought = Vec::new();
        for step in 1..80 {
            let now = now + 100 * MS * step;
            pace.sending(now, 2000);
            sought.extend(pace.tick(now));
        }
        assert_eq!(sought, [Pacing::Seek(LITTLE)]);
    }

    #[test]
    fn a_bad_path_is_not_given_up() {
        let (mut pace, now) = (Pace::new(6000), Instant::now());
        pace.sending(now, 90_000);
        assert_eq!(pace.estimated(now, Bitrate::ZERO), Some(LEAST_ESTIMATE));
    }
}
