//! An X server of its own for each test, and the program that streams it.

use std::{
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use x11rb::{
    connection::Connection,
    protocol::xproto::{ChangeGCAux, ConnectionExt, CreateGCAux, Gcontext, Rectangle},
    rust_connection::RustConnection,
    wrapper::ConnectionExt as _,
};

/// No wait in these tests is longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Which X server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Xvfb,
    Xtigervnc,
}

/// A display that lives as long as the value.
pub(crate) struct Server {
    child: Child,
    pub(crate) display: String,
}

impl Server {
    /// `None`, with a line that says so, if the X server is not installed.
    pub(crate) fn start(kind: Kind, width: u16, height: u16) -> Option<Self> {
        let (mut ours, theirs) = pipe();
        let number = theirs.to_string();
        let size = format!("{width}x{height}");
        let mut command = match kind {
            Kind::Xvfb => {
                let mut command = Command::new("Xvfb");
                command.args(["-screen", "0", &format!("{size}x24"), "-nolisten", "tcp", "-noreset"]);
                command
            }
            Kind::Xtigervnc => {
                let mut command = Command::new("Xtigervnc");
                command.args([
                    "-geometry",
                    &size,
                    "-depth",
                    "24",
                    "-rfbport",
                    "-1",
                    "-SecurityTypes",
                    "None",
                ]);
                command.args(["-nolisten", "tcp"]);
                command
            }
        };
        // The server takes a free display and writes its number to the pipe.
        command.args(["-displayfd", &number]).stdout(Stdio::null()).stderr(Stdio::null());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                println!("SKIPPED: {kind:?} does not start: {error}");
                return None;
            }
        };
        theirs.close();
        let mut display = String::new();
        while !display.ends_with('\n') {
            let mut byte = [0];
            ours.read_exact(&mut byte).expect("the X server says its number");
            display.push(byte[0].into());
        }
        Some(Self { child, display: format!(":{}", display.trim()) })
    }

    pub(crate) fn connect(&self) -> Painter {
        let (x, screen) = RustConnection::connect(Some(&self.display)).unwrap();
        let root = x.setup().roots[screen].root;
        let gc = x.generate_id().unwrap();
        x.create_gc(gc, root, &CreateGCAux::new().graphics_exposures(0)).unwrap();
        Painter { x, root, gc }
    }

    pub(crate) fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pipe whose writing end the next program inherits.
struct Inherited(OwnedFd);

fn pipe() -> (File, Inherited) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    rustix::io::fcntl_setfd(&reader, rustix::io::FdFlags::CLOEXEC).unwrap();
    (File::from(reader), Inherited(writer))
}

impl Inherited {
    fn close(self) {
        drop(self.0);
    }
}

impl std::fmt::Display for Inherited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::os::fd::AsRawFd::as_raw_fd(&self.0).fmt(f)
    }
}

/// Draws on the screen.
pub(crate) struct Painter {
    pub(crate) x: RustConnection,
    pub(crate) root: u32,
    gc: Gcontext,
}

impl Painter {
    /// Fills a part of the screen with `0xrrggbb`.
    pub(crate) fn fill(&self, colour: u32, x: i16, y: i16, width: u16, height: u16) {
        self.x.change_gc(self.gc, &ChangeGCAux::new().foreground(colour)).unwrap();
        self.x.poly_fill_rectangle(self.root, self.gc, &[Rectangle { x, y, width, height }]).unwrap();
        self.x.sync().unwrap();
    }
}

/// The program.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
    _place: tempfile::TempDir,
}

impl Program {
    pub(crate) fn start(server: &Server) -> Self {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("stream.sock");
        let child = spawn(&socket, server);
        Self { child, socket, _place: place }
    }

    /// Another one, with the same socket.
    pub(crate) fn restart(&mut self, server: &Server) {
        self.child = spawn(&self.socket, server);
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the program did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Memory in use, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let pages = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }
}

fn spawn(socket: &Path, server: &Server) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polydev-desktop"));
    command.arg("stream").arg(socket).env("DISPLAY", &server.display).spawn().unwrap()
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
