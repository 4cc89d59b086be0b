//! Identifiers as types: a [`VmId`] cannot be passed where a [`SessionId`] is meant.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a UUID.
    #[error("{kind} must be a UUID")]
    NotUuid {
        /// Which identifier was expected.
        kind: &'static str,
    },
    /// A user id outside the allowed alphabet or length.
    #[error("a user id is 1 to 64 characters of [A-Za-z0-9._@-], not starting with a dot")]
    BadUserId,
    /// A provider id outside the allowed alphabet or length.
    #[error("a provider id is 1 to 32 characters of [a-z0-9_-], starting with a letter")]
    BadProviderId,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps random bits the caller drew; this crate has no source of randomness of its own.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }
            /// The bits.
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Uuid::parse_str(s).map(Self).map_err(|_| IdError::NotUuid { kind: $kind })
            }
        }
    };
}

uuid_id!(
    /// One VM, browser or CLI.
    VmId, "a VM id"
);
uuid_id!(
    /// One sign-in attempt.
    SessionId, "a session id"
);
uuid_id!(
    /// One stored credential record.
    CredentialId, "a credential id"
);

impl VmId {
    /// First eight hex digits: for names with a length limit (links, cgroups, sockets) and for log lines.
    pub fn short(&self) -> String {
        let mut hex = self.0.simple().to_string();
        hex.truncate(8);
        hex
    }
}

/// A caller's name for a person. Never used as a path: directories are named from a hash of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserId(String);

impl UserId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '@' | '-');
        if s.is_empty() || s.len() > 64 || s.starts_with('.') || !s.chars().all(ok) {
            return Err(IdError::BadUserId);
        }
        Ok(Self(s.to_owned()))
    }
}

/// A provider's canonical id (`codex`, `claude`, ...); aliases are resolved before one of these exists.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProviderId(String);

impl ProviderId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ProviderId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
        if s.len() > 32 || !s.starts_with(|c: char| c.is_ascii_lowercase()) || !s.chars().all(ok) {
            return Err(IdError::BadProviderId);
        }
        Ok(Self(s.to_owned()))
    }
}

macro_rules! text_id {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                s.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}
text_id!(UserId);
text_id!(ProviderId);

/// A host's reusable place for a VM, 1..=253. The host-visible address is `192.168.100.(slot + 1)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Slot(u8);

impl Slot {
    /// Highest slot index.
    pub const MAX: u8 = 253;

    /// `None` outside 1..=253.
    pub const fn new(index: u8) -> Option<Self> {
        if index >= 1 && index <= Self::MAX { Some(Self(index)) } else { None }
    }
    /// The index, 1..=253.
    pub const fn index(self) -> u8 {
        self.0
    }
    /// The address by which the API names this slot's VM.
    pub const fn address(self) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::new(192, 168, 100, self.0 + 1)
    }
}

impl TryFrom<u8> for Slot {
    type Error = &'static str;
    fn try_from(index: u8) -> Result<Self, Self::Error> {
        Self::new(index).ok_or("a slot is 1 to 253")
    }
}

impl From<Slot> for u8 {
    fn from(slot: Slot) -> u8 {
        slot.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_with_path_characters_are_refused() {
        for bad in ["", ".", "..", "../etc", "a/b", "a\\b", "a\0b", "a b", &"x".repeat(65)] {
            assert_eq!(bad.parse::<UserId>(), Err(IdError::BadUserId), "{bad:?}");
        }
        for good in ["alice", "a.b@example.org", "6a1fd5a5-0a8e-4b5e-9a53-1f0a7a8a3f6e"] {
            assert_eq!(good.parse::<UserId>().expect(good).as_str(), good);
        }
    }

    #[test]
    fn slots_cover_the_whole_address_range_and_no_more() {
        assert_eq!(Slot::new(0), None);
        assert_eq!(Slot::new(254), None);
        assert_eq!(Slot::new(1).map(Slot::address), Some([192, 168, 100, 2].into()));
        assert_eq!(Slot::new(253).map(Slot::address), Some([192, 168, 100, 254].into()));
    }
}
