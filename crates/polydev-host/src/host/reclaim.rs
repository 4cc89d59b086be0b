//! Finds everything this host ever made on the machine, and removes what nobody wants.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
};

use futures::{StreamExt as _, stream};
use polydev_core::{ids::VmId, vm::Process};

use super::{Inner, ReclaimReport, SeenVm};
use crate::{
    error::HostError,
    failpoint, mounts, process,
    record::{Phase, VmRecord, VmState},
};

/// Most VMs that are removed at one time.
const DESTROY_AT_ONCE: usize = 16;
/// Most looks for VMs that nobody wants: a program that was launching one when its host was killed may show up late, and
/// be in the way of what the look before it removes.
const LOOKS_MAX: usize = 3;

impl Inner {
    pub(super) async fn list(&self) -> Result<Vec<SeenVm>, HostError> {
        self.with_one_look(async { self.seen() }).await
    }

    fn seen(&self) -> Result<Vec<SeenVm>, HostError> {
        let mut seen = Vec::new();
        for (id, record) in self.known()? {
            // Without any record nobody can say what it was; it is reclaimed, not shown.
            let Some(record) = record else { continue };
            let settled = record.phase == Phase::Running && record.process_is_the_one();
            let running =
                settled && self.driver_of(&record).process(id, &self.places.vm(id))? == Process::Alive;
            seen.push(SeenVm { id, kind: record.kind, slot: record.slot, running });
        }
        Ok(seen)
    }

    pub(super) async fn reclaim(&self, wanted: &HashSet<VmId>) -> Result<ReclaimReport, HostError> {
        let mut report = ReclaimReport::default();
        let mut first_error = None;
        for _ in 0..LOOKS_MAX {
            // What resisted is found again, and with it the process that was not seen yet.
            first_error = None;
            let found = self.with_one_look(self.reclaim_once(wanted, &mut report, &mut first_error)).await?;
            if !found {
                break;
            }
        }
        if !report.earlier_boot.is_empty() {
            tracing::warn!(
                vms = report.earlier_boot.len(),
                "the machine was started anew: its VMs of before are gone"
            );
        }
        failpoint::reach("reclaim/before-sweep");
        self.sweep(&mut report.swept)?;
        match self.networks.sweep().await {
            Ok(swept) => report.swept.extend(swept),
            Err(error) => tracing::error!(%error, "networks of slots without VMs cannot be removed"),
        }
        failpoint::reach("reclaim/swept");
        match first_error {
            Some(error) => Err(error),
            None => Ok(report),
        }
    }

    /// Whether anything was found that nobody wants.
    async fn reclaim_once(
        &self,
        wanted: &HashSet<VmId>,
        report: &mut ReclaimReport,
        first_error: &mut Option<HostError>,
    ) -> Result<bool, HostError> {
        let doomed = |(id, record): (VmId, Option<VmRecord>)| {
            let ended = record.as_ref().is_some_and(ended_with_its_boot);
            let leaving = record.as_ref().is_some_and(|record| record.phase == Phase::Destroying);
            let in_pool = record.as_ref().is_some_and(|record| record.state == VmState::Warm);
            (ended || leaving || !(wanted.contains(&id) || in_pool)).then_some((id, ended))
        };
        let doomed: Vec<_> = self.known()?.into_iter().filter_map(doomed).collect();
        let found = !doomed.is_empty();
        let mut work = stream::iter(doomed)
            .map(|(id, ended)| async move { (id, ended, self.destroy(id, false).await) })
            .buffer_unordered(DESTROY_AT_ONCE);
        while let Some((id, ended, result)) = work.next().await {
            match result {
                Ok(()) if ended => report.earlier_boot.push(id),
                Ok(()) => report.destroyed.push(id),
                // One VM that resists must not keep the others alive.
                Err(error) => {
                    tracing::warn!(vm.id = %id, %error, "VM cannot be reclaimed yet");
                    first_error.get_or_insert(error);
                }
            }
        }
        Ok(found)
    }

    /// Runs work on many VMs with one look at the process table.
    async fn with_one_look<T>(
        &self,
        work: impl Future<Output = Result<T, HostError>>,
    ) -> Result<T, HostError> {
        process::with_snapshot(&self.places.instance, work)
            .await
            .map_err(HostError::os("read the process table"))?
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
        Ok(())
    }
}

/// Whether a VM cannot be there any more because the machine was started anew. One that sleeps on disk can, and one that
/// was being put to sleep.
fn ended_with_its_boot(record: &VmRecord) -> bool {
    let on_disk = record.state == VmState::Hibernated || record.phase == Phase::Hibernating;
    record.is_of_an_earlier_boot() && !on_disk
}
