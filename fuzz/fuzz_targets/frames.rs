//! Both directions of the control stream, terminal frames and preambles: an error or a wait, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polydev_core::wire::{AgentFrame, EgressReply, RequestFrame, StreamHeader, frame, preamble, pty};

fuzz_target!(|bytes: &[u8]| {
    fn all<T: serde::de::DeserializeOwned>(bytes: &[u8]) {
        let mut decoder = frame::Decoder::default();
        decoder.extend(bytes);
        while let Ok(Some(_)) = decoder.next::<T>() {}
    }
    all::<RequestFrame>(bytes);
    all::<AgentFrame>(bytes);
    all::<StreamHeader>(bytes);
    all::<EgressReply>(bytes);
    let mut terminal = pty::Decoder::default();
    terminal.extend(bytes);
    while let Ok(Some(frame)) = terminal.next() {
        let _ = frame.encode();
    }
    let mut scanner = preamble::Scanner::default();
    for byte in bytes {
        if scanner.push(*byte).is_err() {
            break;
        }
    }
});
