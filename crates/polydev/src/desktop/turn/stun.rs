//! STUN messages (RFC 8489) and TURN channel data (RFC 8656 section 12) as bytes. Whatever comes in is input: a
//! message that is not exactly in form is refused as a whole, and nothing is logged about it.

mod build;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

pub(super) use build::Builder;

/// RFC 8489 section 5.
pub(super) const HEADER_LEN: usize = 20;
const COOKIE: u32 = 0x2112_a442;
/// What FINGERPRINT is combined with, RFC 8489 section 14.7.
const FINGERPRINT_XOR: u32 = 0x5354_554e;
const MAC_LEN: usize = 20;

/// Methods (RFC 8489 section 18.2, RFC 8656 section 17).
pub(super) mod method {
    pub(in super::super) const BINDING: u16 = 1;
    pub(in super::super) const ALLOCATE: u16 = 3;
    pub(in super::super) const REFRESH: u16 = 4;
    pub(in super::super) const SEND: u16 = 6;
    pub(in super::super) const DATA: u16 = 7;
    pub(in super::super) const CREATE_PERMISSION: u16 = 8;
    pub(in super::super) const CHANNEL_BIND: u16 = 9;
}

/// Attributes (RFC 8489 section 18.3, RFC 8656 section 18).
pub(super) mod attribute {
    pub(in super::super) const USERNAME: u16 = 0x0006;
    pub(in super::super) const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub(in super::super) const ERROR_CODE: u16 = 0x0009;
    pub(in super::super) const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
    pub(in super::super) const CHANNEL_NUMBER: u16 = 0x000c;
    pub(in super::super) const LIFETIME: u16 = 0x000d;
    pub(in super::super) const XOR_PEER_ADDRESS: u16 = 0x0012;
    pub(in super::super) const DATA: u16 = 0x0013;
    pub(in super::super) const REALM: u16 = 0x0014;
    pub(in super::super) const NONCE: u16 = 0x0015;
    pub(in super::super) const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    pub(in super::super) const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
    pub(in super::super) const EVEN_PORT: u16 = 0x0018;
    pub(in super::super) const REQUESTED_TRANSPORT: u16 = 0x0019;
    pub(in super::super) const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
    pub(in super::super) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub(in super::super) const RESERVATION_TOKEN: u16 = 0x0022;
    pub(in super::super) const FINGERPRINT: u16 = 0x8028;
    /// From here on an attribute may be ignored by who does not know it.
    pub(in super::super) const OPTIONAL_FROM: u16 = 0x8000;
}

/// Request, indication or answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Request,
    Indication,
    Success,
    Error,
}

/// Why bytes are no STUN message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("not a STUN header")]
    Header,
    #[error("the length does not fit")]
    Length,
    #[error("the fingerprint is wrong")]
    Fingerprint,
}

/// A message whose form has been checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) class: Class,
    pub(super) method: u16,
    pub(super) transaction: [u8; 12],
    /// Whether it ends in a (right) fingerprint; its answer should then have one too.
    pub(super) fingerprinted: bool,
    bytes: &'a [u8],
    /// Where MESSAGE-INTEGRITY begins. Attributes behind it do not count.
    integrity_at: Option<usize>,
}

/// Type, value and the offset of the value in the message.
type Attribute<'a> = (u16, &'a [u8], usize);

impl<'a> Message<'a> {
    /// Takes exactly one message.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, _) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed::Header)?;
        let kind = u16::from_be_bytes([header[0], header[1]]);
        if kind & 0xc000 != 0 || header[4..8] != COOKIE.to_be_bytes() {
            return Err(Malformed::Header);
        }
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if length % 4 != 0 || HEADER_LEN + length != bytes.len() {
            return Err(Malformed::Length);
        }
        let class = match kind & 0x0110 {
            0x0000 => Class::Request,
            0x0010 => Class::Indication,
            0x0100 => Class::Success,
            _ => Class::Error,
        };
        let method = (kind & 0x000f) | ((kind & 0x00e0) >> 1) | ((kind & 0x3e00) >> 2);
        let mut transaction = [0; 12];
        transaction.copy_from_slice(&header[8..]);
        let mut message =
            Self { class, method, transaction, fingerprinted: false, bytes, integrity_at: None };
        let mut at = HEADER_LEN;
        while at < bytes.len() {
            let (kind, value, _) = read_attribute(bytes, at).ok_or(Malformed::Length)?;
            let next = at + 4 + padded(value.len());
            if kind == attribute::MESSAGE_INTEGRITY && message.integrity_at.is_none() {
                message.integrity_at = Some(at);
            }
            if kind == attribute::FINGERPRINT {
                if next != bytes.len() || value != fingerprint(&bytes[..at]).to_be_bytes() {
                    return Err(Malformed::Fingerprint);
                }
                message.fingerprinted = true;
            }
            at = next;
        }
        Ok(message)
    }

    /// Attributes that count.
    pub(super) fn attributes(&self) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        let bytes = &self.bytes[..self.integrity_at.unwrap_or(self.bytes.len())];
        let mut at = HEADER_LEN;
        std::iter::from_fn(move || {
            let found = read_attribute(bytes, at)?;
            at += 4 + padded(found.1.len());
            Some(found)
        })
    }

    /// The first attribute of that type.
    pub(super) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.attributes().find(|(found, ..)| *found == kind).map(|(_, value, _)| value)
    }

    /// The first attribute of that type as an address that is XORed with cookie and transaction.
    pub(super) fn address(&self, kind: u16) -> Option<SocketAddr> {
        self.read_address(self.get(kind)?)
    }

    /// RFC 8489 section 14.2, read.
    pub(super) fn read_address(&self, value: &[u8]) -> Option<SocketAddr> {
        let mask = address_mask(&self.transaction);
        let (&[_, family, p0, p1], ip) = value.split_first_chunk::<4>()?;
        let port = u16::from_be_bytes([p0 ^ mask[0], p1 ^ mask[1]]);
        let ip = match family {
            1 => {
                let mut octets: [u8; 4] = ip.try_into().ok()?;
                octets.iter_mut().zip(mask).for_each(|(octet, mask)| *octet ^= mask);
                IpAddr::V4(Ipv4Addr::from(octets))
            }
            2 => {
                let mut octets: [u8; 16] = ip.try_into().ok()?;
                octets.iter_mut().zip(mask).for_each(|(octet, mask)| *octet ^= mask);
                IpAddr::V6(Ipv6Addr::from(octets))
            }
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    }

    /// Whether there is a MESSAGE-INTEGRITY.
    pub(super) fn is_signed(&self) -> bool {
        self.integrity_at.is_some()
    }

    /// Whether the MESSAGE-INTEGRITY was made with `key`, compared in constant time.
    pub(super) fn is_signed_with(&self, key: &[u8]) -> bool {
        let Some(at) = self.integrity_at else { return false };
        let Some((_, value, _)) = read_attribute(self.bytes, at) else { return false };
        integrity(key, &self.bytes[..at]).verify_slice(value).is_ok()
    }
}

/// A frame of channel data: number, data. Whatever follows the data is padding.
pub(super) fn read_channel(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (&[n0, n1, l0, l1], rest) = bytes.split_first_chunk::<4>()?;
    let number = u16::from_be_bytes([n0, n1]);
    let data = rest.get(..usize::from(u16::from_be_bytes([l0, l1])))?;
    (number & 0xc000 == 0x4000).then_some((number, data))
}

/// Writes channel data; over a stream it is padded to four bytes.
pub(super) fn write_channel(number: u16, data: &[u8], stream: bool) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("a datagram is shorter than 64 KiB");
    let mut bytes = Vec::with_capacity(4 + padded(data.len()));
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(data);
    if stream {
        bytes.resize(4 + padded(data.len()), 0);
    }
    bytes
}

/// Length of the message or frame at the beginning of a stream: `Ok(None)` = not known yet.
pub(super) fn frame_len(stream: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some((&[first, _, l0, l1], _)) = stream.split_first_chunk::<4>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    match first >> 6 {
        0 if length % 4 == 0 => Ok(Some(HEADER_LEN + length)),
        1 => Ok(Some(4 + padded(length))),
        _ => Err(Malformed::Header),
    }
}

fn read_attribute(bytes: &[u8], at: usize) -> Option<Attribute<'_>> {
    let (&[k0, k1, l0, l1], rest) = bytes.get(at..)?.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    (padded(length) <= rest.len()).then(|| (u16::from_be_bytes([k0, k1]), &rest[..length], at + 4))
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn address_mask(transaction: &[u8; 12]) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(transaction);
    mask
}

/// The HMAC over what precedes the attribute, with a length that ends behind it (RFC 8489 section 14.5).
fn integrity(key: &[u8], before: &[u8]) -> Hmac<Sha1> {
    let mut mac = Hmac::<Sha1>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(&before[..2]);
    mac.update(&length_up_to(before.len() + 4 + MAC_LEN));
    mac.update(&before[4..]);
    mac
}

/// CRC-32 (ITU V.42) over what precedes the attribute, with a length that ends behind it.
fn fingerprint(before: &[u8]) -> u32 {
    let length = length_up_to(before.len() + 8);
    let patched = before[..2].iter().chain(&length).chain(&before[4..]);
    let crc =
        patched.fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
            })
        });
    !crc ^ FINGERPRINT_XOR
}

fn length_up_to(end: usize) -> [u8; 2] {
    u16::try_from(end - HEADER_LEN).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests;
