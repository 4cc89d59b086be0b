//! Frames on the socket: four bytes of length (big endian), one byte that counts passed sockets, then JSON.
//!
//! Pure: bytes in, frames out.

/// Bytes before a frame's body.
pub const PREFIX: usize = 5;
/// Longest body. The longest message is a log of 1 MiB, of which JSON may make six times as much.
pub const BODY_MAX: usize = 8 << 20;

/// Bytes that are no frame. The connection is of no further use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The body would be too long.
    #[error("a frame of {0} bytes, {BODY_MAX} are allowed")]
    TooLong(usize),
    /// More sockets than one frame carries.
    #[error("a frame with {0} sockets, one is allowed")]
    TooManySockets(u8),
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Whether a socket belongs to it.
    pub socket: bool,
    /// The JSON.
    pub body: Vec<u8>,
}

impl Frame {
    /// As it is sent.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let length = u32::try_from(self.body.len()).ok().filter(|it| *it as usize <= BODY_MAX);
        let length = length.ok_or(FrameError::TooLong(self.body.len()))?;
        let mut bytes = Vec::with_capacity(PREFIX + self.body.len());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.push(u8::from(self.socket));
        bytes.extend_from_slice(&self.body);
        Ok(bytes)
    }
}

/// Cuts a stream of bytes into frames. Holds at most one frame and what came with its end.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds bytes as they were read.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. An error is found as soon as the prefix is there, before its body is waited for.
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let [a, b, c, d, sockets] = *prefix;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > BODY_MAX {
            return Err(FrameError::TooLong(length));
        }
        if sockets > 1 {
            return Err(FrameError::TooManySockets(sockets));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let body = rest[..length].to_vec();
        self.buffer.drain(..PREFIX + length);
        if self.buffer.is_empty() {
            // A long frame must not keep its memory for ever.
            self.buffer = Vec::new();
        }
        Ok(Some(Frame { socket: sockets == 1, body }))
    }

    /// Bytes of a frame whose end has not come yet.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(decoder: &mut Decoder) -> Result<Vec<Frame>, FrameError> {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
            sent in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 0..6),
            cuts in prop::collection::vec(1usize..40, 1..60),
        ) {
            let sent: Vec<_> = sent.into_iter().map(|(socket, body)| Frame { socket, body }).collect();
            let bytes: Vec<u8> = sent.iter().flat_map(|frame| frame.encode().unwrap()).collect();
            let (mut decoder, mut got, mut at) = (Decoder::default(), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                if at >= bytes.len() {
                    break;
                }
                let end = (at + cut).min(bytes.len());
                decoder.extend(&bytes[at..end]);
                got.extend(all(&mut decoder).unwrap());
                at = end;
            }
            prop_assert_eq!(got, sent);
            prop_assert_eq!(decoder.pending(), 0);
        }

        #[test]
        fn garbage_is_an_error_or_waits_and_never_grows_beyond_what_was_given(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..20),
        ) {
            let (mut decoder, mut given) = (Decoder::default(), 0);
            for piece in &pieces {
                decoder.extend(piece);
                given += piece.len();
                if all(&mut decoder).is_err() {
                    return Ok(());
                }
                prop_assert!(decoder.pending() <= given);
            }
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_its_body_comes() {
        let mut decoder = Decoder::default();
        decoder.extend(&[0xff, 0xff, 0xff, 0xff, 0]);
        assert_eq!(decoder.next(), Err(FrameError::TooLong(0xffff_ffff)));
        let body = vec![0; BODY_MAX + 1];
        assert_eq!(Frame { socket: false, body }.encode(), Err(FrameError::TooLong(BODY_MAX + 1)));
    }

    #[test]
    fn a_frame_with_two_sockets_is_refused() {
        let mut decoder = Decoder::default();
        decoder.extend(&[0, 0, 0, 0, 2]);
        assert_eq!(decoder.next(), Err(FrameError::TooManySockets(2)));
    }
}
