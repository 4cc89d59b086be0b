//! Reads what a program prints: removes escape sequences, keeps the end, finds hyperlinks, cuts lines.

use polydev_core::scrub::scrub;

/// Characters of output kept for searching.
const KEPT: usize = 64 << 10;
/// Longest escape sequence; what is longer was none.
const SEQUENCE_MAX: usize = 16 << 10;
/// Lines and characters of a tail that is told to the host.
const TAIL: (usize, usize) = (20, 2048);

/// One stream of output, as text.
#[derive(Debug, Default)]
pub struct Output {
    state: State,
    /// Bytes of a character or sequence that is not complete yet.
    partial: Vec<u8>,
    text: String,
    /// Place of `text`'s first byte in all of the output.
    start: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Plain,
    /// After ESC.
    Escape,
    /// Inside `ESC [` ... final byte.
    Control,
    /// Inside OSC, DCS, APC, PM or SOS up to BEL or ST.
    Text,
    /// After ESC inside one of these.
    TextEscape,
}

impl Output {
    /// Takes bytes; gives the targets of OSC 8 hyperlinks among them.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut links = Vec::new();
        for &byte in bytes {
            self.state = match (self.state, byte) {
                (State::Plain, 0x1b) => {
                    self.flush();
                    State::Escape
                }
                (State::Plain, _) => {
                    self.partial.push(byte);
                    State::Plain
                }
                (State::Escape, b'[') => State::Control,
                (State::Escape, b']' | b'P' | b'_' | b'^' | b'X') => {
                    self.partial.clear();
                    self.partial.push(byte);
                    State::Text
                }
                // Two-byte sequences, and charset selections whose third byte is harmless text.
                (State::Escape, _) => State::Plain,
                (State::Control, 0x40..=0x7e) => {
                    // Cursor moves separate what was printed before and after.
                    if matches!(byte, b'A'..=b'H' | b'J' | b'f') {
                        self.partial.push(b'\n');
                    }
                    State::Plain
                }
                (State::Control, 0x1b) => State::Escape,
                (State::Control, _) => State::Control,
                (State::Text, 0x07) | (State::TextEscape, b'\\') => {
                    links.extend(link_target(&self.partial));
                    self.partial.clear();
                    State::Plain
                }
                (State::Text, 0x1b) => State::TextEscape,
                (State::Text | State::TextEscape, _) if self.partial.len() >= SEQUENCE_MAX => {
                    self.partial.clear();
                    State::Plain
                }
                (State::Text, _) => {
                    self.partial.push(byte);
                    State::Text
                }
                // ESC not followed by a backslash ends the sequence and begins another.
                (State::TextEscape, b'[') => {
                    self.partial.clear();
                    State::Control
                }
                (State::TextEscape, _) => {
                    self.partial.clear();
                    State::Plain
                }
            };
        }
        if self.state == State::Plain {
            self.flush();
        }
        links
    }

    /// All text that is still kept.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Kept text from a place in all of the output on.
    pub fn from(&self, place: usize) -> &str {
        let mut at = place.saturating_sub(self.start).min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at += 1;
        }
        &self.text[at..]
    }

    /// Place after the last byte.
    pub fn end(&self) -> usize {
        self.start + self.text.len()
    }

    /// Moves whole characters from `partial` to the text.
    fn flush(&mut self) {
        let bytes = std::mem::take(&mut self.partial);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.append(text);
                    break;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    self.append(std::str::from_utf8(good).unwrap_or_default());
                    match error.error_len() {
                        Some(len) => {
                            self.append("\u{fffd}");
                            rest = &bad[len..];
                        }
                        None => {
                            self.partial = bad.to_vec();
                            break;
                        }
                    }
                }
            }
        }
        let surplus = self.text.len().saturating_sub(KEPT);
        if surplus > 0 {
            let mut cut = surplus + KEPT / 4;
            while !self.text.is_char_boundary(cut) {
                cut += 1;
            }
            self.text.drain(..cut);
            self.start += cut;
        }
    }

    fn append(&mut self, text: &str) {
        // Carriage returns redraw a line; as line ends they keep old and new apart.
        let visible = |c: char| (!c.is_control() || matches!(c, '\n' | '\t')).then_some(c);
        self.text.extend(text.chars().filter_map(|c| if c == '\r' { Some('\n') } else { visible(c) }));
    }
}

/// `8;params;target` of an OSC sequence.
fn link_target(sequence: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(sequence).ok()?.strip_prefix("]8;")?;
    let (_, target) = text.split_once(';')?;
    (!target.is_empty()).then(|| target.to_owned())
}

/// The last lines, without addresses, codes, tokens and what a person typed.
pub fn tail(text: &str, typed: &[String]) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut tail = lines[lines.len().saturating_sub(TAIL.0)..].join("\n");
    for secret in
        typed.iter().flat_map(|t| t.split(['#', '\n', '\r'])).map(str::trim).filter(|t| t.len() >= 4)
    {
        tail = tail.replace(secret, "[typed]");
    }
    let clean = scrub(&tail);
    let skip = clean.chars().count().saturating_sub(TAIL.1);
    clean.chars().skip(skip).collect()
}

/// Cuts complete lines out of a byte stream.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

/// Longest line; longer ones are dropped whole.
const LINE_MAX: usize = 1 << 20;

impl Lines {
    /// The lines that these bytes complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            if self.partial.len() + piece.len() <= LINE_MAX {
                self.partial.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                lines.push(String::from_utf8_lossy(&line).trim().to_owned());
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> (String, Vec<String>) {
        let mut output = Output::default();
        let links = output.push(bytes);
        (output.text().to_owned(), links)
    }

    #[test]
    fn colours_and_titles_vanish_and_hyperlinks_are_told() {
        let (text, links) = read(b"\x1b]0;title\x07a \x1b[1;31mred\x1b[0m \x1b]8;id=1;https://a.test/?x=1\x1b\\link\x1b]8;;\x1b\\ b\r\n");
        assert_eq!(text, "a red link b\n\n");
        assert_eq!(links, ["https://a.test/?x=1"]);
    }

    #[test]
    fn only_the_end_of_much_output_is_kept_and_places_stay_right() {
        let mut output = Output::default();
        for n in 0..100_000 {
            output.push(format!("line {n}\n").as_bytes());
        }
        let place = output.end();
        output.push(b"last");
        assert_eq!(output.from(place), "last");
        assert!(output.text().len() <= KEPT);
    }

    #[test]
    fn a_tail_holds_no_address_code_or_typed_text() {
        let text =
            "visit https://a.test/x?state=FAKE\ncode ABCD-12345\n> FAKEcode#FAKEstate\nfailed: invalid\n";
        let tail = tail(text, &["FAKEcode#FAKEstate\n".into()]);
        assert!(tail.ends_with("failed: invalid") && tail.contains("https://a.test/x"), "{tail}");
        assert!(!tail.contains("FAKE") && !tail.contains("ABCD"), "{tail}");
    }

    #[test]
    fn an_endless_line_is_dropped_and_the_next_one_read() {
        let mut lines = Lines::default();
        for _ in 0..300 {
            assert_eq!(lines.push(&[b'x'; 8192]), [""; 0]);
        }
        assert_eq!(lines.push(b"\nnext\n").last().map(String::as_str), Some("next"));
    }

    proptest! {
        #[test]
        fn the_text_does_not_depend_on_how_it_arrives(bytes in prop::collection::vec(prop_oneof![Just(0x1bu8), Just(b']'), Just(b'['), Just(7u8), Just(b'\\'), any::<u8>()], 0..200), cut in 1usize..9) {
            let (whole, links) = read(&bytes);
            let mut output = Output::default();
            let pieces: Vec<String> = bytes.chunks(cut).flat_map(|piece| output.push(piece)).collect();
            prop_assert_eq!(output.text(), whole);
            prop_assert_eq!(pieces, links);
        }
    }
}
