//! Files of failed browser VMs that are kept for a look (`DEBUG_KEEP_FAILED_BROWSER_VMS`).

use std::{fs, io, path::PathBuf};

use polydev_core::ids::VmId;

use super::{Host, Inner};
use crate::{error::HostError, logs};

impl Host {
    /// Failed browser VMs of which files are kept.
    pub fn kept_failed(&self) -> Result<Vec<VmId>, HostError> {
        let dir = self.inner.failed_dir();
        match fs::read_dir(&dir) {
            Ok(entries) => {
                let names = entries.flatten().map(|entry| entry.file_name());
                Ok(names.filter_map(|name| name.to_str()?.parse().ok()).collect())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(HostError::os(format!("read {}", dir.display()))(error)),
        }
    }

    /// Removes a failed VM's kept files; none is fine. Its archived logs stay.
    pub fn forget_failed(&self, id: VmId) -> Result<(), HostError> {
        let dir = self.inner.failed_dir().join(id.to_string());
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(HostError::os(format!("remove {}", dir.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

impl Inner {
    /// Copies the plain files of the run directory; never what the guest wrote to its disk or memory.
    pub(super) fn keep_failed(&self, id: VmId) {
        let (from, to) = (self.places.vm(id), self.failed_dir().join(id.to_string()));
        if !from.exists() {
            return;
        }
        let copy = || -> io::Result<()> {
            fs::create_dir_all(&to)?;
            for entry in fs::read_dir(&from)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    fs::copy(entry.path(), to.join(entry.file_name()))?;
                }
            }
            logs::prune(&self.failed_dir(), self.config.log_vms_max)
        };
        if let Err(error) = copy() {
            tracing::warn!(vm.id = %id, %error, "run directory of a failed VM cannot be kept");
        }
    }

    fn failed_dir(&self) -> PathBuf {
        self.places.data.join("failed")
    }
}
