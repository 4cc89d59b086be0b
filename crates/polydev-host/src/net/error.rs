//! Why a slot has no network.

use std::{io, path::PathBuf};

/// Why a slot has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The process may not make namespaces or devices.
    #[error("{op}: not permitted; network mode `tap` needs root or CAP_NET_ADMIN and CAP_SYS_ADMIN")]
    NotPermitted {
        /// What was tried.
        op: String,
    },
    /// The machine has no TUN driver.
    #[error("no /dev/net/tun; load the kernel's module `tun`, or use network mode `channel`")]
    NoTun,
    /// The slot's TAP is in use, so a VM of before still runs in it.
    #[error("{tap} of slot {slot} is in use by another process")]
    TapInUse {
        /// The device.
        tap: &'static str,
        /// Whose.
        slot: u8,
    },
    /// No memory, no space or no room in a table of the kernel.
    #[error("{op}: no room left on this machine")]
    NoRoom {
        /// What was tried.
        op: String,
    },
    /// The slot's namespace has no name, or its name has lost its mount.
    #[error("{} names no network namespace: it went with the mounts of an earlier manager", path.display())]
    NoNamespace {
        /// Where the name should be.
        path: PathBuf,
    },
    /// A port of the gateway is taken in the slot's namespace.
    #[error("{op}: {source}")]
    Os {
        /// What was tried.
        op: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl NetworkError {
    /// For `map_err`: names the operation, and tells what a person can act on from other faults.
    pub(crate) fn os<E: Into<io::Error>>(op: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| {
            let (op, source) = (op.into(), source.into());
            match source.kind() {
                io::ErrorKind::PermissionDenied => Self::NotPermitted { op },
                io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory | io::ErrorKind::QuotaExceeded => {
                    Self::NoRoom { op }
                }
                _ => Self::Os { op, source },
            }
        }
    }
}
