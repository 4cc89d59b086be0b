//! What comes over the socket between controller and host process: an error or a wait, never a panic, never more memory
//! than was sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polydev_host::remote::{accepts, frame::Decoder};

fuzz_target!(|bytes: &[u8]| {
    let (mut decoder, mut given) = (Decoder::default(), 0);
    for piece in bytes.chunks(7) {
        decoder.extend(piece);
        given += piece.len();
        loop {
            match decoder.next() {
                Ok(Some(frame)) => drop(accepts(&frame.body)),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(decoder.pending() <= given);
    }
    let _ = accepts(bytes);
});
