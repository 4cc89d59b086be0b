//! X displays to draw on: of the machine, or of a guest, reached through `/proc`.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use x11rb::{
    connection::Connection,
    protocol::xproto::{AtomEnum, ConnectionExt},
    rust_connection::{DefaultStream, RustConnection},
};

const COOKIE: &[u8] = b"MIT-MAGIC-COOKIE-1";
const COOKIE_BYTES: usize = 16;
/// Lengths of properties in words of four bytes.
const WINDOWS_MAX: u32 = 64;
const TITLE_MAX: u32 = 256;

/// An X display and what lets us in.
#[derive(Debug, Clone)]
pub(super) struct Display {
    socket: PathBuf,
    cookie: [u8; COOKIE_BYTES],
}

impl Display {
    /// A display of this machine whose server was given `cookie`.
    pub(super) fn of_number(number: u32, cookie: [u8; COOKIE_BYTES]) -> Self {
        Self { socket: socket_of(number), cookie }
    }

    /// A display in another file system, whose server was given an authority file with a single entry.
    pub(super) fn of_guest(root: &Path) -> Result<Self> {
        let file = root.join("run/polydev/desktop/xauthority");
        let entry = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let name = entry.windows(COOKIE.len()).position(|window| window == COOKIE);
        let cookie = name
            .and_then(|at| entry.get(at + COOKIE.len() + 2..)?.try_into().ok())
            .context("the guest's authority file has another layout")?;
        Ok(Self { socket: root.join("tmp/.X11-unix/X1"), cookie })
    }

    pub(super) fn connect(&self) -> Result<(RustConnection, usize)> {
        let text = || format!("connect to {}", self.socket.display());
        let socket = UnixStream::connect(&self.socket).with_context(text)?;
        let (stream, _) = DefaultStream::from_unix_stream(socket).with_context(text)?;
        let screen = 0;
        let connection = RustConnection::connect_to_stream_with_auth_info(
            stream,
            screen,
            COOKIE.to_vec(),
            self.cookie.to_vec(),
        )
        .with_context(text)?;
        Ok((connection, screen))
    }

    /// Whether a window manager has introduced itself (EWMH).
    pub(super) fn has_window_manager(&self) -> bool {
        self.windows().is_ok_and(|windows| windows.is_some())
    }

    /// Whether there is a window whose title begins like that.
    pub(super) fn shows_window(&self, title: &str) -> bool {
        let titles = self.windows().ok().flatten().unwrap_or_default();
        titles.iter().any(|shown| shown.starts_with(title))
    }

    /// Titles of the windows that the window manager knows; `None` without one.
    fn windows(&self) -> Result<Option<Vec<String>>> {
        let (connection, screen) = self.connect()?;
        let root = connection.setup().roots[screen].root;
        let atom =
            |name: &str| -> Result<u32> { Ok(connection.intern_atom(false, name.as_bytes())?.reply()?.atom) };
        let property = |window, atom, length| -> Result<_> {
            Ok(connection.get_property(false, window, atom, AtomEnum::ANY, 0, length)?.reply()?)
        };
        let list = property(root, atom("_NET_CLIENT_LIST")?, WINDOWS_MAX)?;
        let Some(windows) = list.value32() else { return Ok(None) };
        let name = atom("_NET_WM_NAME")?;
        let titles = windows.filter_map(|window| property(window, name, TITLE_MAX).ok());
        Ok(Some(titles.map(|title| String::from_utf8_lossy(&title.value).into_owned()).collect()))
    }
}

/// Where a display of this machine is found.
pub(super) fn socket_of(number: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/.X11-unix/X{number}"))
}

/// An entry of an authority file (Xau manual): any address, that display.
pub(super) fn authority(number: u32, cookie: [u8; COOKIE_BYTES]) -> Vec<u8> {
    let mut entry = vec![0xff, 0xff];
    for field in [&[][..], number.to_string().as_bytes(), COOKIE, &cookie] {
        let length = u16::try_from(field.len()).expect("the fields are short");
        entry.extend(length.to_be_bytes());
        entry.extend(field);
    }
    entry
}

/// Something that is drawn by a thread until it is dropped.
#[derive(Debug)]
pub(super) struct Shown {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Shown {
    /// The thread looks at `stop` several times a second.
    pub(super) fn new(stop: Arc<AtomicBool>, thread: JoinHandle<()>) -> Self {
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say: its work shows in the figures.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_cookie_is_read_from_its_authority_file() {
        let root = tempfile::tempdir().expect("a directory");
        let place = root.path().join("run/polydev/desktop");
        fs::create_dir_all(&place).expect("made");
        fs::write(place.join("xauthority"), authority(1, [7; 16])).expect("written");
        assert_eq!(Display::of_guest(root.path()).expect("read").cookie, [7; 16]);
        fs::write(place.join("xauthority"), b"rubbish").expect("written");
        Display::of_guest(root.path()).expect_err("rubbish");
    }
}
