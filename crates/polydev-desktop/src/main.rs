//! Watches the X display of a browser VM and tells the agent what it sees, one JSON line at a time on stdout.
//!
//! It looks at a few single pixels and at window titles. It reads no input, takes no picture and sends nothing anywhere
//! else. It ends when the display does; the agent starts it again.

mod display;
mod outbox;
mod wake;

use std::{io::Write, process::ExitCode};

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
    let mut stdout = std::io::stdout();
    let tell = |seen: Seen| {
        let mut line = serde_json::to_vec(&seen).map_err(std::io::Error::from)?;
        line.push(b'\n');
        stdout.write_all(&line)?;
        stdout.flush()
    };
    match display::watch(tell) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("polydev-desktop: {error}");
            ExitCode::FAILURE
        }
    }
}
