//! Gives the person's text to programs that ask for the clipboard.

use std::{sync::Arc, time::Instant};

use x11rb::{
    NONE,
    protocol::xproto::{
        Atom, AtomEnum, ChangeWindowAttributesAux, ConnectionExt as _, EventMask, PropMode, Property,
        PropertyNotifyEvent, SelectionNotifyEvent, SelectionRequestEvent, Timestamp, Window,
    },
    rust_connection::RustConnection,
    wrapper::ConnectionExt as _,
};

use super::{Names, STEP_LIMIT};
use crate::input::InputError;

/// Texts over this go in pieces (`INCR`), each at most so long.
const PIECE: usize = 64 << 10;
/// Most programs that are given pieces at a time.
const TRANSFERS_MAX: usize = 8;

/// A text on its way in pieces. A program takes a piece by deleting the property.
struct Transfer {
    requestor: Window,
    property: Atom,
    kind: Atom,
    bytes: Arc<[u8]>,
    sent: usize,
    deadline: Instant,
}

/// Owns the clipboard for the person.
#[derive(Default)]
pub(super) struct Giver {
    text: Option<String>,
    since: Timestamp,
    transfers: Vec<Transfer>,
}

impl Giver {
    pub(super) fn own(&mut self, text: String) {
        self.text = Some(text);
    }

    /// The server's time of the change.
    pub(super) fn owned_since(&mut self, since: Timestamp) {
        self.since = since;
    }

    /// Another program has the clipboard, or nobody. Transfers that began go on, as the protocol wants it.
    pub(super) fn disown(&mut self) {
        self.text = None;
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.transfers.iter().map(|transfer| transfer.deadline).min()
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.transfers.retain(|transfer| transfer.deadline > now);
    }

    /// Answers a program: with the text, or that it cannot have it.
    pub(super) fn request(
        &mut self,
        x: &RustConnection,
        names: &Names,
        event: &SelectionRequestEvent,
    ) -> Result<(), InputError> {
        // Old programs name no property (ICCCM, section 2.2).
        let property = if event.property == NONE { event.target } else { event.property };
        let given = event.selection == names.CLIPBOARD && self.put(x, names, event, property)?;
        let answer = SelectionNotifyEvent {
            response_type: x11rb::protocol::xproto::SELECTION_NOTIFY_EVENT,
            sequence: 0,
            time: event.time,
            requestor: event.requestor,
            selection: event.selection,
            target: event.target,
            property: if given { property } else { NONE },
        };
        x.send_event(false, event.requestor, EventMask::NO_EVENT, answer)?.ignore_error();
        Ok(())
    }

    fn put(
        &mut self,
        x: &RustConnection,
        names: &Names,
        event: &SelectionRequestEvent,
        property: Atom,
    ) -> Result<bool, InputError> {
        let Some(text) = &self.text else { return Ok(false) };
        let (to, target) = (event.requestor, event.target);
        if target == names.TARGETS {
            let mut targets = vec![
                names.TARGETS,
                names.TIMESTAMP,
                names.UTF8_STRING,
                names.PLAIN_UTF8,
                names.PLAIN,
                names.TEXT,
            ];
            if latin(text).is_some() {
                targets.push(AtomEnum::STRING.into());
            }
            x.change_property32(PropMode::REPLACE, to, property, AtomEnum::ATOM, &targets)?.ignore_error();
            return Ok(true);
        }
        if target == names.TIMESTAMP {
            x.change_property32(PropMode::REPLACE, to, property, AtomEnum::INTEGER, &[self.since])?
                .ignore_error();
            return Ok(true);
        }
        let (kind, bytes) = if target == u32::from(AtomEnum::STRING) {
            let Some(bytes) = latin(text) else { return Ok(false) };
            (target, bytes)
        } else if [names.UTF8_STRING, names.PLAIN_UTF8, names.PLAIN].contains(&target) {
            (target, text.clone().into_bytes())
        } else if target == names.TEXT {
            (names.UTF8_STRING, text.clone().into_bytes())
        } else {
            return Ok(false);
        };
        if bytes.len() <= PIECE {
            x.change_property8(PropMode::REPLACE, to, property, kind, &bytes)?.ignore_error();
            return Ok(true);
        }
        self.transfers.retain(|transfer| (transfer.requestor, transfer.property) != (to, property));
        if self.transfers.len() == TRANSFERS_MAX {
            return Ok(false);
        }
        let events = ChangeWindowAttributesAux::new().event_mask(EventMask::PROPERTY_CHANGE);
        x.change_window_attributes(to, &events)?.ignore_error();
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        x.change_property32(PropMode::REPLACE, to, property, names.INCR, &[size])?.ignore_error();
        let deadline = Instant::now() + STEP_LIMIT;
        self.transfers.push(Transfer {
            requestor: to,
            property,
            kind,
            bytes: bytes.into(),
            sent: 0,
            deadline,
        });
        Ok(true)
    }

    /// A program took a piece: the next one follows, and an empty one at the end.
    pub(super) fn property(
        &mut self,
        x: &RustConnection,
        event: &PropertyNotifyEvent,
    ) -> Result<(), InputError> {
        let this =
            |transfer: &Transfer| (transfer.requestor, transfer.property) == (event.window, event.atom);
        let Some(place) = self.transfers.iter().position(this).filter(|_| event.state == Property::DELETE)
        else {
            return Ok(());
        };
        let transfer = &mut self.transfers[place];
        let end = (transfer.sent + PIECE).min(transfer.bytes.len());
        let piece = &transfer.bytes[transfer.sent..end];
        let last = piece.is_empty();
        x.change_property8(PropMode::REPLACE, transfer.requestor, transfer.property, transfer.kind, piece)?
            .ignore_error();
        transfer.sent = end;
        transfer.deadline = Instant::now() + STEP_LIMIT;
        if last {
            self.transfers.swap_remove(place);
        }
        Ok(())
    }
}

/// `STRING` is Latin-1.
fn latin(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|character| u8::try_from(u32::from(character)).ok()).collect()
}
