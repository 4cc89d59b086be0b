//! Finds everything this host ever made on the machine, and removes what nobody wants.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
};

use polydev_core::{ids::VmId, vm::Process};

use super::{Inner, ReclaimReport, SeenVm};
use crate::{error::HostError, mounts, record::VmRecord};

impl Inner {
    pub(super) fn list(&self) -> Result<Vec<SeenVm>, HostError> {
        let mut seen = Vec::new();
        for (id, record) in self.known()? {
            // Without any record nobody can say what it was; it is reclaimed, not shown.
            let Some(record) = record else { continue };
            let running = self.driver_of(&record).process(id, &self.places.vm(id))? == Process::Alive;
            seen.push(SeenVm { id, kind: record.kind, slot: record.slot, running });
        }
        Ok(seen)
    }

    pub(super) async fn reclaim(&self, wanted: &HashSet<VmId>) -> Result<ReclaimReport, HostError> {
        let mut report = ReclaimReport::default();
        let mut first_error = None;
        for (id, _) in self.known()? {
            if wanted.contains(&id) {
                continue;
            }
            match self.destroy(id, false).await {
                Ok(()) => report.destroyed.push(id),
                // One VM that resists must not keep the others alive.
                Err(error) => {
                    tracing::error!(vm.id = %id, %error, "VM cannot be reclaimed");
                    first_error.get_or_insert(error);
                }
            }
        }
        self.sweep(&mut report.swept)?;
        match first_error {
            Some(error) => Err(error),
            None => Ok(report),
        }
    }

    /// Every VM with a record, a run directory, mounts, or traces known to a driver.
    fn known(&self) -> Result<BTreeMap<VmId, Option<VmRecord>>, HostError> {
        let mut known: BTreeMap<_, _> =
            self.records.all()?.into_iter().map(|record| (record.id, Some(record))).collect();
        let vms = self.places.run.join("vm");
        let names = |dir: &std::path::Path| dir.file_name()?.to_str()?.parse::<VmId>().ok();
        let mut ids: Vec<VmId> = Vec::new();
        let entries = fs::read_dir(&vms).map_err(HostError::os(format!("read {}", vms.display())))?;
        ids.extend(entries.flatten().filter_map(|entry| names(&entry.path())));
        for driver in &self.drivers {
            ids.extend(driver.traces()?);
        }
        for id in ids {
            known.entry(id).or_insert_with(|| self.record_of(id));
        }
        Ok(known)
    }

    /// Removes what belongs to no VM: unfinished probes and files that are no VM's.
    fn sweep(&self, swept: &mut Vec<String>) -> Result<(), HostError> {
        let read = |dir: &std::path::Path| -> Vec<_> {
            fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        let name =
            |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let probes = read(&self.places.run).into_iter().filter(|path| name(path).starts_with("probe-"));
        let strays =
            read(&self.places.run.join("vm")).into_iter().filter(|path| name(path).parse::<VmId>().is_err());
        for path in probes.chain(strays) {
            mounts::unmount_under(&path)?;
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(HostError::os(format!("remove {}", path.display())))?;
            swept.push(path.display().to_string());
        }
        let unfinished = read(&self.places.data.join("vms"));
        for path in unfinished.into_iter().filter(|path| path.extension().is_some_and(|it| it == "tmp")) {
            fs::remove_file(&path).map_err(HostError::os(format!("remove {}", path.display())))?;
            swept.push(path.display().to_string());
        }
        Ok(())
    }
}
