//! VM records: what a later process needs to find and remove a VM. Written durably before anything else is made.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use polydev_core::ids::{Slot, VmId};
use serde::{Deserialize, Serialize};

use crate::{error::HostError, host::VmKind};

/// Format of the file.
const SCHEMA: u32 = 1;

/// One VM's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Version of this format.
    pub schema: u32,
    /// The VM.
    pub id: VmId,
    /// What it is for.
    pub kind: VmKind,
    /// Its place.
    pub slot: Slot,
    /// Driver that runs it.
    pub driver: String,
    /// Golden image it runs.
    pub image: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Host name; a container's is set from outside.
    pub hostname: String,
}

impl VmRecord {
    /// The version this program writes.
    pub(crate) const SCHEMA: u32 = SCHEMA;
}

/// The directory of records.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    /// Opens the directory, making it if needed.
    pub(crate) fn open(dir: PathBuf) -> Result<Self, HostError> {
        fs::create_dir_all(&dir).map_err(HostError::os(format!("make {}", dir.display())))?;
        Ok(Self { dir })
    }

    /// Writes a record; it survives a power failure from here on.
    pub(crate) fn write(&self, record: &VmRecord) -> Result<(), HostError> {
        let path = self.path(record.id);
        write_durably(&path, &serde_json::to_vec_pretty(record).expect("a record is always JSON"))
            .map_err(HostError::os(format!("write VM record {}", path.display())))
    }

    /// Removes a record; none is fine.
    pub(crate) fn remove(&self, id: VmId) -> Result<(), HostError> {
        let path = self.path(id);
        match fs::remove_file(&path).and_then(|()| File::open(&self.dir)?.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(HostError::os(format!("remove VM record {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// The record of one VM.
    pub(crate) fn read(&self, id: VmId) -> Option<VmRecord> {
        read_file(&self.path(id))
    }

    /// All records. Files that are no record are named in the log and left alone.
    pub(crate) fn all(&self) -> Result<Vec<VmRecord>, HostError> {
        let read = || -> io::Result<Vec<VmRecord>> {
            let mut records = Vec::new();
            for entry in fs::read_dir(&self.dir)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "json") {
                    match read_file(&path) {
                        Some(record) => records.push(record),
                        None => tracing::warn!(path = %path.display(), "not a VM record of this version"),
                    }
                }
            }
            Ok(records)
        };
        read().map_err(HostError::os(format!("read VM records in {}", self.dir.display())))
    }

    fn path(&self, id: VmId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

/// Reads a record from any place.
pub(crate) fn read_file(path: &Path) -> Option<VmRecord> {
    let record: VmRecord = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (record.schema == SCHEMA).then_some(record)
}

/// Replaces a file so that either the old or the new content is there, even after a power failure.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = path.with_extension("tmp");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let replaced =
        written.and_then(|()| fs::rename(&temporary, path)).and_then(|()| File::open(dir)?.sync_all());
    if replaced.is_err() {
        // Half a file helps nobody; on a full disk its space does.
        let _ = fs::remove_file(&temporary);
    }
    replaced
}
