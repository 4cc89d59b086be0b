//! What the guest's desktop program tells the controller.

use super::{CLIPBOARD_MAX, CURSOR_SIDE_MAX, DesktopError, reader::Reader};

const HELLO: u8 = 0x01;
const FRAME: u8 = 0x02;
const CURSOR_SHAPE: u8 = 0x03;
const CURSOR_MOVED: u8 = 0x04;
const CLIPBOARD: u8 = 0x05;
const STATS: u8 = 0x06;

const KEY: u8 = 1;
const KEEP_ALIVE: u8 = 2;

/// One message of the guest's desktop program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromDesktop {
    /// Comes first on every connection.
    Hello {
        /// [`super::DESKTOP_VERSION`] of the guest.
        version: u16,
        /// Width of the screen in pixels.
        width: u16,
        /// Height of the screen in pixels.
        height: u16,
    },
    /// A picture.
    Frame(Frame),
    /// The pointer looks like this from now on.
    CursorShape(CursorShape),
    /// The pointer is there now; told when something other than the last input moved it, too.
    CursorMoved {
        /// From the left.
        x: i16,
        /// From the top.
        y: i16,
    },
    /// A program in the guest put this text on the clipboard.
    Clipboard(String),
    /// Counters since the program started, about once a second while somebody watches.
    Stats(GuestStats),
}

/// One encoded picture.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Needs no earlier picture.
    pub key: bool,
    /// Nothing changed; it only keeps the receiver from asking.
    pub keep_alive: bool,
    /// Counts up by one, over all frames of the connection.
    pub seq: u32,
    /// When the screen was read: the guest's wall clock, microseconds since the Unix epoch.
    pub captured_us: u64,
    /// From the start of reading the screen to the end of encoding.
    pub work_us: u32,
    /// The newest input that was injected before the screen was read; 0 if none was.
    pub input_seq: u32,
    /// Width in pixels.
    pub width: u16,
    /// Height in pixels.
    pub height: u16,
    /// H.264, Annex B, constrained baseline; a keyframe begins with its parameter sets.
    pub data: Vec<u8>,
}

/// How the pointer looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorShape {
    /// Width in pixels; 0 if it is not to be seen.
    pub width: u16,
    /// Height in pixels.
    pub height: u16,
    /// The pixel that points, from the left.
    pub hot_x: u16,
    /// The pixel that points, from the top.
    pub hot_y: u16,
    /// Rows of red, green, blue, alpha; not premultiplied.
    pub rgba: Vec<u8>,
}

/// Counters of the guest's desktop program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GuestStats {
    /// Frames sent.
    pub frames: u64,
    /// Of these, keyframes.
    pub keyframes: u64,
    /// Changes that were merged into a later frame because one was still on its way.
    pub merged: u64,
    /// Bytes of all frames.
    pub bytes: u64,
    /// CPU time of reading the screen and converting, microseconds.
    pub capture_cpu_us: u64,
    /// CPU time of the encoder, microseconds.
    pub encode_cpu_us: u64,
    /// CPU time of the whole program, microseconds.
    pub cpu_us: u64,
    /// Input events injected.
    pub inputs: u64,
    /// Input events that could not be injected.
    pub inputs_failed: u64,
}

impl FromDesktop {
    /// The message, without its length.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello { version, width, height } => {
                let numbers = [version, width, height].map(|number| number.to_be_bytes());
                [&[HELLO], numbers.as_flattened()].concat()
            }
            Self::Frame(frame) => frame.encode(),
            Self::CursorShape(shape) => {
                let numbers =
                    [shape.width, shape.height, shape.hot_x, shape.hot_y].map(|number| number.to_be_bytes());
                [&[CURSOR_SHAPE], numbers.as_flattened(), &shape.rgba].concat()
            }
            Self::CursorMoved { x, y } => [&[CURSOR_MOVED][..], &x.to_be_bytes(), &y.to_be_bytes()].concat(),
            Self::Clipboard(text) => [&[CLIPBOARD], text.as_bytes()].concat(),
            Self::Stats(stats) => {
                let numbers = stats.numbers().map(u64::to_be_bytes);
                [&[STATS], numbers.as_flattened()].concat()
            }
        }
    }

    /// Reads one message.
    pub fn decode(message: &[u8]) -> Result<Self, DesktopError> {
        let mut read = Reader::new(message);
        let message = match read.u8()? {
            HELLO => Self::Hello { version: read.u16()?, width: read.u16()?, height: read.u16()? },
            FRAME => Self::Frame(Frame::decode(&mut read)?),
            CURSOR_SHAPE => {
                let [width, height, hot_x, hot_y] = [read.u16()?, read.u16()?, read.u16()?, read.u16()?];
                if width > CURSOR_SIDE_MAX || height > CURSOR_SIDE_MAX {
                    return Err(DesktopError::Range("cursor"));
                }
                let rgba = read.tail().to_vec();
                if rgba.len() != usize::from(width) * usize::from(height) * 4 {
                    return Err(DesktopError::Range("cursor"));
                }
                Self::CursorShape(CursorShape { width, height, hot_x, hot_y, rgba })
            }
            CURSOR_MOVED => Self::CursorMoved { x: read.i16()?, y: read.i16()? },
            CLIPBOARD => Self::Clipboard(read.text(CLIPBOARD_MAX)?),
            STATS => {
                let mut numbers = [0; 9];
                for number in &mut numbers {
                    *number = read.u64()?;
                }
                Self::Stats(GuestStats::from_numbers(numbers))
            }
            other => return Err(DesktopError::Kind(other)),
        };
        read.end()?;
        Ok(message)
    }
}

impl Frame {
    /// Bytes of the message before the picture.
    pub const HEAD: usize = 2 + 4 + 8 + 4 + 4 + 2 + 2;

    /// The message, without its length. The page reads the same over its WebSocket.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::HEAD + self.data.len());
        let flags = if self.key { KEY } else { 0 } | if self.keep_alive { KEEP_ALIVE } else { 0 };
        out.extend([FRAME, flags]);
        out.extend(self.seq.to_be_bytes());
        out.extend(self.captured_us.to_be_bytes());
        out.extend(self.work_us.to_be_bytes());
        out.extend(self.input_seq.to_be_bytes());
        out.extend(self.width.to_be_bytes());
        out.extend(self.height.to_be_bytes());
        out.extend(&self.data);
        out
    }

    fn decode(read: &mut Reader<'_>) -> Result<Self, DesktopError> {
        let flags = read.u8()?;
        if flags & !(KEY | KEEP_ALIVE) != 0 {
            return Err(DesktopError::Range("flags"));
        }
        Ok(Self {
            key: flags & KEY != 0,
            keep_alive: flags & KEEP_ALIVE != 0,
            seq: read.u32()?,
            captured_us: read.u64()?,
            work_us: read.u32()?,
            input_seq: read.u32()?,
            width: read.u16()?,
            height: read.u16()?,
            data: read.tail().to_vec(),
        })
    }
}

impl std::fmt::Debug for Frame {
    /// A picture may show what nobody else is to see.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame")
            .field("key", &self.key)
            .field("keep_alive", &self.keep_alive)
            .field("seq", &self.seq)
            .field("width", &self.width)
            .field("height", &self.height)
            .field("bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

impl GuestStats {
    fn numbers(self) -> [u64; 9] {
        [
            self.frames,
            self.keyframes,
            self.merged,
            self.bytes,
            self.capture_cpu_us,
            self.encode_cpu_us,
            self.cpu_us,
            self.inputs,
            self.inputs_failed,
        ]
    }

    fn from_numbers(numbers: [u64; 9]) -> Self {
        let [frames, keyframes, merged, bytes, capture_cpu_us, encode_cpu_us, cpu_us, inputs, inputs_failed] =
            numbers;
        Self {
            frames,
            keyframes,
            merged,
            bytes,
            capture_cpu_us,
            encode_cpu_us,
            cpu_us,
            inputs,
            inputs_failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn messages() -> impl Strategy<Value = FromDesktop> {
        let frame =
            (any::<(bool, bool, u32, u64, u32, u32, u16, u16)>(), prop::collection::vec(any::<u8>(), 0..100))
                .prop_map(
                    |((key, keep_alive, seq, captured_us, work_us, input_seq, width, height), data)| {
                        FromDesktop::Frame(Frame {
                            key,
                            keep_alive,
                            seq,
                            captured_us,
                            work_us,
                            input_seq,
                            width,
                            height,
                            data,
                        })
                    },
                );
        let shape = (0..9_u16, 0..9_u16, any::<(u16, u16, u8)>()).prop_map(
            |(width, height, (hot_x, hot_y, fill))| {
                let rgba = vec![fill; usize::from(width * height * 4)];
                FromDesktop::CursorShape(CursorShape { width, height, hot_x, hot_y, rgba })
            },
        );
        prop_oneof![
            any::<(u16, u16, u16)>().prop_map(|(version, width, height)| FromDesktop::Hello {
                version,
                width,
                height
            }),
            frame,
            shape,
            any::<(i16, i16)>().prop_map(|(x, y)| FromDesktop::CursorMoved { x, y }),
            ".{0,300}".prop_map(FromDesktop::Clipboard),
            any::<[u64; 9]>().prop_map(|numbers| FromDesktop::Stats(GuestStats::from_numbers(numbers))),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_their_encoding(message in messages()) {
            prop_assert_eq!(FromDesktop::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn rubbish_is_an_error_never_a_panic(message in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = FromDesktop::decode(&message);
        }
    }

    #[test]
    fn a_cursor_that_is_not_as_large_as_it_says_is_refused() {
        let mut message = FromDesktop::CursorShape(CursorShape {
            width: 1,
            height: 1,
            hot_x: 0,
            hot_y: 0,
            rgba: vec![0; 4],
        })
        .encode();
        message.pop();
        assert_eq!(FromDesktop::decode(&message), Err(DesktopError::Range("cursor")));
        let huge = [&[CURSOR_SHAPE][..], &[1, 1, 0, 1, 0, 0, 0, 0]].concat();
        assert_eq!(FromDesktop::decode(&huge), Err(DesktopError::Range("cursor")));
    }
}
