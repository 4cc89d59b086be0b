//! Terminal streams: one type byte, a big-endian `u32` length, the payload. Not JSON, since most of it is output.

/// Largest payload of one frame.
pub const MAX_PAYLOAD: usize = 64 << 10;
/// Bytes of output an agent keeps to repaint a terminal that is attached again.
pub const SCROLLBACK: usize = 256 << 10;

/// One frame of a terminal stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PtyFrame {
    /// Output (agent to host) or typed input (host to agent).
    Data(Vec<u8>),
    /// New window size (host to agent).
    Resize {
        /// Columns, 1..=1000.
        cols: u16,
        /// Rows, 1..=1000.
        rows: u16,
    },
    /// The program ended (agent to host); nothing follows. 128 + signal number when killed by a signal.
    Exit(i32),
}

/// Bytes that are no terminal frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PtyFrameError {
    /// The payload is larger than [`MAX_PAYLOAD`].
    #[error("terminal frame of {0} bytes is over the limit of {MAX_PAYLOAD}")]
    TooLarge(usize),
    /// Unknown type byte, or a payload of the wrong size or range for its type.
    #[error("terminal frame of type {0} is malformed")]
    Malformed(u8),
}

impl PtyFrame {
    /// Type byte, length, payload. `Data` longer than [`MAX_PAYLOAD`] must be split by the caller.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload) = match self {
            PtyFrame::Data(bytes) => (0u8, bytes.clone()),
            PtyFrame::Resize { cols, rows } => (1, [cols.to_be_bytes(), rows.to_be_bytes()].concat()),
            PtyFrame::Exit(code) => (2, code.to_be_bytes().to_vec()),
        };
        let mut out = Vec::with_capacity(5 + payload.len());
        out.push(kind);
        out.extend_from_slice(&u32::try_from(payload.len()).expect("payload is capped").to_be_bytes());
        out.extend_from_slice(&payload);
        out
    }
}

/// Cuts a byte stream into terminal frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds received bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes come. After an error the stream is of no further use.
    pub fn next(&mut self) -> Result<Option<PtyFrame>, PtyFrameError> {
        let Some(&[kind, a, b, c, d]) = self.buffer.first_chunk::<5>() else { return Ok(None) };
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if len > MAX_PAYLOAD {
            return Err(PtyFrameError::TooLarge(len));
        }
        if self.buffer.len() < 5 + len {
            return Ok(None);
        }
        let payload: Vec<u8> = self.buffer.drain(..5 + len).skip(5).collect();
        let side = |hi, lo| Some(u16::from_be_bytes([hi, lo])).filter(|n| (1..=1000).contains(n));
        match (kind, payload.as_slice()) {
            (0, _) => Ok(Some(PtyFrame::Data(payload))),
            (1, &[c1, c2, r1, r2]) => match (side(c1, c2), side(r1, r2)) {
                (Some(cols), Some(rows)) => Ok(Some(PtyFrame::Resize { cols, rows })),
                _ => Err(PtyFrameError::Malformed(kind)),
            },
            (2, &[a, b, c, d]) => Ok(Some(PtyFrame::Exit(i32::from_be_bytes([a, b, c, d])))),
            _ => Err(PtyFrameError::Malformed(kind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = PtyFrame> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300).prop_map(PtyFrame::Data),
            (1u16..=1000, 1u16..=1000).prop_map(|(cols, rows)| PtyFrame::Resize { cols, rows }),
            any::<i32>().prop_map(PtyFrame::Exit),
        ]
    }

    proptest! {
        #[test]
        fn terminal_frames_survive_any_fragmentation(frames in prop::collection::vec(any_frame(), 0..6), cut in 1usize..40) {
            let bytes: Vec<u8> = frames.iter().flat_map(PtyFrame::encode).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.extend(piece);
                while let Some(frame) = decoder.next().unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
        }
    }
}
