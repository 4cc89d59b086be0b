//! Firecracker: its HTTP API over a unix socket, and one process of it from start to end.
//!
//! Only what polydev uses of the API is here, with the field names of its description (`firecracker.yaml`, 1.16.1).

mod api;
pub(crate) mod exit;
pub(crate) mod home;
mod http;
pub(crate) mod jail;
mod model;
pub(crate) mod program;
mod settings;
pub mod toy;
pub mod vmm;

pub(crate) use api::connect;
pub use api::{Api, ApiError};
pub use model::{
    Action, Backend, BackendType, Balloon, BalloonStats, BalloonTarget, BootSource, Drive, DriveLimits,
    Entropy, HugePages, InstanceInfo, InstanceState, LoadSnapshot, Logger, MachineConfig, Metrics,
    NetworkInterface, NetworkLimits, NetworkOverride, RateLimiter, Serial, SnapshotKind, TakeSnapshot,
    TokenBucket, VmState, Vsock, VsockOverride,
};

pub use settings::FirecrackerConfig;

/// The oldest Firecracker that works: earlier ones corrupt diff snapshots of large VMs (< 1.15), cannot move a
/// vsock at restore (< 1.16) or lose connections of the guest after it (< 1.16.1).
pub const VERSION_MIN: [u32; 3] = [1, 16, 1];

/// Why a Firecracker is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Too old.
    #[error("firecracker {0} is too old: 1.16.1 or later is needed")]
    TooOld(String),
    /// Says nothing that looks like a version.
    #[error("firecracker names no version: {0}")]
    Unreadable(String),
}

/// Checks a version as `GET /version` or `firecracker --version` words it.
pub fn check_version(text: &str) -> Result<[u32; 3], VersionError> {
    let unreadable = || VersionError::Unreadable(text.chars().take(80).collect());
    let word = text
        .split_whitespace()
        .find(|word| word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()));
    let numbers = word.ok_or_else(unreadable)?.trim_start_matches('v');
    // A suffix marks a build before that release.
    let (numbers, before) = numbers.split_once('-').map_or((numbers, false), |(numbers, _)| (numbers, true));
    let mut parts = numbers.split('.').map(str::parse::<u32>);
    let mut next = || parts.next().and_then(Result::ok).ok_or_else(unreadable);
    let version = [next()?, next()?, next()?];
    if version < VERSION_MIN || (version == VERSION_MIN && before) {
        return Err(VersionError::TooOld(numbers.to_owned()));
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_lack_what_polydev_needs_are_refused() {
        assert_eq!(check_version("1.16.1"), Ok([1, 16, 1]));
        assert_eq!(
            check_version("Firecracker v1.17.0\n\nSupported snapshot data format versions: v8.0.0"),
            Ok([1, 17, 0])
        );
        assert_eq!(check_version("v2.0.0-dev"), Ok([2, 0, 0]));
        assert_eq!(check_version("1.16.0"), Err(VersionError::TooOld("1.16.0".into())));
        assert_eq!(check_version("1.16.1-dev"), Err(VersionError::TooOld("1.16.1".into())));
        for text in ["", "Firecracker", "1.16", "v1.x.2"] {
            assert!(matches!(check_version(text), Err(VersionError::Unreadable(_))), "{text}");
        }
    }
}
