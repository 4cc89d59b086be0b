//! The live desktop: what the guest's capture program, the controller and a viewer say to each other.
//!
//! All messages are binary: one byte that says what it is, then fields in network byte order, then a tail of text or
//! pixels. On a byte stream (guest channel) each message follows its length as a `u32`; on a WebSocket or a data channel
//! the transport keeps messages apart. [`InputEvent`] is what a viewer sends, and travels unchanged to the guest.
//!
//! | module | from | to |
//! |---|---|---|
//! | [`guest`] | guest program | controller; cursor messages go on to viewers as they are |
//! | [`host`] | controller | guest program |
//! | [`input`] | viewer | controller, which judges it and passes it on |

pub mod guest;
pub mod host;
pub mod input;
mod reader;
mod stream;

pub use guest::{CursorShape, Frame, FromDesktop, GuestStats};
pub use host::{ContentMode, ToDesktop};
pub use input::InputEvent;
pub use stream::{Cutter, PREFIX, framed};

/// Version of everything in this module; the guest names its own in [`FromDesktop::Hello`].
pub const DESKTOP_VERSION: u16 = 2;
/// Largest message of the guest: a keyframe of the largest screen.
pub const FROM_DESKTOP_MAX: usize = 8 << 20;
/// Largest message to the guest: a clipboard text and its head.
pub const TO_DESKTOP_MAX: usize = CLIPBOARD_MAX + 64;
/// Longest clipboard text, in bytes.
pub const CLIPBOARD_MAX: usize = 256 << 10;
/// Longest text that is typed by one message, in bytes.
pub const TEXT_MAX: usize = 4 << 10;
/// Longest name of a physical key (`KeyboardEvent.code`).
pub const CODE_MAX: usize = 32;
/// Largest side of a cursor.
pub const CURSOR_SIDE_MAX: u16 = 256;
/// Sides of a screen, in pixels.
pub const SIDE: std::ops::RangeInclusive<u16> = 320..=4096;
/// Scale of the screen's content in percent.
pub const SCALE: std::ops::RangeInclusive<u16> = 50..=400;

/// A message that cannot be understood. Carries nothing of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DesktopError {
    /// It ends before its fields do.
    #[error("desktop message is cut off")]
    Short,
    /// It goes on after its fields.
    #[error("desktop message is longer than its fields")]
    Long,
    /// No message begins with this byte.
    #[error("desktop message of unknown kind {0:#04x}")]
    Kind(u8),
    /// A field is out of its range.
    #[error("desktop message has a field out of range: {0}")]
    Range(&'static str),
    /// A text is not UTF-8.
    #[error("desktop message has text that is not UTF-8")]
    Text,
    /// A message is over its limit.
    #[error("desktop message of {0} bytes is over the limit")]
    TooLarge(usize),
}
