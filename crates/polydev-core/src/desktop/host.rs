//! What the controller tells the guest's desktop program.

use super::{CLIPBOARD_MAX, DesktopError, InputEvent, SCALE, SIDE, reader::Reader};

const WATCH: u8 = 0x21;
const KEYFRAME: u8 = 0x22;
const RATE: u8 = 0x23;
const RESIZE: u8 = 0x24;
const INPUT: u8 = 0x25;
const CLIPBOARD: u8 = 0x26;
const WIPE: u8 = 0x27;
const HOLD: u8 = 0x28;
const KBPS: std::ops::RangeInclusive<u32> = 100..=50_000;
const FPS: std::ops::RangeInclusive<u8> = 1..=60;

/// What the encoder is tuned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ContentMode {
    /// The guest chooses by content and rate.
    #[default]
    Auto,
    /// Least delay.
    Camera,
    /// Sharpest text at a low rate.
    Screen,
}

/// One message to the guest's desktop program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToDesktop {
    /// Whether anybody watches. Without viewers nothing is captured. The first frame after `true` is a keyframe.
    Watch(bool),
    /// The next frame must be one that needs no earlier one.
    Keyframe,
    /// Whether pictures would only wait: none is made then, and changes add up to a later one.
    Hold(bool),
    /// What the network can take.
    Rate {
        /// Target of the encoder, kbit/s.
        kbps: u32,
        /// Most frames per second.
        fps: u8,
        /// What to tune for.
        mode: ContentMode,
    },
    /// The screen becomes this large.
    Resize {
        /// Width in pixels.
        width: u16,
        /// Height in pixels.
        height: u16,
        /// Size of the content in percent (device pixel ratio x 100).
        scale: u16,
    },
    /// The person who controls the desktop did something.
    Input {
        /// Counts up; [`super::Frame::input_seq`] tells which ones a picture may show.
        seq: u32,
        /// What.
        event: InputEvent,
    },
    /// Becomes the guest's clipboard.
    Clipboard(String),
    /// The clipboard is emptied and everything held is let go.
    Wipe,
}

impl ToDesktop {
    /// The message, without its length.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Watch(on) => vec![WATCH, u8::from(*on)],
            Self::Keyframe => vec![KEYFRAME],
            Self::Hold(on) => vec![HOLD, u8::from(*on)],
            Self::Rate { kbps, fps, mode } => {
                let mode = match mode {
                    ContentMode::Auto => 0,
                    ContentMode::Camera => 1,
                    ContentMode::Screen => 2,
                };
                [&[RATE][..], &kbps.to_be_bytes(), &[*fps, mode]].concat()
            }
            Self::Resize { width, height, scale } => {
                let numbers = [width, height, scale].map(|number| number.to_be_bytes());
                [&[RESIZE], numbers.as_flattened()].concat()
            }
            Self::Input { seq, event } => [&[INPUT][..], &seq.to_be_bytes(), &event.encode()].concat(),
            Self::Clipboard(text) => [&[CLIPBOARD], text.as_bytes()].concat(),
            Self::Wipe => vec![WIPE],
        }
    }

    /// Reads one message.
    pub fn decode(message: &[u8]) -> Result<Self, DesktopError> {
        let mut read = Reader::new(message);
        let message = match read.u8()? {
            WATCH => Self::Watch(read.flag()?),
            KEYFRAME => Self::Keyframe,
            HOLD => Self::Hold(read.flag()?),
            RATE => {
                let (kbps, fps) = (read.u32()?, read.u8()?);
                let mode = match read.u8()? {
                    0 => ContentMode::Auto,
                    1 => ContentMode::Camera,
                    2 => ContentMode::Screen,
                    _ => return Err(DesktopError::Range("mode")),
                };
                if !KBPS.contains(&kbps) {
                    return Err(DesktopError::Range("kbps"));
                }
                if !FPS.contains(&fps) {
                    return Err(DesktopError::Range("fps"));
                }
                Self::Rate { kbps, fps, mode }
            }
            RESIZE => {
                let (width, height, scale) = (read.u16()?, read.u16()?, read.u16()?);
                if !SIDE.contains(&width) || !SIDE.contains(&height) {
                    return Err(DesktopError::Range("side"));
                }
                if !SCALE.contains(&scale) {
                    return Err(DesktopError::Range("scale"));
                }
                Self::Resize { width, height, scale }
            }
            INPUT => Self::Input { seq: read.u32()?, event: InputEvent::decode(read.tail())? },
            CLIPBOARD => Self::Clipboard(read.text(CLIPBOARD_MAX)?),
            WIPE => Self::Wipe,
            other => return Err(DesktopError::Kind(other)),
        };
        read.end()?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn messages() -> impl Strategy<Value = ToDesktop> {
        let mode = prop_oneof![Just(ContentMode::Auto), Just(ContentMode::Camera), Just(ContentMode::Screen)];
        prop_oneof![
            any::<bool>().prop_map(ToDesktop::Watch),
            Just(ToDesktop::Keyframe),
            any::<bool>().prop_map(ToDesktop::Hold),
            (KBPS, FPS, mode).prop_map(|(kbps, fps, mode)| ToDesktop::Rate { kbps, fps, mode }),
            (SIDE, SIDE, SCALE).prop_map(|(width, height, scale)| ToDesktop::Resize { width, height, scale }),
            (any::<u32>(), super::super::input::tests::events())
                .prop_map(|(seq, event)| ToDesktop::Input { seq, event }),
            ".{0,300}".prop_map(ToDesktop::Clipboard),
            Just(ToDesktop::Wipe),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_their_encoding(message in messages()) {
            prop_assert_eq!(ToDesktop::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn rubbish_is_an_error_never_a_panic(message in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = ToDesktop::decode(&message);
        }
    }
}
