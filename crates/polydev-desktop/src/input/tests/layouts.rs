//! What each key of a real keyboard layout makes, asked of an X server that has the layout.

use std::process::{Command, Stdio};

use x11rb::protocol::xkb::{ConnectionExt as _, MapPart};

use super::{
    super::keysym::{char_of, position},
    server::Server,
};

/// A key press of a person who has the layout: with the modifiers held it makes the character.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stroke {
    pub(super) code: &'static str,
    /// 0 nothing held, 1 Shift, 2 AltGr, 3 both.
    pub(super) level: usize,
    pub(super) character: char,
}

const CODES: &[&str] = &[
    "Backquote",
    "Digit1",
    "Digit2",
    "Digit3",
    "Digit4",
    "Digit5",
    "Digit6",
    "Digit7",
    "Digit8",
    "Digit9",
    "Digit0",
    "Minus",
    "Equal",
    "KeyQ",
    "KeyW",
    "KeyE",
    "KeyR",
    "KeyT",
    "KeyY",
    "KeyU",
    "KeyI",
    "KeyO",
    "KeyP",
    "BracketLeft",
    "BracketRight",
    "KeyA",
    "KeyS",
    "KeyD",
    "KeyF",
    "KeyG",
    "KeyH",
    "KeyJ",
    "KeyK",
    "KeyL",
    "Semicolon",
    "Quote",
    "Backslash",
    "IntlBackslash",
    "KeyZ",
    "KeyX",
    "KeyC",
    "KeyV",
    "KeyB",
    "KeyN",
    "KeyM",
    "Comma",
    "Period",
    "Slash",
];

/// All characters of a layout, by level; `None`, with a line that says so, if a program is missing.
pub(super) fn strokes(layout: &str, variant: &str) -> Option<Vec<Stroke>> {
    let server = Server::start()?;
    let arguments = ["-display", &server.display, "-layout", layout, "-variant", variant];
    match Command::new("setxkbmap").args(arguments).stdin(Stdio::null()).status() {
        Ok(status) => assert!(status.success()),
        Err(error) => {
            println!("SKIPPED: setxkbmap does not start: {error}");
            return None;
        }
    }
    let viewer = server.connect();
    viewer.x.xkb_use_extension(1, 0).unwrap().reply().unwrap();
    let no_parts = 0_u16.into();
    let map = viewer
        .x
        .xkb_get_map(
            0x100,
            MapPart::KEY_SYMS,
            no_parts,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0_u16.into(),
            0,
            0,
            0,
            0,
            0,
            0,
        )
        .unwrap()
        .reply()
        .unwrap();
    let keys = map.map.syms_rtrn.unwrap();
    let mut strokes = Vec::new();
    for code in CODES {
        let key = &keys[usize::from(position(code).unwrap() - map.first_key_sym)];
        for (level, keysym) in key.syms.iter().take(usize::from(key.width).min(4)).enumerate() {
            // Dead keys make none: the viewer sends what they make with the next key.
            strokes.extend(char_of(*keysym).map(|character| Stroke { code, level, character }));
        }
    }
    strokes.sort_by_key(|stroke| stroke.level);
    Some(strokes)
}
