//! What viewers do: an event that is understood is written as it was read, and says nothing about keys and texts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polydev_core::desktop::{InputEvent, TO_DESKTOP_MAX, ToDesktop};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(event) = InputEvent::decode(bytes) {
        assert_eq!(event.encode(), bytes);
        if let InputEvent::Text { text } = &event {
            let other = InputEvent::Text { text: "x".repeat(text.len()) };
            assert_eq!(
                format!("{event:?}"),
                format!("{other:?}"),
                "it tells how long it is, not what it says"
            );
        }
        let told = ToDesktop::Input { seq: 7, event };
        let message = told.encode();
        assert!(message.len() <= TO_DESKTOP_MAX);
        assert_eq!(ToDesktop::decode(&message), Ok(told));
    }
    if let Ok(told) = ToDesktop::decode(bytes) {
        assert_eq!(told.encode(), bytes);
    }
});
