//! Which slot belongs to which VM. Pure.

use std::collections::BTreeMap;

use polydev_core::ids::{Slot, VmId};

/// The host's places.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    total: u8,
    used: BTreeMap<Slot, VmId>,
}

/// All places are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AllTaken;

impl Slots {
    /// `total` is cut to 1..=253.
    pub(crate) fn new(total: u8) -> Self {
        Self { total: total.clamp(1, Slot::MAX), used: BTreeMap::new() }
    }

    /// The VM's place if it has one, otherwise the lowest free one.
    pub(crate) fn take(&mut self, vm: VmId) -> Result<Slot, AllTaken> {
        if let Some((slot, _)) = self.used.iter().find(|(_, owner)| **owner == vm) {
            return Ok(*slot);
        }
        let free = (1..=self.total).filter_map(Slot::new).find(|slot| !self.used.contains_key(slot));
        let slot = free.ok_or(AllTaken)?;
        self.used.insert(slot, vm);
        Ok(slot)
    }

    /// Notes a VM that was found in a place. A place taken by another VM stays with that one.
    pub(crate) fn note(&mut self, slot: Slot, vm: VmId) {
        self.used.entry(slot).or_insert(vm);
    }

    /// Gives the VM's place back.
    pub(crate) fn give_back(&mut self, vm: VmId) {
        self.used.retain(|_, owner| *owner != vm);
    }

    pub(crate) fn used(&self) -> usize {
        self.used.len()
    }

    pub(crate) fn total(&self) -> usize {
        usize::from(self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    proptest! {
        #[test]
        fn no_two_vms_ever_share_a_slot_and_slots_come_back(
            total in 1u8..=253, moves in prop::collection::vec((any::<bool>(), 0u128..300), 0..600),
        ) {
            let mut slots = Slots::new(total);
            let mut holders: BTreeMap<VmId, Slot> = BTreeMap::new();
            for (take, who) in moves {
                let vm = VmId::from_uuid(Uuid::from_u128(who));
                if take {
                    match slots.take(vm) {
                        Ok(slot) => {
                            prop_assert!(slot.index() <= total);
                            let before = holders.insert(vm, slot);
                            prop_assert!(before.is_none_or(|before| before == slot), "a VM keeps its slot");
                        }
                        Err(AllTaken) => prop_assert_eq!(holders.len(), usize::from(total)),
                    }
                } else {
                    slots.give_back(vm);
                    holders.remove(&vm);
                }
                let distinct: std::collections::BTreeSet<_> = holders.values().collect();
                prop_assert_eq!(distinct.len(), holders.len());
                prop_assert_eq!(slots.used(), holders.len());
            }
        }
    }

    #[test]
    fn a_slot_noted_for_a_found_vm_is_not_given_to_another() {
        let mut slots = Slots::new(2);
        let (found, new) = (VmId::from_uuid(Uuid::from_u128(1)), VmId::from_uuid(Uuid::from_u128(2)));
        slots.note(Slot::new(1).unwrap(), found);
        assert_eq!(slots.take(new).map(Slot::index), Ok(2));
        assert_eq!(slots.take(VmId::from_uuid(Uuid::from_u128(3))), Err(AllTaken));
    }
}
