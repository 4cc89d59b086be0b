//! Writes a STUN message.

use std::net::{IpAddr, SocketAddr};

use hmac::Mac;

use super::{Class, HEADER_LEN, Message, address_mask, attribute, fingerprint, integrity, padded};

/// A message in the making.
#[derive(Debug)]
pub(in super::super) struct Builder {
    bytes: Vec<u8>,
    transaction: [u8; 12],
}

impl Builder {
    pub(in super::super) fn new(class: Class, method: u16, transaction: [u8; 12]) -> Self {
        let class = match class {
            Class::Request => 0x0000,
            Class::Indication => 0x0010,
            Class::Success => 0x0100,
            Class::Error => 0x0110,
        };
        let kind: u16 = class | (method & 0x000f) | ((method & 0x0070) << 1) | ((method & 0x0f80) << 2);
        let mut bytes = Vec::with_capacity(160);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&super::COOKIE.to_be_bytes());
        bytes.extend_from_slice(&transaction);
        Self { bytes, transaction }
    }

    /// The good answer to a request.
    pub(in super::super) fn success(request: &Message<'_>) -> Self {
        Self::new(Class::Success, request.method, request.transaction)
    }

    /// The bad answer to a request. The reason phrase is for people who read packets.
    pub(in super::super) fn error(request: &Message<'_>, code: u16, reason: &str) -> Self {
        let mut value = vec![0, 0];
        // Class is the hundreds (3 to 6), number the rest (RFC 8489 section 14.8).
        value.extend([code / 100, code % 100].map(|digits| u8::try_from(digits).unwrap_or_default()));
        value.extend_from_slice(reason.as_bytes());
        Self::new(Class::Error, request.method, request.transaction).with(attribute::ERROR_CODE, &value)
    }

    pub(in super::super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len()).expect("an attribute is shorter than 64 KiB");
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(padded(self.bytes.len()), 0);
        self
    }

    /// RFC 8489 section 14.2, written.
    pub(in super::super) fn with_address(self, kind: u16, address: SocketAddr) -> Self {
        let mask = address_mask(&self.transaction);
        let (family, octets) = match address.ip() {
            IpAddr::V4(ip) => (1, ip.octets().to_vec()),
            IpAddr::V6(ip) => (2, ip.octets().to_vec()),
        };
        let mut value = vec![0, family];
        value.extend(address.port().to_be_bytes().iter().zip(mask).map(|(byte, mask)| byte ^ mask));
        value.extend(octets.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
        self.with(kind, &value)
    }

    /// Ends it: signed when there is a key, with a fingerprint when asked for.
    pub(in super::super) fn finish(mut self, key: Option<&[u8]>, with_fingerprint: bool) -> Vec<u8> {
        if let Some(key) = key {
            let mac = integrity(key, &self.bytes).finalize().into_bytes();
            self = self.with(attribute::MESSAGE_INTEGRITY, &mac);
        }
        if with_fingerprint {
            let crc = fingerprint(&self.bytes).to_be_bytes();
            self = self.with(attribute::FINGERPRINT, &crc);
        }
        let length = u16::try_from(self.bytes.len() - HEADER_LEN).expect("a message is shorter than 64 KiB");
        self.bytes[2..4].copy_from_slice(&length.to_be_bytes());
        self.bytes
    }
}
