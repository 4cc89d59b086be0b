//! What the hub and one viewer's transport share: two queues down, one up, and figures. Each side looks after its own
//! end, and neither ever waits for the other.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use polydev_core::desktop::{Frame, InputEvent};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use zeroize::Zeroizing;

use super::{
    Lane,
    bucket::Bucket,
    metrics::Metrics,
    queue::{Latest, Pushed, Taken},
    stats::{Tallied, Tally},
    talk::{FromViewer, ToViewer, ViewerReport},
    words::{Ended, Outgoing, Topic, Words},
};

/// Input events a viewer may send: a mouse that reports at 1000 Hz, and a burst of twice as many.
const INPUTS_PER_SECOND: u32 = 1000;
const INPUTS_BURST: u32 = 2000;
/// Words a viewer may send; resizing a window by hand says most.
const WORDS_PER_SECOND: u32 = 100;
const WORDS_BURST: u32 = 200;
/// What may wait for the hub of one viewer.
const ASKED_MAX: usize = 4096;
/// Of it, words, of which each may be a whole clipboard.
const ASKED_WORDS_MAX: usize = 16;
/// The same refusal is told at most this often.
const REFUSED_EVERY: Duration = Duration::from_secs(1);

/// One viewer's place.
pub(super) struct Seat {
    pub(super) viewer: u32,
    pub(super) lane: Lane,
    pub(super) token: Zeroizing<String>,
    pub(super) frames_ready: Notify,
    pub(super) words_ready: Notify,
    frames: Mutex<Down<Latest>>,
    words: Mutex<Down<Words>>,
    inbox: Mutex<Inbox>,
    /// Whether the viewer is in control, for a transport that acts on the guest itself.
    control: watch::Sender<bool>,
    tally: Mutex<Tally>,
    metrics: Arc<Metrics>,
    /// Wakes the hub.
    hub: Arc<Notify>,
}

/// A way down to the viewer.
struct Down<T> {
    waiting: T,
    ended: bool,
}

/// What a viewer wants of the hub.
pub(super) enum Asked {
    Input { event: InputEvent, arrived: Instant },
    Words(FromViewer),
}

/// Everything that a viewer said since the hub last looked.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) asked: VecDeque<Asked>,
    pub(super) keyframe: bool,
    pub(super) estimate: Option<u32>,
    /// Its connection stands, if it did not from the beginning.
    pub(super) arrived: bool,
    pub(super) left: bool,
}

struct Inbox {
    heard: Heard,
    /// When the viewer's side last gave a sign of life.
    alive: Instant,
    words: usize,
    /// An event that lets something go may be among those that were refused.
    lost_release: bool,
    inputs: Bucket,
    talk: Bucket,
    refused: [Option<Instant>; Refusal::ALL.len()],
}

/// Why something is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Refusal {
    ViewOnly,
    BadMessage,
    TooFast,
    ClipboardPolicy,
    TooLong,
}

impl Refusal {
    pub(super) const ALL: [Self; 5] =
        [Self::ViewOnly, Self::BadMessage, Self::TooFast, Self::ClipboardPolicy, Self::TooLong];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ViewOnly => "view_only",
            Self::BadMessage => "bad_message",
            Self::TooFast => "too_fast",
            Self::ClipboardPolicy => "clipboard_policy",
            Self::TooLong => "too_long",
        }
    }
}

/// The transport's hold on a seat.
pub(super) struct Occupied(Arc<Seat>);

impl Occupied {
    pub(super) fn new(seat: Arc<Seat>) -> Self {
        Self(seat)
    }
}

impl std::ops::Deref for Occupied {
    type Target = Seat;

    fn deref(&self) -> &Seat {
        &self.0
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        lock(&self.0.inbox).heard.left = true;
        self.0.hub.notify_one();
    }
}

impl Seat {
    pub(super) fn new(
        viewer: u32,
        lane: Lane,
        token: Zeroizing<String>,
        metrics: Arc<Metrics>,
        hub: Arc<Notify>,
    ) -> Self {
        let now = Instant::now();
        Self {
            viewer,
            lane,
            token,
            frames_ready: Notify::new(),
            words_ready: Notify::new(),
            frames: Mutex::new(Down { waiting: Latest::new(), ended: false }),
            words: Mutex::new(Down { waiting: Words::new(), ended: false }),
            inbox: Mutex::new(Inbox {
                heard: Heard::default(),
                alive: now,
                words: 0,
                lost_release: false,
                inputs: Bucket::new(INPUTS_PER_SECOND, INPUTS_BURST, now),
                talk: Bucket::new(WORDS_PER_SECOND, WORDS_BURST, now),
                refused: [None; Refusal::ALL.len()],
            }),
            control: watch::Sender::new(false),
            tally: Mutex::new(Tally::new(now)),
            metrics,
            hub,
        }
    }

    // What the transport calls.

    pub(super) fn take_frame(&self) -> Taken {
        let mut frames = lock(&self.frames);
        let was_behind = frames.waiting.is_behind();
        match frames.waiting.pop() {
            Some(waiting) => {
                let has_caught_up = was_behind && !frames.waiting.is_behind();
                drop(frames);
                if has_caught_up {
                    self.hub.notify_one();
                }
                lock(&self.tally).taken(&waiting);
                Taken::Frame(waiting.frame)
            }
            None if frames.ended => Taken::Ended,
            None => Taken::Nothing,
        }
    }

    pub(super) fn take_word(&self) -> Result<Option<Outgoing>, Ended> {
        let mut words = lock(&self.words);
        match words.waiting.pop() {
            Some(word) => Ok(Some(word)),
            None if words.ended => Err(Ended),
            None => Ok(None),
        }
    }

    /// Hands an input event to the hub if the viewer keeps to its rate. Of moves that follow each other the last one
    /// counts.
    pub(super) fn ask_input(&self, event: InputEvent, arrived: Instant) {
        let mut inbox = lock(&self.inbox);
        let is_move = matches!(event, InputEvent::Move { .. });
        if !inbox.inputs.take(arrived) || inbox.heard.asked.len() >= ASKED_MAX {
            if is_move {
                return;
            }
            inbox.lost_release = true;
            drop(inbox);
            return self.refuse(Refusal::TooFast);
        }
        let asked = &mut inbox.heard.asked;
        if is_move && let Some(Asked::Input { event: last @ InputEvent::Move { .. }, .. }) = asked.back_mut()
        {
            *last = event;
            return;
        }
        asked.push_back(Asked::Input { event, arrived });
        drop(inbox);
        self.hub.notify_one();
    }

    pub(super) fn may_speak(&self, now: Instant) -> bool {
        lock(&self.inbox).talk.take(now)
    }

    /// Hands words to the hub. Of sizes that follow each other the last one counts.
    pub(super) fn ask(&self, words: FromViewer) {
        let mut inbox = lock(&self.inbox);
        let is_resize = matches!(words, FromViewer::Resize { .. });
        if is_resize
            && let Some(Asked::Words(last @ FromViewer::Resize { .. })) = inbox.heard.asked.back_mut()
        {
            *last = words;
            return;
        }
        if inbox.words >= ASKED_WORDS_MAX {
            drop(inbox);
            return self.refuse(Refusal::TooFast);
        }
        inbox.words += 1;
        inbox.heard.asked.push_back(Asked::Words(words));
        drop(inbox);
        self.hub.notify_one();
    }

    pub(super) fn sign_of_life(&self, now: Instant) {
        lock(&self.inbox).alive = now;
    }

    pub(super) fn arrived(&self) {
        lock(&self.inbox).heard.arrived = true;
        self.hub.notify_one();
    }

    pub(super) fn watch_control(&self) -> watch::Receiver<bool> {
        self.control.subscribe()
    }

    pub(super) fn want_keyframe(&self) {
        lock(&self.inbox).heard.keyframe = true;
        self.hub.notify_one();
    }

    pub(super) fn estimate(&self, kbps: u32) {
        lock(&self.inbox).heard.estimate = Some(kbps);
        self.hub.notify_one();
    }

    pub(super) fn sent(&self, frame: &Frame, bytes: usize, now: Instant) {
        let left = lock(&self.tally).sent(frame, bytes, now);
        self.metrics.sent(self.lane, frame, bytes, &left);
    }

    pub(super) fn report(&self, report: &ViewerReport) {
        let server = lock(&self.tally).last_server();
        self.metrics.report(self.lane, report, server);
    }

    // What the hub calls, too.

    /// Tells that something is not accepted, not too often.
    pub(super) fn refuse(&self, refusal: Refusal) {
        self.metrics.refused(refusal);
        let now = Instant::now();
        let told = &mut lock(&self.inbox).refused[refusal as usize];
        if told.is_some_and(|at| now.duration_since(at) < REFUSED_EVERY) {
            return;
        }
        *told = Some(now);
        self.say(&ToViewer::Refused { code: refusal.as_str() });
    }

    pub(super) fn say(&self, word: &ToViewer) {
        let mut words = lock(&self.words);
        let said = words.waiting.say(word);
        self.said(words, said.is_ok());
    }

    /// Says something before all that waits.
    pub(super) fn say_first(&self, word: &ToViewer) {
        lock(&self.words).waiting.say_first(word);
        self.words_ready.notify_one();
    }

    pub(super) fn pass(&self, topic: Topic, message: Outgoing) {
        let mut words = lock(&self.words);
        let said = words.waiting.push(topic, message);
        self.said(words, said.is_ok());
    }

    // What the hub calls.

    pub(super) fn alive_at(&self) -> Instant {
        lock(&self.inbox).alive
    }

    pub(super) fn set_control(&self, is_in_control: bool) {
        self.control.send_replace(is_in_control);
    }

    pub(super) fn show(&self, frame: Arc<Frame>, arrived: Instant, age: Option<Duration>) -> Pushed {
        let pushed = lock(&self.frames).waiting.push(frame, arrived, age);
        let dropped = match pushed {
            Pushed::Queued { dropped } => {
                self.frames_ready.notify_one();
                dropped
            }
            Pushed::Withheld => 1,
            Pushed::Overflowed { dropped } => dropped,
        };
        if dropped > 0 {
            lock(&self.tally).dropped(dropped);
            self.metrics.dropped(self.lane, dropped);
        }
        pushed
    }

    /// No picture that needs an earlier one is shown before a keyframe has come.
    pub(super) fn interrupt(&self) {
        let dropped = lock(&self.frames).waiting.interrupt();
        lock(&self.tally).dropped(dropped);
        self.metrics.dropped(self.lane, dropped);
    }

    /// Whether more pictures would only wait. The hub is woken when that is over.
    pub(super) fn is_behind(&self) -> bool {
        lock(&self.frames).waiting.is_behind()
    }

    pub(super) fn needs_key(&self) -> bool {
        lock(&self.frames).waiting.needs_key()
    }

    pub(super) fn hear(&self) -> Heard {
        let mut inbox = lock(&self.inbox);
        inbox.words = 0;
        // Who left has left for good: the flag stays.
        let left = inbox.heard.left;
        std::mem::replace(&mut inbox.heard, Heard { left, ..Heard::default() })
    }

    /// Whether an event that lets something go may have been refused since this was last asked.
    pub(super) fn lost_release(&self) -> bool {
        std::mem::take(&mut lock(&self.inbox).lost_release)
    }

    pub(super) fn forwarded(&self, seq: u32, arrived: Instant) {
        lock(&self.tally).forwarded(seq, arrived);
    }

    pub(super) fn tally(&self, now: Instant) -> Tallied {
        lock(&self.tally).take(now)
    }

    /// Nothing more comes; words that wait are still delivered.
    pub(super) fn end(&self) {
        lock(&self.frames).ended = true;
        lock(&self.words).ended = true;
        self.frames_ready.notify_one();
        self.words_ready.notify_one();
    }

    fn said(&self, mut words: MutexGuard<'_, Down<Words>>, fits: bool) {
        words.ended |= !fits;
        drop(words);
        self.words_ready.notify_one();
        if !fits {
            // The viewer takes nothing: its transport ends with its pictures.
            lock(&self.frames).ended = true;
            self.frames_ready.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
