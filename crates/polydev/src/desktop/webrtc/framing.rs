//! Packets on a TCP connection, each after its length of two bytes (RFC 4571, as ICE-TCP of RFC 6544 has it).

/// Bytes of the length.
const PREFIX: usize = 2;
/// Largest packet that a WebRTC peer has a reason to send: what fits into a datagram without fragments, and some room.
pub(super) const PACKET_MAX: usize = 2000;

/// A packet is larger than any of WebRTC's; the connection is of no further use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a packet of {0} bytes is no packet of WebRTC")]
pub(super) struct TooLarge(usize);

/// Cuts a byte stream into packets.
#[derive(Debug, Default)]
pub(super) struct Deframer {
    buffer: Vec<u8>,
    /// Where the next packet begins.
    start: usize,
}

impl Deframer {
    /// Adds received bytes.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole packet, or `None` until more bytes come. Empty packets are passed over.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, TooLarge> {
        loop {
            let rest = &self.buffer[self.start..];
            let Some((prefix, body)) = rest.split_first_chunk::<PREFIX>() else { return Ok(None) };
            let len = usize::from(u16::from_be_bytes(*prefix));
            if len > PACKET_MAX {
                return Err(TooLarge(len));
            }
            if body.len() < len {
                return Ok(None);
            }
            let begin = self.start + PREFIX;
            self.start = begin + len;
            if len > 0 {
                return Ok(Some(&self.buffer[begin..self.start]));
            }
        }
    }
}

/// Appends a packet with its length; one that is too long for that is left out.
pub(super) fn frame(packet: &[u8], out: &mut Vec<u8>) {
    if let Ok(len) = u16::try_from(packet.len()) {
        out.extend(len.to_be_bytes());
        out.extend(packet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packets_survive_any_fragmentation(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..12),
            cuts in prop::collection::vec(1_usize..97, 1..20),
        ) {
            let mut bytes = Vec::new();
            packets.iter().for_each(|packet| frame(packet, &mut bytes));
            let mut deframer = Deframer::default();
            let mut seen = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                rest = after;
                deframer.extend(piece);
                while let Some(packet) = deframer.next().unwrap() {
                    seen.push(packet.to_vec());
                }
            }
            prop_assert_eq!(seen, packets);
        }

        #[test]
        fn any_bytes_give_packets_or_an_error_and_little_is_kept(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..500), 0..20),
        ) {
            let mut deframer = Deframer::default();
            'stream: for piece in pieces {
                deframer.extend(&piece);
                loop {
                    match deframer.next() {
                        Ok(Some(packet)) => prop_assert!(!packet.is_empty() && packet.len() <= PACKET_MAX),
                        Ok(None) => break,
                        Err(TooLarge(len)) => {
                            prop_assert!(len > PACKET_MAX);
                            break 'stream;
                        }
                    }
                }
                prop_assert!(deframer.buffer.len() - deframer.start < PACKET_MAX + PREFIX);
            }
        }
    }

    #[test]
    fn an_oversized_packet_is_refused_before_its_body_is_read() {
        let mut deframer = Deframer::default();
        deframer.extend(&2001_u16.to_be_bytes());
        assert_eq!(deframer.next(), Err(TooLarge(2001)));
    }
}
