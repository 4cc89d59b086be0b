//! When the next frame is due. Knows no clock: time is an argument.

use std::time::{Duration, Instant};

/// After the last change: when the picture is first made sharper, and how far apart it is then made sharper still.
const REFINE: (Duration, Duration) = (Duration::from_millis(150), Duration::from_millis(100));
/// How often at most.
const REFINE_MAX: u8 = 5;
/// A refinement of so few bytes had nothing to add, and nor will the next one; a change of so few bytes in a picture that
/// was sharp, a caret that blinks, is sharp at once.
const REFINED_BYTES: usize = 600;
/// Chromium asks for a keyframe when it sees nothing for 3 s: two of these come in that time, should one be lost.
const KEEP_ALIVE: Duration = Duration::from_millis(1400);
/// Input may bring the next frame forward up to here.
const INPUT_INTERVAL: Duration = Duration::from_millis(4);

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Shows a change.
    Change,
    /// Shows the same, sharper.
    Refine,
    /// Shows that the stream lives.
    KeepAlive,
}

/// The rhythm of frames while somebody watches.
#[derive(Debug)]
pub(crate) struct Pace {
    interval: Duration,
    last: Instant,
    changed: bool,
    input: bool,
    early: bool,
    refines_left: u8,
    refined: bool,
    /// The picture was refined as far as it goes.
    sharp: bool,
}

impl Pace {
    /// The first frame is due at once.
    pub(crate) fn new(fps: u8, now: Instant) -> Self {
        let mut pace = Self {
            interval: Duration::ZERO,
            last: now,
            changed: true,
            input: true,
            early: false,
            refines_left: 0,
            refined: false,
            sharp: false,
        };
        pace.set_fps(fps);
        pace.last = now.checked_sub(pace.interval).unwrap_or(now);
        pace
    }

    /// Most frames per second.
    pub(crate) fn set_fps(&mut self, fps: u8) {
        self.interval = Duration::from_secs(1) / u32::from(fps.max(1));
    }

    /// The screen changed.
    pub(crate) fn changed(&mut self) {
        self.changed = true;
    }

    /// The change turned out to be none.
    pub(crate) fn unchanged(&mut self) {
        self.changed = false;
    }

    /// Input was injected: what it changes is not to wait.
    pub(crate) fn input(&mut self) {
        self.input = true;
    }

    /// What is due next, and when.
    pub(crate) fn next(&self) -> (Purpose, Instant) {
        if self.changed {
            // Every other frame may be early: a hand that never rests at most doubles the rate.
            let early = self.input && !self.early;
            let interval = if early { self.interval.min(INPUT_INTERVAL) } else { self.interval };
            return (Purpose::Change, self.last + interval);
        }
        if self.refines_left > 0 {
            let pause = if self.refined { REFINE.1 } else { REFINE.0 };
            return (Purpose::Refine, self.last + pause.max(self.interval));
        }
        (Purpose::KeepAlive, self.last + KEEP_ALIVE)
    }

    /// A frame was begun then, and had so many bytes.
    pub(crate) fn made(&mut self, purpose: Purpose, began: Instant, bytes: usize) {
        match purpose {
            Purpose::Change => {
                self.early = began < self.last + self.interval;
                let sharp = self.sharp && bytes <= REFINED_BYTES;
                (self.sharp, self.refines_left) = (sharp, if sharp { 0 } else { REFINE_MAX });
                self.refined = false;
                self.changed = false;
                self.input = false;
            }
            Purpose::Refine => {
                self.refines_left = if bytes <= REFINED_BYTES { 0 } else { self.refines_left - 1 };
                self.sharp = self.refines_left == 0;
                self.refined = true;
            }
            Purpose::KeepAlive => {}
        }
        self.last = began;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 10 * REFINED_BYTES;

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    fn pace() -> (Pace, Instant) {
        let start = Instant::now();
        let mut pace = Pace::new(25, start);
        assert_eq!(pace.next(), (Purpose::Change, start - ms(40) + INPUT_INTERVAL));
        pace.made(Purpose::Change, start, LARGE);
        (pace, start)
    }

    #[test]
    fn a_change_waits_for_its_turn() {
        let (mut pace, start) = pace();
        pace.changed();
        pace.changed();
        assert_eq!(pace.next(), (Purpose::Change, start + ms(40)));
    }

    #[test]
    fn input_brings_a_frame_forward_but_not_two_in_a_row() {
        let (mut pace, start) = pace();
        pace.changed();
        pace.input();
        assert_eq!(pace.next(), (Purpose::Change, start + INPUT_INTERVAL));
        pace.made(Purpose::Change, start + ms(5), LARGE);
        pace.changed();
        pace.input();
        assert_eq!(pace.next(), (Purpose::Change, start + ms(45)));
    }

    #[test]
    fn a_still_picture_is_made_sharper_and_then_left_alone() {
        let (mut pace, start) = pace();
        let mut at = start + ms(150);
        for _ in 0..REFINE_MAX {
            assert_eq!(pace.next(), (Purpose::Refine, at));
            pace.made(Purpose::Refine, at, LARGE);
            at += ms(100);
        }
        assert_eq!(pace.next(), (Purpose::KeepAlive, at - ms(100) + KEEP_ALIVE));
        pace.made(Purpose::KeepAlive, at + ms(900), 200);
        assert_eq!(pace.next(), (Purpose::KeepAlive, at + ms(900) + KEEP_ALIVE));
    }

    #[test]
    fn a_caret_that_blinks_in_a_sharp_picture_is_not_refined() {
        let (mut pace, start) = pace();
        pace.made(Purpose::Refine, start + ms(150), REFINED_BYTES);
        for beat in 1..4 {
            let at = start + ms(500 * beat);
            pace.changed();
            pace.made(Purpose::Change, at, REFINED_BYTES);
            assert_eq!(pace.next(), (Purpose::KeepAlive, at + KEEP_ALIVE));
        }
        pace.changed();
        pace.made(Purpose::Change, start + ms(2000), LARGE);
        assert_eq!(pace.next(), (Purpose::Refine, start + ms(2150)));
    }

    #[test]
    fn a_picture_that_is_sharp_already_is_not_refined_further() {
        let (mut pace, start) = pace();
        pace.made(Purpose::Refine, start + ms(150), REFINED_BYTES);
        assert_eq!(pace.next(), (Purpose::KeepAlive, start + ms(150) + KEEP_ALIVE));
    }
}
