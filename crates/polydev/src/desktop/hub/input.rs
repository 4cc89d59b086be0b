//! What viewers say is judged here: who may do what, and what becomes of it.

use std::time::Duration;

use polydev_core::desktop::{CLIPBOARD_MAX, InputEvent, ToDesktop};
use tokio::time::Instant;

use super::Hub;
use crate::desktop::{
    seat::{Asked, Refusal},
    size::Size,
    talk::FromViewer,
};

/// The person's activity is told to the sign-in at most this often.
const ACTIVE_EVERY: Duration = Duration::from_secs(2);

impl Hub {
    /// Takes up what viewers said. Nobody's share is larger than its own seat holds.
    pub(super) fn hear_viewers(&mut self) {
        let here: Vec<u32> = self.viewers.keys().copied().collect();
        for viewer in here {
            let Some(speaking) = self.viewers.get_mut(&viewer) else { continue };
            let heard = speaking.seat.hear();
            if heard.arrived {
                self.arrive(viewer);
            }
            let Some(speaking) = self.viewers.get_mut(&viewer) else { continue };
            if heard.keyframe && speaking.takes_pictures() {
                speaking.patience.want();
            }
            if let Some(kbps) = heard.estimate {
                speaking.estimate = Some(kbps);
            }
            for asked in heard.asked {
                match asked {
                    Asked::Input { event, arrived } => self.judge(viewer, event, arrived),
                    Asked::Words(words) => self.heed(viewer, words),
                }
            }
            if heard.left {
                self.leave(viewer);
            }
        }
    }

    fn judge(&mut self, viewer: u32, event: InputEvent, arrived: Instant) {
        if self.control.active() != Some(viewer) {
            // A page that loses the focus lets go without asking whether it holds anything.
            if event != InputEvent::ReleaseAll {
                self.refuse(viewer, Refusal::ViewOnly);
            }
            return;
        }
        // A guest that is not there would do later what is meant now.
        if !self.is_live() {
            return;
        }
        let is_deliberate = event.is_deliberate();
        let event = self.onto_the_desktop(event);
        self.input_seq = self.input_seq.wrapping_add(1);
        let seq = self.input_seq;
        if !self.tell(ToDesktop::Input { seq, event }) {
            self.let_go();
            return self.refuse(viewer, Refusal::TooFast);
        }
        self.parts.metrics.input();
        if !is_deliberate {
            return;
        }
        if let Some(viewer) = self.viewers.get(&viewer) {
            viewer.seat.forwarded(seq, arrived);
        }
        if self.told_active.is_none_or(|told| arrived.saturating_duration_since(told) >= ACTIVE_EVERY) {
            self.told_active = Some(arrived);
            self.parts.sessions.user_active(self.session);
        }
    }

    fn heed(&mut self, viewer: u32, words: FromViewer) {
        let in_control = self.control.active() == Some(viewer);
        match words {
            FromViewer::Resize { width, height, scale } => {
                let size = Size::nearest(width, height, scale);
                if let Some(viewer) = self.viewers.get_mut(&viewer) {
                    viewer.size = Some(size);
                }
                if in_control {
                    self.resizing.want(size, Instant::now());
                } else {
                    self.refuse(viewer, Refusal::ViewOnly);
                }
            }
            FromViewer::Clipboard { text } => {
                if !in_control {
                    self.refuse(viewer, Refusal::ViewOnly);
                } else if !self.parts.settings.clipboard.lets_in() {
                    self.refuse(viewer, Refusal::ClipboardPolicy);
                } else if text.len() > CLIPBOARD_MAX {
                    self.refuse(viewer, Refusal::TooLong);
                } else if self.is_live() && !self.tell(ToDesktop::Clipboard(text)) {
                    self.refuse(viewer, Refusal::TooFast);
                }
            }
            FromViewer::RequestControl => self.ask_for_control(viewer),
            FromViewer::ReleaseControl { to } => self.give_control_up(viewer, to),
            // Seats answer these themselves.
            FromViewer::Keyframe | FromViewer::Ping { .. } | FromViewer::Report(_) => {}
        }
    }

    fn refuse(&self, viewer: u32, refusal: Refusal) {
        if let Some(viewer) = self.viewers.get(&viewer) {
            viewer.seat.refuse(refusal);
        }
    }

    /// Places beside the desktop become the nearest ones on it.
    fn onto_the_desktop(&self, event: InputEvent) -> InputEvent {
        let (width, height) = self.desktop;
        let on = |x: u16, y: u16| (x.min(width.saturating_sub(1)), y.min(height.saturating_sub(1)));
        match event {
            InputEvent::Move { x, y } => {
                let (x, y) = on(x, y);
                InputEvent::Move { x, y }
            }
            InputEvent::Button { button, down, x, y } => {
                let (x, y) = on(x, y);
                InputEvent::Button { button, down, x, y }
            }
            InputEvent::Wheel { dx, dy, x, y } => {
                let (x, y) = on(x, y);
                InputEvent::Wheel { dx, dy, x, y }
            }
            InputEvent::Key { .. } | InputEvent::Text { .. } | InputEvent::ReleaseAll => event,
        }
    }
}
