//! The size that the viewer in control wants for the desktop. A window that is being resized says a lot; the desktop
//! follows when it comes to rest. Pure: time is an argument.

use std::time::Duration;

use polydev_core::desktop::{SCALE, SIDE};
use tokio::time::Instant;

/// The window is at rest when it has not changed for this long.
const REST: Duration = Duration::from_millis(250);
/// One that never comes to rest is followed at this pace.
const LONGEST: Duration = Duration::from_secs(1);

/// A size in pixels, and the scale of the content in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) width: u16,
    pub(super) height: u16,
    pub(super) scale: u16,
}

impl Size {
    /// The nearest size that a desktop can have; its sides are even, as H.264 wants them with 4:2:0.
    pub(super) fn nearest(width: u16, height: u16, scale: u16) -> Self {
        let side = |side: u16| side.clamp(*SIDE.start(), *SIDE.end()) & !1;
        Self { width: side(width), height: side(height), scale: scale.clamp(*SCALE.start(), *SCALE.end()) }
    }
}

/// Waits for the size to come to rest.
#[derive(Debug, Default)]
pub(super) struct Resizing {
    wanted: Option<Wanted>,
    told: Option<Size>,
}

#[derive(Debug)]
struct Wanted {
    size: Size,
    since: Instant,
    last: Instant,
}

impl Resizing {
    pub(super) fn want(&mut self, size: Size, now: Instant) {
        let since = self.wanted.as_ref().map_or(now, |wanted| wanted.since);
        self.wanted = Some(Wanted { size, since, last: now });
    }

    /// The size to tell the guest now.
    pub(super) fn tell(&mut self, now: Instant) -> Option<Size> {
        if self.deadline().is_none_or(|due| due > now) {
            return None;
        }
        let size = self.wanted.take()?.size;
        let is_new = self.told.replace(size) != Some(size);
        is_new.then_some(size)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.wanted.as_ref().map(|wanted| (wanted.last + REST).min(wanted.since + LONGEST))
    }

    /// What a guest that has started again has to be told.
    pub(super) fn told(&self) -> Option<Size> {
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u16) -> Size {
        Size::nearest(width, 600, 100)
    }

    #[test]
    fn the_last_size_counts_once_the_window_is_at_rest() {
        let (start, mut resizing) = (Instant::now(), Resizing::default());
        resizing.want(size(800), start);
        resizing.want(size(900), start + REST / 2);
        assert_eq!(resizing.tell(start + REST), None);
        assert_eq!(resizing.tell(start + REST * 2), Some(size(900)));
        assert_eq!(resizing.tell(start + REST * 4), None);
        resizing.want(size(900), start + REST * 4);
        assert_eq!(resizing.tell(start + REST * 8), None, "it has that size");
    }

    #[test]
    fn a_window_that_never_rests_is_followed_all_the_same() {
        let (start, mut resizing) = (Instant::now(), Resizing::default());
        let told = (0..100_u16).filter_map(|step| {
            let now = start + Duration::from_millis(100) * u32::from(step);
            resizing.want(size(600 + step), now);
            resizing.tell(now)
        });
        assert_eq!(told.count(), 9);
    }

    #[test]
    fn any_size_becomes_one_that_a_desktop_can_have() {
        assert_eq!(Size::nearest(1, u16::MAX, 0), Size { width: 320, height: 4096, scale: 50 });
        assert_eq!(Size::nearest(1281, 721, 1000), Size { width: 1280, height: 720, scale: 400 });
    }
}
