//! Reads the text that a program put on the clipboard.

use std::{mem, time::Instant};

use polydev_core::desktop::CLIPBOARD_MAX;
use x11rb::{
    NONE,
    protocol::xproto::{
        Atom, AtomEnum, ConnectionExt as _, Property, PropertyNotifyEvent, SelectionNotifyEvent, Timestamp,
        Window,
    },
    rust_connection::RustConnection,
};

use super::{Names, STEP_LIMIT};
use crate::input::InputError;

/// ```text
/// Idle --a program owns it--> Asked --whole text--> Idle
///                               | INCR
///                             Pieces --empty piece--> Idle
/// ```
/// Every state but `Idle` ends at its deadline, and when somebody else owns the clipboard.
#[derive(Default)]
enum State {
    #[default]
    Idle,
    /// For a kind of text, as of a time.
    Asked {
        target: Atom,
        time: Timestamp,
        deadline: Instant,
    },
    Pieces {
        target: Atom,
        bytes: Vec<u8>,
        deadline: Instant,
    },
}

/// Reads the clipboard of programs.
#[derive(Default)]
pub(super) struct Taker {
    state: State,
}

impl Taker {
    pub(super) fn stop(&mut self) {
        self.state = State::Idle;
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Idle => None,
            State::Asked { deadline, .. } | State::Pieces { deadline, .. } => Some(deadline),
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.stop();
        }
    }

    /// A program has owned the clipboard since then: asks it for the text.
    pub(super) fn start(
        &mut self,
        x: &RustConnection,
        window: Window,
        names: &Names,
        time: Timestamp,
    ) -> Result<(), InputError> {
        self.ask(x, window, names, names.UTF8_STRING, time)
    }

    fn ask(
        &mut self,
        x: &RustConnection,
        window: Window,
        names: &Names,
        target: Atom,
        time: Timestamp,
    ) -> Result<(), InputError> {
        x.delete_property(window, names.TAKEN)?.ignore_error();
        x.convert_selection(window, names.CLIPBOARD, target, names.TAKEN, time)?.ignore_error();
        self.state = State::Asked { target, time, deadline: Instant::now() + STEP_LIMIT };
        Ok(())
    }

    /// The program answered.
    pub(super) fn converted(
        &mut self,
        x: &RustConnection,
        window: Window,
        names: &Names,
        event: &SelectionNotifyEvent,
    ) -> Result<Option<String>, InputError> {
        let State::Asked { target, time, .. } = self.state else { return Ok(None) };
        // An answer to an earlier question says nothing.
        if event.time != time || event.target != target {
            return Ok(None);
        }
        self.stop();
        if event.property == NONE {
            if target == names.UTF8_STRING {
                self.ask(x, window, names, AtomEnum::STRING.into(), time)?;
            }
            return Ok(None);
        }
        let Some((kind, bytes)) = take(x, window, names)? else { return Ok(None) };
        if kind == names.INCR {
            self.state = State::Pieces { target, bytes: Vec::new(), deadline: Instant::now() + STEP_LIMIT };
            return Ok(None);
        }
        Ok(text(names, target, bytes))
    }

    /// Our property changed: it may be the next piece.
    pub(super) fn property(
        &mut self,
        x: &RustConnection,
        window: Window,
        names: &Names,
        event: &PropertyNotifyEvent,
    ) -> Result<Option<String>, InputError> {
        let State::Pieces { target, bytes, deadline } = &mut self.state else { return Ok(None) };
        if event.atom != names.TAKEN || event.state != Property::NEW_VALUE {
            return Ok(None);
        }
        // Too much: the program is left alone with the rest.
        let Some((_, piece)) =
            take(x, window, names)?.filter(|(_, piece)| bytes.len() + piece.len() <= CLIPBOARD_MAX)
        else {
            self.stop();
            return Ok(None);
        };
        if piece.is_empty() {
            let (target, bytes) = (*target, mem::take(bytes));
            self.stop();
            return Ok(text(names, target, bytes));
        }
        bytes.extend(piece);
        *deadline = Instant::now() + STEP_LIMIT;
        Ok(None)
    }
}

/// Takes the property's kind and bytes off the window, which asks for the next piece. `None` if it is too long.
fn take(x: &RustConnection, window: Window, names: &Names) -> Result<Option<(Atom, Vec<u8>)>, InputError> {
    let words = u32::try_from(CLIPBOARD_MAX / 4 + 1).expect("the limit is far smaller than 4 GiB");
    let property = x.get_property(true, window, names.TAKEN, AtomEnum::ANY, 0, words)?.reply()?;
    let fits = property.bytes_after == 0 && property.value.len() <= CLIPBOARD_MAX;
    Ok(fits.then_some((property.type_, property.value)))
}

fn text(names: &Names, target: Atom, bytes: Vec<u8>) -> Option<String> {
    let text = if target == names.UTF8_STRING {
        String::from_utf8(bytes).ok()?
    } else {
        // `STRING` is Latin-1.
        bytes.into_iter().map(char::from).collect()
    };
    // Latin-1 grows.
    (!text.is_empty() && text.len() <= CLIPBOARD_MAX).then_some(text)
}
