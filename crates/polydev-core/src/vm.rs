//! What to do next with a VM, given what is wanted and what is seen. No history, no clock: the same function runs a
//! fresh VM up, takes over after a crash, and cleans up what an earlier process left behind.
//!
//! ```text
//! want running:  Record ─▶ Start ─▶ Connect ─▶ Identify ─▶ (nothing to do)
//!                            └── the process ended: GiveUp, and gone is wanted from then on
//! want gone:     Stop ─▶ KeepLogs ─▶ Release ─▶ Forget ─▶ (nothing to do)
//! ```

/// What should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// A VM whose agent has taken its identity.
    Running,
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
        Want::Running => match (seen.recorded, seen.process, seen.link) {
            // Without a record whatever is there belongs to nobody: it is not taken over.
            (false, Process::Alive | Process::Ended, _) => Some(Step::GiveUp),
            (false, Process::NeverStarted, _) => Some(Step::Record),
            (true, Process::NeverStarted, _) => Some(Step::Start),
            (true, Process::Ended, _) => Some(Step::GiveUp),
            (true, Process::Alive, Link::Down) => Some(Step::Connect),
            (true, Process::Alive, Link::Up) => Some(Step::Identify),
            (true, Process::Alive, Link::Identified) => None,
        },
        Want::Gone => match (seen.process, seen.unkept_logs, seen.resources, seen.recorded) {
            (Process::Alive, _, _, _) => Some(Step::Stop),
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
        let process = prop_oneof![Just(Process::NeverStarted), Just(Process::Alive), Just(Process::Ended)];
        let link = prop_oneof![Just(Link::Down), Just(Link::Up), Just(Link::Identified)];
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
            Step::GiveUp => {}
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

    proptest! {
        #[test]
        fn wanting_a_vm_gone_leaves_nothing_whatever_was_seen_and_whenever_a_step_is_repeated(
            mut seen in any_seen(), repeat in any::<bool>(),
        ) {
            let mut steps = 0;
            while let Some(step) = next_step(Want::Gone, &seen) {
                // The record goes last: a crash at any point leaves something to find the rest by.
                if step == Step::Forget {
                    prop_assert!(!seen.resources && !seen.unkept_logs && seen.process != Process::Alive);
                }
                seen = apply(step, seen);
                if repeat {
                    seen = apply(step, seen);
                }
                steps += 1;
                prop_assert!(steps <= 4, "no end in sight: {seen:?}");
            }
            prop_assert!(!seen.recorded && !seen.resources && !seen.unkept_logs && seen.process != Process::Alive);
        }

        #[test]
        fn a_wanted_vm_comes_up_or_is_given_up_and_is_never_started_without_a_record(
            mut seen in any_seen(), dies_after in prop::option::of(0usize..4),
        ) {
            for step_number in 0..6 {
                match next_step(Want::Running, &seen) {
                    None => {
                        prop_assert!(seen.recorded && seen.process == Process::Alive);
                        prop_assert_eq!(seen.link, Link::Identified);
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
    }
}
