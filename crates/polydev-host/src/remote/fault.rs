//! Errors as they cross the socket: nothing of them is lost but the identity of the operating system's own error.

use std::{
    collections::BTreeSet,
    io,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name out of the program's own text, for example of a step.
pub(crate) type StaticName = &'static str;

/// Names that the other side may teach this process; it has a few dozen.
const NAMES_MAX: usize = 512;
/// Longest of them.
const NAME_MAX: usize = 64;

/// Reads a [`StaticName`]. Each is kept once, for ever, and there is an end to how many.
pub(crate) fn name<'de, D: Deserializer<'de>>(from: D) -> Result<StaticName, D::Error> {
    static NAMES: Mutex<BTreeSet<StaticName>> = Mutex::new(BTreeSet::new());
    let text = String::deserialize(from)?;
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(text.as_str()) {
        return Ok(known);
    }
    if names.len() >= NAMES_MAX || text.len() > NAME_MAX {
        return Ok("a step of another version");
    }
    let name = Box::leak(text.into_boxed_str());
    names.insert(name);
    Ok(name)
}

/// For `#[serde(with)]`: an error of the operating system, as its number or, without one, as kind and text.
pub(crate) mod os {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Wire {
        number: Option<i32>,
        /// Kinds that the programs tell apart.
        kind: Option<Kind>,
        text: String,
    }

    #[derive(Clone, Copy, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        NotFound,
        PermissionDenied,
        AlreadyExists,
        InvalidData,
        InvalidInput,
        TimedOut,
        UnexpectedEof,
        ResourceBusy,
        StorageFull,
        Unsupported,
    }

    const KINDS: [(io::ErrorKind, Kind); 10] = [
        (io::ErrorKind::NotFound, Kind::NotFound),
        (io::ErrorKind::PermissionDenied, Kind::PermissionDenied),
        (io::ErrorKind::AlreadyExists, Kind::AlreadyExists),
        (io::ErrorKind::InvalidData, Kind::InvalidData),
        (io::ErrorKind::InvalidInput, Kind::InvalidInput),
        (io::ErrorKind::TimedOut, Kind::TimedOut),
        (io::ErrorKind::UnexpectedEof, Kind::UnexpectedEof),
        (io::ErrorKind::ResourceBusy, Kind::ResourceBusy),
        (io::ErrorKind::StorageFull, Kind::StorageFull),
        (io::ErrorKind::Unsupported, Kind::Unsupported),
    ];

    pub(crate) fn serialize<S: Serializer>(error: &io::Error, to: S) -> Result<S::Ok, S::Error> {
        let kind = KINDS.iter().find(|(kind, _)| *kind == error.kind()).map(|(_, kind)| *kind);
        Wire { number: error.raw_os_error(), kind, text: error.to_string() }.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<io::Error, D::Error> {
        let Wire { number, kind, text } = Wire::deserialize(from)?;
        Ok(match (number, kind) {
            (Some(number), _) => io::Error::from_raw_os_error(number),
            (None, Some(kind)) => {
                let known = KINDS.iter().find(|(_, it)| *it as u8 == kind as u8);
                io::Error::new(known.map_or(io::ErrorKind::Other, |(kind, _)| *kind), text)
            }
            (None, None) => io::Error::other(text),
        })
    }
}

#[cfg(test)]
mod tests {
    use polydev_core::{
        ids::VmId,
        wire::{ErrorCode, Refusal},
    };
    use uuid::Uuid;

    use crate::{AgentError, HostError};

    #[test]
    fn every_error_reads_the_same_on_the_other_side() {
        let id = VmId::from_uuid(Uuid::nil());
        let refusal = Refusal { code: ErrorCode::Conflict, message: "FAKE words".into() };
        let agent = [
            AgentError::Refused { op: "start_login", refusal },
            AgentError::Closed,
            AgentError::TimedOut { op: "hello", limit_ms: 5000 },
            AgentError::Protocol { op: "identify" },
        ];
        let mut errors = vec![
            HostError::ImageMissing { dir: "/images".into() },
            HostError::ImageDamaged { id: "x".into(), what: "base".into() },
            HostError::DriverUnusable { driver: "qemu".into(), reason: "no".into() },
            HostError::NoSlot { total: 4 },
            HostError::NoSpace { what: "a record".into(), room: None },
            HostError::NoSuchVm(id),
            HostError::AlreadyExists(id),
            HostError::DiskInUse { by: id },
            HostError::StartFailed { id, step: "boot", detail: "FAKE last words".into() },
            HostError::AgentSilent { id, limit_ms: 7 },
            HostError::Os { op: "make x".into(), source: std::io::Error::from_raw_os_error(28) },
            HostError::Os { op: "make y".into(), source: std::io::ErrorKind::ResourceBusy.into() },
            HostError::Os { op: "make z".into(), source: std::io::Error::other("FAKE cause") },
            HostError::Unavailable { reason: "nobody listens".into() },
            HostError::Held { what: "a socket".into(), pid: Some(7) },
        ];
        errors.extend(agent.into_iter().map(|source| HostError::Identity { id, source }));
        for error in errors {
            let there = serde_json::to_vec(&error).unwrap();
            let back: HostError = serde_json::from_slice(&there).unwrap();
            assert_eq!(format!("{back}"), format!("{error}"));
            if let (HostError::Os { source: a, .. }, HostError::Os { source: b, .. }) = (&error, &back) {
                assert_eq!((a.kind(), a.raw_os_error()), (b.kind(), b.raw_os_error()));
            } else {
                assert_eq!(format!("{back:?}"), format!("{error:?}"));
            }
        }
    }
}
