//! The first bytes on a fresh byte connection.
//!
//! A virtio-serial port may still hold bytes of the previous host, so the host sends [`MAGIC`] and a random nonce
//! and discards everything until the agent has echoed exactly that; it repeats the preamble while no echo comes.
//! The agent discards everything until it meets the magic.

/// Starts every preamble; its first byte can never start a yamux frame (whose version byte is 0).
pub const MAGIC: [u8; 8] = *b"PLYDEV\x01\n";
/// Length of a whole preamble: magic and nonce.
pub const LEN: usize = MAGIC.len() + 16;
/// How many foreign bytes either side skips before it gives the connection up.
pub const MAX_SKIPPED: usize = 4 << 20;

/// The preamble for a nonce.
pub fn encode(nonce: [u8; 16]) -> [u8; LEN] {
    let mut out = [0; LEN];
    out[..MAGIC.len()].copy_from_slice(&MAGIC);
    out[MAGIC.len()..].copy_from_slice(&nonce);
    out
}

/// Finds preambles in a byte stream that may begin with rubbish.
#[derive(Debug, Default)]
pub struct Scanner {
    window: Vec<u8>,
    skipped: usize,
}

/// More rubbish than [`MAX_SKIPPED`] came before any preamble.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no preamble within {MAX_SKIPPED} bytes")]
pub struct TooMuchRubbish;

impl Scanner {
    /// Takes one byte; `Some(nonce)` when it completes a preamble.
    pub fn push(&mut self, byte: u8) -> Result<Option<[u8; 16]>, TooMuchRubbish> {
        self.window.push(byte);
        loop {
            let magic = self.window.len().min(MAGIC.len());
            if self.window[..magic] == MAGIC[..magic] {
                break;
            }
            self.window.remove(0);
            self.skipped += 1;
            if self.skipped > MAX_SKIPPED {
                return Err(TooMuchRubbish);
            }
        }
        if self.window.len() < LEN {
            return Ok(None);
        }
        let nonce = self.window[MAGIC.len()..].try_into().expect("window holds exactly LEN bytes");
        self.window.clear();
        Ok(Some(nonce))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_preamble_is_found_behind_any_rubbish_that_holds_no_magic(
            rubbish in prop::collection::vec(any::<u8>().prop_filter("not the first magic byte", |b| *b != MAGIC[0]), 0..200),
            partial in 0..MAGIC.len(),
            nonce in any::<[u8; 16]>(),
        ) {
            let mut scanner = Scanner::default();
            let mut found = None;
            for byte in rubbish.into_iter().chain(MAGIC[..partial].iter().copied()).chain(encode(nonce)) {
                prop_assert_eq!(found, None);
                found = scanner.push(byte).unwrap();
            }
            prop_assert_eq!(found, Some(nonce));
        }
    }
}
