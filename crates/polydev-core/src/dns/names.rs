//! Which address stands for which name.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

/// Most names known at one time.
const NAMES_MAX: usize = 4096;

/// The addresses of one guest's names.
#[derive(Debug, Clone)]
pub struct Names {
    first: u32,
    addresses: u32,
    by_name: HashMap<String, u32>,
    by_place: BTreeMap<u32, (String, u64)>,
    next: u32,
    clock: u64,
}

impl Names {
    /// Hands out `addresses` addresses from `first` on, beginning with the one at `start`: a table that takes another's
    /// place begins elsewhere, since programs may still remember what the old one told them.
    ///
    /// `addresses` is well above the most names there may be; fewer are taken for that many.
    pub fn new(first: Ipv4Addr, addresses: u32, start: u32) -> Self {
        let addresses = addresses.max(2 * NAMES_MAX as u32);
        let (by_name, by_place) = Default::default();
        Self { first: first.into(), addresses, by_name, by_place, next: start % addresses, clock: 0 }
    }

    /// The name's address; when there are too many names, the one not asked for the longest loses its own.
    pub fn address_of(&mut self, name: &str) -> Ipv4Addr {
        self.clock += 1;
        if let Some(place) = self.by_name.get(name) {
            if let Some((_, used)) = self.by_place.get_mut(place) {
                *used = self.clock;
            }
            return self.address(*place);
        }
        if self.by_name.len() >= NAMES_MAX {
            let oldest = self.by_place.iter().min_by_key(|(_, (_, used))| *used).map(|(place, _)| *place);
            if let Some((name, _)) = oldest.and_then(|place| self.by_place.remove(&place)) {
                self.by_name.remove(&name);
            }
        }
        while self.by_place.contains_key(&self.next) {
            self.next = (self.next + 1) % self.addresses;
        }
        let place = self.next;
        self.next = (self.next + 1) % self.addresses;
        self.by_name.insert(name.to_owned(), place);
        self.by_place.insert(place, (name.to_owned(), self.clock));
        self.address(place)
    }

    /// The name that an address stands for at present.
    pub fn name_of(&self, address: Ipv4Addr) -> Option<&str> {
        let place = u32::from(address).checked_sub(self.first)?;
        self.by_place.get(&place).map(|(name, _)| name.as_str())
    }

    /// Whether an address is one of those that are handed out, at present or not.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address).checked_sub(self.first).is_some_and(|place| place < self.addresses)
    }

    fn address(&self, place: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first.wrapping_add(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 1);

    fn names() -> Names {
        Names::new(FIRST, 1 << 20, 0)
    }

    #[test]
    fn every_name_keeps_its_own_address() {
        let mut names = names();
        let (a, b) = (names.address_of("a.test"), names.address_of("b.test"));
        assert_ne!(a, b);
        assert_eq!(names.address_of("a.test"), a);
        assert_eq!(names.name_of(b), Some("b.test"));
        for foreign in [
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::new(127, 64, 0, 0),
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::BROADCAST,
        ] {
            assert_eq!(names.name_of(foreign), None, "{foreign}");
            assert!(!names.contains(foreign), "{foreign}");
        }
        assert!(names.contains(Ipv4Addr::new(127, 65, 0, 0)));
    }

    #[test]
    fn with_too_many_names_the_one_unused_for_longest_goes_and_its_address_rests() {
        let mut names = names();
        let kept = names.address_of("kept.test");
        let lost = names.address_of("lost.test");
        for n in 0..NAMES_MAX {
            names.address_of(&format!("n{n}.test"));
            names.address_of("kept.test");
        }
        assert_eq!(names.by_name.len(), NAMES_MAX);
        assert_eq!(names.name_of(kept), Some("kept.test"));
        assert_eq!(names.name_of(lost), None, "an old connection must not end up at another host");
    }

    #[test]
    fn a_table_that_begins_elsewhere_stays_within_its_addresses() {
        let mut names = Names::new(FIRST, 2 * NAMES_MAX as u32, u32::MAX);
        for n in 0..3 * NAMES_MAX {
            let address = names.address_of(&format!("n{n}.test"));
            assert!(names.contains(address), "{address}");
        }
    }
}
