//! Viewers come, go and come again, and the control changes hands.

use std::{sync::Arc, time::Duration};

use polydev_core::desktop::ToDesktop;
use subtle::ConstantTimeEq;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{Hub, Stream, new_seat};
use crate::desktop::{
    JoinError, Joined, Lane,
    control::Asked,
    keyframes::Patience,
    rate::Probe,
    seat::{Refusal, Seat},
    size::Size,
    talk::{Role, ToViewer},
    words::Topic,
};

/// How long a viewer whose connection was lost may come again under its number.
pub(super) const COME_AGAIN: Duration = Duration::from_secs(60);
/// Viewers that are remembered for that.
const AWAY_MAX: usize = 32;
const TOKEN_BYTES: usize = 16;

/// A viewer that is here.
pub(super) struct Viewer {
    pub(super) seat: Arc<Seat>,
    pub(super) may_control: bool,
    /// Its connection stands.
    here: bool,
    pub(super) patience: Patience,
    /// What its transport says that its path takes.
    pub(super) estimate: Option<u32>,
    /// Stands in where no transport says anything.
    pub(super) probe: Probe,
    /// The size it would like; heeded while it is in control.
    pub(super) size: Option<Size>,
}

/// A viewer whose connection was lost.
pub(super) struct Away {
    viewer: u32,
    token: Zeroizing<String>,
    may_control: bool,
    since: Instant,
}

impl Viewer {
    fn new(seat: Arc<Seat>, may_control: bool, max_kbps: u32) -> Self {
        let probe = Probe::new(max_kbps, Instant::now());
        Self {
            seat,
            may_control,
            here: false,
            patience: Patience::default(),
            estimate: None,
            probe,
            size: None,
        }
    }

    /// What its path is thought to take, kbit/s.
    pub(super) fn estimate_kbps(&self) -> Option<u32> {
        match self.seat.lane {
            Lane::WebRtc => self.estimate,
            Lane::WebSocket => Some(self.estimate.unwrap_or(self.probe.estimate())),
            Lane::Vnc => None,
        }
    }

    pub(super) fn takes_pictures(&self) -> bool {
        self.seat.lane.takes_pictures()
    }

    /// It was too slow and needs a keyframe.
    pub(super) fn overflowed(&mut self, now: Instant) {
        self.probe.overflow(now);
        self.patience.want();
    }

    /// What comes next does not follow from what it has.
    pub(super) fn interrupt(&mut self) {
        self.seat.interrupt();
        self.patience.want();
    }
}

impl Hub {
    pub(super) fn join(&mut self, wish: Role, lane: Lane) -> Result<Joined, JoinError> {
        self.check_room(None)?;
        self.last_viewer += 1;
        let (viewer, may_control) = (self.last_viewer, wish == Role::Control);
        let joined = self.seat(viewer, may_control, lane, new_token()?);
        if lane.stands_when_joined() {
            self.arrive(viewer);
        }
        Ok(joined)
    }

    pub(super) fn rejoin(&mut self, token: &str, lane: Lane) -> Result<Joined, JoinError> {
        let same = |known: &str| bool::from(known.as_bytes().ct_eq(token.as_bytes()));
        let here = self.viewers.values().find(|here| same(&here.seat.token)).map(|here| here.seat.viewer);
        if let Some(viewer) = here {
            // The page knows sooner than we do that its connection is lost.
            self.leave(viewer);
        }
        let at = self.away.iter().position(|away| same(&away.token)).ok_or(JoinError::UnknownViewer)?;
        self.check_room(Some(self.away[at].viewer))?;
        let Away { viewer, token, may_control, since: _ } = self.away.swap_remove(at);
        let joined = self.seat(viewer, may_control, lane, token);
        if lane.stands_when_joined() {
            self.arrive(viewer);
        }
        Ok(joined)
    }

    /// A viewer's connection stands. One that never gets that far neither has nor waits for the control.
    pub(super) fn arrive(&mut self, viewer: u32) {
        let Some(arriving) = self.viewers.get_mut(&viewer).filter(|viewer| !viewer.here) else { return };
        arriving.here = true;
        let may_control = arriving.may_control;
        self.change_control(|control| control.join(viewer, may_control));
        self.welcome(viewer);
    }

    /// A viewer's connection is gone.
    pub(super) fn leave(&mut self, viewer: u32) {
        let Some(left) = self.viewers.remove(&viewer) else { return };
        let now = Instant::now();
        left.seat.end();
        self.parts.metrics.left(left.seat.lane);
        if self.away.len() == AWAY_MAX {
            self.away.remove(0);
        }
        let (token, alive) = (left.seat.token.clone(), left.seat.alive_at());
        let was_watched = left.takes_pictures();
        self.away.push(Away { viewer, token, may_control: left.may_control, since: now });
        self.change_control(|control| control.lost(viewer, alive, now));
        self.tell_viewers();
        if was_watched && !self.is_watched() {
            self.tell(ToDesktop::Watch(false));
        }
        if self.viewers.is_empty() {
            self.empty_since = Some(now);
        }
        tracing::debug!(session.id = %self.session, viewer, viewers = self.viewers.len(), "viewer left");
    }

    pub(super) fn control_at(&mut self, now: Instant) {
        self.away.retain(|away| now.duration_since(away.since) < COME_AGAIN);
        let alive = self.holder_alive();
        self.change_control(|control| control.at(now, alive));
    }

    /// When the viewer in control last gave a sign of life.
    pub(super) fn holder_alive(&self) -> Option<Instant> {
        self.controlling().map(|viewer| viewer.seat.alive_at())
    }

    pub(super) fn ask_for_control(&mut self, viewer: u32) {
        let (mut answer, alive) = (Asked::Never, self.holder_alive());
        self.change_control(|control| answer = control.ask(viewer, Instant::now(), alive));
        let Some(asking) = self.viewers.get(&viewer) else { return };
        match answer {
            Asked::Granted => asking.seat.say(&ToViewer::Role { role: Role::Control }),
            Asked::HeldBy(holder) => {
                if let Some(holder) = self.viewers.get(&holder) {
                    holder.seat.say(&ToViewer::ControlRequested { viewer });
                }
            }
            Asked::Waits => {}
            Asked::Never => asking.seat.refuse(Refusal::ViewOnly),
        }
    }

    pub(super) fn give_control_up(&mut self, viewer: u32, to: Option<u32>) {
        let mut released = Ok(());
        self.change_control(|control| released = control.release(viewer, to));
        if released.is_err()
            && let Some(giving) = self.viewers.get(&viewer)
        {
            giving.seat.refuse(Refusal::BadMessage);
        }
    }

    /// Changes who is in control and tells those whom it concerns. What the former one held is let go.
    fn change_control(&mut self, change: impl FnOnce(&mut crate::desktop::control::Control)) {
        let before = self.control.active();
        change(&mut self.control);
        let after = self.control.active();
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.let_go();
            if let Some(before) = self.viewers.get(&before) {
                before.seat.set_control(false);
                before.seat.say(&ToViewer::Role { role: Role::View });
            }
        }
        if let Some(after) = after.and_then(|after| self.viewers.get(&after)) {
            after.seat.set_control(true);
            after.seat.say(&ToViewer::Role { role: Role::Control });
            if let Some(size) = after.size {
                self.resizing.want(size, Instant::now());
            }
        }
    }

    /// Room for one more. The place of the one whose control is kept is kept, too.
    fn check_room(&self, comes_again: Option<u32>) -> Result<(), JoinError> {
        let max = self.parts.settings.viewers_max;
        let kept = self.control.kept().filter(|kept| Some(*kept) != comes_again);
        if self.viewers.len() + usize::from(kept.is_some()) >= max {
            return Err(JoinError::TooManyViewers { max });
        }
        Ok(())
    }

    fn seat(&mut self, viewer: u32, may_control: bool, lane: Lane, token: Zeroizing<String>) -> Joined {
        let seat = new_seat(self, viewer, lane, token);
        self.parts.metrics.came(lane);
        let first = lane.takes_pictures() && !self.is_watched();
        let mut here = Viewer::new(Arc::clone(&seat), may_control, self.parts.settings.max_kbps);
        // With `watch` a keyframe comes by itself.
        if !first && lane.takes_pictures() {
            here.patience.want();
        }
        self.viewers.insert(viewer, here);
        self.empty_since = None;
        if first {
            self.stats_due = Instant::now() + super::STATS_EVERY;
            if self.is_live() {
                self.stream = Stream::Live { heard: Instant::now() };
                self.tell(ToDesktop::Watch(true));
            }
        }
        tracing::debug!(session.id = %self.session, viewer, lane = lane.as_str(), "viewer joined");
        Joined::new(seat)
    }

    /// Tells a viewer that has come how things stand, and the others that it has.
    fn welcome(&self, viewer: u32) {
        let Some(here) = self.viewers.get(&viewer) else { return };
        let role = if self.control.active() == Some(viewer) { Role::Control } else { Role::View };
        let (width, height) = self.desktop;
        here.seat.say_first(&ToViewer::Hello {
            viewer,
            role,
            may_control: here.may_control,
            viewers: self.count(),
            width,
            height,
            clipboard: self.parts.settings.clipboard,
        });
        if self.stream.is_interrupted() && here.takes_pictures() {
            here.seat.say(&ToViewer::Interrupted { interrupted: true });
        }
        if let Some(cursor) = &self.cursor {
            here.seat.pass(Topic::CursorShape, cursor.clone());
        }
        if let Some(pointer) = &self.pointer {
            here.seat.pass(Topic::CursorMoved, pointer.clone());
        }
        let word = ToViewer::Viewers { viewers: self.count() };
        let others = self.viewers.values().filter(|other| other.seat.viewer != viewer);
        others.for_each(|other| other.seat.say(&word));
    }

    fn tell_viewers(&self) {
        self.say_all(&ToViewer::Viewers { viewers: self.count() });
    }

    fn count(&self) -> u32 {
        u32::try_from(self.viewers.values().filter(|viewer| viewer.here).count()).unwrap_or(u32::MAX)
    }
}

fn new_token() -> Result<Zeroizing<String>, JoinError> {
    let mut bytes = Zeroizing::new([0; TOKEN_BYTES]);
    getrandom::fill(&mut *bytes).map_err(|_| JoinError::NoRandomness)?;
    Ok(Zeroizing::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}
