//! The input thread's own connection to the display.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use x11rb::{
    NONE,
    connection::{Connection, RequestConnection},
    errors::ConnectionError,
    protocol::{
        Event, xkb,
        xproto::{self, ConnectionExt as _, Window},
        xtest::{self, ConnectionExt as _},
    },
    rust_connection::RustConnection,
};

use super::InputError;

/// Events are injected for the time when the server reads them.
const NOW: u32 = 0;

/// A connection that can inject input. Nothing it injects is sent before [`Display::flush`].
#[derive(Debug)]
pub(super) struct Display {
    x: RustConnection,
    root: Window,
    /// Events that were read while another one was waited for.
    kept: VecDeque<Event>,
}

impl Display {
    pub(super) fn open(name: Option<&str>) -> Result<Self, InputError> {
        let (x, screen) = x11rb::connect(name)?;
        for (extension, name) in [(xtest::X11_EXTENSION_NAME, "XTEST"), (xkb::X11_EXTENSION_NAME, "XKB")] {
            x.extension_information(extension)?.ok_or(InputError::Lacks(name))?;
        }
        x.xtest_get_version(2, 2)?.reply()?;
        let root = x.setup().roots[screen].root;
        Ok(Self { x, root, kept: VecDeque::new() })
    }

    pub(super) fn connection(&self) -> &RustConnection {
        &self.x
    }

    pub(super) fn root(&self) -> Window {
        self.root
    }

    pub(super) fn move_to(&self, x: u16, y: u16) -> Result<(), InputError> {
        // The server keeps the pointer on its screens.
        let place = |side: u16| i16::try_from(side).unwrap_or(i16::MAX);
        self.fake(xproto::MOTION_NOTIFY_EVENT, 0, self.root, place(x), place(y))
    }

    pub(super) fn button(&self, button: u8, down: bool) -> Result<(), InputError> {
        let kind = if down { xproto::BUTTON_PRESS_EVENT } else { xproto::BUTTON_RELEASE_EVENT };
        self.fake(kind, button, NONE, 0, 0)
    }

    pub(super) fn key(&self, keycode: u8, down: bool) -> Result<(), InputError> {
        let kind = if down { xproto::KEY_PRESS_EVENT } else { xproto::KEY_RELEASE_EVENT };
        self.fake(kind, keycode, NONE, 0, 0)
    }

    fn fake(&self, kind: u8, detail: u8, root: Window, x: i16, y: i16) -> Result<(), InputError> {
        self.x.xtest_fake_input(kind, detail, NOW, root, x, y, 0)?.ignore_error();
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<(), ConnectionError> {
        self.x.flush()
    }

    /// Returns when the server has done everything asked so far.
    pub(super) fn sync(&self) -> Result<(), InputError> {
        self.x.get_input_focus()?.reply()?;
        Ok(())
    }

    /// The oldest event, if there is one.
    pub(super) fn event(&mut self) -> Result<Option<Event>, InputError> {
        match self.kept.pop_front() {
            Some(event) => Ok(Some(event)),
            None => Ok(self.x.poll_for_event()?),
        }
    }

    /// Waits for an event and keeps all others; `false` if it does not come in time.
    pub(super) fn wait_for(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<bool, InputError> {
        let end = Instant::now() + limit;
        self.x.flush()?;
        loop {
            while let Some(event) = self.x.poll_for_event()? {
                if wanted(&event) {
                    return Ok(true);
                }
                self.kept.push_back(event);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(self.x.stream(), PollFlags::IN)], Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(InputError::Wait(error.into())),
            }
        }
    }
}
