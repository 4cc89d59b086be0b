//! VM records: what a later process needs to find and remove a VM. Written durably before anything else is made.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use polydev_core::{
    ids::{Slot, VmId},
    wire::Identity,
};
use serde::{Deserialize, Serialize};

use crate::{
    config::NetworkMode,
    error::HostError,
    host::VmKind,
    process::{self, ProcessIdentity},
};

/// Format of the file.
const SCHEMA: u32 = 1;
/// Extension of a file that is being written.
const UNFINISHED: &str = "tmp";

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
    /// What is being done with it.
    #[serde(default)]
    pub phase: Phase,
    /// What it is when nothing is being done with it.
    #[serde(default)]
    pub state: VmState,
    /// The boot of the host in which the record was made, as the kernel names it. Missing in older records.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// Its main process, once that was started.
    #[serde(default)]
    pub process: Option<ProcessIdentity>,
    /// What its agent was last told it is, without the entropy; told again when it wakes.
    #[serde(default)]
    pub identity: Option<Identity>,
    /// How its traffic gets to the host. Missing in older records, which are of VMs without a device.
    #[serde(default)]
    pub network: NetworkMode,
}

/// What is being done with a VM: written before the step, so a later process knows what may be half done.
///
/// ```text
/// creating ─▶ starting ─▶ running ─▶ hibernating ─▶ running (state: hibernated) ─▶ resuming ─▶ running
///     └───────────┴──────────┴────────────┴───────── destroying ◀─────┴────────────────┘
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its resources are being made.
    Creating,
    /// Its process was started; the agent has not taken its identity.
    Starting,
    /// Nothing: the VM is what [`VmRecord::state`] says. Records of before there were phases read as this.
    #[default]
    Running,
    /// It is being saved or frozen.
    Hibernating,
    /// It is being woken.
    Resuming,
    /// It is being removed; nothing brings it back.
    Destroying,
}

/// What a VM is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Somebody's.
    #[default]
    Active,
    /// Nobody's yet: it waits in the pool.
    Warm,
    /// Somebody's, standing still as it is until the host's disk has room again.
    Paused,
    /// Somebody's, asleep.
    Hibernated,
}

impl VmRecord {
    /// The version this program writes.
    pub(crate) const SCHEMA: u32 = SCHEMA;

    /// Whether the host has been started anew since: no process of that time can still be there.
    pub(crate) fn is_of_an_earlier_boot(&self) -> bool {
        self.boot_id.as_deref().is_some_and(|boot_id| boot_id != process::boot_id())
    }

    /// Whether a process that was found can be the VM's: nothing is known of it yet, or it is the very one.
    pub(crate) fn process_is_the_one(&self) -> bool {
        self.process.as_ref().is_none_or(ProcessIdentity::is_running)
    }
}

/// The directory of records.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    /// Opens the directory, making it if needed. Removes what an earlier process had not finished writing: later, nobody
    /// could tell that from a record that is just being written.
    pub(crate) fn open(dir: PathBuf) -> Result<Self, HostError> {
        fs::create_dir_all(&dir).map_err(HostError::os(format!("make {}", dir.display())))?;
        let remove_unfinished = || -> io::Result<()> {
            for entry in fs::read_dir(&dir)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == UNFINISHED) {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        };
        remove_unfinished().map_err(HostError::os(format!("clear up {}", dir.display())))?;
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
    let temporary = path.with_extension(UNFINISHED);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_process_had_not_finished_writing_is_gone_and_records_are_not() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.tmp", "a.json"] {
            fs::write(dir.path().join(name), "half").unwrap();
        }
        Records::open(dir.path().to_owned()).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["a.json"]);
    }

    #[test]
    fn a_record_of_before_there_were_phases_reads_as_a_running_active_vm() {
        let old = r#"{"schema":1,"id":"7d444840-9dc0-11d1-b245-5ffdce74fad2","kind":{"kind":"browser"},"slot":3,
            "driver":"container","image":"sha","vcpus":2,"memory_mib":1024,"hostname":"vm-7d444840"}"#;
        let record: VmRecord = serde_json::from_str(old).unwrap();
        assert_eq!(
            (record.phase, record.state, record.process.as_ref()),
            (Phase::Running, VmState::Active, None)
        );
        assert!(!record.is_of_an_earlier_boot() && record.process_is_the_one());
        let again = serde_json::from_slice(&serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(record, again);
        assert!(VmRecord { boot_id: Some("another".to_owned()), ..record }.is_of_an_earlier_boot());
    }
}
