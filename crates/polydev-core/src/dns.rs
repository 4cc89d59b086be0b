//! Answers name questions with addresses that stand for names. Pure: packets in, packets out.
//!
//! Every name gets an own address, so that a connection's destination tells which name was meant. Only what a stub
//! resolver sends is understood (RFC 1035): one question, class IN. The agent answers so where a VM has no network
//! device, the host's gateway where it has one.

mod names;

use std::net::Ipv4Addr;

pub use names::Names;

/// Longest packet looked at.
pub const PACKET_MAX: usize = 4096;
const HEADER: usize = 12;
/// How long an answer may be kept, in seconds: short, since addresses are handed on when there are many names.
const TTL: u32 = 60;

const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;
const FORMERR: u8 = 1;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;

/// The answer to a packet; `None` when it deserves none.
pub fn answer(packet: &[u8], mut address_of: impl FnMut(&str) -> Option<Ipv4Addr>) -> Option<Vec<u8>> {
    if packet.len() < HEADER || packet.len() > PACKET_MAX || packet[2] & 0x80 != 0 {
        return None;
    }
    let opcode = (packet[2] >> 3) & 0xf;
    if opcode != 0 {
        return Some(reply(packet, &[], NOTIMP, None));
    }
    let Some((question, name, kind, class)) = question(packet) else {
        return Some(reply(packet, &[], FORMERR, None));
    };
    let Some(name) = name else { return Some(reply(packet, question, REFUSED, None)) };
    if class != CLASS_IN {
        return Some(reply(packet, question, REFUSED, None));
    }
    // Other types, AAAA above all: the name is there and has no such record, so that programs go on with A.
    let address = if kind == TYPE_A { address_of(&name) } else { None };
    Some(reply(packet, question, 0, address))
}

/// A name as programs give it, in the form it is looked up and passed on: lower case, no final dot.
pub fn is_host_name(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

type Question<'a> = (&'a [u8], Option<String>, u16, u16);

/// The question's bytes, its name if it is a sound one, type and class.
fn question(packet: &[u8]) -> Option<Question<'_>> {
    if u16::from_be_bytes([packet[4], packet[5]]) != 1 {
        return None;
    }
    let mut at = HEADER;
    let mut name = String::new();
    loop {
        let len = usize::from(*packet.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        // Compression makes no sense in the only question; the upper bits also mark what nobody uses.
        if len > 63 {
            return None;
        }
        let label = packet.get(at..at + len)?;
        at += len;
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
        if name.len() > 255 {
            return None;
        }
    }
    let &[k1, k2, c1, c2] = packet.get(at..at + 4)? else { return None };
    let name = Some(name).filter(|n| is_host_name(n));
    Some((&packet[HEADER..at + 4], name, u16::from_be_bytes([k1, k2]), u16::from_be_bytes([c1, c2])))
}

fn reply(packet: &[u8], question: &[u8], code: u8, address: Option<Ipv4Addr>) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + question.len() + 16);
    out.extend_from_slice(&packet[..2]);
    // Response, opcode and "recursion desired" as asked, authoritative; recursion available.
    out.push(0x84 | (packet[2] & 0x79));
    out.push(0x80 | code);
    out.extend_from_slice(&[0, u8::from(!question.is_empty()), 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    out.extend_from_slice(question);
    if let Some(address) = address {
        // The name is the question's, at the packet's twelfth byte.
        out.extend_from_slice(&[0xc0, HEADER as u8]);
        out.extend_from_slice(&TYPE_A.to_be_bytes());
        out.extend_from_slice(&CLASS_IN.to_be_bytes());
        out.extend_from_slice(&TTL.to_be_bytes());
        out.extend_from_slice(&[0, 4]);
        out.extend_from_slice(&address.octets());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 1);

    fn ask(name: &str, kind: u16) -> Vec<u8> {
        let mut packet = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            packet.push(u8::try_from(label.len()).unwrap());
            packet.extend_from_slice(label.as_bytes());
        }
        packet.push(0);
        packet.extend_from_slice(&kind.to_be_bytes());
        packet.extend_from_slice(&[0, 1]);
        packet
    }

    #[test]
    fn an_address_question_is_answered_with_the_names_address() {
        let reply =
            answer(&ask("Auth.OpenAI.com", TYPE_A), |name| (name == "auth.openai.com").then_some(ADDRESS))
                .unwrap();
        assert_eq!(reply[..4], [0xab, 0xcd, 0x85, 0x80]);
        assert_eq!(reply[6..8], [0, 1]);
        assert!(reply.ends_with(&[0, 4, 127, 64, 0, 1]));
    }

    #[test]
    fn other_types_get_an_empty_answer_without_an_address_being_taken() {
        for kind in [28, 65, 15, 255] {
            let reply = answer(&ask("a.test", kind), |_| panic!("no address for type {kind}")).unwrap();
            assert_eq!((reply[3] & 0xf, &reply[6..8]), (0, [0, 0].as_slice()));
        }
    }

    #[test]
    fn malformed_names_are_refused_and_answers_are_not_answered() {
        for name in ["a b.test", "ä.test", "-a.test", "a\0b"] {
            let reply = answer(&ask(name, TYPE_A), |_| Some(ADDRESS)).unwrap();
            assert_eq!(reply[3] & 0xf, REFUSED, "{name}");
        }
        let mut response = ask("a.test", TYPE_A);
        response[2] |= 0x80;
        assert_eq!(answer(&response, |_| Some(ADDRESS)), None);
    }

    proptest! {
        #[test]
        fn rubbish_never_panics_and_never_grows_much(packet in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Some(reply) = answer(&packet, |_| Some(ADDRESS)) {
                prop_assert!(reply.len() <= packet.len() + 16);
                prop_assert_eq!(&reply[..2], &packet[..2]);
            }
        }
    }
}
