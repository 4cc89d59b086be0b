//! What to do next with a VM, given what is wanted and what is seen. No history, no clock: the same function runs a
//! fresh VM up, takes over after a crash, and cleans up what an earlier process left behind.
//!
//! ```text
//! want running:     Record ─▶ Start ─▶ Connect ─▶ Identify ─▶ (nothing to do)
//!                               │        ▲
//!                               │        └── it was held: Wake
//!                               └── the process ended: GiveUp, and gone is wanted from then on
//! want warm:        the same, then Paint ─▶ (nothing to do)
//! want hibernated:  Quiesce ─▶ Hold ─▶ (nothing to do)
//! want gone:        Stop ─▶ KeepLogs ─▶ Release ─▶ Forget ─▶ (nothing to do)
//! ```

/// What should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// A VM whose agent has taken its identity.
    Running,
    /// The same with a desktop that shows a picture, for somebody who is still to come.
    Warm,
    /// A VM that does not run and whose memory is kept.
    Hibernated,
    /// No trace but archived logs.
    Gone,
}

/// The VM's main process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Process {
    /// None, and nothing shows that there was one.
    NeverStarted,
    /// Lives.
    Alive,
    /// Does not run, and all it held is kept: it is frozen, or memory and devices are saved.
    Held,
    /// There was one.
    Ended,
}

/// The connection to the VM's agent, as far as this process has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Link {
    /// None.
    Down,
    /// The agent answered hello.
    Up,
    /// The agent has taken its identity.
    Identified,
    /// And its desktop shows a picture.
    Painted,
}

/// What is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The VM's record is on disk.
    pub recorded: bool,
    /// Its main process.
    pub process: Process,
    /// Anything else of it: run directory, mounts, cgroup, runtime state.
    pub resources: bool,
    /// Its logs still lie in the run directory only.
    pub unkept_logs: bool,
    /// The connection.
    pub link: Link,
}

/// One thing to do. Each may be repeated without harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Write the record down durably.
    Record,
    /// Make the VM's resources and start its process.
    Start,
    /// Connect and say hello.
    Connect,
    /// Hand the identity over.
    Identify,
    /// Start the desktop and wait for its first picture.
    Paint,
    /// Have the agent write everything out and let go of the connection.
    Quiesce,
    /// Freeze the VM, or save its memory and end its process.
    Hold,
    /// Let a held VM go on.
    Wake,
    /// It cannot come up any more: read its last words and want it gone.
    GiveUp,
    /// End the process and wait until it has ended.
    Stop,
    /// Archive the logs.
    KeepLogs,
    /// Remove run directory, mounts, cgroup and runtime state.
    Release,
    /// Remove the record: nothing is left that it could point to.
    Forget,
}

/// The next thing to do; `None` when what is seen is what is wanted.
pub const fn next_step(want: Want, seen: &Seen) -> Option<Step> {
    match want {
        Want::Running | Want::Warm => match (seen.recorded, seen.process, seen.link) {
            // Without a record whatever is there belongs to nobody: it is not taken over.
            (false, Process::Alive | Process::Held | Process::Ended, _) => Some(Step::GiveUp),
            (false, Process::NeverStarted, _) => Some(Step::Record),
            (true, Process::NeverStarted, _) => Some(Step::Start),
            (true, Process::Ended, _) => Some(Step::GiveUp),
            (true, Process::Held, _) => Some(Step::Wake),
            (true, Process::Alive, Link::Down) => Some(Step::Connect),
            (true, Process::Alive, Link::Up) => Some(Step::Identify),
            (true, Process::Alive, Link::Identified) => match want {
                Want::Warm => Some(Step::Paint),
                Want::Running | Want::Hibernated | Want::Gone => None,
            },
            (true, Process::Alive, Link::Painted) => None,
        },
        Want::Hibernated => match (seen.recorded, seen.process, seen.link) {
            // What does not run and is not held has nothing left to keep.
            (false, _, _) | (true, Process::NeverStarted | Process::Ended, _) => Some(Step::GiveUp),
            // After a crash nobody is connected: the guest then writes out what it has when it goes on.
            (true, Process::Alive, Link::Down) => Some(Step::Hold),
            (true, Process::Alive, Link::Up | Link::Identified | Link::Painted) => Some(Step::Quiesce),
            (true, Process::Held, _) => None,
        },
        Want::Gone => match (seen.process, seen.unkept_logs, seen.resources, seen.recorded) {
            (Process::Alive | Process::Held, _, _, _) => Some(Step::Stop),
            (_, true, _, _) => Some(Step::KeepLogs),
            (_, false, true, _) => Some(Step::Release),
            (_, false, false, true) => Some(Step::Forget),
            (_, false, false, false) => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_seen() -> impl Strategy<Value = Seen> {
        let process = prop_oneof![
            Just(Process::NeverStarted),
            Just(Process::Alive),
            Just(Process::Held),
            Just(Process::Ended)
        ];
        let link = prop_oneof![Just(Link::Down), Just(Link::Up), Just(Link::Identified), Just(Link::Painted)];
        (any::<bool>(), process, any::<bool>(), any::<bool>(), link).prop_map(
            |(recorded, process, resources, unkept_logs, link)| Seen {
                recorded,
                process,
                resources,
                unkept_logs,
                link,
            },
        )
    }

    /// What a step does to the world when it works.
    fn apply(step: Step, mut seen: Seen) -> Seen {
        match step {
            Step::Record => seen.recorded = true,
            Step::Start => {
                seen.process = Process::Alive;
                seen.resources = true;
                seen.unkept_logs = true;
                seen.link = Link::Down;
            }
            Step::Connect => seen.link = Link::Up,
            Step::Identify => seen.link = Link::Identified,
            Step::Paint => seen.link = Link::Painted,
            Step::GiveUp => {}
            Step::Quiesce => seen.link = Link::Down,
            Step::Hold => {
                seen.process = Process::Held;
                seen.resources = true;
                seen.link = Link::Down;
            }
            Step::Wake => {
                seen.process = Process::Alive;
                seen.link = Link::Down;
            }
            Step::Stop => {
                seen.process = Process::Ended;
                seen.link = Link::Down;
            }
            Step::KeepLogs => seen.unkept_logs = false,
            Step::Release => {
                seen.resources = false;
                seen.process = Process::NeverStarted;
            }
            Step::Forget => seen.recorded = false,
        }
        seen
    }

    /// What a later manager sees: its own connections died with the former one.
    fn after_crash(mut seen: Seen) -> Seen {
        seen.link = Link::Down;
        seen
    }

    fn has(want: Want, seen: &Seen) -> bool {
        match want {
            Want::Running => {
                seen.process == Process::Alive && matches!(seen.link, Link::Identified | Link::Painted)
            }
            Want::Warm => seen.process == Process::Alive && seen.link == Link::Painted,
            Want::Hibernated => seen.process == Process::Held,
            Want::Gone => {
                !seen.recorded
                    && !seen.resources
                    && !seen.unkept_logs
                    && !matches!(seen.process, Process::Alive | Process::Held)
            }
        }
    }

    proptest! {
        #[test]
        fn wanting_a_vm_gone_leaves_nothing_whatever_was_seen_and_whenever_a_step_is_repeated(
            mut seen in any_seen(), repeat in any::<bool>(),
        ) {
            let mut steps = 0;
            while let Some(step) = next_step(Want::Gone, &seen) {
                // The record goes last: a crash at any point leaves something to find the rest by.
                if step == Step::Forget {
                    prop_assert!(!seen.resources && !seen.unkept_logs);
                    prop_assert!(!matches!(seen.process, Process::Alive | Process::Held));
                }
                seen = apply(step, seen);
                if repeat {
                    seen = apply(step, seen);
                }
                steps += 1;
                prop_assert!(steps <= 4, "no end in sight: {seen:?}");
            }
            prop_assert!(has(Want::Gone, &seen));
        }

        #[test]
        fn a_wanted_vm_comes_up_or_is_given_up_and_is_never_started_without_a_record(
            want in prop_oneof![Just(Want::Running), Just(Want::Warm)],
            mut seen in any_seen(), dies_after in prop::option::of(0usize..4),
        ) {
            for step_number in 0..8 {
                match next_step(want, &seen) {
                    None => {
                        prop_assert!(seen.recorded && has(want, &seen));
                        return Ok(());
                    }
                    Some(Step::GiveUp) => {
                        prop_assert!(seen.process == Process::Ended || !seen.recorded);
                        return Ok(());
                    }
                    Some(step) => {
                        if step == Step::Start {
                            prop_assert!(seen.recorded && seen.process == Process::NeverStarted);
                        }
                        seen = apply(step, seen);
                        if dies_after == Some(step_number) && seen.process == Process::Alive {
                            seen.process = Process::Ended;
                        }
                    }
                }
            }
            prop_assert!(false, "no end in sight: {:?}", seen);
        }

        #[test]
        fn a_vm_keeps_its_memory_through_any_order_of_wants_with_a_crash_after_any_step(
            wants in prop::collection::vec(
                (prop_oneof![Just(Want::Running), Just(Want::Hibernated)], prop::option::of(0usize..4)), 1..8,
            ),
        ) {
            let mut seen = Seen {
                recorded: true, process: Process::Alive, resources: true, unkept_logs: true, link: Link::Down,
            };
            for (want, crash_after) in wants {
                for step_number in 0..10 {
                    let Some(step) = next_step(want, &seen) else { break };
                    prop_assert!(step_number < 9, "no end in sight: {:?}", seen);
                    // Nothing on the way starts it anew or ends it without its memory kept.
                    prop_assert!(!matches!(
                        step, Step::Start | Step::Stop | Step::Release | Step::Forget | Step::GiveUp
                    ), "{:?} at {:?}", step, seen);
                    // What was not quiesced is held only when nobody was connected.
                    prop_assert!(step != Step::Hold || seen.link == Link::Down);
                    seen = apply(step, seen);
                    if crash_after == Some(step_number) {
                        seen = after_crash(seen);
                    }
                }
                prop_assert!(has(want, &seen), "{:?} is not {:?}", seen, want);
            }
            while let Some(step) = next_step(Want::Gone, &seen) {
                seen = apply(step, seen);
            }
            prop_assert!(has(Want::Gone, &seen));
        }
    }
}
