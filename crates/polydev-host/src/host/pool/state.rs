//! Which VMs are the pool's, and what is to be done with them. No I/O.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use polydev_core::ids::VmId;
use tokio::{sync::Notify, task::AbortHandle, time::Instant};
use uuid::Uuid;

use super::WarmPlan;
use crate::{agent::AgentClient, error::HostError};

/// How long a drawn VM waits to be claimed. Afterwards it is destroyed, not given to another: the first may still come.
const DRAWN_LIMIT: Duration = Duration::from_secs(60);
/// Most VMs that are made at one time.
const MAKERS: usize = 2;
/// Shortest and longest pause after failures.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The VMs that wait.
pub(in crate::host) struct Pool {
    state: Mutex<State>,
    wake: Arc<Notify>,
}

#[derive(Default)]
struct State {
    plan: Option<WarmPlan>,
    /// The process is about to end: whatever is planned from now on is not done.
    closed: bool,
    vms: BTreeMap<VmId, Waiting>,
    /// Below the low mark, not yet at the high one.
    filling: bool,
    failures: u32,
    not_before: Option<Instant>,
}

enum Waiting {
    Found,
    Making(Option<AbortHandle>),
    Ready { client: AgentClient, size: (u8, u32) },
    Drawn { client: AgentClient, until: Instant },
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Todo {
    Make { id: VmId, plan: WarmPlan, found: bool },
    Discard(VmId),
}

impl Pool {
    /// A pool without a plan, and warm VMs that an earlier process left.
    pub(in crate::host) fn found(ids: Vec<VmId>) -> Self {
        let vms = ids.into_iter().map(|id| (id, Waiting::Found)).collect();
        Self { state: Mutex::new(State { vms, ..State::default() }), wake: Arc::default() }
    }

    /// VMs that can be handed out.
    pub(in crate::host) fn ready(&self) -> usize {
        self.state().vms.values().filter(|it| matches!(it, Waiting::Ready { .. })).count()
    }

    /// A VM is on its way out, whoever wants that.
    pub(in crate::host) fn forget(&self, id: VmId) {
        let mut state = self.state();
        // A VM that is being made is removed by its maker, whose failure this then is.
        if !matches!(state.vms.get(&id), Some(Waiting::Making(_))) {
            state.vms.remove(&id);
        }
    }

    pub(super) fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    pub(super) fn set_plan(&self, plan: WarmPlan) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        state.plan = Some(plan);
        (state.failures, state.not_before) = (0, None);
        drop(state);
        self.wake.notify_one();
    }

    /// From now on there is no pool. What was its is returned, and is to be destroyed.
    pub(super) fn close(&self) -> Vec<VmId> {
        let mut state = self.state();
        (state.plan, state.closed) = (None, true);
        let all = mem::take(&mut state.vms);
        for waiting in all.values() {
            if let Waiting::Making(Some(maker)) = waiting {
                maker.abort();
            }
        }
        all.into_keys().collect()
    }

    /// Whether it is to be made, or is being made now.
    pub(super) fn is_being_made(&self, id: VmId) -> bool {
        matches!(self.state().vms.get(&id), Some(Waiting::Making(_)))
    }

    /// Reserves a VM of this size.
    pub(super) fn reserve(&self, vcpus: u8, memory_mib: u32) -> Option<(VmId, AgentClient)> {
        let mut state = self.state();
        let fits = |(id, it): (&VmId, &Waiting)| match it {
            Waiting::Ready { client, size } if *size == (vcpus, memory_mib) && !client.is_closed() => {
                Some((*id, client.clone()))
            }
            _ => None,
        };
        let (id, client) = state.vms.iter().find_map(fits)?;
        let until = Instant::now() + DRAWN_LIMIT;
        state.vms.insert(id, Waiting::Drawn { client: client.clone(), until });
        Some((id, client))
    }

    /// A drawn VM is not wanted as it is.
    pub(super) fn give_up(&self, id: VmId) {
        self.note_found(id);
    }

    /// Takes a VM out of the pool to hand it over.
    pub(super) fn take(&self, id: VmId) -> Option<AgentClient> {
        let mut state = self.state();
        match state.vms.remove(&id)? {
            Waiting::Ready { client, .. } | Waiting::Drawn { client, .. } => Some(client),
            other @ Waiting::Making(_) => {
                state.vms.insert(id, other);
                None
            }
            Waiting::Found => None,
        }
    }

    /// Takes a VM out of the pool that nobody has drawn, to make room.
    pub(super) fn give_way(&self) -> Option<VmId> {
        let mut state = self.state();
        // What is not finished yet is the smaller loss.
        let rank = |it: &Waiting| match it {
            Waiting::Making(_) => Some(0),
            Waiting::Found => Some(1),
            Waiting::Ready { .. } => Some(2),
            Waiting::Drawn { .. } => None,
        };
        let (_, id) = state.vms.iter().filter_map(|(id, it)| Some((rank(it)?, *id))).min()?;
        if let Some(Waiting::Making(Some(maker))) = state.vms.remove(&id) {
            maker.abort();
        }
        // Otherwise the room would be taken again at once.
        state.not_before = Some(Instant::now() + PAUSE.0);
        Some(id)
    }

    /// A VM of which nothing is known but that it is the pool's; it is looked at, or removed, at the next occasion.
    pub(super) fn note_found(&self, id: VmId) {
        self.state().vms.insert(id, Waiting::Found);
        self.wake.notify_one();
    }

    /// A VM of the pool could not be removed. That is tried again at the next look, not at once.
    pub(super) fn note_left(&self, id: VmId) {
        self.state().vms.insert(id, Waiting::Found);
    }

    pub(super) fn note_maker(&self, id: VmId, maker: AbortHandle) {
        if let Some(Waiting::Making(slot)) = self.state().vms.get_mut(&id) {
            *slot = Some(maker);
        }
    }

    /// A VM can be handed out. Whether it is still the pool's.
    pub(super) fn note_ready(&self, id: VmId, client: &AgentClient, size: (u8, u32)) -> bool {
        let mut state = self.state();
        let Some(waiting) = state.vms.get_mut(&id) else { return false };
        *waiting = Waiting::Ready { client: client.clone(), size };
        true
    }

    /// A maker has ended.
    pub(super) fn note_made(&self, id: VmId, error: Option<&HostError>, now: Instant) {
        let mut state = self.state();
        let Some(error) = error else {
            state.failures = 0;
            return;
        };
        let is_making = matches!(state.vms.get(&id), Some(Waiting::Making(_)));
        if is_making {
            state.vms.remove(&id);
        }
        let no_room = matches!(
            error,
            HostError::NoCapacity { .. }
                | HostError::NoSlot { .. }
                | HostError::NoSpace { room: Some(_), .. }
        );
        if no_room || matches!(error, HostError::NoSuchVm(_)) {
            // Nothing is wrong: there is no room, or one that was found is not what is planned.
            tracing::debug!(vm.id = %id, %error, "no warm VM made");
            if no_room {
                state.not_before = Some(now + PAUSE.0);
            }
            return;
        }
        let pause = PAUSE.0.saturating_mul(1 << state.failures.min(16)).min(PAUSE.1);
        state.failures += 1;
        state.not_before = Some(now + pause);
        if is_making {
            let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(vm.id = %id, %error, pause_ms, "warm VM could not be made");
        }
    }

    /// What is to be done now, with so many slots free. What it returns is under way from then on.
    pub(super) fn todo(&self, free_slots: usize, now: Instant) -> Vec<Todo> {
        self.state().todo(free_slots, now)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn todo(&mut self, free_slots: usize, now: Instant) -> Vec<Todo> {
        let Some(plan) = self.plan else { return Vec::new() };
        let mut all = Vec::new();
        let size = (plan.vcpus, plan.memory_mib);
        let lost = |it: &Waiting| match it {
            Waiting::Ready { client, size: its } => client.is_closed() || *its != size,
            Waiting::Drawn { client, until } => client.is_closed() || *until <= now,
            Waiting::Found | Waiting::Making(_) => false,
        };
        let gone: Vec<VmId> = self.vms.iter().filter(|(_, it)| lost(it)).map(|(id, _)| *id).collect();
        for id in gone {
            tracing::info!(vm.id = %id, "warm VM died, or is not wanted as it is");
            self.vms.remove(&id);
            all.push(Todo::Discard(id));
        }
        let mut left = self.vms.values().filter(|it| !matches!(it, Waiting::Drawn { .. })).count();
        let mut makers = self.vms.values().filter(|it| matches!(it, Waiting::Making(_))).count();
        let surplus = left.saturating_sub(plan.high);
        let idle = |(id, it): (&VmId, &Waiting)| match it {
            Waiting::Found => Some((0, *id)),
            Waiting::Ready { .. } => Some((1, *id)),
            Waiting::Making(_) | Waiting::Drawn { .. } => None,
        };
        let mut idle: Vec<_> = self.vms.iter().filter_map(idle).collect();
        idle.sort_unstable();
        for (_, id) in idle.into_iter().take(surplus) {
            self.vms.remove(&id);
            left -= 1;
            all.push(Todo::Discard(id));
        }
        // One that is there is taken over in any case: it costs nothing.
        for (id, waiting) in &mut self.vms {
            if matches!(waiting, Waiting::Found) {
                *waiting = Waiting::Making(None);
                makers += 1;
                all.push(Todo::Make { id: *id, plan, found: true });
            }
        }
        self.filling = left < plan.low || (self.filling && left < plan.high);
        if self.not_before.is_some_and(|due| now < due) {
            return all;
        }
        let missing = if self.filling { plan.high.saturating_sub(left) } else { 0 };
        for _ in 0..missing.min(MAKERS.saturating_sub(makers)).min(free_slots) {
            let id = VmId::from_uuid(Uuid::new_v4());
            self.vms.insert(id, Waiting::Making(None));
            all.push(Todo::Make { id, plan, found: false });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_removed_is_taken_up_again() {
        let pool = Pool::found(Vec::new());
        pool.set_plan(WarmPlan { low: 1, high: 1, vcpus: 1, memory_mib: 1, desktop_px: (1, 1) });
        let now = Instant::now();
        let [Todo::Make { id, found: false, .. }] = pool.todo(1, now)[..] else {
            panic!("one is to be made")
        };
        assert_eq!(pool.todo(1, now), [], "it is being made");
        pool.note_left(id);
        pool.note_made(id, Some(&HostError::NoSuchVm(id)), now);
        let again = pool.todo(1, now);
        assert!(matches!(again[..], [Todo::Make { id: same, found: true, .. }] if same == id), "{again:?}");
        pool.note_made(id, Some(&HostError::NoSuchVm(id)), now);
        let other = pool.todo(1, now);
        assert!(matches!(other[..], [Todo::Make { id: new, found: false, .. }] if new != id), "{other:?}");
    }
}
