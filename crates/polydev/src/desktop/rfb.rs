//! What a VNC viewer sends, judged message by message (RFC 6143, section 7, and the extensions of the "rfbproto" document
//! that viewers use here). Pure: bytes go in, the bytes that may reach the guest come out.
//!
//! ```text
//! version --> security type --> init --> messages, each whole, until the end
//! ```
//! A message that is not known has no known end, so it ends the connection. Clipboard texts never pass: texts go by the
//! hub, under its policy.

use std::collections::BTreeSet;

/// The only version with a different handshake that servers still take: no security type is chosen.
const VERSION_3_3: &[u8] = b"RFB 003.003\n";
const VERSION_BYTES: usize = 12;
/// The guest's socket is for the controller alone: no other type is asked for.
const SECURITY_NONE: u8 = 1;
/// Viewers never throw each other out, whatever they ask for.
const SHARED: u8 = 1;

const SET_PIXEL_FORMAT: u8 = 0;
const SET_ENCODINGS: u8 = 2;
const UPDATE_REQUEST: u8 = 3;
const KEY: u8 = 4;
const POINTER: u8 = 5;
const CUT_TEXT: u8 = 6;
const CONTINUOUS_UPDATES: u8 = 150;
const FENCE: u8 = 248;
const XVP: u8 = 250;
const SET_DESKTOP_SIZE: u8 = 251;
const QEMU: u8 = 255;
const QEMU_KEY: u8 = 0;

/// Encodings that a viewer may name; noVNC names some 25.
const ENCODINGS_MAX: u16 = 256;
/// Longest clipboard text that is skipped.
const TEXT_MAX: u32 = 1 << 20;
/// Longest content of a fence, by its definition.
const FENCE_MAX: u8 = 64;
/// Keys that hands hold at once, and some.
const HELD_MAX: usize = 32;
/// Extensions that a server must not learn of: further mouse buttons make a pointer message longer than it says, the
/// others have messages of their own.
const REFUSED_ENCODINGS: [i32; 5] = [-316, -305, -309, -259, EXTENDED_CLIPBOARD];
const EXTENDED_CLIPBOARD: i32 = i32::from_be_bytes([0xc0, 0xa1, 0xe5, 0xce]);

/// Why a viewer's bytes are not taken any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RfbFault {
    /// The handshake is none that the guest's server takes without a password.
    #[error("the handshake is not that of a viewer without a password")]
    Handshake,
    /// Nobody knows where it ends.
    #[error("message of unknown type {0}")]
    Unknown(u8),
    /// No viewer's is that long.
    #[error("message of type {0} is too long")]
    TooLong(u8),
}

/// What became of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Judged {
    /// A hand did something deliberate: pressed a key or a button.
    pub acted: bool,
    /// Something was held back because the viewer is not in control.
    pub held_back: bool,
}

/// One viewer's side of a connection.
#[derive(Debug, Default)]
pub struct RfbFilter {
    phase: Phase,
    /// Of the message that is not whole yet.
    part: Vec<u8>,
    /// Bytes of a text that are still to be left out.
    skip: usize,
    held: BTreeSet<HeldKey>,
    pointer: Pointer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    #[default]
    Version,
    Security,
    Init,
    Messages,
}

/// A key as it was pressed; `scan` if the viewer told it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct HeldKey {
    keysym: [u8; 4],
    scan: Option<[u8; 4]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Pointer {
    buttons: u8,
    place: [u8; 4],
}

impl RfbFilter {
    /// Takes what the viewer sent and appends what may go on to the guest. What hands do goes on only if the viewer
    /// `is_in_control`. After an error nothing more may be taken.
    pub fn take(
        &mut self,
        mut bytes: &[u8],
        is_in_control: bool,
        on: &mut Vec<u8>,
    ) -> Result<Judged, RfbFault> {
        let mut judged = Judged::default();
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = self.wanted()?;
            if self.part.len() < wanted {
                let taken = (wanted - self.part.len()).min(bytes.len());
                if taken == 0 {
                    return Ok(judged);
                }
                self.part.extend_from_slice(&bytes[..taken]);
                bytes = &bytes[taken..];
                continue;
            }
            let message = std::mem::take(&mut self.part);
            self.judge(&message, is_in_control, on, &mut judged)?;
            // Keeps its room for the next one.
            self.part = message;
            self.part.clear();
        }
    }

    /// Lets go whatever the viewer holds: it is not in control any more.
    pub fn let_go(&mut self, on: &mut Vec<u8>) {
        for HeldKey { keysym, scan } in std::mem::take(&mut self.held) {
            match scan {
                None => on.extend([KEY, 0, 0, 0].into_iter().chain(keysym)),
                Some(scan) => on.extend([QEMU, QEMU_KEY, 0, 0].into_iter().chain(keysym).chain(scan)),
            }
        }
        if self.pointer.buttons != 0 {
            self.pointer.buttons = 0;
            on.extend([POINTER, 0].into_iter().chain(self.pointer.place));
        }
    }

    /// Bytes that are kept of a message that is not whole yet.
    pub fn pending(&self) -> usize {
        self.part.len()
    }

    /// Bytes of the present message, as far as can be told from what is there of it.
    fn wanted(&self) -> Result<usize, RfbFault> {
        match self.phase {
            Phase::Version => return Ok(VERSION_BYTES),
            Phase::Security | Phase::Init => return Ok(1),
            Phase::Messages => {}
        }
        let Some(&kind) = self.part.first() else { return Ok(1) };
        Ok(match kind {
            SET_PIXEL_FORMAT => 20,
            SET_ENCODINGS => match self.part.get(2..4) {
                None => 4,
                Some(count) => match u16::from_be_bytes([count[0], count[1]]) {
                    count if count > ENCODINGS_MAX => return Err(RfbFault::TooLong(kind)),
                    count => 4 + 4 * usize::from(count),
                },
            },
            KEY | CUT_TEXT => 8,
            POINTER => 6,
            UPDATE_REQUEST | CONTINUOUS_UPDATES => 10,
            FENCE => match self.part.get(8) {
                None => 9,
                Some(len) if *len > FENCE_MAX => return Err(RfbFault::TooLong(kind)),
                Some(len) => 9 + usize::from(*len),
            },
            XVP => 4,
            SET_DESKTOP_SIZE => self.part.get(6).map_or(7, |screens| 8 + 16 * usize::from(*screens)),
            QEMU => match self.part.get(1) {
                None => 2,
                Some(&QEMU_KEY) => 12,
                Some(_) => return Err(RfbFault::Unknown(kind)),
            },
            _ => return Err(RfbFault::Unknown(kind)),
        })
    }

    /// One whole message.
    fn judge(
        &mut self,
        message: &[u8],
        is_in_control: bool,
        on: &mut Vec<u8>,
        judged: &mut Judged,
    ) -> Result<(), RfbFault> {
        match self.phase {
            Phase::Version => {
                let is_3_3 = message == VERSION_3_3;
                if !is_3_3 && !message.starts_with(b"RFB 003.00") {
                    return Err(RfbFault::Handshake);
                }
                self.phase = if is_3_3 { Phase::Init } else { Phase::Security };
                on.extend_from_slice(message);
            }
            Phase::Security => {
                if message != [SECURITY_NONE] {
                    return Err(RfbFault::Handshake);
                }
                self.phase = Phase::Init;
                on.push(SECURITY_NONE);
            }
            Phase::Init => {
                self.phase = Phase::Messages;
                on.push(SHARED);
            }
            Phase::Messages => match message[0] {
                KEY | POINTER | QEMU | SET_DESKTOP_SIZE if !is_in_control => {
                    judged.held_back |= is_deed(message)
                }
                KEY | QEMU => {
                    if self.press(message) {
                        judged.acted |= is_deed(message);
                        on.extend_from_slice(message);
                    }
                }
                POINTER => {
                    self.pointer = Pointer {
                        buttons: message[1],
                        place: [message[2], message[3], message[4], message[5]],
                    };
                    judged.acted |= is_deed(message);
                    on.extend_from_slice(message);
                }
                SET_ENCODINGS => set_encodings(message, on),
                CUT_TEXT => {
                    let length = i32::from_be_bytes([message[4], message[5], message[6], message[7]]);
                    // A negative one is that of the extended clipboard.
                    let length = length.unsigned_abs();
                    if length > TEXT_MAX {
                        return Err(RfbFault::TooLong(CUT_TEXT));
                    }
                    self.skip = length as usize;
                }
                XVP => {}
                _ => on.extend_from_slice(message),
            },
        }
        Ok(())
    }

    /// Notes a key; gives whether it may be pressed: more than hands can hold could not be let go again.
    fn press(&mut self, message: &[u8]) -> bool {
        let four = |at: usize| [message[at], message[at + 1], message[at + 2], message[at + 3]];
        let (down, key) = match message[0] {
            QEMU => (message[3] != 0 || message[2] != 0, HeldKey { keysym: four(4), scan: Some(four(8)) }),
            _ => (message[1] != 0, HeldKey { keysym: four(4), scan: None }),
        };
        if !down {
            self.held.remove(&key);
            return true;
        }
        if self.held.len() >= HELD_MAX && !self.held.contains(&key) {
            return false;
        }
        self.held.insert(key);
        true
    }
}

/// Whether a hand pressed something. A pointer that only moves tells nothing, and nor does what is let go.
fn is_deed(message: &[u8]) -> bool {
    match message[0] {
        KEY | POINTER => message[1] != 0,
        QEMU => message[2] != 0 || message[3] != 0,
        _ => false,
    }
}

fn set_encodings(message: &[u8], on: &mut Vec<u8>) {
    let all = message[4..].chunks_exact(4).filter(|encoding| {
        let number = i32::from_be_bytes([encoding[0], encoding[1], encoding[2], encoding[3]]);
        !REFUSED_ENCODINGS.contains(&number)
    });
    let left = all.clone().count();
    let count = u16::try_from(left).unwrap_or(ENCODINGS_MAX).to_be_bytes();
    on.extend([SET_ENCODINGS, 0, count[0], count[1]]);
    all.for_each(|encoding| on.extend_from_slice(encoding));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HANDSHAKE: &[u8] = b"RFB 003.008\n\x01\x00";
    const PASSED_HANDSHAKE: &[u8] = b"RFB 003.008\n\x01\x01";
    const A_DOWN: [u8; 8] = [KEY, 1, 0, 0, 0, 0, 0, 97];
    const A_UP: [u8; 8] = [KEY, 0, 0, 0, 0, 0, 0, 97];
    const SHIFT_SCAN_DOWN: [u8; 12] = [QEMU, 0, 0, 1, 0, 0, 0xff, 0xe1, 0, 0, 0, 42];
    const CLICK: [u8; 6] = [POINTER, 1, 0, 7, 0, 9];
    const MOVE: [u8; 6] = [POINTER, 0, 0, 7, 0, 9];

    fn filter() -> RfbFilter {
        let mut filter = RfbFilter::default();
        filter.take(HANDSHAKE, false, &mut Vec::new()).unwrap();
        filter
    }

    fn encodings(numbers: &[i32]) -> Vec<u8> {
        let count = u16::try_from(numbers.len()).unwrap().to_be_bytes();
        let mut message = vec![SET_ENCODINGS, 0, count[0], count[1]];
        numbers.iter().for_each(|number| message.extend(number.to_be_bytes()));
        message
    }

    fn cut_text(length: i32) -> Vec<u8> {
        let mut message = vec![CUT_TEXT, 0, 0, 0];
        message.extend(length.to_be_bytes());
        message
    }

    /// Messages that ask for pictures and do nothing else.
    fn looking() -> Vec<u8> {
        let mut all = vec![SET_PIXEL_FORMAT];
        all.resize(20, 0);
        all.extend(encodings(&[7, 0, -308]));
        all.extend([UPDATE_REQUEST, 1, 0, 0, 0, 0, 5, 0, 3, 32]);
        all.extend([CONTINUOUS_UPDATES, 1, 0, 0, 0, 0, 5, 0, 3, 32]);
        all.extend([FENCE, 0, 0, 0, 0, 0, 0, 1, 3, 1, 2, 3]);
        all
    }

    #[test]
    fn who_is_not_in_control_sees_everything_and_does_nothing() {
        let mut on = Vec::new();
        let mut filter = filter();
        let mut sent = looking();
        for deed in [&A_DOWN[..], &A_UP, &SHIFT_SCAN_DOWN, &CLICK, &MOVE] {
            sent.extend(deed);
        }
        let mut resize = vec![SET_DESKTOP_SIZE, 0, 3, 0, 2, 0, 2, 0];
        resize.resize(8 + 2 * 16, 0);
        sent.extend(resize);
        sent.extend(cut_text(4));
        sent.extend(b"FAKE");
        sent.extend([XVP, 0, 1, 2]);
        let judged = filter.take(&sent, false, &mut on).unwrap();
        assert_eq!(on, looking());
        assert_eq!(judged, Judged { acted: false, held_back: true });
        on.clear();
        filter.let_go(&mut on);
        assert!(on.is_empty(), "it held nothing");
    }

    #[test]
    fn who_is_in_control_acts_and_what_it_holds_is_let_go_when_it_loses_it() {
        let mut on = Vec::new();
        let mut filter = filter();
        let sent = [&A_DOWN[..], &SHIFT_SCAN_DOWN, &CLICK].concat();
        let judged = filter.take(&sent, true, &mut on).unwrap();
        assert_eq!((on.as_slice(), judged), (sent.as_slice(), Judged { acted: true, held_back: false }));
        on.clear();
        filter.let_go(&mut on);
        let shift_up = [QEMU, 0, 0, 0, 0, 0, 0xff, 0xe1, 0, 0, 0, 42];
        assert_eq!(on, [&A_UP[..], &shift_up, &MOVE].concat());
        on.clear();
        filter.let_go(&mut on);
        assert!(on.is_empty(), "once");
        assert_eq!(filter.take(&MOVE, true, &mut on), Ok(Judged::default()), "a move is no deed");
    }

    #[test]
    fn a_clipboard_text_never_passes_and_what_follows_it_does() {
        for length in [5, -5] {
            let mut on = Vec::new();
            let mut filter = filter();
            let sent = [&cut_text(length)[..], b"FAKE!", &A_DOWN].concat();
            for byte in &sent {
                filter.take(&[*byte], true, &mut on).unwrap();
            }
            assert_eq!(on, A_DOWN);
        }
    }

    #[test]
    fn extensions_that_would_change_what_a_message_is_are_left_out() {
        let mut on = Vec::new();
        let asked = encodings(&[7, -316, -305, -258, -309, EXTENDED_CLIPBOARD, -259, -239]);
        filter().take(&asked, false, &mut on).unwrap();
        assert_eq!(on, encodings(&[7, -258, -239]));
    }

    #[test]
    fn other_handshakes_and_messages_without_a_known_end_are_refused() {
        let taken = |bytes: &[u8]| RfbFilter::default().take(bytes, true, &mut Vec::new());
        assert_eq!(taken(b"GET / HTTP/1.1\r\n"), Err(RfbFault::Handshake));
        assert_eq!(taken(b"RFB 003.008\n\x02"), Err(RfbFault::Handshake), "a password is not asked for");
        let after = |bytes: &[u8]| taken(&[HANDSHAKE, bytes].concat());
        assert_eq!(after(&[7]), Err(RfbFault::Unknown(7)));
        assert_eq!(after(&[QEMU, 1]), Err(RfbFault::Unknown(QEMU)));
        assert_eq!(after(&[SET_ENCODINGS, 0, 0xff, 0xff]), Err(RfbFault::TooLong(SET_ENCODINGS)));
        assert_eq!(after(&cut_text(i32::MIN)), Err(RfbFault::TooLong(CUT_TEXT)));
        assert_eq!(after(&[FENCE, 0, 0, 0, 0, 0, 0, 0, 65]), Err(RfbFault::TooLong(FENCE)));
    }

    #[test]
    fn the_oldest_handshake_chooses_no_security_type() {
        let mut on = Vec::new();
        let mut filter = RfbFilter::default();
        filter.take(b"RFB 003.003\n\x00", false, &mut on).unwrap();
        assert_eq!(on, b"RFB 003.003\n\x01", "and nobody is thrown out");
        on.clear();
        filter.take(&A_DOWN, true, &mut on).unwrap();
        assert_eq!(on, A_DOWN);
    }

    /// Any message that is known, with any content.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let sized = |kind: u8, len: usize| {
            prop::collection::vec(any::<u8>(), len - 1).prop_map(move |rest| [vec![kind], rest].concat())
        };
        prop_oneof![
            sized(SET_PIXEL_FORMAT, 20),
            sized(UPDATE_REQUEST, 10),
            sized(CONTINUOUS_UPDATES, 10),
            sized(KEY, 8),
            sized(POINTER, 6),
            sized(XVP, 4),
            prop::collection::vec(any::<i32>(), 0..30).prop_map(|numbers| encodings(&numbers)),
            prop::collection::vec(any::<u8>(), 10).prop_map(|rest| [vec![QEMU, 0], rest].concat()),
            (0..200_u8).prop_map(|len| {
                let mut text = cut_text(i32::from(len));
                text.resize(8 + usize::from(len), KEY);
                text
            }),
            (0..4_u8).prop_map(|screens| {
                let mut size = vec![SET_DESKTOP_SIZE, 0, 3, 0, 2, 0, screens, 0];
                size.resize(8 + 16 * usize::from(screens), 0);
                size
            }),
            prop::collection::vec(any::<u8>(), 0..=64).prop_map(|content| {
                let len = u8::try_from(content.len()).unwrap();
                [vec![FENCE, 0, 0, 0, 0, 0, 0, 1, len], content].concat()
            }),
        ]
    }

    proptest! {
        #[test]
        fn however_messages_are_cut_the_same_passes_and_without_control_nothing_that_acts(
            messages in prop::collection::vec(message(), 0..20),
            cuts in prop::collection::vec(1..40_usize, 1..60),
        ) {
            let sent: Vec<u8> = [HANDSHAKE.to_vec()].into_iter().chain(messages.clone()).flatten().collect();
            for is_in_control in [false, true] {
                let (mut whole, mut cut) = (Vec::new(), Vec::new());
                RfbFilter::default().take(&sent, is_in_control, &mut whole).unwrap();
                let (mut filter, mut rest) = (RfbFilter::default(), sent.as_slice());
                for length in cuts.iter().cycle() {
                    let (now, later) = rest.split_at((*length).min(rest.len()));
                    filter.take(now, is_in_control, &mut cut).unwrap();
                    rest = later;
                    if rest.is_empty() {
                        break;
                    }
                }
                prop_assert_eq!(&whole, &cut);
                prop_assert!(whole.starts_with(PASSED_HANDSHAKE));
                // What passed is whole messages again, and those of the right kinds.
                let mut again = RfbFilter::default();
                again.take(&whole, true, &mut Vec::new()).unwrap();
                prop_assert!(again.pending() == 0 && again.skip == 0);
                if !is_in_control {
                    let looked = messages.iter().filter(|message| {
                        ![KEY, POINTER, QEMU, CUT_TEXT, XVP, SET_DESKTOP_SIZE, SET_ENCODINGS].contains(&message[0])
                    });
                    let others: usize = looked.map(Vec::len).sum();
                    let asked: usize = messages.iter().filter(|message| message[0] == SET_ENCODINGS).map(|message| {
                        let mut on = Vec::new();
                        set_encodings(message, &mut on);
                        on.len()
                    }).sum();
                    prop_assert_eq!(whole.len(), PASSED_HANDSHAKE.len() + others + asked);
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic_or_keep_much(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..30)) {
            let mut filter = filter();
            for chunk in chunks {
                let mut on = Vec::new();
                if filter.take(&chunk, true, &mut on).is_err() {
                    break;
                }
                prop_assert!(on.len() <= chunk.len() + 8 + 16 * 255);
                prop_assert!(filter.pending() <= 8 + 16 * 255 && filter.held.len() <= HELD_MAX);
            }
        }
    }
}
