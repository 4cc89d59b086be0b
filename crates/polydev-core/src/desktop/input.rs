//! What a hand does, in one message each.

use super::{CODE_MAX, DesktopError, TEXT_MAX, reader::Reader};

const MOVE: u8 = 0x31;
const BUTTON: u8 = 0x32;
const WHEEL: u8 = 0x33;
const KEY: u8 = 0x34;
const TEXT: u8 = 0x35;
const RELEASE_ALL: u8 = 0x36;

/// Highest button number (X11 counts them; 4 to 7 are the wheel's and not sent as buttons).
const BUTTON_MAX: u8 = 9;
/// Highest keysym (X11 protocol, appendix A: 29 bits).
const KEYSYM_MAX: u32 = 0x1fff_ffff;
/// One notch of a wheel, as on Windows and in libinput.
pub const WHEEL_NOTCH: i16 = 120;

/// One act of the person who controls the desktop. Places are pixels of the desktop.
///
/// Text that is typed may be a password: no `Debug` output shows a key or a text.
#[derive(Clone, PartialEq, Eq)]
pub enum InputEvent {
    /// The pointer moved.
    Move {
        /// From the left.
        x: u16,
        /// From the top.
        y: u16,
    },
    /// A button went down or up there.
    Button {
        /// 1 left, 2 middle, 3 right, 8 back, 9 forward.
        button: u8,
        /// Whether it went down.
        down: bool,
        /// From the left.
        x: u16,
        /// From the top.
        y: u16,
    },
    /// The wheel turned; [`WHEEL_NOTCH`] is one notch, positive is right and down.
    Wheel {
        /// Sideways.
        dx: i16,
        /// Up and down.
        dy: i16,
        /// From the left.
        x: u16,
        /// From the top.
        y: u16,
    },
    /// A key went down or up.
    Key {
        /// Whether it went down.
        down: bool,
        /// What the key means under the person's layout (X11 keysym; `0x0100_0000` + code point for Unicode). The same
        /// for down and up.
        keysym: u32,
        /// Which key it is: `KeyboardEvent.code`, ASCII, empty if unknown.
        code: String,
    },
    /// Text that no single key made: an input method's commit, a paste that is to be typed, a soft keyboard.
    Text {
        /// What to type; a newline is the Enter key, a tab the Tab key.
        text: String,
    },
    /// Everything held is let go: the viewer lost the focus, the channel or the control.
    ReleaseAll,
}

impl InputEvent {
    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        match self {
            Self::Move { x, y } => {
                out.push(MOVE);
                put(&mut out, &[*x, *y]);
            }
            Self::Button { button, down, x, y } => {
                out.extend([BUTTON, *button, u8::from(*down)]);
                put(&mut out, &[*x, *y]);
            }
            Self::Wheel { dx, dy, x, y } => {
                out.push(WHEEL);
                out.extend(dx.to_be_bytes());
                out.extend(dy.to_be_bytes());
                put(&mut out, &[*x, *y]);
            }
            Self::Key { down, keysym, code } => {
                out.extend([KEY, u8::from(*down)]);
                out.extend(keysym.to_be_bytes());
                out.extend(code.as_bytes());
            }
            Self::Text { text } => {
                out.push(TEXT);
                out.extend(text.as_bytes());
            }
            Self::ReleaseAll => out.push(RELEASE_ALL),
        }
        out
    }

    /// Reads one message.
    pub fn decode(message: &[u8]) -> Result<Self, DesktopError> {
        let mut read = Reader::new(message);
        let event = match read.u8()? {
            MOVE => Self::Move { x: read.u16()?, y: read.u16()? },
            BUTTON => {
                let event =
                    Self::Button { button: read.u8()?, down: read.flag()?, x: read.u16()?, y: read.u16()? };
                match event {
                    Self::Button { button: 1..=3 | 8..=BUTTON_MAX, .. } => event,
                    _ => return Err(DesktopError::Range("button")),
                }
            }
            WHEEL => Self::Wheel { dx: read.i16()?, dy: read.i16()?, x: read.u16()?, y: read.u16()? },
            KEY => {
                let (down, keysym) = (read.flag()?, read.u32()?);
                if !(1..=KEYSYM_MAX).contains(&keysym) {
                    return Err(DesktopError::Range("keysym"));
                }
                let code = read.text(CODE_MAX)?;
                if !code.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                    return Err(DesktopError::Range("code"));
                }
                Self::Key { down, keysym, code }
            }
            TEXT => Self::Text { text: read.text(TEXT_MAX)? },
            RELEASE_ALL => Self::ReleaseAll,
            other => return Err(DesktopError::Kind(other)),
        };
        read.end()?;
        Ok(event)
    }

    /// Whether it shows that somebody is at work, not just that a pointer passed over.
    pub fn is_deliberate(&self) -> bool {
        match self {
            Self::Button { down, .. } | Self::Key { down, .. } => *down,
            Self::Text { .. } | Self::Wheel { .. } => true,
            Self::Move { .. } | Self::ReleaseAll => false,
        }
    }
}

impl std::fmt::Debug for InputEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Move { x, y } => write!(f, "Move({x}, {y})"),
            Self::Button { button, down, x, y } => write!(f, "Button({button}, {down}, {x}, {y})"),
            Self::Wheel { dx, dy, x, y } => write!(f, "Wheel({dx}, {dy}, {x}, {y})"),
            Self::Key { down, .. } => write!(f, "Key({down})"),
            Self::Text { text } => write!(f, "Text({} bytes)", text.len()),
            Self::ReleaseAll => f.write_str("ReleaseAll"),
        }
    }
}

fn put(out: &mut Vec<u8>, numbers: &[u16]) {
    numbers.iter().for_each(|number| out.extend(number.to_be_bytes()));
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::desktop) fn events() -> impl Strategy<Value = InputEvent> {
        let place = any::<(u16, u16)>();
        prop_oneof![
            place.prop_map(|(x, y)| InputEvent::Move { x, y }),
            (prop_oneof![1..=3_u8, 8..=9_u8], any::<bool>(), place)
                .prop_map(|(button, down, (x, y))| InputEvent::Button { button, down, x, y }),
            (any::<(i16, i16)>(), place).prop_map(|((dx, dy), (x, y))| InputEvent::Wheel { dx, dy, x, y }),
            (any::<bool>(), 1..=KEYSYM_MAX, "[A-Za-z0-9]{0,32}")
                .prop_map(|(down, keysym, code)| InputEvent::Key { down, keysym, code }),
            ".{0,200}".prop_map(|text| InputEvent::Text { text }),
            Just(InputEvent::ReleaseAll),
        ]
    }

    proptest! {
        #[test]
        fn input_survives_its_encoding(event in events()) {
            prop_assert_eq!(InputEvent::decode(&event.encode()), Ok(event));
        }

        #[test]
        fn rubbish_is_an_error_never_a_panic(message in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = InputEvent::decode(&message);
        }
    }

    #[test]
    fn the_bytes_are_those_the_page_sends() {
        // The same list is in web/src/desktop/protocol.test.ts.
        let cases: [(InputEvent, &[u8]); 6] = [
            (InputEvent::Move { x: 1, y: 258 }, &[0x31, 0, 1, 1, 2]),
            (InputEvent::Button { button: 3, down: true, x: 1, y: 2 }, &[0x32, 3, 1, 0, 1, 0, 2]),
            (InputEvent::Wheel { dx: -120, dy: 120, x: 1, y: 2 }, &[0x33, 0xff, 0x88, 0, 0x78, 0, 1, 0, 2]),
            (
                InputEvent::Key { down: false, keysym: 0x0100_20ac, code: "KeyE".into() },
                &[0x34, 0, 1, 0, 0x20, 0xac, b'K', b'e', b'y', b'E'],
            ),
            (InputEvent::Text { text: "ä".into() }, &[0x35, 0xc3, 0xa4]),
            (InputEvent::ReleaseAll, &[0x36]),
        ];
        for (event, bytes) in cases {
            assert_eq!(event.encode(), bytes);
        }
    }

    #[test]
    fn what_no_hand_can_do_is_refused() {
        for (message, error) in [
            (&[][..], DesktopError::Short),
            (&[0x31, 0, 1, 0], DesktopError::Short),
            (&[0x31, 0, 1, 0, 1, 0], DesktopError::Long),
            (&[0x32, 4, 1, 0, 1, 0, 1], DesktopError::Range("button")),
            (&[0x32, 1, 2, 0, 1, 0, 1], DesktopError::Range("flag")),
            (&[0x34, 1, 0, 0, 0, 0], DesktopError::Range("keysym")),
            (&[0x34, 1, 0, 0, 0, 65, b'-'], DesktopError::Range("code")),
            (&[0x35, 0xff], DesktopError::Text),
            (&[0x99], DesktopError::Kind(0x99)),
        ] {
            assert_eq!(InputEvent::decode(message), Err(error));
        }
        let long = [&[0x35][..], &[b'a'; TEXT_MAX + 1]].concat();
        assert_eq!(InputEvent::decode(&long), Err(DesktopError::TooLarge(TEXT_MAX + 1)));
    }

    #[test]
    fn a_key_does_not_show_in_debug_output() {
        let typed = [
            InputEvent::Key { down: true, keysym: 0x70, code: "KeyP".into() },
            InputEvent::Text { text: "FAKE".into() },
        ];
        assert_eq!(format!("{typed:?}"), "[Key(true), Text(4 bytes)]");
    }
}
