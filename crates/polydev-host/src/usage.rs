//! What VMs take of the machine. Sampled in the background, so that asking for it costs nothing and a scraper cannot
//! make the host busy.

mod phases;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use polydev_core::ids::VmId;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

pub use self::phases::PhaseFigures;
pub(crate) use self::phases::{Phases, Start, Watch};
use crate::{
    driver::{
        Places,
        firecracker::{self, figures},
        user_disk::DISK,
    },
    egress::EgressUsage,
    host::VmKind,
    process,
    record::{Records, VmRecord, VmState},
};

/// How often a sample is taken.
const EVERY: Duration = Duration::from_secs(10);
/// How old the sum of a VM's processes' memory may become. A browser's costs some 50 ms.
const PSS_EVERY: Duration = Duration::from_secs(60);
/// Most time per round for adding up processes' memory: the kernel walks their page tables. What is left over comes
/// first in the next round.
const PSS_BUDGET: Duration = Duration::from_millis(300);
/// Most processes of one VM that are looked at.
const PROCESSES_MAX: usize = 256;

/// What one VM takes, and took since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmUsage {
    /// For a browser; otherwise for a CLI.
    pub browser: bool,
    /// Memory charged to the VM's control group now, page cache included.
    pub memory_bytes: u64,
    /// Memory of its processes, of shared pages their share (PSS); `None` until it was added up.
    pub pss_bytes: Option<u64>,
    /// CPU time in microseconds.
    pub cpu_us: u64,
    /// Read from block devices.
    pub disk_read_bytes: u64,
    /// Written to block devices.
    pub disk_written_bytes: u64,
    /// What the user's disk takes on the host's; zero for a browser VM.
    pub workspace_bytes: u64,
    /// It stands still until the disk has room again.
    #[serde(default)]
    pub paused: bool,
    /// Processes and threads now.
    pub tasks: u64,
    /// Processes that the kernel ended for want of memory.
    pub oom_kills: u64,
    /// How often its devices had to wait for their limits (Firecracker).
    pub throttled: Option<u64>,
    /// Its balloon (Firecracker).
    pub balloon: Option<BalloonUsage>,
    /// What its connections sent and received, how many there were, and how many were refused.
    pub network: EgressUsage,
}

/// A VM's balloon: memory that the guest gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonUsage {
    /// It is to give back.
    pub target_bytes: u64,
    /// It gave back.
    pub actual_bytes: u64,
    /// Its programs could still get; none before the guest's driver has spoken.
    pub available_bytes: Option<u64>,
}

/// Figures of the host for `/metrics`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HostFigures {
    /// VMs as they were when they were looked at last.
    pub vms: Vec<(VmId, VmUsage)>,
    /// How long starts took, by kind, start and phase.
    pub starts: Vec<PhaseFigures>,
    /// Free on the disk of the data directory; `None` where the host cannot say.
    pub disk_free_bytes: Option<u64>,
    /// With less than this free no VM starts; with a quarter of it, workspaces that grow are paused.
    #[serde(default)]
    pub disk_reserve_bytes: Option<u64>,
}

/// The latest sample.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    latest: Mutex<BTreeMap<VmId, Sampled>>,
    metrics: Mutex<BTreeMap<VmId, figures::Metrics>>,
}

#[derive(Debug, Clone, Copy)]
struct Sampled {
    usage: VmUsage,
    /// When its processes' memory was added up.
    added_up: Option<Instant>,
}

impl Usage {
    pub(crate) fn latest(&self) -> Vec<(VmId, VmUsage)> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.iter().map(|(id, sampled)| (*id, sampled.usage)).collect()
    }

    /// Looks at every VM that has a record. Blocks.
    fn sample(&self, places: &Places, records: &[VmRecord], balloons: &BTreeMap<VmId, BalloonUsage>) {
        let throttled = self.throttled(places, records);
        let mut next: BTreeMap<VmId, Sampled> = BTreeMap::new();
        let before = self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for record in records {
            let known = before.get(&record.id);
            let pss_bytes = known.and_then(|known| known.usage.pss_bytes);
            let usage = VmUsage {
                pss_bytes,
                throttled: throttled.get(&record.id).copied(),
                balloon: balloons.get(&record.id).copied(),
                ..counted(places, record)
            };
            next.insert(record.id, Sampled { usage, added_up: known.and_then(|known| known.added_up) });
        }
        let old = |sampled: &Sampled| sampled.added_up.is_none_or(|then| then.elapsed() >= PSS_EVERY);
        let mut waiting: Vec<(Option<Instant>, VmId)> = next
            .iter()
            .filter(|(_, sampled)| old(sampled))
            .map(|(id, sampled)| (sampled.added_up, *id))
            .collect();
        waiting.sort();
        let began = Instant::now();
        for (_, id) in waiting {
            if began.elapsed() >= PSS_BUDGET {
                break;
            }
            if let Some(sampled) = next.get_mut(&id) {
                sampled.usage.pss_bytes = pss(places, id);
                sampled.added_up = Some(Instant::now());
            }
        }
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = next;
    }

    /// Empties the pipes of all VMMs.
    fn throttled(&self, places: &Places, records: &[VmRecord]) -> BTreeMap<VmId, u64> {
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.retain(|id, _| records.iter().any(|record| record.id == *id));
        let theirs = records.iter().filter(|record| record.driver == firecracker::NAME);
        let told = |id| Some((id, metrics.entry(id).or_default().empty(&places.vm(id))?));
        theirs.map(|record| record.id).filter_map(told).collect()
    }
}

/// Takes samples until the host is gone. `of` gives what to look at, or nothing when it is.
pub(crate) fn keep<H: Send + Sync + 'static>(
    host: &Arc<H>,
    of: impl Fn(&H) -> (&Usage, &Places, &Records) + Copy + Send + 'static,
) -> JoinHandle<()> {
    // The task must not keep the host alive.
    let host = Arc::downgrade(host);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(host) = host.upgrade() else { return };
            let (_, places, records) = of(&host);
            let records = match records.all() {
                Ok(records) => records,
                Err(error) => {
                    tracing::warn!(%error, "VMs' usage cannot be sampled");
                    continue;
                }
            };
            let balloons = figures::balloons(places, &records).await.into_iter().collect();
            let work = tokio::task::spawn_blocking(move || {
                let (usage, places, _) = of(&host);
                usage.sample(places, &records, &balloons);
            });
            if let Err(error) = work.await {
                tracing::error!(%error, "sampling of VMs' usage failed");
            }
        }
    })
}

/// What the kernel counts by itself.
fn counted(places: &Places, record: &VmRecord) -> VmUsage {
    let group = places.groups.usage(record.id).unwrap_or_default();
    let workspace_bytes = match &record.kind {
        VmKind::Browser => 0,
        VmKind::Cli { user } => allocated(&places.user(user).join(DISK)),
    };
    VmUsage {
        browser: record.kind == VmKind::Browser,
        memory_bytes: group.memory_bytes,
        pss_bytes: None,
        cpu_us: u64::try_from(group.cpu.as_micros()).unwrap_or(u64::MAX),
        disk_read_bytes: group.read_bytes,
        disk_written_bytes: group.written_bytes,
        workspace_bytes,
        paused: record.state == VmState::Paused,
        tasks: group.tasks,
        oom_kills: group.oom_kills,
        throttled: None,
        balloon: None,
        network: EgressUsage::default(),
    }
}

/// What a sparse file takes on its disk; nothing without a file.
pub(crate) fn allocated(file: &Path) -> u64 {
    // st_blocks counts in units of 512 bytes (inode(7)).
    fs::metadata(file).map_or(0, |it| it.blocks() * 512)
}

/// `Pss` of proc_pid_smaps(5), summed; `None` when no process could be read.
fn pss(places: &Places, id: VmId) -> Option<u64> {
    let mut pids = places.groups.processes(id);
    if pids.is_empty() {
        let found = process::of_vm(&places.instance, id).unwrap_or_default();
        pids.extend(found.into_iter().map(|process| process.pid()));
    }
    pids.into_iter().take(PROCESSES_MAX).filter_map(pss_of).reduce(|a, b| a + b)
}

fn pss_of(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processs_share_of_memory_is_read() {
        let me = pss_of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!((100 << 10..8 << 30).contains(&me), "{me} bytes");
        assert_eq!(pss_of(i32::MAX), None);
    }

    #[test]
    fn a_sparse_file_takes_what_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 30).unwrap();
        assert!(allocated(file.path()) < 1 << 20);
        assert_eq!(allocated(Path::new("/proc/no-such-file")), 0);
    }
}
