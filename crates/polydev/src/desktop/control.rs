//! Who controls a desktop. Pure: time is an argument.
//!
//! ```text
//!            joins, asks                connection lost
//!   Free ------------------> Held ---------------------------> Kept
//!    ^  <------------------   ^ |  <-------------------------   |
//!    |   gives up, nobody     | |      comes again               |
//!    |   waits                '-' gives up or hands over         |
//!    '-------- grace over and nobody waits (else: Held) ---------'
//! ```
//! Whoever has it, or whose place is kept, and gives no sign of life gives way to one that asks.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// How long a viewer whose connection was lost keeps the control.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// Without a sign of life for so long, a viewer gives way to one that asks. Every lane gives one every two seconds or so.
pub(super) const SILENCE: Duration = Duration::from_secs(5);

/// The control of one desktop and the viewers who may have it.
#[derive(Debug, Default)]
pub(super) struct Control {
    holder: Holder,
    /// Who is here, and whether they may ever have it.
    here: BTreeMap<u32, bool>,
    /// Who wants it, first come first.
    waiting: VecDeque<u32>,
    /// Who has asked and got no answer; the first of them.
    asking: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Holder {
    #[default]
    Free,
    Held {
        viewer: u32,
    },
    /// The connection of the viewer was lost; until then it is its own.
    Kept {
        viewer: u32,
        /// Its last sign of life.
        alive: Instant,
        until: Instant,
    },
}

/// Answer to a viewer that asks for the control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// It has it.
    Granted,
    /// This one has it and is to be asked.
    HeldBy(u32),
    /// It gets it when the one whose connection was lost does not come again in time.
    Waits,
    /// It may only look.
    Never,
}

/// The viewer named to get the control is not here or may only look.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoSuchTaker;

impl Control {
    /// Who may act now.
    pub(super) fn active(&self) -> Option<u32> {
        match self.holder {
            Holder::Held { viewer } => Some(viewer),
            Holder::Free | Holder::Kept { .. } => None,
        }
    }

    /// Whose place is kept although its connection was lost.
    pub(super) fn kept(&self) -> Option<u32> {
        match self.holder {
            Holder::Kept { viewer, .. } => Some(viewer),
            Holder::Free | Holder::Held { .. } => None,
        }
    }

    /// A viewer comes, or comes again: what was kept for it is its own again. Any other one that may have the control
    /// wants it: it is given to the first, others wait.
    pub(super) fn join(&mut self, viewer: u32, may: bool) {
        self.here.insert(viewer, may);
        if self.kept() == Some(viewer) {
            self.give(viewer);
        } else if may {
            self.waiting.push_back(viewer);
            self.fill();
        }
    }

    /// A viewer's connection is lost; its last sign of life was then.
    pub(super) fn lost(&mut self, viewer: u32, alive: Instant, now: Instant) {
        self.here.remove(&viewer);
        self.waiting.retain(|waiting| *waiting != viewer);
        self.asking = self.asking.filter(|asking| *asking != viewer);
        if self.active() == Some(viewer) {
            self.holder = Holder::Kept { viewer, alive, until: now + GRACE };
        }
    }

    /// A viewer asks for the control, which is at once its own if the one that has it was alive for the last time long ago.
    pub(super) fn ask(&mut self, viewer: u32, now: Instant, alive: Option<Instant>) -> Asked {
        if self.here.get(&viewer) != Some(&true) {
            return Asked::Never;
        }
        if self.active() != Some(viewer) {
            if !self.waiting.contains(&viewer) {
                self.waiting.push_back(viewer);
            }
            self.asking.get_or_insert(viewer);
        }
        self.fill();
        self.at(now, alive);
        match self.holder {
            Holder::Held { viewer: holder } if holder == viewer => Asked::Granted,
            Holder::Held { viewer: holder } => Asked::HeldBy(holder),
            Holder::Free | Holder::Kept { .. } => Asked::Waits,
        }
    }

    /// The viewer gives the control up, to the one that is named or else to the one that waits longest. Nothing
    /// changes if it does not have it.
    pub(super) fn release(&mut self, viewer: u32, to: Option<u32>) -> Result<(), NoSuchTaker> {
        if self.active() != Some(viewer) {
            return Ok(());
        }
        match to {
            Some(to) if self.here.get(&to) == Some(&true) => self.give(to),
            Some(_) => return Err(NoSuchTaker),
            None => {
                self.holder = Holder::Free;
                self.fill();
            }
        }
        Ok(())
    }

    /// Time passes, and the last sign of life of the viewer that has the control was then.
    pub(super) fn at(&mut self, now: Instant, alive: Option<Instant>) {
        if self.deadline(alive).is_none_or(|due| due > now) {
            return;
        }
        match self.asking {
            Some(asking) => self.give(asking),
            None => {
                self.holder = Holder::Free;
                self.fill();
            }
        }
    }

    /// When something changes by itself, if there is no further sign of life.
    pub(super) fn deadline(&self, alive: Option<Instant>) -> Option<Instant> {
        let gives_way = |alive: Instant| self.asking.map(|_| alive + SILENCE);
        match self.holder {
            Holder::Kept { alive, until, .. } => Some(gives_way(alive).map_or(until, |due| due.min(until))),
            Holder::Held { .. } => alive.and_then(gives_way),
            Holder::Free => None,
        }
    }

    fn give(&mut self, viewer: u32) {
        self.waiting.retain(|waiting| *waiting != viewer);
        self.asking = self.asking.filter(|asking| *asking != viewer);
        self.holder = Holder::Held { viewer };
    }

    fn fill(&mut self) {
        if self.holder == Holder::Free
            && let Some(viewer) = self.waiting.pop_front()
        {
            self.give(viewer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_viewer_controls_and_others_are_told_of_it() {
        let (mut control, now) = (Control::default(), Instant::now());
        control.join(1, false);
        assert_eq!(control.active(), None);
        control.join(2, true);
        control.join(3, true);
        assert_eq!(control.active(), Some(2));
        assert_eq!(control.ask(3, now, Some(now)), Asked::HeldBy(2));
        assert_eq!(control.ask(1, now, Some(now)), Asked::Never);
        assert_eq!(control.ask(2, now, Some(now)), Asked::Granted);
    }

    #[test]
    fn it_is_handed_to_the_one_named_or_to_the_one_that_waits_longest() {
        let (mut control, now) = (Control::default(), Instant::now());
        (1..=4).for_each(|viewer| control.join(viewer, viewer != 4));
        assert_eq!(control.release(2, Some(3)), Ok(()), "what one does not have one cannot give");
        assert_eq!(control.active(), Some(1));
        assert_eq!(control.release(1, Some(4)), Err(NoSuchTaker));
        assert_eq!(control.release(1, Some(9)), Err(NoSuchTaker));
        assert_eq!(control.release(1, Some(3)), Ok(()));
        assert_eq!(control.active(), Some(3));
        assert_eq!(control.release(3, None), Ok(()));
        assert_eq!(control.active(), Some(2));
        assert_eq!(control.release(2, None), Ok(()));
        assert_eq!(control.active(), None);
        assert_eq!(control.ask(1, now, Some(now)), Asked::Granted);
    }

    #[test]
    fn who_comes_again_in_time_keeps_it_and_who_does_not_loses_it() {
        let start = Instant::now();
        let mut control = Control::default();
        control.join(1, true);
        control.lost(1, start, start);
        control.join(2, true);
        assert_eq!((control.active(), control.kept()), (None, Some(1)));
        control.at(start + GRACE / 2, None);
        control.join(1, true);
        assert_eq!(control.active(), Some(1));
        control.lost(1, start, start);
        control.at(start + GRACE, None);
        assert_eq!(control.active(), Some(2));
        control.join(1, true);
        assert_eq!(control.active(), Some(2));
    }

    #[test]
    fn who_waits_and_comes_again_by_another_lane_still_gets_it() {
        let start = Instant::now();
        let mut control = Control::default();
        control.join(1, true);
        control.lost(1, start, start);
        control.join(2, true);
        control.lost(2, start, start);
        control.join(2, true);
        control.at(start + GRACE, None);
        assert_eq!(control.active(), Some(2));
    }

    #[test]
    fn a_silent_viewer_gives_way_to_one_that_asks_and_to_no_other() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut control = Control::default();
        (1..=3).for_each(|viewer| control.join(viewer, true));
        assert_eq!(control.deadline(Some(start)), None, "nobody has asked");
        control.at(start + SILENCE * 2, Some(start));
        assert_eq!(control.active(), Some(1));
        assert_eq!(control.ask(3, start, Some(start)), Asked::HeldBy(1));
        control.at(start + SILENCE, Some(start + ms(1)));
        assert_eq!(control.active(), Some(1), "it is alive");
        assert_eq!(control.deadline(Some(start + ms(1))), Some(start + SILENCE + ms(1)));
        control.at(start + SILENCE + ms(1), Some(start + ms(1)));
        assert_eq!(control.active(), Some(3));
        assert_eq!(control.deadline(Some(start)), None);
        assert_eq!(control.ask(1, start + SILENCE, Some(start)), Asked::Granted, "silent for long already");
    }

    #[test]
    fn a_place_is_kept_from_one_that_asks_for_no_longer_than_a_silent_viewer_would_have_it() {
        let start = Instant::now();
        let mut control = Control::default();
        (1..=2).for_each(|viewer| control.join(viewer, true));
        control.lost(1, start, start + SILENCE / 2);
        assert_eq!(control.ask(2, start + SILENCE / 2, None), Asked::Waits);
        assert_eq!(control.deadline(None), Some(start + SILENCE));
        control.at(start + SILENCE, None);
        assert_eq!(control.active(), Some(2));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Join(u32, bool),
        Rejoin(u32),
        Lost(u32),
        Ask(u32),
        Release(u32, Option<u32>),
        Wait(u64),
        Alive,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let viewer = 1..6_u32;
        let step = prop_oneof![
            (viewer.clone(), any::<bool>()).prop_map(|(viewer, may)| Step::Join(viewer, may)),
            viewer.clone().prop_map(Step::Rejoin),
            viewer.clone().prop_map(Step::Lost),
            viewer.clone().prop_map(Step::Ask),
            (viewer, prop::option::of(1..6_u32)).prop_map(|(viewer, to)| Step::Release(viewer, to)),
            (0..15_000_u64).prop_map(Step::Wait),
            Just(Step::Alive),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn only_a_viewer_that_is_here_and_may_have_it_controls(steps in steps()) {
            let (mut control, mut now) = (Control::default(), Instant::now());
            let mut alive = now;
            let mut may: BTreeMap<u32, bool> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Join(viewer, allowed) if !may.contains_key(&viewer) => {
                        may.insert(viewer, allowed);
                        control.join(viewer, allowed);
                    }
                    Step::Rejoin(viewer) if may.contains_key(&viewer) && !control.here.contains_key(&viewer) => {
                        control.join(viewer, may[&viewer]);
                    }
                    Step::Join(..) | Step::Rejoin(_) => {}
                    Step::Lost(viewer) => control.lost(viewer, alive, now),
                    Step::Ask(viewer) => {
                        let answer = control.ask(viewer, now, Some(alive));
                        prop_assert_eq!(answer == Asked::Granted, control.active() == Some(viewer));
                    }
                    Step::Release(viewer, to) => {
                        let _ = control.release(viewer, to);
                    }
                    Step::Alive => alive = now,
                    Step::Wait(ms) => {
                        now += Duration::from_millis(ms);
                        control.at(now, Some(alive));
                    }
                }
                if let Some(active) = control.active() {
                    prop_assert_eq!(control.here.get(&active), Some(&true));
                }
                prop_assert!(control.waiting.len() <= control.here.len());
                prop_assert!(control.asking.is_none_or(|asking| control.waiting.contains(&asking)));
                prop_assert!(control.holder != Holder::Free || control.waiting.is_empty());
            }
        }
    }
}
