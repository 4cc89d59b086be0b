//! Pictures on their way to one viewer: only the latest, and never one that needs a picture that was dropped.
//!
//! ```text
//! flowing --too much waits--> needs a keyframe --keyframe comes--> flowing
//! ```
//! A viewer joins in the second state. While it lasts, pictures that need an earlier one are withheld. A viewer that gets
//! behind says so before anything has to be dropped: a keyframe costs its path much more than a picture that comes later.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use polydev_core::desktop::Frame;
use tokio::time::Instant;

use super::seat::{Occupied, Seat};

/// With so many pictures waiting, more would only grow old: the viewer is behind until none waits.
const BEHIND_AT: usize = 2;
/// Pictures that may wait: those, and what the guest may have sent before it heard of it.
const FRAMES_MAX: usize = 5;
/// Bytes that may wait, not counting a keyframe, which is taken in any case.
const BYTES_MAX: usize = 2 << 20;

/// The pictures of one viewer, for its transport to send. Dropping it, the words and all links ends the viewer's part.
pub struct FrameQueue {
    seat: Arc<Occupied>,
}

impl FrameQueue {
    pub(super) fn new(seat: Arc<Occupied>) -> Self {
        Self { seat }
    }

    /// The next picture; `None` when no more come. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Arc<Frame>> {
        let seat: &Seat = &self.seat;
        loop {
            // Registered before looking, so that a picture that comes in between is not overlooked.
            let ready = seat.frames_ready.notified();
            match seat.take_frame() {
                Taken::Frame(frame) => return Some(frame),
                Taken::Ended => return None,
                Taken::Nothing => ready.await,
            }
        }
    }
}

/// What was there to take.
pub(super) enum Taken {
    Frame(Arc<Frame>),
    Nothing,
    Ended,
}

/// What became of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It waits; so many earlier ones were made pointless by it.
    Queued { dropped: usize },
    /// It is not for this viewer, which needs a keyframe first.
    Withheld,
    /// Too much waits: so many were dropped, and a keyframe is needed.
    Overflowed { dropped: usize },
}

/// What waits for one viewer.
#[derive(Debug)]
pub(super) struct Latest {
    flow: Flow,
    waiting: VecDeque<Waiting>,
    is_behind: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Flowing,
    NeedsKey,
}

/// A picture and when it came to the controller.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) frame: Arc<Frame>,
    pub(super) arrived: Instant,
    /// How old it was then, if that is known.
    pub(super) age: Option<Duration>,
}

impl Latest {
    pub(super) fn new() -> Self {
        Self { flow: Flow::NeedsKey, waiting: VecDeque::with_capacity(FRAMES_MAX), is_behind: false }
    }

    pub(super) fn push(&mut self, frame: Arc<Frame>, arrived: Instant, age: Option<Duration>) -> Pushed {
        if frame.key {
            let dropped = self.waiting.len();
            self.waiting.clear();
            self.waiting.push_back(Waiting { frame, arrived, age });
            self.flow = Flow::Flowing;
            self.is_behind = false;
            return Pushed::Queued { dropped };
        }
        if self.flow == Flow::NeedsKey {
            return Pushed::Withheld;
        }
        let bytes: usize = self
            .waiting
            .iter()
            .filter(|waiting| !waiting.frame.key)
            .map(|waiting| waiting.frame.data.len())
            .sum();
        if self.waiting.len() < FRAMES_MAX && bytes + frame.data.len() <= BYTES_MAX {
            self.waiting.push_back(Waiting { frame, arrived, age });
            self.is_behind |= self.waiting.len() >= BEHIND_AT;
            return Pushed::Queued { dropped: 0 };
        }
        Pushed::Overflowed { dropped: self.interrupt() + 1 }
    }

    /// From now on a keyframe is needed. A keyframe that waits stands alone and stays. Gives how many were dropped.
    pub(super) fn interrupt(&mut self) -> usize {
        let before = self.waiting.len();
        let keyframes = usize::from(self.waiting.front().is_some_and(|first| first.frame.key));
        self.waiting.truncate(keyframes);
        (self.flow, self.is_behind) = (Flow::NeedsKey, false);
        before - self.waiting.len()
    }

    pub(super) fn needs_key(&self) -> bool {
        self.flow == Flow::NeedsKey
    }

    /// Whether more pictures would only wait.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind
    }

    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let next = self.waiting.pop_front();
        self.is_behind &= !self.waiting.is_empty();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(seq: u32, key: bool, bytes: usize) -> Arc<Frame> {
        Arc::new(Frame {
            key,
            keep_alive: false,
            seq,
            captured_us: 0,
            work_us: 0,
            input_seq: 0,
            width: 640,
            height: 480,
            data: vec![0; bytes],
        })
    }

    #[derive(Debug, Clone)]
    enum Step {
        Comes { key: bool, bytes: usize },
        Taken,
        Interrupted,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (prop::bool::weighted(0.1), 0..900_000_usize).prop_map(|(key, bytes)| Step::Comes { key, bytes }),
            4 => Just(Step::Taken),
            1 => Just(Step::Interrupted),
        ];
        prop::collection::vec(step, 0..120)
    }

    proptest! {
        #[test]
        fn a_viewer_gets_no_picture_whose_predecessor_it_did_not_get_and_little_waits(steps in steps()) {
            let mut latest = Latest::new();
            let mut seq = 0;
            let mut shown: Option<u32> = None;
            for step in steps {
                match step {
                    Step::Comes { key, bytes } => {
                        seq += 1;
                        let pushed = latest.push(frame(seq, key, bytes), Instant::now(), None);
                        let queued = matches!(pushed, Pushed::Queued { .. });
                        prop_assert!(!key || queued);
                    }
                    Step::Taken => {
                        if let Some(Waiting { frame, .. }) = latest.pop() {
                            prop_assert!(frame.key || shown == Some(frame.seq - 1), "{} after {:?}", frame.seq, shown);
                            shown = Some(frame.seq);
                        }
                    }
                    Step::Interrupted => {
                        latest.interrupt();
                    }
                }
                prop_assert!(latest.waiting.len() <= FRAMES_MAX);
                let deltas: usize = latest.waiting.iter().filter(|w| !w.frame.key).map(|w| w.frame.data.len()).sum();
                prop_assert!(deltas <= BYTES_MAX);
            }
        }
    }

    #[test]
    fn a_viewer_is_behind_from_the_second_picture_that_waits_until_none_waits() {
        let (mut latest, now) = (Latest::new(), Instant::now());
        let mut behind = |push: Option<u32>| {
            match push {
                Some(seq) => drop(latest.push(frame(seq, seq == 1, 1), now, None)),
                None => drop(latest.pop()),
            }
            latest.is_behind()
        };
        let steps = [Some(1), Some(2), Some(3), None, None, None, Some(4), None, Some(5), Some(6)];
        let seen: Vec<bool> = steps.into_iter().map(&mut behind).collect();
        assert_eq!(seen, [false, true, true, true, true, false, false, false, false, true]);
        latest.interrupt();
        assert!(!latest.is_behind(), "what it needs now is a keyframe");
    }

    #[test]
    fn a_viewer_that_takes_nothing_overflows_once_and_then_waits_for_a_keyframe() {
        let mut latest = Latest::new();
        let now = Instant::now();
        assert_eq!(latest.push(frame(1, false, 1), now, None), Pushed::Withheld);
        assert_eq!(latest.push(frame(2, true, 1), now, None), Pushed::Queued { dropped: 0 });
        for seq in 3..=6 {
            assert_eq!(latest.push(frame(seq, false, 1), now, None), Pushed::Queued { dropped: 0 });
        }
        assert_eq!(latest.push(frame(7, false, 1), now, None), Pushed::Overflowed { dropped: 5 });
        assert_eq!(latest.push(frame(8, false, 1), now, None), Pushed::Withheld);
        assert_eq!(latest.pop().map(|waiting| waiting.frame.seq), Some(2), "the keyframe stands alone");
        assert_eq!(latest.push(frame(9, true, 1), now, None), Pushed::Queued { dropped: 0 });
        assert!(!latest.needs_key());
    }
}
