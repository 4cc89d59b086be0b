//! What guests show: an error or a wait, never a panic; what is understood is written as it was read, however it came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polydev_core::desktop::{Cutter, FROM_DESKTOP_MAX, FromDesktop};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = FromDesktop::decode(bytes) {
        assert_eq!(message.encode(), bytes);
    }
    let cut = |size: usize| {
        let mut cutter = Cutter::new(FROM_DESKTOP_MAX);
        let mut seen = Vec::new();
        for piece in bytes.chunks(size) {
            cutter.extend(piece);
            loop {
                match cutter.next() {
                    Ok(Some(message)) => seen.push(FromDesktop::decode(message)),
                    Ok(None) => break,
                    Err(_) => return seen,
                }
            }
        }
        seen
    };
    assert_eq!(cut(usize::MAX), cut(3));
});
