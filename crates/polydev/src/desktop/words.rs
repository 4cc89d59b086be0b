//! Everything for one viewer that is no picture: words, and how the pointer looks and where it is.
//!
//! What a newer message makes pointless is not kept, so the queue stays short by itself. A viewer that takes nothing
//! until the queue is full all the same is taken for gone.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::{
    seat::{Occupied, Seat},
    talk::ToViewer,
};

/// Messages that may wait.
const WORDS_WAITING_MAX: usize = 128;

/// One message for a viewer.
#[derive(Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// JSON of a [`ToViewer`].
    Text(Arc<str>),
    /// A [`polydev_core::desktop::FromDesktop`] about the pointer, encoded.
    Binary(Bytes),
}

/// The words of one viewer, for its transport to send.
pub struct WordQueue {
    seat: Arc<Occupied>,
}

impl WordQueue {
    pub(super) fn new(seat: Arc<Occupied>) -> Self {
        Self { seat }
    }

    /// The next message; `None` when no more come. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Outgoing> {
        let seat: &Seat = &self.seat;
        loop {
            let ready = seat.words_ready.notified();
            match seat.take_word() {
                Ok(Some(word)) => return Some(word),
                Ok(None) => ready.await,
                Err(Ended) => return None,
            }
        }
    }
}

/// Nothing more comes.
pub(super) struct Ended;

/// What a message is about; of those with [`Topic::only_newest_counts`] one waits at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    CursorShape,
    CursorMoved,
    Clipboard,
    Size,
    Viewers,
    Stats,
    Other,
}

impl Topic {
    fn of(word: &ToViewer) -> Self {
        match word {
            ToViewer::Viewers { .. } => Self::Viewers,
            ToViewer::Size { .. } => Self::Size,
            ToViewer::Clipboard { .. } => Self::Clipboard,
            ToViewer::Stats(_) => Self::Stats,
            ToViewer::Hello { .. }
            | ToViewer::Role { .. }
            | ToViewer::ControlRequested { .. }
            | ToViewer::Pong { .. }
            | ToViewer::Interrupted { .. }
            | ToViewer::Refused { .. }
            | ToViewer::Ended { .. } => Self::Other,
        }
    }

    fn only_newest_counts(self) -> bool {
        self != Self::Other
    }
}

/// What waits for one viewer.
pub(super) struct Words {
    waiting: VecDeque<(Topic, Outgoing)>,
}

/// The viewer takes nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Words {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new() }
    }

    pub(super) fn say(&mut self, word: &ToViewer) -> Result<(), Full> {
        self.push(Topic::of(word), Outgoing::Text(text(word)))
    }

    /// Nothing that waits is known to the viewer before this.
    pub(super) fn say_first(&mut self, word: &ToViewer) {
        self.waiting.push_front((Topic::of(word), Outgoing::Text(text(word))));
    }

    pub(super) fn push(&mut self, topic: Topic, message: Outgoing) -> Result<(), Full> {
        if topic.only_newest_counts() {
            self.waiting.retain(|(waiting, _)| *waiting != topic);
        }
        if self.waiting.len() >= WORDS_WAITING_MAX {
            return Err(Full);
        }
        self.waiting.push_back((topic, message));
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Option<Outgoing> {
        self.waiting.pop_front().map(|(_, message)| message)
    }
}

fn text(word: &ToViewer) -> Arc<str> {
    serde_json::to_string(word).expect("words are plain data").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(words: &mut Words) -> Vec<String> {
        std::iter::from_fn(|| words.pop())
            .map(|message| match message {
                Outgoing::Text(text) => text.to_string(),
                Outgoing::Binary(bytes) => format!("{bytes:?}"),
            })
            .collect()
    }

    #[test]
    fn of_what_only_the_newest_counts_one_waits() {
        let mut words = Words::new();
        for at in 0..500_u16 {
            words.say(&ToViewer::Size { width: at, height: 1 }).unwrap();
            words.push(Topic::CursorMoved, Outgoing::Binary(at.to_be_bytes().to_vec().into())).unwrap();
        }
        words.say(&ToViewer::Viewers { viewers: 2 }).unwrap();
        let texts = texts(&mut words);
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert!(texts[0].contains("499"), "{texts:?}");
    }

    #[test]
    fn a_viewer_that_takes_nothing_is_found_out() {
        let mut words = Words::new();
        let said = (0..1000).map(|at| words.say(&ToViewer::Pong { at: f64::from(at) }));
        assert_eq!(said.filter(Result::is_err).count(), 1000 - WORDS_WAITING_MAX);
    }
}
