//! Messages on a byte stream: each after its length.

use super::DesktopError;

/// Bytes of the length.
pub const PREFIX: usize = 4;

/// A message with its length before it, ready to be written in one piece.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).expect("messages are far smaller than 4 GiB");
    [&len.to_be_bytes()[..], message].concat()
}

/// Cuts a byte stream into messages.
#[derive(Debug)]
pub struct Cutter {
    max: usize,
    buffer: Vec<u8>,
    /// Where the next message begins in the buffer.
    start: usize,
}

impl Cutter {
    /// For messages of at most so many bytes.
    pub fn new(max: usize) -> Self {
        Self { max, buffer: Vec::new(), start: 0 }
    }

    /// Adds received bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes come. After an error the stream is of no further use.
    pub fn next(&mut self) -> Result<Option<&[u8]>, DesktopError> {
        let rest = &self.buffer[self.start..];
        let Some((prefix, body)) = rest.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > self.max {
            return Err(DesktopError::TooLarge(len));
        }
        if body.len() < len {
            return Ok(None);
        }
        let begin = self.start + PREFIX;
        self.start = begin + len;
        Ok(Some(&self.buffer[begin..self.start]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_survive_any_fragmentation(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..8),
            cut in 1usize..17,
        ) {
            let bytes: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
            let mut cutter = Cutter::new(64);
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                cutter.extend(piece);
                while let Some(message) = cutter.next().unwrap() {
                    seen.push(message.to_vec());
                }
            }
            prop_assert_eq!(seen, messages);
        }
    }

    #[test]
    fn an_oversized_message_is_refused_before_its_body_is_read() {
        let mut cutter = Cutter::new(64);
        cutter.extend(&65_u32.to_be_bytes());
        assert_eq!(cutter.next(), Err(DesktopError::TooLarge(65)));
    }
}
