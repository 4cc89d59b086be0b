//! A viewer's end of the desktop, as its transport holds it.

use std::sync::Arc;

use polydev_core::desktop::{Frame, InputEvent, TEXT_MAX};
use tokio::{sync::watch, time::Instant};

use super::{
    FrameQueue, WordQueue,
    seat::{Occupied, Refusal, Seat},
    talk::{FromViewer, ToViewer, WORDS_MAX},
};

/// Longest input message: a text and the byte before it.
const INPUT_MAX: usize = TEXT_MAX + 1;

/// Which way pictures go to a viewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// WebRTC: RTP and data channels.
    WebRtc,
    /// A WebSocket.
    WebSocket,
    /// RFB from the guest's own VNC server: neither pictures nor input pass the hub, who is in control does.
    Vnc,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Self; 3] = [Self::WebRtc, Self::WebSocket, Self::Vnc];

    /// As it is written in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WebRtc => "webrtc",
            Self::WebSocket => "websocket",
            Self::Vnc => "vnc",
        }
    }

    /// Whether the hub's pictures go this way.
    pub(super) fn takes_pictures(self) -> bool {
        match self {
            Self::WebRtc | Self::WebSocket => true,
            Self::Vnc => false,
        }
    }

    /// Whether who joins is there already; else [`ViewerLink::arrived`] has to follow.
    pub(super) fn stands_when_joined(self) -> bool {
        match self {
            Self::WebSocket | Self::Vnc => true,
            Self::WebRtc => false,
        }
    }
}

/// A viewer that has joined. It has left when the link with all its clones and both queues are dropped.
pub struct Joined {
    /// Its number; stays the same when it comes again.
    pub viewer: u32,
    /// What it says.
    pub link: ViewerLink,
    /// Its pictures.
    pub frames: FrameQueue,
    /// Its words.
    pub words: WordQueue,
}

impl Joined {
    pub(super) fn new(seat: Arc<Seat>) -> Self {
        let viewer = seat.viewer;
        let seat = Arc::new(Occupied::new(seat));
        Self {
            viewer,
            frames: FrameQueue::new(Arc::clone(&seat)),
            words: WordQueue::new(Arc::clone(&seat)),
            link: ViewerLink { seat },
        }
    }
}

/// Takes what a viewer says and what its transport knows of its path. Never blocks; clones are the same viewer.
#[derive(Clone)]
pub struct ViewerLink {
    seat: Arc<Occupied>,
}

impl ViewerLink {
    /// An encoded [`InputEvent`]. Whether it counts is decided by the hub; a refusal comes back as
    /// [`ToViewer::Refused`].
    pub fn input(&self, message: &[u8]) {
        if message.len() > INPUT_MAX {
            return self.seat.refuse(Refusal::TooLong);
        }
        match InputEvent::decode(message) {
            Ok(event) => self.seat.ask_input(event, Instant::now()),
            Err(_) => self.seat.refuse(Refusal::BadMessage),
        }
    }

    /// JSON of a [`FromViewer`].
    pub fn words(&self, text: &str) {
        if text.len() > WORDS_MAX {
            return self.seat.refuse(Refusal::TooLong);
        }
        if !self.seat.may_speak(Instant::now()) {
            return self.seat.refuse(Refusal::TooFast);
        }
        match serde_json::from_str(text) {
            Ok(FromViewer::Ping { at }) => self.seat.say(&ToViewer::Pong { at }),
            Ok(FromViewer::Keyframe) => self.seat.want_keyframe(),
            Ok(FromViewer::Report(report)) => self.seat.report(&report),
            Ok(
                words @ (FromViewer::Resize { .. }
                | FromViewer::Clipboard { .. }
                | FromViewer::RequestControl
                | FromViewer::ReleaseControl { .. }),
            ) => self.seat.ask(words),
            Err(_) => self.seat.refuse(Refusal::BadMessage),
        }
    }

    /// The connection stands: from now on the viewer counts, and may have the control. Needed once, and of lanes only that
    /// are joined before they are connected.
    pub fn arrived(&self) {
        self.seat.arrived();
    }

    /// Something came from the viewer's side, be it an answer to a ping only. A viewer in control that gives no such sign
    /// gives way to another one that asks.
    pub fn sign_of_life(&self) {
        self.seat.sign_of_life(Instant::now());
    }

    /// Whether the viewer is in control, for a lane whose input does not pass the hub: it has to hold back whatever comes
    /// without, and to let go what is held when this becomes false.
    pub fn watch_control(&self) -> watch::Receiver<bool> {
        self.seat.watch_control()
    }

    /// Something that the viewer did was held back, as it is not in control.
    pub fn held_back(&self) {
        self.seat.refuse(Refusal::ViewOnly);
    }

    /// The viewer cannot go on without a keyframe (RTCP PLI or FIR, or a picture that was lost for good).
    pub fn keyframe_wanted(&self) {
        self.seat.want_keyframe();
    }

    /// What the path to the viewer is thought to take, kbit/s.
    pub fn estimate(&self, kbps: u32) {
        self.seat.estimate(kbps);
    }

    /// A picture has left for the viewer, in so many bytes.
    pub fn sent(&self, frame: &Frame, bytes: usize) {
        self.seat.sent(frame, bytes, Instant::now());
    }

    /// What a viewer whose connection was lost shows within 60 seconds to keep its number and its role. A secret.
    pub fn reconnect_token(&self) -> String {
        self.seat.token.to_string()
    }
}
