//! What is counted for one viewer, and means of it once a second.

use std::{collections::VecDeque, time::Duration};

use polydev_core::desktop::Frame;
use tokio::time::Instant;

use super::queue::Waiting;

/// Pictures that were taken and are not sent yet.
const TAKEN_MAX: usize = 16;
/// Input events whose picture has not left yet.
const INPUTS_MAX: usize = 256;

/// Counts for one viewer.
pub(super) struct Tally {
    since: Instant,
    frames: u32,
    bytes: u64,
    server: Mean,
    input: Mean,
    dropped: u64,
    keyframes: u64,
    last_server: Option<Duration>,
    taken: VecDeque<Waiting>,
    /// Deliberate input events, oldest first: number and arrival.
    inputs: VecDeque<(u32, Instant)>,
}

/// What one picture's leaving showed.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// From reading the screen to leaving.
    pub(super) server: Option<Duration>,
    /// From arrival to leaving, of the input events that it may be the first to show.
    pub(super) inputs: Vec<Duration>,
}

/// Figures of the last second, and totals.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tallied {
    pub(super) fps: f64,
    pub(super) kbps: f64,
    pub(super) dropped: u64,
    pub(super) keyframes: u64,
    pub(super) server_ms: Option<f64>,
    pub(super) input_server_ms: Option<f64>,
}

impl Tally {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            frames: 0,
            bytes: 0,
            server: Mean::default(),
            input: Mean::default(),
            dropped: 0,
            keyframes: 0,
            last_server: None,
            taken: VecDeque::with_capacity(TAKEN_MAX),
            inputs: VecDeque::new(),
        }
    }

    /// The transport has taken a picture to send it.
    pub(super) fn taken(&mut self, waiting: &Waiting) {
        if self.taken.len() == TAKEN_MAX {
            self.taken.pop_front();
        }
        self.taken.push_back(waiting.clone());
    }

    /// A deliberate input event went to the guest under this number.
    pub(super) fn forwarded(&mut self, seq: u32, arrived: Instant) {
        if self.inputs.len() == INPUTS_MAX {
            self.inputs.pop_front();
        }
        self.inputs.push_back((seq, arrived));
    }

    /// A picture left. One that shows no change answers no input, however late it comes.
    pub(super) fn sent(&mut self, frame: &Frame, bytes: usize, now: Instant) -> Left {
        self.frames += 1;
        self.bytes += bytes as u64;
        self.keyframes += u64::from(frame.key);
        let mut left = Left::default();
        if let Some(at) = self.taken.iter().position(|taken| taken.frame.seq == frame.seq) {
            let taken = self.taken.drain(..=at).next_back();
            left.server =
                taken.and_then(|taken| Some(taken.age? + now.saturating_duration_since(taken.arrived)));
        }
        while let Some((seq, arrived)) =
            self.inputs.front().copied().filter(|(seq, _)| *seq <= frame.input_seq)
        {
            let _ = seq;
            self.inputs.pop_front();
            if !frame.keep_alive {
                left.inputs.push(now.saturating_duration_since(arrived));
            }
        }
        if let Some(server) = left.server {
            self.server.add(server);
            self.last_server = Some(server);
        }
        left.inputs.iter().for_each(|input| self.input.add(*input));
        left
    }

    pub(super) fn dropped(&mut self, frames: usize) {
        self.dropped += frames as u64;
    }

    pub(super) fn last_server(&self) -> Option<Duration> {
        self.last_server
    }

    /// Figures since this was last called.
    pub(super) fn take(&mut self, now: Instant) -> Tallied {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64().max(f64::MIN_POSITIVE);
        let tallied = Tallied {
            fps: f64::from(self.frames) / seconds,
            kbps: self.bytes as f64 * 8.0 / 1000.0 / seconds,
            dropped: self.dropped,
            keyframes: self.keyframes,
            server_ms: self.server.take_ms(),
            input_server_ms: self.input.take_ms(),
        };
        (self.since, self.frames, self.bytes) = (now, 0, 0);
        tallied
    }
}

#[derive(Debug, Default)]
struct Mean {
    sum: Duration,
    count: u32,
}

impl Mean {
    fn add(&mut self, one: Duration) {
        self.sum += one;
        self.count += 1;
    }

    fn take_ms(&mut self) -> Option<f64> {
        let Self { sum, count } = std::mem::take(self);
        (count > 0).then(|| sum.as_secs_f64() * 1000.0 / f64::from(count))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn frame(seq: u32, input_seq: u32, keep_alive: bool) -> Frame {
        Frame {
            key: seq == 1,
            keep_alive,
            seq,
            captured_us: 0,
            work_us: 0,
            input_seq,
            width: 640,
            height: 480,
            data: Vec::new(),
        }
    }

    #[test]
    fn an_input_is_timed_to_the_first_picture_that_can_show_it() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut tally = Tally::new(start);
        tally.forwarded(1, at(0));
        tally.forwarded(2, at(10));
        tally.forwarded(3, at(20));
        assert_eq!(tally.sent(&frame(1, 0, false), 10, at(25)).inputs.len(), 0);
        let left = tally.sent(&frame(2, 2, false), 10, at(30));
        assert_eq!(left.inputs, [Duration::from_millis(30), Duration::from_millis(20)]);
        assert_eq!(
            tally.sent(&frame(3, 3, true), 10, at(900)).inputs.len(),
            0,
            "nothing was to be seen of it"
        );
        let tallied = tally.take(at(1000));
        assert_eq!((tallied.input_server_ms, tallied.server_ms), (Some(25.0), None));
        assert_eq!((tallied.fps, tallied.keyframes), (3.0, 1));
        assert_eq!(tally.take(at(2000)).fps, 0.0);
    }

    #[test]
    fn the_way_of_a_picture_is_its_age_and_its_stay() {
        let start = Instant::now();
        let mut tally = Tally::new(start);
        let (arrived, age) = (start, Some(Duration::from_millis(8)));
        for seq in 1..100 {
            tally.taken(&Waiting { frame: Arc::new(frame(seq, 0, false)), arrived, age });
        }
        assert!(tally.taken.len() <= TAKEN_MAX);
        let left = tally.sent(&frame(99, 0, false), 10, start + Duration::from_millis(4));
        assert_eq!(left.server, Some(Duration::from_millis(12)));
        assert_eq!(tally.sent(&frame(7, 0, false), 10, start).server, None, "long forgotten");
    }
}
