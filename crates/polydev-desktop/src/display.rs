//! The X side: active window, its title, and whether it shows anything.

use std::{collections::HashSet, convert::Infallible, io};

use x11rb::{
    connection::Connection,
    errors::{ConnectError, ConnectionError, ReplyError, ReplyOrIdError},
    protocol::{
        Event,
        damage::{ConnectionExt as _, ReportLevel},
        xproto::{
            Atom, AtomEnum, ChangeWindowAttributesAux, ConnectionExt as _, EventMask, ImageFormat, MapState,
            Window,
        },
    },
    rust_connection::RustConnection,
};

use crate::Seen;

/// Samples per direction.
const GRID: i32 = 8;
/// A browser showing anything has at least so many colours among the samples: its frame, its address bar, its page.
const COLOURS_MIN: usize = 2;
/// Smallest window that may be the browser's own.
const SIZE_MIN: u16 = 200;
/// Longest title told, in characters.
const TITLE_MAX: usize = 200;

/// Why watching ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    #[error("no display: {0}")]
    Connect(#[from] ConnectError),
    #[error("display gone: {0}")]
    Connection(#[from] ConnectionError),
    #[error("display refused: {0}")]
    Reply(#[from] ReplyError),
    #[error("display refused: {0}")]
    Id(#[from] ReplyOrIdError),
    #[error("nobody listens: {0}")]
    Tell(#[from] io::Error),
}

x11rb::atom_manager! {
    /// Names used of the window manager's protocol (EWMH).
    Names: NamesCookie {
        _NET_ACTIVE_WINDOW,
        _NET_WM_NAME,
        UTF8_STRING,
    }
}

struct Watcher<'a, T> {
    x: &'a RustConnection,
    names: Names,
    root: Window,
    tell: T,
    /// Windows whose events are asked for already.
    known: HashSet<Window>,
    title: String,
    painted: bool,
}

/// Watches until the display goes away.
pub(crate) fn watch(tell: impl FnMut(Seen) -> io::Result<()>) -> Result<Infallible, WatchError> {
    let (x, screen) = x11rb::connect(None)?;
    let names = Names::new(&x)?.reply()?;
    x.damage_query_version(1, 1)?.reply()?;
    let root = x.setup().roots[screen].root;
    let events = ChangeWindowAttributesAux::new().event_mask(EventMask::PROPERTY_CHANGE);
    x.change_window_attributes(root, &events)?.check()?;
    let mut watcher =
        Watcher { x: &x, names, root, tell, known: HashSet::new(), title: String::new(), painted: false };
    (watcher.tell)(Seen::Display)?;
    watcher.look()?;
    loop {
        match x.wait_for_event()? {
            Event::DamageNotify(event) => {
                // Without subtracting there is only ever one report.
                x.damage_subtract(event.damage, x11rb::NONE, x11rb::NONE)?;
                if watcher.painted {
                    x.damage_destroy(event.damage)?;
                }
            }
            Event::PropertyNotify(event) if event.atom == watcher.names._NET_ACTIVE_WINDOW => {}
            Event::PropertyNotify(event)
                if event.atom == watcher.names._NET_WM_NAME || event.atom == u32::from(AtomEnum::WM_NAME) => {
            }
            Event::DestroyNotify(event) => {
                watcher.known.remove(&event.window);
                continue;
            }
            _ => continue,
        }
        watcher.look()?;
    }
}

impl<T: FnMut(Seen) -> io::Result<()>> Watcher<'_, T> {
    fn look(&mut self) -> Result<(), WatchError> {
        match self.look_at_active() {
            // The window went away while it was looked at; an event will tell of the next one.
            Err(WatchError::Reply(ReplyError::X11Error(_)) | WatchError::Id(ReplyOrIdError::X11Error(_))) => {
                Ok(())
            }
            other => other,
        }
    }

    fn look_at_active(&mut self) -> Result<(), WatchError> {
        let Some(window) = self.active()? else { return Ok(()) };
        if !self.known.contains(&window) {
            let mask = EventMask::PROPERTY_CHANGE | EventMask::STRUCTURE_NOTIFY;
            let events = ChangeWindowAttributesAux::new().event_mask(mask);
            self.x.change_window_attributes(window, &events)?.check()?;
            if !self.painted {
                let damage = self.x.generate_id()?;
                self.x.damage_create(damage, window, ReportLevel::NON_EMPTY)?.check()?;
            }
            // Only now: a window that was gone already may come back, since the server hands ids out again.
            self.known.insert(window);
        }
        if !self.painted && self.shows_something(window)? {
            self.painted = true;
            (self.tell)(Seen::Painted)?;
        }
        let title = self.title_of(window)?;
        if title != self.title {
            self.title.clone_from(&title);
            (self.tell)(Seen::Title { title })?;
        }
        Ok(())
    }

    fn active(&self) -> Result<Option<Window>, WatchError> {
        let property = self.property(self.root, self.names._NET_ACTIVE_WINDOW, AtomEnum::WINDOW.into(), 1)?;
        let first = property.first_chunk::<4>().map(|bytes| Window::from_ne_bytes(*bytes));
        Ok(first.filter(|window| *window != x11rb::NONE))
    }

    fn title_of(&self, window: Window) -> Result<String, WatchError> {
        let name = self.property(window, self.names._NET_WM_NAME, self.names.UTF8_STRING, 256)?;
        Ok(String::from_utf8_lossy(&name).chars().filter(|c| !c.is_control()).take(TITLE_MAX).collect())
    }

    fn property(&self, window: Window, name: Atom, kind: Atom, words: u32) -> Result<Vec<u8>, WatchError> {
        Ok(self.x.get_property(false, window, name, kind, 0, words)?.reply()?.value)
    }

    /// Whether a window of the browser's size is mapped and its sampled pixels differ.
    fn shows_something(&self, window: Window) -> Result<bool, WatchError> {
        let geometry = self.x.get_geometry(window)?.reply()?;
        let attributes = self.x.get_window_attributes(window)?.reply()?;
        if attributes.map_state != MapState::VIEWABLE
            || geometry.width < SIZE_MIN
            || geometry.height < SIZE_MIN
        {
            return Ok(false);
        }
        let place =
            |step: i32, size: u16| i16::try_from((2 * step + 1) * i32::from(size) / (2 * GRID)).unwrap_or(0);
        let mut cookies = Vec::new();
        for row in 0..GRID {
            for column in 0..GRID {
                // The upper rows are the browser's own frame: closer together, since it is not high.
                let y = if row < GRID / 2 { place(row, 96) } else { place(row, geometry.height) };
                let x = place(column, geometry.width);
                cookies.push(self.x.get_image(ImageFormat::Z_PIXMAP, window, x, y, 1, 1, u32::MAX)?);
            }
        }
        let mut colours = HashSet::new();
        for cookie in cookies {
            // Parts that lie off the screen cannot be read.
            if let Ok(image) = cookie.reply() {
                colours.insert(image.data);
            }
        }
        Ok(colours.len() >= COLOURS_MIN)
    }
}
