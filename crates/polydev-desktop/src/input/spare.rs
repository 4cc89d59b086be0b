//! Keycodes without meaning, lent to characters that the server's map lacks.

/// One spare key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spare {
    keycode: u8,
    /// 0 while it is free.
    keysym: u32,
    /// When it was last pressed or lent, in presses.
    used: u64,
}

/// All spare keys of a server.
#[derive(Debug, Default)]
pub(super) struct Spares {
    spares: Vec<Spare>,
    /// Counts presses and loans.
    clock: u64,
    /// Everything up to then was seen by the program that it was meant for.
    settled: u64,
}

/// Keys chosen for some keysyms.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loan {
    /// Keycode and what it becomes, by keycode.
    pub(super) keys: Vec<(u8, u32)>,
    /// One of them may still be pressed in events that a program has not read.
    pub(super) unsettled: bool,
}

impl Spares {
    /// Keycodes and what they are lent to already, or 0.
    pub(super) fn new(keys: impl IntoIterator<Item = (u8, u32)>) -> Self {
        let spares = keys.into_iter().map(|(keycode, keysym)| Spare { keycode, keysym, used: 0 }).collect();
        // Nobody knows what an earlier process typed last.
        Self { spares, clock: 1, settled: 0 }.unsettled()
    }

    fn unsettled(mut self) -> Self {
        self.spares.iter_mut().filter(|spare| spare.keysym != 0).for_each(|spare| spare.used = 1);
        self
    }

    /// Keycodes and what they are lent to, or 0.
    pub(super) fn all(&self) -> impl Iterator<Item = (u8, u32)> {
        self.spares.iter().map(|spare| (spare.keycode, spare.keysym))
    }

    /// Whether a key is one of them.
    pub(super) fn has(&self, keycode: u8) -> bool {
        self.spares.iter().any(|spare| spare.keycode == keycode)
    }

    /// Notes what each key really has now. `None` takes it out of the pool: it has got a meaning. A key that has
    /// something else than it was lent to is free: it may have that on one of the server's keyboards only.
    pub(super) fn correct(&mut self, now: impl Fn(u8) -> Option<u32>) {
        self.spares.retain_mut(|spare| {
            let now = now(spare.keycode);
            if now != Some(spare.keysym) {
                spare.keysym = 0;
            }
            now.is_some()
        });
    }

    /// Notes that a key is pressed.
    pub(super) fn pressed(&mut self, keycode: u8) {
        self.clock += 1;
        if let Some(spare) = self.spares.iter_mut().find(|spare| spare.keycode == keycode) {
            spare.used = self.clock;
        }
    }

    /// Notes that everything pressed so far has been read by the program it was meant for.
    pub(super) fn settled(&mut self) {
        self.settled = self.clock;
    }

    /// How many keys can be lent while those of `keep` stay as they are.
    pub(super) fn room(&self, keep: impl Fn(u8, u32) -> bool) -> usize {
        self.spares.iter().filter(|spare| !keep(spare.keycode, spare.keysym)).count()
    }

    /// Chooses keys for keysyms: free ones first, then those not used for longest, never one of `keep`. `None` if there
    /// are not enough.
    pub(super) fn lend(&mut self, keysyms: &[u32], keep: impl Fn(u8, u32) -> bool) -> Option<Loan> {
        let mut free: Vec<&mut Spare> =
            self.spares.iter_mut().filter(|spare| !keep(spare.keycode, spare.keysym)).collect();
        if free.len() < keysyms.len() {
            return None;
        }
        free.sort_by_key(|spare| (spare.keysym != 0, spare.used, spare.keycode));
        free.truncate(keysyms.len());
        free.sort_by_key(|spare| spare.keycode);
        self.clock += 1;
        let mut loan = Loan { keys: Vec::new(), unsettled: false };
        for (spare, keysym) in free.into_iter().zip(keysyms) {
            loan.unsettled |= spare.used > self.settled;
            *spare = Spare { keycode: spare.keycode, keysym: *keysym, used: self.clock };
            loan.keys.push((spare.keycode, *keysym));
        }
        Some(loan)
    }
}

impl Loan {
    /// Runs of neighbouring keycodes: the first one, and the keysyms.
    pub(super) fn runs(&self) -> Vec<(u8, Vec<u32>)> {
        let mut runs: Vec<(u8, Vec<u32>)> = Vec::new();
        for (keycode, keysym) in &self.keys {
            match runs.last_mut() {
                Some((first, run)) if usize::from(*first) + run.len() == usize::from(*keycode) => {
                    run.push(*keysym)
                }
                _ => runs.push((*keycode, vec![*keysym])),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spares() -> Spares {
        Spares::new([(93, 0), (97, 0), (98, 0), (120, 0)])
    }

    #[test]
    fn free_keys_come_first_then_the_least_recently_used() {
        let mut spares = spares();
        assert_eq!(
            spares.lend(&[1, 2, 3, 4], |_, _| false).unwrap().keys,
            [(93, 1), (97, 2), (98, 3), (120, 4)]
        );
        [120, 93, 97, 98].into_iter().for_each(|keycode| spares.pressed(keycode));
        assert_eq!(spares.lend(&[5], |keycode, _| keycode == 120).unwrap().keys, [(93, 5)]);
        assert_eq!(spares.lend(&[6], |_, _| false).unwrap().keys, [(120, 6)]);
    }

    #[test]
    fn a_key_pressed_since_the_last_settling_is_unsettled() {
        let mut spares = spares();
        assert!(!spares.lend(&[1, 2, 3, 4], |_, _| false).unwrap().unsettled);
        assert!(spares.lend(&[5], |_, _| false).unwrap().unsettled);
        spares.settled();
        assert!(!spares.lend(&[6], |_, _| false).unwrap().unsettled);
        spares.pressed(97);
        assert!(spares.lend(&[7], |keycode, _| keycode != 97).unwrap().unsettled);
    }

    #[test]
    fn keys_left_by_an_earlier_process_are_used_again_but_are_unsettled() {
        let mut spares = Spares::new([(93, 7)]);
        assert!(spares.lend(&[8], |_, _| false).unwrap().unsettled);
    }

    #[test]
    fn all_or_nothing_is_lent() {
        assert_eq!(spares().lend(&[1, 2, 3, 4, 5], |_, _| false), None);
        assert_eq!(spares().lend(&[1, 2, 3, 4], |keycode, _| keycode == 93), None);
        assert_eq!(spares().room(|keycode, _| keycode == 93), 3);
    }

    #[test]
    fn neighbours_make_one_run() {
        let loan = spares().lend(&[1, 2, 3, 4], |_, _| false).unwrap();
        assert_eq!(loan.runs(), [(93, vec![1]), (97, vec![2, 3]), (120, vec![4])]);
    }
}
