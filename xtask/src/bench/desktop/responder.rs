//! A window that changes its colour at every click, at once: whoever clicks sees when the picture follows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use x11rb::{
    COPY_DEPTH_FROM_PARENT,
    connection::Connection,
    protocol::{
        Event,
        xproto::{
            ChangeGCAux, ConfigureWindowAux, ConnectionExt, CreateGCAux, CreateWindowAux, EventMask,
            Gcontext, Rectangle, StackMode, Window, WindowClass,
        },
    },
    rust_connection::RustConnection,
};

use super::display::{Display, Shown};

const AT: (i16, i16) = (400, 16);
const SIDE: u16 = 64;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Answers clicks until it is dropped.
pub(super) fn show(display: &Display) -> Result<Shown> {
    let (connection, screen) = display.connect()?;
    let mut patch = Patch::new(&connection, screen).context("show the window for clicks")?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            // An X server that went away ends this, and shows as clicks that are not answered.
            if patch.answer(&connection).is_err() {
                break;
            }
            let timeout = Timespec::try_from(LOOK_AGAIN).expect("it is short");
            let mut fds = [PollFd::new(connection.stream(), PollFlags::IN)];
            let _ = poll(&mut fds, Some(&timeout));
        }
        let _ = connection.destroy_window(patch.window);
        let _ = connection.flush();
    });
    Ok(Shown::new(stop, thread))
}

struct Patch {
    window: Window,
    brush: Gcontext,
    /// The colour it has, and the other.
    colours: [u32; 2],
}

impl Patch {
    fn new(connection: &RustConnection, screen: usize) -> Result<Self> {
        let screen = &connection.setup().roots[screen];
        let (window, brush) = (connection.generate_id()?, connection.generate_id()?);
        // Without a pointer of its own to be seen: the picture's only change is the colour.
        let (nothing, cursor) = (connection.generate_id()?, connection.generate_id()?);
        connection.create_pixmap(1, nothing, screen.root, 1, 1)?;
        let clear = connection.generate_id()?;
        connection.create_gc(clear, nothing, &CreateGCAux::new().foreground(0))?;
        connection.poly_fill_rectangle(nothing, clear, &[square(1)])?;
        connection.create_cursor(cursor, nothing, nothing, 0, 0, 0, 0, 0, 0, 0, 0)?;
        let look = CreateWindowAux::new()
            .override_redirect(1)
            .background_pixel(screen.black_pixel)
            .cursor(cursor)
            .event_mask(EventMask::BUTTON_PRESS | EventMask::VISIBILITY_CHANGE);
        connection.create_window(
            COPY_DEPTH_FROM_PARENT,
            window,
            screen.root,
            AT.0,
            AT.1,
            SIDE,
            SIDE,
            0,
            WindowClass::INPUT_OUTPUT,
            screen.root_visual,
            &look,
        )?;
        connection.create_gc(brush, window, &CreateGCAux::new().graphics_exposures(0))?;
        connection.map_window(window)?;
        connection.flush()?;
        Ok(Self { window, brush, colours: [screen.black_pixel, screen.white_pixel] })
    }

    /// Handles what has come.
    fn answer(&mut self, connection: &RustConnection) -> Result<()> {
        while let Some(event) = connection.poll_for_event()? {
            match event {
                Event::ButtonPress(_) => {
                    self.colours.reverse();
                    connection.change_gc(self.brush, &ChangeGCAux::new().foreground(self.colours[0]))?;
                    connection.poly_fill_rectangle(self.window, self.brush, &[square(SIDE)])?;
                }
                Event::VisibilityNotify(_) => {
                    let above = ConfigureWindowAux::new().stack_mode(StackMode::ABOVE);
                    connection.configure_window(self.window, &above)?;
                }
                _ => {}
            }
            connection.flush()?;
        }
        Ok(())
    }
}

fn square(side: u16) -> Rectangle {
    Rectangle { x: 0, y: 0, width: side, height: side }
}
