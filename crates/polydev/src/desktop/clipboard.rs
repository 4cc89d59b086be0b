//! Which way clipboard texts may go.

use super::talk::ClipboardPolicy;

impl ClipboardPolicy {
    /// From the person to the VM.
    pub(super) fn lets_in(self) -> bool {
        match self {
            Self::Both | Self::In => true,
            Self::Out | Self::Off => false,
        }
    }

    /// From the VM to the person.
    pub(super) fn lets_out(self) -> bool {
        match self {
            Self::Both | Self::Out => true,
            Self::In | Self::Off => false,
        }
    }
}
