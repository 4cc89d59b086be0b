//! Takes fields off a message.

use super::DesktopError;

/// The rest of a message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DesktopError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DesktopError::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DesktopError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DesktopError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn i16(&mut self) -> Result<i16, DesktopError> {
        self.array().map(i16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DesktopError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DesktopError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn flag(&mut self) -> Result<bool, DesktopError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DesktopError::Range("flag")),
        }
    }

    /// Everything that is left.
    pub(super) fn tail(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Everything that is left, as text of at most `max` bytes.
    pub(super) fn text(&mut self, max: usize) -> Result<String, DesktopError> {
        let bytes = self.tail();
        if bytes.len() > max {
            return Err(DesktopError::TooLarge(bytes.len()));
        }
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DesktopError::Text)
    }

    pub(super) fn end(self) -> Result<(), DesktopError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DesktopError::Long) }
    }
}
