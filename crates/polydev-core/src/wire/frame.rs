//! Length-prefixed JSON: a big-endian `u32` byte count, then that many bytes of one JSON value.

use serde::{Serialize, de::DeserializeOwned};

/// Largest JSON body of one frame.
pub const MAX_BODY: usize = 1 << 20;
/// Bytes of the length prefix.
pub const PREFIX: usize = 4;

/// A frame that cannot be sent or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The announced or needed size is over [`MAX_BODY`].
    #[error("frame of {0} bytes is over the limit of {MAX_BODY}")]
    TooLarge(usize),
    /// The body is not the JSON value expected here.
    #[error("frame body is not the message expected: {0}")]
    Json(#[from] serde_json::Error),
}

/// Prefix and body, ready to be written in one piece.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut out = vec![0; PREFIX];
    serde_json::to_writer(&mut out, message)?;
    let body = out.len() - PREFIX;
    if body > MAX_BODY {
        return Err(FrameError::TooLarge(body));
    }
    out[..PREFIX].copy_from_slice(&u32::try_from(body).expect("MAX_BODY fits in u32").to_be_bytes());
    Ok(out)
}

/// The body size that a prefix announces.
pub fn body_len(prefix: [u8; PREFIX]) -> Result<usize, FrameError> {
    let len = u32::from_be_bytes(prefix) as usize;
    if len > MAX_BODY { Err(FrameError::TooLarge(len)) } else { Ok(len) }
}

/// Reads one body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(body)?)
}

/// Cuts a byte stream into frame bodies. For use where bytes arrive in pieces and nothing may block.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds received bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes come. After an error the stream is of no further use.
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else { return Ok(None) };
        let end = PREFIX + body_len(*prefix)?;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let message = decode(&self.buffer[PREFIX..end])?;
        self.buffer.drain(..end);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_fragmentation(texts in prop::collection::vec(".{0,80}", 1..8), cut in 1usize..17) {
            let bytes: Vec<u8> = texts.iter().flat_map(|t| encode(t).unwrap()).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.extend(piece);
                while let Some(text) = decoder.next::<String>().unwrap() {
                    seen.push(text);
                }
            }
            prop_assert_eq!(seen, texts);
        }

        #[test]
        fn rubbish_is_an_error_or_a_wait_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut decoder = Decoder::default();
            decoder.extend(&bytes);
            let _ = decoder.next::<crate::wire::AgentFrame>();
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_before_its_body_is_read() {
        let mut decoder = Decoder::default();
        decoder.extend(&u32::MAX.to_be_bytes());
        assert!(matches!(decoder.next::<String>(), Err(FrameError::TooLarge(_))));
        assert!(matches!(encode(&"x".repeat(MAX_BODY)), Err(FrameError::TooLarge(_))));
    }
}
