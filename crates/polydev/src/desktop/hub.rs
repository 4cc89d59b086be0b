//! The task that owns one sign-in's desktop: one guest, many viewers.
//!
//! ```text
//!   Opening --guest is there--> Live --3 s without a picture--> Silent --5 s more--> Down (line made anew)
//!      |                        ^  |  <------a picture---------   |
//!      '--1 s, or it failed--.  |  '--line is down-----------.    |
//!                            v  |                            v    v
//!                            Down <---------------------------------
//! ```
//! Viewers are told when the picture is interrupted (Silent, Down) and when it goes on (Live). No viewer, no guest and no
//! transport is ever waited for here.

mod input;
mod viewers;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use polydev_core::{
    desktop::{ContentMode, Frame, FromDesktop, GuestStats, InputEvent, ToDesktop},
    ids::{SessionId, VmId},
};
use polydev_host::Vm;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{
    JoinError, Joined, Lane, Parts,
    age::Ages,
    control::Control,
    guest_stats::GuestFigures,
    keyframes::Keyframes,
    line::{Line, LineEvent},
    queue::Pushed,
    rate::Rate,
    seat::Seat,
    size::Resizing,
    talk::{HubStats, Role, ToViewer},
    words::{Outgoing, Topic},
};
use crate::session::Shown;
use viewers::{Away, Viewer};

/// Without a picture or the figures that come each second for this long, the picture is interrupted.
const SILENT_AFTER: Duration = Duration::from_secs(3);
/// A guest that stays silent for this long then is called anew.
const CALL_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long the first viewer waits for the guest before it is told that there is no picture yet.
const OPENING_LIMIT: Duration = Duration::from_secs(1);
/// How long a desktop waits for viewers to come again.
const LINGER: Duration = Duration::from_secs(60);
/// How long the guest has for taking the last word.
const LAST_WORD_LIMIT: Duration = Duration::from_millis(500);
/// Pictures that were held for so long say that the path takes less than thought.
const HELD_LONG: Duration = Duration::from_millis(100);
const STATS_EVERY: Duration = Duration::from_secs(1);

/// What [`super::Desktops`] asks of a hub.
pub(super) enum Request {
    Join { wish: Role, lane: Lane, reply: oneshot::Sender<Result<Joined, JoinError>> },
    Rejoin { token: Zeroizing<String>, lane: Lane, reply: oneshot::Sender<Result<Joined, JoinError>> },
}

/// What a hub is made with.
pub(super) struct Hall {
    pub(super) session: SessionId,
    pub(super) vm: Vm,
    pub(super) shown: watch::Receiver<Arc<Shown>>,
    pub(super) stop: CancellationToken,
    pub(super) parts: Arc<Parts>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Opening { since: Instant },
    Live { heard: Instant },
    Silent { since: Instant },
    Down,
}

/// Why a hub ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Browser,
    Service,
    Nobody,
}

impl End {
    fn in_words(self) -> &'static str {
        match self {
            Self::Browser => "The live browser is gone: the sign-in is over.",
            Self::Service => "The service is being stopped.",
            Self::Nobody => "Nobody was watching.",
        }
    }
}

/// One desktop.
pub(super) struct Hub {
    session: SessionId,
    vm: Vm,
    parts: Arc<Parts>,
    line: Line,
    stream: Stream,
    viewers: BTreeMap<u32, Viewer>,
    away: Vec<Away>,
    last_viewer: u32,
    control: Control,
    keyframes: Keyframes,
    /// Since when the guest makes no pictures, as all viewers are behind.
    holding: Option<Instant>,
    rate: Rate,
    resizing: Resizing,
    ages: Ages,
    guest: GuestFigures,
    desktop: (u16, u16),
    cursor: Option<Outgoing>,
    pointer: Option<Outgoing>,
    /// Number of the newest picture of this line.
    frame_seq: Option<u32>,
    input_seq: u32,
    told_active: Option<Instant>,
    stats_due: Instant,
    empty_since: Option<Instant>,
    /// Rung by seats.
    bell: Arc<Notify>,
}

/// Serves one desktop to its end.
pub(super) async fn run(hall: Hall, mut requests: mpsc::Receiver<Request>) {
    let Hall { session, vm, mut shown, stop, parts } = hall;
    let (agent, id) = (vm.agent.clone(), vm.id);
    tracing::info!(session.id = %session, vm.id = %id, "desktop opened");
    let mut hub = Hub::new(session, vm, parts);
    let bell = Arc::clone(&hub.bell);
    let gone = agent.closed();
    tokio::pin!(gone);
    let end = loop {
        hub.at(Instant::now());
        if hub.is_forgotten(Instant::now()) {
            break End::Nobody;
        }
        let deadline = hub.deadline();
        tokio::select! {
            request = requests.recv() => match request {
                Some(request) => hub.receive(request),
                None => break End::Service,
            },
            event = hub.line.next() => hub.hear_guest(event),
            () = bell.notified() => hub.hear_viewers(),
            () = sleep_until(deadline) => {}
            changed = shown.changed() => {
                if changed.is_err() || !shows(&shown, id) {
                    break End::Browser;
                }
            }
            () = &mut gone => break End::Browser,
            () = stop.cancelled() => break End::Service,
        }
    };
    // Whoever asks from now on gets another hub or none.
    drop(requests);
    tracing::info!(session.id = %session, vm.id = %id, reason = ?end, "desktop closed");
    hub.end(end).await;
}

fn shows(shown: &watch::Receiver<Arc<Shown>>, vm: VmId) -> bool {
    let shown = shown.borrow();
    !shown.is_final() && shown.vm.as_ref().is_some_and(|shown| shown.id == vm)
}

impl Hub {
    fn new(session: SessionId, vm: Vm, parts: Arc<Parts>) -> Self {
        let now = Instant::now();
        Self {
            session,
            line: Line::new(vm.agent.clone()),
            vm,
            stream: Stream::Opening { since: now },
            viewers: BTreeMap::new(),
            away: Vec::new(),
            last_viewer: 0,
            control: Control::default(),
            keyframes: Keyframes::default(),
            holding: None,
            rate: Rate::new(parts.settings.max_kbps),
            resizing: Resizing::default(),
            ages: Ages::new(parts.shares_clock),
            guest: GuestFigures::default(),
            desktop: parts.desktop_px,
            cursor: None,
            pointer: None,
            frame_seq: None,
            input_seq: 0,
            told_active: None,
            stats_due: now + STATS_EVERY,
            empty_since: Some(now),
            bell: Arc::new(Notify::new()),
            parts,
        }
    }

    fn receive(&mut self, request: Request) {
        // Who asked may have gone; what it would have got then leaves again by being dropped.
        match request {
            Request::Join { wish, lane, reply } => {
                let _ = reply.send(self.join(wish, lane));
            }
            Request::Rejoin { token, lane, reply } => {
                let _ = reply.send(self.rejoin(&token, lane));
            }
        }
    }

    fn hear_guest(&mut self, event: LineEvent) {
        let now = Instant::now();
        match event {
            LineEvent::Up { width, height } => {
                self.set_stream(Stream::Live { heard: now });
                (self.frame_seq, self.cursor, self.pointer) = (None, None, None);
                self.guest.forget();
                self.rate.forget();
                self.holding = None;
                // With `watch` a keyframe comes by itself.
                self.keyframes.came();
                self.viewers.values_mut().for_each(|viewer| viewer.patience.came());
                self.resized(width, height);
                // Whatever the one before left pressed is let go; a size that was asked for is asked for again.
                self.let_go();
                if let Some(size) = self.resizing.told() {
                    let (width, height, scale) = (size.width, size.height, size.scale);
                    self.tell(ToDesktop::Resize { width, height, scale });
                }
                if self.is_watched() {
                    self.tell(ToDesktop::Watch(true));
                }
            }
            LineEvent::Down => {
                self.set_stream(Stream::Down);
            }
            LineEvent::Said { message, arrived, arrived_us } => match message {
                // Comes once only; a second one tells of another size at most.
                FromDesktop::Hello { width, height, .. } => self.resized(width, height),
                FromDesktop::Frame(frame) => self.show(frame, arrived, arrived_us),
                FromDesktop::CursorShape(_) => {
                    let message = Outgoing::Binary(message.encode().into());
                    self.pass(Topic::CursorShape, &message);
                    self.cursor = Some(message);
                }
                FromDesktop::CursorMoved { .. } => {
                    let message = Outgoing::Binary(message.encode().into());
                    self.pass(Topic::CursorMoved, &message);
                    self.pointer = Some(message);
                }
                FromDesktop::Clipboard(text) => {
                    if self.parts.settings.clipboard.lets_out()
                        && let Some(viewer) = self.controlling()
                    {
                        viewer.seat.say(&ToViewer::Clipboard { text });
                    }
                }
                FromDesktop::Stats(stats) => {
                    // While it holds its pictures a guest says no more than this.
                    self.set_stream(Stream::Live { heard: arrived });
                    let added: GuestStats = self.guest.take(stats, arrived);
                    self.parts.metrics.guest(&added);
                }
            },
        }
    }

    fn show(&mut self, frame: Frame, arrived: Instant, arrived_us: u64) {
        if !self.is_watched() {
            return;
        }
        self.set_stream(Stream::Live { heard: arrived });
        let follows = self.frame_seq.is_none_or(|last| last.wrapping_add(1) == frame.seq);
        self.frame_seq = Some(frame.seq);
        if !follows && !frame.key {
            self.interrupt();
        }
        self.resized(frame.width, frame.height);
        let age = self.ages.age(frame.captured_us, frame.work_us, arrived_us);
        let frame = Arc::new(frame);
        for viewer in self.viewers.values_mut().filter(|viewer| viewer.takes_pictures()) {
            match viewer.seat.show(Arc::clone(&frame), arrived, age) {
                Pushed::Queued { .. } if frame.key => viewer.patience.came(),
                Pushed::Queued { .. } | Pushed::Withheld => {}
                Pushed::Overflowed { .. } => viewer.overflowed(arrived),
            }
        }
        if frame.key {
            self.keyframes.came();
        }
    }

    /// Does what is due.
    fn at(&mut self, now: Instant) {
        self.control_at(now);
        self.watch_stream(now);
        let in_control = self.control.active();
        for (id, viewer) in &mut self.viewers {
            if Some(*id) == in_control {
                viewer.patience.forgive();
            }
            if viewer.patience.grant(now) {
                self.keyframes.want(now);
            }
        }
        if now >= self.stats_due {
            self.stats_due = now + STATS_EVERY;
            self.tell_stats(now);
        }
        if !self.is_live() {
            return;
        }
        if self.keyframes.ask(now) {
            self.parts.metrics.keyframe_asked();
            self.tell(ToDesktop::Keyframe);
        }
        self.hold_or_go_on(now);
        if let Some(size) = self.resizing.tell(now) {
            let (width, height, scale) = (size.width, size.height, size.scale);
            self.tell(ToDesktop::Resize { width, height, scale });
        }
        self.follow_rate();
        if self.is_watched()
            && let Some(kbps) = self.rate.tell(now)
        {
            let fps = self.parts.settings.max_fps;
            self.tell(ToDesktop::Rate { kbps, fps, mode: ContentMode::Auto });
        }
    }

    /// The guest makes no pictures while they would only wait for every viewer; one that is not behind is not to suffer
    /// from others.
    fn hold_or_go_on(&mut self, now: Instant) {
        let mut watching = self.viewers.values().filter(|viewer| viewer.takes_pictures()).peekable();
        let is_to_hold = watching.peek().is_some() && watching.all(|viewer| viewer.seat.is_behind());
        match self.holding {
            None if is_to_hold => self.holding = Some(now),
            Some(since) if !is_to_hold => {
                self.holding = None;
                if now.duration_since(since) >= HELD_LONG {
                    self.viewers.values_mut().for_each(|viewer| viewer.probe.overflow(now));
                }
            }
            None | Some(_) => return,
        }
        self.tell(ToDesktop::Hold(is_to_hold));
    }

    /// When something is due next.
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        let watched = self.is_watched();
        let stream = match self.stream {
            Stream::Opening { since } => Some(since + OPENING_LIMIT),
            Stream::Live { heard } => watched.then(|| heard + SILENT_AFTER),
            Stream::Silent { since } => Some(since + CALL_AGAIN_AFTER),
            Stream::Down => None,
        };
        let live = self.is_live();
        let dues = [
            Some(self.stats_due).filter(|_| watched),
            self.empty_since.map(|since| since + LINGER),
            self.control.deadline(self.holder_alive()),
            stream,
            self.keyframes.deadline().filter(|_| live),
            self.resizing.deadline().filter(|_| live),
            self.rate.deadline(now).filter(|_| live && watched),
        ];
        let patient = self.viewers.values().filter_map(|viewer| viewer.patience.deadline());
        dues.into_iter().flatten().chain(patient).min().unwrap_or(now + LINGER)
    }

    fn watch_stream(&mut self, now: Instant) {
        match self.stream {
            Stream::Opening { since } if now >= since + OPENING_LIMIT => self.set_stream(Stream::Down),
            Stream::Live { heard } if self.is_watched() && now >= heard + SILENT_AFTER => {
                self.set_stream(Stream::Silent { since: now });
                // What waits would come as a surprise when the guest wakes up.
                self.line.forget_input();
                self.let_go();
            }
            Stream::Silent { since } if now >= since + CALL_AGAIN_AFTER => {
                self.set_stream(Stream::Down);
                self.line = Line::new(self.vm.agent.clone());
            }
            Stream::Opening { .. } | Stream::Live { .. } | Stream::Silent { .. } | Stream::Down => {}
        }
    }

    fn set_stream(&mut self, stream: Stream) {
        let (was, is) = (self.stream.is_interrupted(), stream.is_interrupted());
        if let (Stream::Opening { .. } | Stream::Down, Stream::Live { .. }) = (self.stream, stream) {
            // Another encoder: its pictures do not follow from those before.
            self.interrupt();
        }
        self.stream = stream;
        if was != is {
            if is {
                self.parts.metrics.interrupted();
            }
            tracing::info!(session.id = %self.session, interrupted = is, "desktop's picture changed");
            let word = ToViewer::Interrupted { interrupted: is };
            self.viewers
                .values()
                .filter(|viewer| viewer.takes_pictures())
                .for_each(|viewer| viewer.seat.say(&word));
        }
    }

    fn is_live(&self) -> bool {
        match self.stream {
            Stream::Live { .. } => true,
            Stream::Opening { .. } | Stream::Silent { .. } | Stream::Down => false,
        }
    }

    fn resized(&mut self, width: u16, height: u16) {
        if self.desktop != (width, height) && width > 0 && height > 0 {
            self.desktop = (width, height);
            self.say_all(&ToViewer::Size { width, height });
        }
    }

    fn tell_stats(&mut self, now: Instant) {
        // Once a second: a flood of refused events must not become one of these.
        if self.controlling().is_some_and(|viewer| viewer.seat.lost_release()) {
            self.let_go();
        }
        let (guest_cpu, encode_ms) = (self.guest.cpu, self.guest.encode_ms);
        for viewer in self.viewers.values_mut() {
            let tallied = viewer.seat.tally(now);
            viewer.probe.used(tallied.kbps, now);
            // A keyframe that was asked for and never came is asked for again.
            if viewer.takes_pictures() && viewer.seat.needs_key() {
                viewer.patience.want();
            }
            viewer.seat.say(&ToViewer::Stats(HubStats {
                fps: tallied.fps,
                kbps: tallied.kbps,
                estimate_kbps: viewer.estimate_kbps(),
                dropped: tallied.dropped,
                keyframes: tallied.keyframes,
                server_ms: tallied.server_ms,
                input_server_ms: tallied.input_server_ms,
                guest_cpu,
                encode_ms,
            }));
        }
    }

    /// The encoder follows the viewer in control; while nobody is, the one that is here longest.
    fn follow_rate(&mut self) {
        let followed = match self.control.kept() {
            Some(_) => None,
            None => {
                let showing = || self.viewers.values().filter(|viewer| viewer.takes_pictures());
                self.controlling().filter(|viewer| viewer.takes_pictures()).or_else(|| showing().next())
            }
        };
        if let Some(kbps) = followed.and_then(Viewer::estimate_kbps) {
            self.rate.follow(kbps);
        }
    }

    /// Whether somebody gets pictures of this stream.
    fn is_watched(&self) -> bool {
        self.viewers.values().any(Viewer::takes_pictures)
    }

    /// What comes next does not follow from what viewers have.
    fn interrupt(&mut self) {
        self.viewers.values_mut().filter(|viewer| viewer.takes_pictures()).for_each(Viewer::interrupt);
    }

    /// Whether nobody has watched for so long that nobody will come again.
    fn is_forgotten(&self, now: Instant) -> bool {
        self.empty_since.is_some_and(|since| now >= since + LINGER)
    }

    /// Says something to the guest. What hands did is only said while it is there to take it.
    fn tell(&self, message: ToDesktop) -> bool {
        self.line.say(message).is_ok()
    }

    fn let_go(&mut self) {
        self.input_seq = self.input_seq.wrapping_add(1);
        self.tell(ToDesktop::Input { seq: self.input_seq, event: InputEvent::ReleaseAll });
    }

    fn say_all(&self, word: &ToViewer) {
        self.viewers.values().for_each(|viewer| viewer.seat.say(word));
    }

    fn pass(&self, topic: Topic, message: &Outgoing) {
        self.viewers.values().for_each(|viewer| viewer.seat.pass(topic, message.clone()));
    }

    fn controlling(&self) -> Option<&Viewer> {
        self.viewers.get(&self.control.active()?)
    }

    async fn end(self, end: End) {
        self.say_all(&ToViewer::Ended { reason: end.in_words().to_owned() });
        for viewer in self.viewers.values() {
            viewer.seat.end();
            self.parts.metrics.left(viewer.seat.lane);
        }
        if self.is_live() && end != End::Browser {
            self.tell(ToDesktop::Watch(false));
        }
        if self.is_live() {
            self.tell(ToDesktop::Wipe);
            self.line.finish(LAST_WORD_LIMIT).await;
        }
    }
}

impl Stream {
    fn is_interrupted(self) -> bool {
        match self {
            Self::Opening { .. } | Self::Live { .. } => false,
            Self::Silent { .. } | Self::Down => true,
        }
    }
}

fn new_seat(hub: &Hub, viewer: u32, lane: Lane, token: Zeroizing<String>) -> Arc<Seat> {
    let (metrics, bell) = (Arc::clone(&hub.parts.metrics), Arc::clone(&hub.bell));
    Arc::new(Seat::new(viewer, lane, token, metrics, bell))
}
