//! What waits to be told to the guest. Of what only the newest counts one waits at most; the rest is bounded.

use std::collections::VecDeque;

use polydev_core::desktop::{InputEvent, ToDesktop};

/// Messages that may wait.
const MESSAGES_MAX: usize = 4096;
/// Bytes of text that may wait.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Messages for the guest, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<ToDesktop>,
    text_bytes: usize,
}

/// The guest takes nothing, and too much waits.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Outbox {
    pub(super) fn push(&mut self, message: ToDesktop) -> Result<(), Full> {
        if is_move(&message)
            && let Some(last) = self.waiting.back_mut().filter(|last| is_move(last))
        {
            *last = message;
            return Ok(());
        }
        if matches!(
            message,
            ToDesktop::Watch(_)
                | ToDesktop::Keyframe
                | ToDesktop::Hold(_)
                | ToDesktop::Rate { .. }
                | ToDesktop::Resize { .. }
        ) {
            let kind = std::mem::discriminant(&message);
            self.waiting.retain(|waiting| std::mem::discriminant(waiting) != kind);
        }
        let bytes = text_bytes(&message);
        // What lets go always fits: one of it at the end is enough.
        let lets_go = lets_go(&message);
        if lets_go && self.waiting.back().is_some_and(|last| *last == message || self::lets_go(last)) {
            return Ok(());
        }
        if !lets_go && (self.waiting.len() >= MESSAGES_MAX || self.text_bytes + bytes > TEXT_BYTES_MAX) {
            return Err(Full);
        }
        self.text_bytes += bytes;
        self.waiting.push_back(message);
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Option<ToDesktop> {
        let message = self.waiting.pop_front()?;
        self.text_bytes -= text_bytes(&message);
        Some(message)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Forgets what hands did and no guest has taken: when it comes back, nobody means it any more.
    pub(super) fn forget_input(&mut self) {
        self.waiting.retain(|message| !matches!(message, ToDesktop::Input { .. } | ToDesktop::Clipboard(_)));
        self.text_bytes = 0;
    }
}

fn is_move(message: &ToDesktop) -> bool {
    matches!(message, ToDesktop::Input { event: InputEvent::Move { .. }, .. })
}

fn lets_go(message: &ToDesktop) -> bool {
    matches!(message, ToDesktop::Input { event: InputEvent::ReleaseAll, .. })
}

fn text_bytes(message: &ToDesktop) -> usize {
    match message {
        ToDesktop::Clipboard(text) | ToDesktop::Input { event: InputEvent::Text { text }, .. } => text.len(),
        ToDesktop::Watch(_)
        | ToDesktop::Keyframe
        | ToDesktop::Hold(_)
        | ToDesktop::Rate { .. }
        | ToDesktop::Resize { .. }
        | ToDesktop::Input { .. }
        | ToDesktop::Wipe => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn input(seq: u32, event: InputEvent) -> ToDesktop {
        ToDesktop::Input { seq, event }
    }

    #[test]
    fn of_moves_in_a_row_the_last_one_counts() {
        let mut outbox = Outbox::default();
        for x in 0..10_000_u16 {
            outbox.push(input(u32::from(x), InputEvent::Move { x, y: 0 })).unwrap();
        }
        outbox.push(input(10_000, InputEvent::Button { button: 1, down: true, x: 5, y: 5 })).unwrap();
        outbox.push(input(10_001, InputEvent::Move { x: 1, y: 1 })).unwrap();
        assert_eq!(outbox.pop(), Some(input(9999, InputEvent::Move { x: 9999, y: 0 })));
        assert!(outbox.pop().is_some() && outbox.pop().is_some());
        assert_eq!(outbox.pop(), None);
    }

    proptest! {
        #[test]
        fn little_waits_whatever_is_pushed_and_nothing_is_counted_wrong(
            pushes in prop::collection::vec((0..6_u8, 0..4000_usize, any::<bool>()), 0..6000),
        ) {
            let mut outbox = Outbox::default();
            for (seq, (kind, size, pop)) in (0..).zip(pushes) {
                let message = match kind {
                    0 => ToDesktop::Keyframe,
                    1 => ToDesktop::Clipboard("c".repeat(size * 60)),
                    2 => input(seq, InputEvent::Text { text: "t".repeat(size) }),
                    3 => input(seq, InputEvent::ReleaseAll),
                    4 => input(seq, InputEvent::Move { x: 1, y: 1 }),
                    _ => input(seq, InputEvent::Key { down: true, keysym: 97, code: String::new() }),
                };
                let lets_go = lets_go(&message);
                let pushed = outbox.push(message);
                prop_assert!(!lets_go || pushed.is_ok());
                prop_assert!(outbox.text_bytes <= TEXT_BYTES_MAX);
                prop_assert!(outbox.waiting.len() <= MESSAGES_MAX + 1);
                if pop {
                    outbox.pop();
                }
            }
            while outbox.pop().is_some() {}
            prop_assert_eq!(outbox.text_bytes, 0);
        }
    }

    #[test]
    fn input_that_no_guest_has_taken_is_forgotten() {
        let mut outbox = Outbox::default();
        outbox.push(input(1, InputEvent::Text { text: "FAKE".to_owned() })).unwrap();
        outbox.push(ToDesktop::Keyframe).unwrap();
        outbox.forget_input();
        assert_eq!(outbox.pop(), Some(ToDesktop::Keyframe));
        assert_eq!(outbox.pop(), None);
    }
}
