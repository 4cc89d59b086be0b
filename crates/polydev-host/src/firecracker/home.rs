//! A VMM's directory: what it sees of the host, and where the host finds it and its process again.
//!
//! Without a jail the VMM's working directory is the VM's run directory, and what it uses is linked there. With one, it
//! is the jail, to which a link in the run directory points. In both every path the VMM is given is the same short
//! name: unix socket addresses are short, and paths are kept in snapshots.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
};

use polydev_core::ids::VmId;

use super::jail::{self, JAIL_LINK};
use crate::{
    driver::PROCESS,
    process::{self, ProcessId},
};

/// Firecracker's API, in the VMM's directory.
pub(super) const API_SOCKET: &str = "api.sock";
/// The guest's vsock from outside, in the VMM's directory.
pub(crate) const VSOCK: &str = "v.sock";

/// Where a VM lives and whose it is.
#[derive(Debug, Clone)]
pub struct Home {
    /// The VM.
    pub id: VmId,
    /// Its run directory; made by the caller, and nobody else's to write to.
    pub dir: PathBuf,
    /// Which host on this machine it belongs to.
    pub instance: String,
}

/// Something of the host that a VMM may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// How the VMM names it.
    pub name: String,
    /// The file or directory.
    pub source: PathBuf,
    /// Whether it may write to it.
    pub writable: bool,
}

impl Item {
    /// Something to read.
    pub fn read(name: impl Into<String>, source: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), source: source.into(), writable: false }
    }

    /// Something to read and write.
    pub fn write(name: impl Into<String>, source: impl Into<PathBuf>) -> Self {
        Self { writable: true, ..Self::read(name, source) }
    }
}

impl Home {
    /// The VMM's working directory, as the host sees it.
    pub fn root(&self) -> PathBuf {
        let jail = self.dir.join(JAIL_LINK);
        if jail.is_symlink() { jail } else { self.dir.clone() }
    }

    /// Takes away what an earlier process of this VM left in the way of the next one. No process of it may live.
    pub(crate) fn clear(&self) -> io::Result<()> {
        jail::clear(&self.dir)?;
        for name in [API_SOCKET, VSOCK, PROCESS] {
            remove(&self.dir.join(name))?;
        }
        Ok(())
    }

    /// Links what the VMM uses into its directory.
    pub(super) fn link(&self, items: &[Item]) -> io::Result<()> {
        for item in items {
            let name = self.dir.join(&item.name);
            if name.is_symlink() {
                fs::remove_file(&name)?;
            }
            symlink(&item.source, name)?;
        }
        Ok(())
    }

    /// The VM's processes: until a jail has been entered by their environment, from then on by their root directory.
    ///
    /// Looked for in the order in which a process goes from the one to the other, so none is overlooked.
    pub(crate) fn processes(&self) -> io::Result<Vec<ProcessId>> {
        let mut found = process::of_vm(&self.instance, self.id)?;
        if let Ok(root) = fs::metadata(self.dir.join(JAIL_LINK)) {
            for process in rooted_in((root.dev(), root.ino()))? {
                if !found.contains(&process) {
                    found.push(process);
                }
            }
        }
        Ok(found)
    }

    /// The VM's main process, if it lives.
    pub(crate) fn process(&self) -> io::Result<Option<ProcessId>> {
        if let Some(noted) = ProcessId::read(&self.dir.join(PROCESS)).filter(|process| process.alive()) {
            return Ok(Some(noted));
        }
        Ok(self.processes()?.into_iter().next())
    }
}

/// Removes a file; none is fine.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Processes whose root directory this is.
fn rooted_in(root: (u64, u64)) -> io::Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let here = fs::metadata(format!("/proc/{pid}/root")).is_ok_and(|it| (it.dev(), it.ino()) == root);
        if here && let Some(process) = ProcessId::of(pid) {
            found.push(process);
        }
    }
    Ok(found)
}
