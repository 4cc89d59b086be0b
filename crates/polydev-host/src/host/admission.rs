//! Whether the machine has room for one more VM. Asked before anything is made.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use polydev_core::ids::VmId;

use super::{Inner, VmKind};
use crate::{config::Capacity, error::HostError, record::VmState};

/// Memory that VMs which are being started will take; the kernel does not show it as used yet.
#[derive(Debug, Default, Clone)]
pub(super) struct Starting(Arc<AtomicU64>);

/// One VM's share of [`Starting`]; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Admitted {
    starting: Starting,
    mib: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.starting.0.fetch_sub(self.mib, Ordering::Relaxed);
    }
}

/// What the machine has at one moment.
#[derive(Debug, Clone, Copy)]
struct Room {
    available_mib: u64,
    starting_mib: u64,
    cores: u64,
    vcpus_used: u64,
}

impl Inner {
    /// Takes room for one more VM, or says what there is too little of.
    pub(super) fn admit(&self, id: VmId, kind: &VmKind, vcpus: u8) -> Result<Admitted, HostError> {
        let Some(capacity) = self.config.capacity else {
            return Ok(Admitted { starting: self.starting.clone(), mib: 0 });
        };
        let needed_mib = match kind {
            VmKind::Browser => capacity.browser_mib,
            VmKind::Cli { .. } => capacity.cli_mib,
        };
        let room = Room {
            available_mib: memory_available_mib()?,
            starting_mib: self.starting.0.load(Ordering::Relaxed),
            cores: thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
            vcpus_used: self.vcpus_used(id)?,
        };
        check(capacity, room, needed_mib, u64::from(vcpus))?;
        self.starting.0.fetch_add(needed_mib, Ordering::Relaxed);
        Ok(Admitted { starting: self.starting.clone(), mib: needed_mib })
    }

    /// Of all VMs that run, but for one.
    fn vcpus_used(&self, but: VmId) -> Result<u64, HostError> {
        let records = self.records.all()?;
        let awake = records.iter().filter(|it| it.id != but && it.state != VmState::Hibernated);
        Ok(awake.map(|record| u64::from(record.vcpus)).sum())
    }
}

fn check(capacity: Capacity, room: Room, needed_mib: u64, vcpus: u64) -> Result<(), HostError> {
    let free_mib = room.available_mib.saturating_sub(room.starting_mib + capacity.reserve_mib);
    if needed_mib > free_mib {
        return Err(HostError::NoCapacity { what: "memory (MiB)", needed: needed_mib, available: free_mib });
    }
    let free_vcpus = (room.cores * capacity.vcpus_per_core).saturating_sub(room.vcpus_used);
    if vcpus > free_vcpus {
        return Err(HostError::NoCapacity { what: "cores", needed: vcpus, available: free_vcpus });
    }
    Ok(())
}

/// `MemAvailable` (proc_meminfo(5)): what can be given out without swapping.
fn memory_available_mib() -> Result<u64, HostError> {
    let text = fs::read_to_string("/proc/meminfo").map_err(HostError::os("read /proc/meminfo"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    let missing = || std::io::Error::other("no line MemAvailable");
    let kib: u64 = kib
        .and_then(|kib| kib.parse().ok())
        .ok_or_else(missing)
        .map_err(HostError::os("read /proc/meminfo"))?;
    Ok(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPACITY: Capacity =
        Capacity { reserve_mib: 1000, browser_mib: 500, cli_mib: 100, vcpus_per_core: 4 };

    #[test]
    fn what_there_is_too_little_of_is_named_with_its_figures() {
        let room = Room { available_mib: 1700, starting_mib: 500, cores: 2, vcpus_used: 7 };
        match check(CAPACITY, room, 500, 1) {
            Err(HostError::NoCapacity { what: "memory (MiB)", needed: 500, available: 200 }) => {}
            other => panic!("{other:?}"),
        }
        match check(CAPACITY, room, 100, 2) {
            Err(HostError::NoCapacity { what: "cores", needed: 2, available: 1 }) => {}
            other => panic!("{other:?}"),
        }
        check(CAPACITY, room, 100, 1).unwrap();
    }

    #[test]
    fn the_kernel_says_how_much_memory_is_available() {
        assert!(memory_available_mib().unwrap() > 0);
    }

    proptest! {
        #[test]
        fn vms_admitted_at_once_never_eat_into_the_reserve(
            available_mib in 0u64..100_000, needs in prop::collection::vec(1u64..5000, 0..50),
        ) {
            let mut room = Room { available_mib, starting_mib: 0, cores: 1000, vcpus_used: 0 };
            for need in needs {
                if check(CAPACITY, room, need, 1).is_ok() {
                    room.starting_mib += need;
                }
            }
            prop_assert!(room.starting_mib == 0 || room.starting_mib + CAPACITY.reserve_mib <= available_mib);
        }
    }
}
