//! The display's clipboard: texts of the person go in, texts that programs copy come out. Nothing here logs a text.
//!
//! A thread with its own connection owns the selection for the person and reads it when a program owns it (ICCCM,
//! section 2). Only texts: nothing else has a reason to cross.

mod give;
mod take;

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use polydev_core::desktop::FromDesktop;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use x11rb::{
    CURRENT_TIME, NONE,
    connection::{Connection, RequestConnection},
    protocol::{
        Event,
        xfixes::{self, ConnectionExt as _, SelectionEventMask},
        xproto::{AtomEnum, ConnectionExt as _, CreateWindowAux, EventMask, Window, WindowClass},
    },
    rust_connection::RustConnection,
};

use crate::{
    input::{Fault, InputError},
    outbox::Outbox,
    wake::Wake,
};
use give::Giver;
use take::Taker;

/// Longest pause of a program in a transfer.
const STEP_LIMIT: Duration = Duration::from_secs(2);

x11rb::atom_manager! {
    /// Names used of the selection protocol.
    pub(super) Names: NamesCookie {
        CLIPBOARD,
        INCR,
        TARGETS,
        TEXT,
        TIMESTAMP,
        UTF8_STRING,
        PLAIN_UTF8: b"text/plain;charset=utf-8",
        PLAIN: b"text/plain",
        TAKEN: b"_POLYDEV_CLIPBOARD",
    }
}

/// What the thread is to do next; only the newest matters.
#[derive(Default)]
struct Wish {
    /// `Some(None)` is a wipe.
    change: Option<Option<String>>,
    closed: bool,
}

/// The thread that has the clipboard. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Clipboard {
    wish: Arc<Slot>,
    thread: Option<JoinHandle<()>>,
}

struct Slot {
    wish: Mutex<Wish>,
    wake: Wake,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl Clipboard {
    /// Starts on a display. When that goes away, `fault` says so and `wake` is called.
    pub(crate) fn start(
        display: Option<&str>,
        outbox: Outbox,
        fault: Fault,
        wake: Wake,
    ) -> Result<Self, InputError> {
        let desk = Desk::new(display, outbox)?;
        let wish = Slot { wish: Mutex::default(), wake: Wake::new().map_err(InputError::Wait)? };
        let wish = Arc::new(wish);
        let run = {
            let wish = wish.clone();
            move || {
                if let Err(error) = desk.work(&wish) {
                    fault.set(error);
                    wake.wake();
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("clipboard".to_owned())
            .spawn(run)
            .map_err(InputError::Thread)?;
        Ok(Self { wish, thread: Some(thread) })
    }

    /// Makes a text the clipboard.
    pub(crate) fn set(&self, text: String) {
        self.wish.change(|wish| wish.change = Some(Some(text)));
    }

    /// Takes the selections from whoever has them.
    pub(crate) fn wipe(&self) {
        self.wish.change(|wish| wish.change = Some(None));
    }
}

impl Drop for Clipboard {
    fn drop(&mut self) {
        self.wish.change(|wish| wish.closed = true);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Slot {
    fn change(&self, change: impl FnOnce(&mut Wish)) {
        change(&mut self.wish.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.wake();
    }

    fn take(&self) -> Wish {
        self.wake.clear();
        let mut wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        Wish { change: wish.change.take(), closed: wish.closed }
    }
}

/// What the thread works with.
struct Desk {
    x: RustConnection,
    window: Window,
    names: Names,
    giver: Giver,
    taker: Taker,
    outbox: Outbox,
}

impl Desk {
    fn new(display: Option<&str>, outbox: Outbox) -> Result<Self, InputError> {
        let (x, screen) = x11rb::connect(display)?;
        x.extension_information(xfixes::X11_EXTENSION_NAME)?.ok_or(InputError::Lacks("XFIXES"))?;
        x.xfixes_query_version(5, 0)?.reply()?;
        let names = Names::new(&x)?.reply()?;
        let (root, window) = (x.setup().roots[screen].root, x.generate_id()?);
        let events = CreateWindowAux::new().event_mask(EventMask::PROPERTY_CHANGE);
        x.create_window(0, window, root, -1, -1, 1, 1, 0, WindowClass::INPUT_ONLY, 0, &events)?.check()?;
        let mask = SelectionEventMask::SET_SELECTION_OWNER;
        x.xfixes_select_selection_input(window, names.CLIPBOARD, mask)?.check()?;
        Ok(Self { x, window, names, giver: Giver::default(), taker: Taker::default(), outbox })
    }

    fn work(mut self, wish: &Slot) -> Result<(), InputError> {
        loop {
            let Wish { change, closed } = wish.take();
            if closed {
                return Ok(());
            }
            match change {
                Some(Some(text)) => self.own(text)?,
                Some(None) => self.wipe()?,
                None => {}
            }
            while let Some(event) = self.x.poll_for_event()? {
                self.answer(event)?;
            }
            let now = Instant::now();
            self.giver.expire(now);
            self.taker.expire(now);
            self.x.flush()?;
            let end = [self.giver.deadline(), self.taker.deadline()].into_iter().flatten().min();
            self.wait(wish, end)?;
        }
    }

    fn wait(&self, wish: &Slot, end: Option<Instant>) -> Result<(), InputError> {
        let left = end.map(|end| {
            // One more millisecond: a wait that ends early would be repeated at once.
            let left = end.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let mut both = [PollFd::new(self.x.stream(), PollFlags::IN), PollFd::new(&wish.wake, PollFlags::IN)];
        match poll(&mut both, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(InputError::Wait(io::Error::from(error))),
        }
    }

    fn own(&mut self, text: String) -> Result<(), InputError> {
        self.taker.stop();
        self.giver.own(text);
        self.x.set_selection_owner(self.window, self.names.CLIPBOARD, CURRENT_TIME)?.check()?;
        Ok(())
    }

    fn wipe(&mut self) -> Result<(), InputError> {
        self.taker.stop();
        self.giver.disown();
        let selections = [self.names.CLIPBOARD, AtomEnum::PRIMARY.into(), AtomEnum::SECONDARY.into()];
        for selection in selections {
            self.x.set_selection_owner(NONE, selection, CURRENT_TIME)?.check()?;
        }
        self.x.delete_property(self.window, self.names.TAKEN)?.ignore_error();
        Ok(())
    }

    fn answer(&mut self, event: Event) -> Result<(), InputError> {
        let Self { x, window, names, .. } = self;
        match event {
            Event::XfixesSelectionNotify(event) if event.owner == *window => {
                self.giver.owned_since(event.selection_timestamp);
            }
            Event::XfixesSelectionNotify(event) if event.owner == NONE => self.taker.stop(),
            Event::XfixesSelectionNotify(event) => {
                self.giver.disown();
                self.taker.start(x, *window, names, event.selection_timestamp)?;
            }
            Event::SelectionNotify(event) => {
                let text = self.taker.converted(x, *window, names, &event)?;
                self.tell(text);
            }
            Event::PropertyNotify(event) if event.window == *window => {
                let text = self.taker.property(x, *window, names, &event)?;
                self.tell(text);
            }
            Event::PropertyNotify(event) => self.giver.property(x, &event)?,
            Event::SelectionRequest(event) => self.giver.request(x, names, &event)?,
            _ => {}
        }
        Ok(())
    }

    fn tell(&self, text: Option<String>) {
        if let Some(text) = text {
            // A host that does not read gets the next one.
            let _ = self.outbox.send(FromDesktop::Clipboard(text));
        }
    }
}
