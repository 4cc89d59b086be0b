//! The installed programs: found, asked for their version once, and asked again only when they were replaced.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::Mutex;

use super::{VERSION_MIN, VersionError, check_version};
use crate::{
    command::{command, run},
    error::HostError,
};

const VERSION_LIMIT: Duration = Duration::from_secs(5);

/// Why a program is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// Not there.
    #[error(
        "no {path}; install firecracker {} or later there, or name its place in `vms.firecracker`",
        version(VERSION_MIN)
    )]
    Missing {
        /// Where it was looked for.
        path: String,
    },
    /// There, and cannot be run.
    #[error("{path} does not run: {reason}")]
    Broken {
        /// Where it is.
        path: String,
        /// What happened.
        reason: String,
    },
    /// Both are of one release.
    #[error("{path} is version {found}, firecracker is {wanted}: install both of one release")]
    Differ {
        /// The jailer.
        path: String,
        /// Its version.
        found: String,
        /// Firecracker's.
        wanted: String,
    },
    /// Too old, or no firecracker at all.
    #[error("{path}: {source}")]
    Version {
        /// Where it is.
        path: String,
        /// What it said.
        source: VersionError,
    },
}

impl ProgramError {
    pub(crate) fn differ(jailer: &Program, firecracker: &Program) -> Self {
        let (found, wanted) = (version(jailer.version), version(firecracker.version));
        Self::Differ { path: jailer.path.display().to_string(), found, wanted }
    }
}

/// A checked program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its version.
    pub version: [u32; 3],
    stamp: Stamp,
}

/// Tells a program's file from one that replaced it: device, inode, size and time of the last change in nanoseconds.
type Stamp = (u64, u64, u64, i128);

impl Program {
    /// Asks the program for its version.
    pub async fn check(path: &Path) -> Result<Self, ProgramError> {
        let named = || path.display().to_string();
        let broken = |reason: String| ProgramError::Broken { path: named(), reason };
        let stamp = match fs::metadata(path) {
            Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => stamp(&file),
            Ok(_) => return Err(broken("it is no program".to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ProgramError::Missing { path: named() });
            }
            Err(error) => return Err(broken(error.to_string())),
        };
        let mut ask = command(path);
        ask.arg("--version");
        let said = run(ask, "ask for the version", VERSION_LIMIT).await;
        let said = said.map_err(|error| match error {
            HostError::Os { source, .. } => broken(source.to_string()),
            error => broken(error.to_string()),
        })?;
        let version =
            check_version(&said).map_err(|source| ProgramError::Version { path: named(), source })?;
        Ok(Self { path: path.to_owned(), version, stamp })
    }

    /// Changes with the file: what depends on this build is not used with another.
    pub(crate) fn stamp(&self) -> impl serde::Serialize + use<> {
        let (device, inode, size, modified_ns) = self.stamp;
        (device, inode, size, modified_ns.to_string())
    }
}

/// A program that is checked when it is first needed, and again when its file has changed.
#[derive(Debug)]
pub(crate) struct Checked {
    path: PathBuf,
    last: Mutex<Option<Program>>,
}

impl Checked {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, last: Mutex::default() }
    }

    pub(crate) async fn get(&self) -> Result<Program, ProgramError> {
        let mut last = self.last.lock().await;
        let now = fs::metadata(&self.path).ok().map(|file| stamp(&file));
        match &*last {
            Some(program) if Some(program.stamp) == now => Ok(program.clone()),
            _ => {
                *last = None;
                Ok(last.insert(Program::check(&self.path).await?).clone())
            }
        }
    }
}

pub(super) fn version([major, minor, patch]: [u32; 3]) -> String {
    format!("{major}.{minor}.{patch}")
}

fn stamp(file: &fs::Metadata) -> Stamp {
    let modified_ns = i128::from(file.mtime()) * 1_000_000_000 + i128::from(file.mtime_nsec());
    (file.dev(), file.ino(), file.len(), modified_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(path: &Path, said: &str) {
        // A new file under the old name, as a package manager does it: the inode changes.
        let fresh = path.with_extension("new");
        fs::write(&fresh, format!("#!/bin/sh\necho run >> {}.runs\necho {said}\n", path.display())).unwrap();
        fs::set_permissions(&fresh, PermissionsExt::from_mode(0o755)).unwrap();
        fs::rename(fresh, path).unwrap();
    }

    #[tokio::test]
    async fn a_program_is_asked_once_and_again_after_it_was_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("firecracker");
        let runs =
            || fs::read_to_string(dir.path().join("firecracker.runs")).map_or(0, |it| it.lines().count());
        let checked = Checked::new(path.clone());
        assert!(matches!(checked.get().await, Err(ProgramError::Missing { .. })));
        install(&path, "Firecracker v1.16.1");
        for _ in 0..3 {
            assert_eq!(checked.get().await.unwrap().version, [1, 16, 1]);
        }
        assert_eq!(runs(), 1);
        install(&path, "Firecracker v1.15.0");
        let old = checked.get().await.unwrap_err();
        assert_eq!(
            old.to_string(),
            format!("{}: firecracker 1.15.0 is too old: 1.16.1 or later is needed", path.display())
        );
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(checked.get().await, Err(ProgramError::Broken { .. })));
    }
}
