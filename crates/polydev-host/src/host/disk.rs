//! The disk of the data directory while VMs run. Workspaces are sparse files: they may grow although nothing new starts.
//!
//! ```text
//! enough ──free < reserve──▶ low: nothing new starts, a person is told
//!    ▲                       │ ▲
//!    └────free ≥ reserve─────┘ │ free ≥ half of it: what was paused goes on
//!                            ▼ │
//!          almost full (free < a quarter of it): workspaces that still grow are paused
//! ```
//!
//! A disk that is full takes the database with it, and what a workspace has not yet written to its disk is lost. So the
//! writer stands still before that, as VMs on thin disks do elsewhere, and goes on by itself once there is room.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use polydev_core::ids::{UserId, VmId};
use tokio::{sync::watch, task::JoinHandle};

use super::{Host, Inner, VmKind};
use crate::{
    driver::user_disk::DISK,
    error::HostError,
    record::{Phase, VmRecord, VmState},
    space,
    usage::allocated,
};

/// How often the disk is looked at while there is plenty, and while there is not.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(100));
/// With so many reserves free there is plenty.
const PLENTY: u64 = 4;
/// The disk is almost full below this part of the reserve, until there is that part again.
const ALMOST_FULL: (u64, u64) = (4, 2);
/// A workspace grows when it takes so much more than before the disk was almost full.
const GROWN_BYTES: u64 = 1 << 20;
/// How often a person is reminded.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// How much is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Level {
    #[default]
    Enough,
    Low,
    AlmostFull,
}

impl Level {
    fn next(self, free: u64, reserve: u64) -> Self {
        let (below, until) = ALMOST_FULL;
        let full = if self == Self::AlmostFull { free < reserve / until } else { free < reserve / below };
        match full {
            true => Self::AlmostFull,
            false if free < reserve => Self::Low,
            false => Self::Enough,
        }
    }
}

/// What earlier looks have shown.
#[derive(Debug)]
struct Watch {
    level: Level,
    /// What each workspace took before the disk was almost full.
    before: BTreeMap<VmId, u64>,
    /// Some VM may be paused; an earlier process may have left one.
    some_paused: bool,
    reminded: Option<Instant>,
}

impl Watch {
    /// Whether a workspace that takes so much now has grown since the disk was almost full.
    fn has_grown(&mut self, id: VmId, bytes: u64) -> bool {
        bytes >= self.before.entry(id).or_insert(bytes).saturating_add(GROWN_BYTES)
    }
}

/// Looks after the disk as long as there is a host.
pub(super) fn keep(inner: &Arc<Inner>) -> JoinHandle<()> {
    // The task must not keep the host alive.
    let host = Arc::downgrade(inner);
    let mut watch =
        Watch { level: Level::Enough, before: BTreeMap::new(), some_paused: true, reminded: None };
    tokio::spawn(async move {
        loop {
            let Some(inner) = host.upgrade() else { return };
            let pause = match inner.look_at_disk(&mut watch).await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::error!(%error, "the disk of the data directory cannot be looked after");
                    LOOK_EVERY.0
                }
            };
            drop(inner);
            tokio::time::sleep(pause).await;
        }
    })
}

impl Host {
    /// VMs that stand still until the disk of the data directory has room again, now and from now on.
    pub fn paused(&self) -> watch::Receiver<BTreeSet<VmId>> {
        self.inner.paused.subscribe()
    }
}

impl Inner {
    /// Refuses whatever would start while the disk has too little free.
    pub(super) fn must_have_disk(&self) -> Result<(), HostError> {
        let reserve = self.places.resources.disk_reserve_bytes;
        space::check(&self.places.data, 0, reserve, "what one more VM may write")
    }

    /// Says when to look again.
    async fn look_at_disk(&self, watch: &mut Watch) -> Result<Duration, HostError> {
        let reserve = self.places.resources.disk_reserve_bytes;
        let free = self.driver().disk_free(&self.places.data).map_err(HostError::os("look at the disk"))?;
        let level = watch.level.next(free, reserve);
        self.tell(watch, level, free, reserve);
        watch.level = level;
        if level != Level::AlmostFull && watch.some_paused {
            watch.some_paused = !self.unpause_all().await?;
        }
        if free >= reserve.saturating_mul(PLENTY) {
            watch.before.clear();
            return Ok(LOOK_EVERY.0);
        }
        let sizes = self.workspaces()?;
        if level == Level::AlmostFull {
            let grown: Vec<VmId> = sizes
                .into_iter()
                .filter(|(id, bytes)| watch.has_grown(*id, *bytes))
                .map(|(id, _)| id)
                .collect();
            watch.some_paused |= !grown.is_empty();
            // One that resists, for seconds even, must not keep the others growing.
            let pausing = grown.into_iter().map(|id| async move {
                if let Err(error) = self.pause(id, free).await {
                    tracing::error!(vm.id = %id, %error, "VM whose workspace grows cannot be paused yet");
                }
            });
            join_all(pausing).await;
        } else {
            watch.before = sizes.into_iter().collect();
        }
        Ok(LOOK_EVERY.1)
    }

    fn tell(&self, watch: &mut Watch, level: Level, free: u64, reserve: u64) {
        let (free_mib, reserve_mib) = (free >> 20, reserve >> 20);
        let (changed, now) = (level != watch.level, Instant::now());
        if level == Level::Enough {
            if changed {
                tracing::info!(free_mib, reserve_mib, "the disk has room again");
                watch.reminded = None;
            }
        } else if changed || watch.reminded.is_none_or(|last| now - last >= REMIND_EVERY) {
            watch.reminded = Some(now);
            let dir = self.places.data.display();
            tracing::error!(%dir, free_mib, reserve_mib, "too little is free on the disk: no VM starts; free some space");
        }
    }

    /// CLI VMs that run, and what their workspaces take.
    fn workspaces(&self) -> Result<Vec<(VmId, u64)>, HostError> {
        let size = |user: &UserId| allocated(&self.places.user(user).join(DISK));
        let running = |record: &VmRecord| match &record.kind {
            VmKind::Cli { user } if record.state == VmState::Active => Some((record.id, size(user))),
            VmKind::Cli { .. } | VmKind::Browser => None,
        };
        Ok(self.records.all()?.iter().filter_map(running).collect())
    }

    /// Has a VM stand still, unless something else is being done with it: then the next look finds it again.
    async fn pause(&self, id: VmId, free: u64) -> Result<(), HostError> {
        let cell = self.cell(id);
        let Ok(_agent) = cell.try_lock() else { return Ok(()) };
        let settled = |record: &VmRecord| record.phase == Phase::Running && record.state == VmState::Active;
        let Some(mut record) = self.records.read(id).filter(settled) else { return Ok(()) };
        if self.paused.borrow().contains(&id) {
            return Ok(());
        }
        // Written first: whoever finds it after a crash knows why it does not answer.
        record.state = VmState::Paused;
        match self.records.write(&record) {
            Err(HostError::NoSpace { .. }) => {
                tracing::error!(vm.id = %id, "no room to note that a VM stands still")
            }
            noted => noted?,
        }
        self.paused.send_if_modified(|paused| paused.insert(id));
        if let Err(error) = self.driver_of(&record).pause(id, &self.places.vm(id)).await {
            self.unpause(id).await?;
            return Err(error);
        }
        tracing::error!(vm.id = %id, free_mib = free >> 20, "VM stands still until the disk has room: its workspace grows");
        Ok(())
    }

    /// Whether none is left that stands still.
    async fn unpause_all(&self) -> Result<bool, HostError> {
        let mut all = true;
        let noted = self.records.all()?.into_iter().filter(|it| it.state == VmState::Paused).map(|it| it.id);
        let ids: BTreeSet<VmId> = noted.chain(self.paused.borrow().iter().copied()).collect();
        for id in ids {
            let cell = self.cell(id);
            // What is being done with it may take minutes, and has it go on itself if it needs that.
            let Ok(_agent) = cell.try_lock() else {
                all = false;
                continue;
            };
            if let Err(error) = self.unpause(id).await {
                all = false;
                tracing::error!(vm.id = %id, %error, "VM that was paused does not go on yet");
            }
        }
        Ok(all)
    }

    /// Lets a VM go on that was paused; fine for any other. The caller holds its cell.
    pub(super) async fn unpause(&self, id: VmId) -> Result<(), HostError> {
        let unnoted = self.paused.borrow().contains(&id);
        let stands = |record: &VmRecord| record.state == VmState::Paused || unnoted;
        let Some(mut record) = self.records.read(id).filter(stands) else { return Ok(()) };
        self.driver_of(&record).go_on(id, &self.places.vm(id)).await?;
        if record.state == VmState::Paused {
            record.state = VmState::Active;
            self.records.write(&record)?;
        }
        self.paused_no_more(id);
        tracing::info!(vm.id = %id, "VM goes on");
        Ok(())
    }

    /// Tells whoever listens that a VM does not stand still any more: it goes on, or is gone.
    pub(super) fn paused_no_more(&self, id: VmId) {
        self.paused.send_if_modified(|paused| paused.remove(&id));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Level::{AlmostFull, Enough, Low},
        *,
    };

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_stands_still_goes_on_only_when_there_is_clearly_more_room() {
        let seen = [900, 400, 240, 300, 499, 500, 300, 1000, 100, 2000];
        let mut level = Level::Enough;
        let levels = seen.map(|free| {
            level = level.next(free * MIB, 1000 * MIB);
            level
        });
        let wanted = [Low, Low, AlmostFull, AlmostFull, AlmostFull, Low, Low, Enough, AlmostFull, Enough];
        assert_eq!(levels, wanted);
        assert_eq!(Level::Enough.next(0, 0), Level::Enough, "without a reserve nothing is watched");
    }

    #[test]
    fn a_workspace_that_writes_slowly_has_grown_once_it_adds_up() {
        let mut watch =
            Watch { level: Level::AlmostFull, before: BTreeMap::new(), some_paused: false, reminded: None };
        let id = VmId::from_uuid(uuid::Uuid::from_u128(1));
        let grown = [100, 100, 600, 1100, 1123, 1124, 1200].map(|kib| watch.has_grown(id, kib << 10));
        assert_eq!(grown, [false, false, false, false, false, true, true]);
    }
}
