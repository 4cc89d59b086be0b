//! What VNC viewers send: judged the same however it comes, kept within its size, and without control nothing that acts.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use polydev::desktop::rfb::{Judged, RfbFault, RfbFilter};

const KEY: u8 = 4;
const POINTER: u8 = 5;
const CUT_TEXT: u8 = 6;
const XVP: u8 = 250;
const SET_DESKTOP_SIZE: u8 = 251;
const QEMU: u8 = 255;
/// Messages that make something happen in the guest.
const ACTS: [u8; 6] = [KEY, POINTER, CUT_TEXT, XVP, SET_DESKTOP_SIZE, QEMU];
/// The longest message: a resize to 255 screens.
const MESSAGE_MAX: usize = 8 + 16 * 255;
/// Keys at once that are let go later, and how long the message for one is.
const HELD: (usize, usize) = (32, 12);
const POINTER_BYTES: usize = 6;

/// What passed and what was said about it.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    on: Vec<u8>,
    /// Nothing is said of bytes among which there is a fault: the connection ends.
    end: Result<Judged, RfbFault>,
    let_go: Vec<u8>,
}

/// Takes the bytes in pieces of these sizes, over and over.
fn judge(bytes: &[u8], sizes: &[usize], is_in_control: bool) -> Verdict {
    let (mut filter, mut rest, mut given) = (RfbFilter::default(), bytes, 0);
    let mut verdict = Verdict { on: Vec::new(), end: Ok(Judged::default()), let_go: Vec::new() };
    for size in sizes.iter().cycle() {
        let (now, later) = rest.split_at((*size).clamp(1, rest.len().max(1)).min(rest.len()));
        given += now.len();
        match filter.take(now, is_in_control, &mut verdict.on) {
            Ok(now) => {
                verdict.end = verdict.end.map(|before| Judged {
                    acted: before.acted | now.acted,
                    held_back: before.held_back | now.held_back,
                });
            }
            Err(fault) => {
                verdict.end = Err(fault);
                break;
            }
        }
        assert!(filter.pending() <= MESSAGE_MAX.min(given));
        assert!(verdict.on.len() <= given, "nothing is made up");
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    filter.let_go(&mut verdict.let_go);
    assert!(verdict.let_go.len() <= HELD.0 * HELD.1 + POINTER_BYTES);
    let mut again = Vec::new();
    filter.let_go(&mut again);
    assert!(again.is_empty(), "nothing is let go twice");
    verdict
}

/// The types of the messages that passed, each with how often; they have to be whole.
fn passed(on: &[u8]) -> BTreeMap<u8, usize> {
    let mut kinds = BTreeMap::new();
    let handshake = 12 + if on.starts_with(b"RFB 003.003\n") { 1 } else { 2 };
    let mut rest = on.get(handshake..).unwrap_or_default();
    while let Some(kind) = rest.first() {
        let two = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
        let length = match *kind {
            0 => 20,
            2 => 4 + 4 * usize::from(two(2)),
            KEY => 8,
            POINTER => POINTER_BYTES,
            3 | 150 => 10,
            248 => 9 + usize::from(rest[8]),
            SET_DESKTOP_SIZE => 8 + 16 * usize::from(rest[6]),
            QEMU => 12,
            other => panic!("a message of type {other} passed"),
        };
        assert!(length <= MESSAGE_MAX);
        *kinds.entry(*kind).or_default() += 1;
        rest = rest.get(length..).expect("messages pass whole");
    }
    kinds
}

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (sizes, viewer) = input;
    let sizes: Vec<usize> = sizes.into_iter().map(usize::from).chain([1]).collect();
    // Random bytes seldom begin as a viewer does.
    for bytes in [viewer.clone(), [b"RFB 003.008\n\x01\x00", viewer.as_slice()].concat()] {
        for is_in_control in [false, true] {
            let whole = judge(&bytes, &[usize::MAX], is_in_control);
            assert_eq!(whole, judge(&bytes, &sizes, is_in_control));
            let kinds = passed(&whole.on);
            assert!(!kinds.contains_key(&CUT_TEXT) && !kinds.contains_key(&XVP));
            let judged = whole.end.unwrap_or_default();
            if !is_in_control {
                assert!(!judged.acted && whole.let_go.is_empty());
                assert!(ACTS.iter().all(|kind| !kinds.contains_key(kind)), "it only looks: {kinds:?}");
            } else {
                assert!(!judged.held_back);
            }
        }
    }
});
