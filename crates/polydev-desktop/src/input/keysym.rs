//! What keysyms mean (X11 protocol, appendix A; X.Org keysymdef.h) and where keys are (evdev keycodes).

use xkeysym::{Keysym, key};

/// Marks a keysym that is a Unicode code point.
const UNICODE: u32 = 0x0100_0000;
/// Keysyms of function keys, cursor keys, keypad and modifiers.
const FUNCTIONS: std::ops::RangeInclusive<u32> = 0xfd00..=0xffff;
const DEAD_KEYS: std::ops::RangeInclusive<u32> = 0xfe50..=0xfe93;
/// Latches, locks and layout switches, and `ISO_Level3_Shift` among them.
const STATE_KEYS: std::ops::RangeInclusive<u32> = 0xfe01..=0xfe13;
/// The keypad without `NumLock`.
const KEYPAD_CURSOR: std::ops::RangeInclusive<u32> = key::KP_Home..=key::KP_Delete;

/// What a key is meant to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Makes a character.
    Character(char),
    /// Changes what other keys do while it is held.
    Modifier(u32),
    /// Does something else; its keysym.
    Named(u32),
    /// Would change how later keys are understood: locks, layout switches, dead keys. Viewers send characters that all
    /// of these have been applied to.
    Swallowed,
    /// Means nothing that can be typed.
    Nothing,
}

impl Meaning {
    pub(super) fn of(keysym: u32) -> Self {
        match keysym {
            key::Shift_L | key::Shift_R | key::Control_L | key::Control_R | key::Alt_L | key::Alt_R => {
                Self::Modifier(keysym)
            }
            // Programs know the key with the logo as Super.
            key::Meta_L | key::Super_L | key::Hyper_L => Self::Modifier(key::Super_L),
            key::Meta_R | key::Super_R | key::Hyper_R => Self::Modifier(key::Super_R),
            key::ISO_Level3_Shift | key::Mode_switch => Self::Modifier(key::ISO_Level3_Shift),
            key::Caps_Lock | key::Shift_Lock | key::Num_Lock | key::Scroll_Lock | key::Multi_key => {
                Self::Swallowed
            }
            _ if DEAD_KEYS.contains(&keysym) || STATE_KEYS.contains(&keysym) => Self::Swallowed,
            // With Shift they would be digits again.
            _ if KEYPAD_CURSOR.contains(&keysym) => Self::Named(off_the_keypad(keysym)),
            _ if FUNCTIONS.contains(&keysym) => Self::Named(keysym),
            _ => match Keysym::new(keysym).key_char() {
                Some(character) => Self::of_char(character),
                None if (UNICODE..=UNICODE + 0x10_ffff).contains(&keysym) => Self::Nothing,
                None => Self::Named(keysym),
            },
        }
    }

    /// What types a character of a text.
    pub(super) fn of_char(character: char) -> Self {
        match character {
            '\n' => Self::Named(key::Return),
            '\t' => Self::Named(key::Tab),
            _ if character.is_control() => Self::Nothing,
            _ => Self::Character(character),
        }
    }
}

/// The character that a keysym of the server's map types, keypad aside.
pub(super) fn char_of(keysym: u32) -> Option<char> {
    match Meaning::of(keysym) {
        Meaning::Character(character) => Some(character),
        Meaning::Modifier(_) | Meaning::Named(_) | Meaning::Swallowed | Meaning::Nothing => None,
    }
}

/// The keysym that is lent to a spare key for a character.
pub(super) fn keysym_of(character: char) -> u32 {
    match u32::from(character) {
        latin @ 0x20..=0xff => latin,
        other => UNICODE + other,
    }
}

fn off_the_keypad(keysym: u32) -> u32 {
    match keysym {
        key::KP_Home => key::Home,
        key::KP_Left => key::Left,
        key::KP_Up => key::Up,
        key::KP_Right => key::Right,
        key::KP_Down => key::Down,
        key::KP_Prior => key::Prior,
        key::KP_Next => key::Next,
        key::KP_End => key::End,
        key::KP_Insert => key::Insert,
        key::KP_Delete => key::Delete,
        other => other,
    }
}

/// Keycode of a key that makes characters, by its `KeyboardEvent.code` (W3C UI Events code values; X keycodes are
/// Linux's plus eight).
pub(super) fn position(code: &str) -> Option<u8> {
    const ROWS: [(u8, &[&str]); 5] = [
        (10, &["1", "2", "3", "4", "5", "6", "7", "8", "9", "0", "Minus", "Equal"]),
        (24, &["Q", "W", "E", "R", "T", "Y", "U", "I", "O", "P", "BracketLeft", "BracketRight"]),
        (38, &["A", "S", "D", "F", "G", "H", "J", "K", "L", "Semicolon", "Quote", "Backquote"]),
        (51, &["Backslash", "Z", "X", "C", "V", "B", "N", "M", "Comma", "Period", "Slash"]),
        (94, &["IntlBackslash"]),
    ];
    let name = code.strip_prefix("Key").or_else(|| code.strip_prefix("Digit")).unwrap_or(code);
    ROWS.iter().find_map(|(first, row)| {
        let place = row.iter().position(|key| *key == name)?;
        Some(first + u8::try_from(place).ok()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keysyms_mean_characters_or_keys() {
        for (keysym, meaning) in [
            (0x61, Meaning::Character('a')),
            (0xe4, Meaning::Character('ä')),
            (0x0100_00e4, Meaning::Character('ä')),
            (0x20ac, Meaning::Character('€')),
            (0x0101_f600, Meaning::Character('😀')),
            (0x04b1, Meaning::Character('ア')),
            (0xff0d, Meaning::Named(0xff0d)),
            (0xffb7, Meaning::Named(0xffb7)),
            (0xff95, Meaning::Named(0xff50)),
            (0xffe7, Meaning::Modifier(0xffeb)),
            (0xff7e, Meaning::Modifier(0xfe03)),
            (0xfe20, Meaning::Named(0xfe20)),
            (0xffe5, Meaning::Swallowed),
            (0xff7f, Meaning::Swallowed),
            (0xfe51, Meaning::Swallowed),
            (0xfe08, Meaning::Swallowed),
            (0x0100_0008, Meaning::Nothing),
            (0x0100_d800, Meaning::Nothing),
        ] {
            assert_eq!(Meaning::of(keysym), meaning, "{keysym:#x}");
        }
    }

    #[test]
    fn every_character_comes_back_from_its_keysym() {
        for character in (0x20..=0x3_ffff).filter_map(char::from_u32).filter(|c| !c.is_control()) {
            assert_eq!(char_of(keysym_of(character)), Some(character));
        }
    }

    #[test]
    fn codes_are_places() {
        let places =
            [("KeyA", 38), ("KeyZ", 52), ("Digit1", 10), ("Digit0", 19), ("Slash", 61), ("Backquote", 49)];
        for (code, keycode) in places {
            assert_eq!(position(code), Some(keycode), "{code}");
        }
        for code in ["", "Key", "KeyÄ", "F1", "ShiftLeft", "Numpad1"] {
            assert_eq!(position(code), None, "{code}");
        }
    }
}
