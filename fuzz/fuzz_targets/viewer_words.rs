//! Words of viewers: understood or refused, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polydev::desktop::talk::{FromViewer, ViewerReport};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(FromViewer::Report(report)) = serde_json::from_str(text) {
        let again = serde_json::to_string(&report).expect("figures are JSON");
        let read: ViewerReport = serde_json::from_str(&again).expect("what was written can be read");
        assert_eq!(read.frames_shown, report.frames_shown);
    }
});
