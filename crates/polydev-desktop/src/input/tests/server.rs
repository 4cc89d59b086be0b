//! An X server of its own for each test, and a window on it that has the focus and sees the keys.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::Instant,
};

use x11rb::{
    CURRENT_TIME,
    connection::Connection,
    protocol::{
        Event,
        xproto::{AtomEnum, ConnectionExt as _, CreateWindowAux, EventMask, InputFocus, WindowClass},
    },
    rust_connection::RustConnection,
};

use super::LIMIT;

/// A program that ends with the test.
pub(super) struct Program(pub(super) Child);

impl Drop for Program {
    fn drop(&mut self) {
        // Helpers of a browser write to its profile as long as they live.
        if let Some(group) = rustix::process::Pid::from_raw(self.0.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

impl Program {
    /// `None`, with a line that says so, if it is not installed.
    pub(super) fn start(command: &mut Command) -> Option<Self> {
        match command.process_group(0).spawn() {
            Ok(child) => Some(Self(child)),
            Err(error) => {
                println!("SKIPPED: {} does not start: {error}", command.get_program().display());
                None
            }
        }
    }
}

/// A display as the agent starts it.
pub(super) struct Server {
    _program: Program,
    pub(super) display: String,
}

impl Server {
    pub(super) fn start() -> Option<Self> {
        let arguments = [
            "-geometry 1024x768 -depth 24 -rfbport -1 -SecurityTypes None -nolisten tcp -noreset",
            "-ardelay 600000 -displayfd 1",
        ];
        let arguments = arguments.iter().flat_map(|line| line.split(' '));
        let mut command = Command::new("Xtigervnc");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut program = Program::start(&mut command)?;
        let mut number = String::new();
        BufReader::new(program.0.stdout.take().unwrap()).read_line(&mut number).unwrap();
        Some(Self { _program: program, display: format!(":{}", number.trim()) })
    }

    pub(super) fn connect(&self) -> Viewer {
        let (x, screen) = RustConnection::connect(Some(&self.display)).unwrap();
        let root = x.setup().roots[screen].root;
        Viewer { x, root }
    }
}

/// A client of the display.
pub(super) struct Viewer {
    pub(super) x: RustConnection,
    pub(super) root: u32,
}

impl Viewer {
    /// A window over the whole screen that has the focus.
    pub(super) fn window(&self) -> u32 {
        let window = self.x.generate_id().unwrap();
        let events = EventMask::KEY_PRESS
            | EventMask::KEY_RELEASE
            | EventMask::BUTTON_PRESS
            | EventMask::BUTTON_RELEASE
            | EventMask::FOCUS_CHANGE
            | EventMask::EXPOSURE;
        let values = CreateWindowAux::new().event_mask(events).override_redirect(1);
        let (depth, kind) = (x11rb::COPY_DEPTH_FROM_PARENT, WindowClass::INPUT_OUTPUT);
        self.x.create_window(depth, window, self.root, 0, 0, 1024, 768, 0, kind, 0, &values).unwrap();
        self.x.map_window(window).unwrap();
        self.x.set_input_focus(InputFocus::PARENT, window, CURRENT_TIME).unwrap().check().unwrap();
        window
    }

    /// Waits until the window that the window manager calls active has the keyboard.
    pub(super) fn wait_for_focus(&self) {
        let active = self.x.intern_atom(false, b"_NET_ACTIVE_WINDOW").unwrap().reply().unwrap().atom;
        let end = Instant::now() + LIMIT;
        loop {
            let property = self.x.get_property(false, self.root, active, AtomEnum::WINDOW, 0, 1).unwrap();
            let active = property.reply().unwrap().value32().and_then(|mut windows| windows.next());
            let focus = self.x.get_input_focus().unwrap().reply().unwrap().focus;
            if active.is_some_and(|active| active != 0 && active == focus) {
                return;
            }
            assert!(Instant::now() < end, "no window has the keyboard: {active:?}, {focus}");
            std::thread::yield_now();
        }
    }

    /// The window that owns a selection, or 0.
    pub(super) fn owner(&self, selection: &[u8]) -> u32 {
        let name = self.x.intern_atom(false, selection).unwrap().reply().unwrap().atom;
        self.x.get_selection_owner(name).unwrap().reply().unwrap().owner
    }

    /// Keycodes that are down.
    pub(super) fn keys_down(&self) -> Vec<u8> {
        let down = self.x.query_keymap().unwrap().reply().unwrap().keys;
        (0..=u8::MAX).filter(|keycode| down[usize::from(keycode / 8)] & (1 << (keycode % 8)) != 0).collect()
    }

    /// The first keysym of each keycode.
    pub(super) fn map(&self) -> Vec<(u8, u32)> {
        let (first, last) = (self.x.setup().min_keycode, self.x.setup().max_keycode);
        let reply = self.x.get_keyboard_mapping(first, last - first + 1).unwrap().reply().unwrap();
        let keysyms = reply.keysyms.chunks(reply.keysyms_per_keycode.into()).map(|all| all[0]);
        (first..=last).zip(keysyms).collect()
    }

    /// Waits for events until enough of them were of interest.
    pub(super) fn events<T>(&self, count: usize, of: impl Fn(&Event) -> Option<T>) -> Vec<T> {
        let end = Instant::now() + LIMIT;
        let mut seen = Vec::new();
        while seen.len() < count {
            match self.x.poll_for_event().unwrap() {
                Some(event) => seen.extend(of(&event)),
                None => {
                    let left = end.saturating_duration_since(Instant::now());
                    assert!(!left.is_zero(), "only {} of {count} events came", seen.len());
                    let left = rustix::event::Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: 1 };
                    let fd = rustix::event::PollFd::new(self.x.stream(), rustix::event::PollFlags::IN);
                    rustix::event::poll(&mut [fd], Some(&left)).unwrap();
                }
            }
        }
        seen
    }
}
