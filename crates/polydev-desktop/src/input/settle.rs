//! Waiting until the program with the focus has read everything sent to it, and knows the keyboard map as it is.
//!
//! A program looks a key up in its own copy of the map when it reads the event, and renews that copy when it reads that
//! the map changed. A key must not get another meaning while a press of it is unread, nor be pressed while the new map
//! is. A ping of the window manager's protocol (EWMH, `_NET_WM_PING`) tells: a program answers in the order of its
//! events. Chromium has a second copy, of GTK, on another connection that is not part of that order: it has been read when
//! the program's loop has gone round once more, hence several pings, one after the other.

use std::time::Duration;

use x11rb::{
    protocol::{
        Event,
        xproto::{
            Atom, AtomEnum, ChangeWindowAttributesAux, ClientMessageEvent, ConnectionExt as _, EventMask,
            InputFocus, Window,
        },
    },
    x11_utils::TryParse,
};

use super::{InputError, display::Display};

/// A program that does not answer for so long hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// For programs that answer no pings.
const BLIND_PAUSE: Duration = Duration::from_millis(50);
/// Pings after which a changed map is known everywhere in the program.
pub(super) const MAP_KNOWN: usize = 3;
/// Pings after which the events before them have been read.
pub(super) const EVENTS_READ: usize = 1;

/// Window managers ping, too, and count from one: their answers are not ours.
const FIRST_SERIAL: u32 = 1 << 30;

x11rb::atom_manager! {
    /// Names used of the window manager's protocols.
    Names: NamesCookie {
        WM_PROTOCOLS,
        _NET_WM_PING,
    }
}

/// Pings programs.
#[derive(Debug)]
pub(super) struct Settler {
    names: Names,
    serial: u32,
}

impl Settler {
    pub(super) fn new(display: &Display) -> Result<Self, InputError> {
        let x = display.connection();
        let names = Names::new(x)?.reply()?;
        // Answers go to the root window.
        let events = ChangeWindowAttributesAux::new().event_mask(EventMask::SUBSTRUCTURE_NOTIFY);
        x.change_window_attributes(display.root(), &events)?.check()?;
        Ok(Self { names, serial: FIRST_SERIAL })
    }

    /// Whether the program with the focus has answered so many pings. Without such a program there is nothing to wait
    /// for.
    pub(super) fn settle(&mut self, display: &mut Display, pings: usize) -> Result<bool, InputError> {
        let Some(window) = self.window(display)? else {
            display.sync()?;
            std::thread::sleep(BLIND_PAUSE);
            return Ok(true);
        };
        for _ in 0..pings {
            if !self.ping(display, window)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn ping(&mut self, display: &mut Display, window: Window) -> Result<bool, InputError> {
        self.serial = self.serial.wrapping_add(1);
        let data = [self.names._NET_WM_PING, self.serial, window, 0, 0];
        let message = ClientMessageEvent::new(32, window, self.names.WM_PROTOCOLS, data);
        display.connection().send_event(false, window, EventMask::NO_EVENT, message)?.ignore_error();
        let (root, kind) = (display.root(), self.names.WM_PROTOCOLS);
        display.wait_for(ANSWER_LIMIT, |event| {
            matches!(event, Event::ClientMessage(answer)
                if answer.window == root && answer.type_ == kind && answer.data.as_data32() == data)
        })
    }

    /// The window that answers pings of those that contain the focus.
    fn window(&self, display: &Display) -> Result<Option<Window>, InputError> {
        let x = display.connection();
        let mut window = x.get_input_focus()?.reply()?.focus;
        let special = [u32::from(InputFocus::NONE), u32::from(InputFocus::POINTER_ROOT)];
        while !special.contains(&window) && window != display.root() {
            // It may go away at any time; then the focus goes, too.
            let Ok(protocols) =
                x.get_property(false, window, self.names.WM_PROTOCOLS, AtomEnum::ATOM, 0, 64)?.reply()
            else {
                return Ok(None);
            };
            if atoms(&protocols.value).any(|atom| atom == self.names._NET_WM_PING) {
                return Ok(Some(window));
            }
            let Ok(tree) = x.query_tree(window)?.reply() else { return Ok(None) };
            window = tree.parent;
        }
        Ok(None)
    }
}

fn atoms(mut bytes: &[u8]) -> impl Iterator<Item = Atom> {
    std::iter::from_fn(move || {
        let (atom, rest) = Atom::try_parse(bytes).ok()?;
        bytes = rest;
        Some(atom)
    })
}
