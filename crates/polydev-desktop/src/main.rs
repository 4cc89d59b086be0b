//! The guest program of the desktop, in one of two roles that the agent starts again whenever they end, which they do
//! when the display goes away:
//!
//! - `watch` tells the agent what the X display shows, one JSON line at a time on stdout. It looks at a few single pixels
//!   and at window titles. It reads no input, takes no picture and sends nothing anywhere else.
//! - `stream` sends the screen as video to the host over a socket, and injects the input that comes back.

mod clipboard;
mod display;
mod input;
mod outbox;
mod stream;
mod wake;

use std::{io::Write, path::Path, process::ExitCode};

use polydev_core::guest::DESKTOP_SOCKET;
use serde::Serialize;

/// What can be seen. The agent holds the same definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "seen", rename_all = "snake_case")]
enum Seen {
    /// The display answers.
    Display,
    /// A browser window is on the screen with content in it.
    Painted,
    /// The active window is called this now.
    Title {
        /// Its name, cut to a sensible length.
        title: String,
    },
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let ended = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["watch"] => watch(),
        ["stream"] => stream(Path::new(DESKTOP_SOCKET)),
        ["stream", socket] => stream(Path::new(socket)),
        _ => "usage: polydev-desktop watch | stream [SOCKET]".to_owned(),
    };
    eprintln!("polydev-desktop: {ended}");
    ExitCode::FAILURE
}

/// Returns why it ended; so does [`stream()`].
fn watch() -> String {
    let mut stdout = std::io::stdout();
    let tell = |seen: Seen| {
        let mut line = serde_json::to_vec(&seen).map_err(std::io::Error::from)?;
        line.push(b'\n');
        stdout.write_all(&line)?;
        stdout.flush()
    };
    match display::watch(tell) {
        Ok(never) => match never {},
        Err(error) => error.to_string(),
    }
}

fn stream(socket: &Path) -> String {
    match stream::run(socket) {
        Ok(never) => match never {},
        Err(error) => error.to_string(),
    }
}
