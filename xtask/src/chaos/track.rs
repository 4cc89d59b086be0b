//! One caller and the VMs it has, one after the other: what it wants, what it knows, what it is waiting for.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use polydev_core::ids::{Slot, UserId, VmId};
use polydev_host::firecracker::toy;

use super::{
    caller::{Caller, Failure},
    machine::{Machine, ProcessId},
    options::Driver,
    report::Report,
    suite::LOOK_AGAIN,
};
use crate::random::Random;

/// How often a track does not go where a manager is to die.
const ASTRAY: f64 = 0.25;
/// How long a toy guest that runs may take to say more: some milliseconds where the processors are its own.
const TOY_LIMIT: Duration = Duration::from_secs(60);

/// A request on whose way a failpoint lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Goal {
    pub(super) operation: Operation,
    /// Of a CLI VM, or a browser VM.
    pub(super) cli: bool,
}

/// What can be asked for a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Create,
    Hibernate,
    Resume,
    Destroy,
    Put,
    Get,
    Ping,
}

/// A VM as its caller knows it.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) id: VmId,
    /// None until it was created.
    pub(super) slot: Option<Slot>,
    pub(super) process: Option<ProcessId>,
    pub(super) asleep: bool,
    /// The guest's boot as it or its console tells it: the same as long as its memory is.
    pub(super) boot: Option<String>,
    /// What was asked and not answered.
    pub(super) doing: Option<Operation>,
}

impl Known {
    /// Nothing was asked that could change whether it runs.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.doing, None | Some(Operation::Put | Operation::Get | Operation::Ping))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Track {
    /// A CLI VM of this user, or browser VMs.
    pub(super) user: Option<UserId>,
    /// Its VM is never destroyed, so that it outlives every manager.
    stays: bool,
    driver: Driver,
    random: Random,
    pub(super) vm: Option<Known>,
    /// What the disk holds: the last text whose writing was answered.
    written: Option<String>,
    /// A text whose writing was not answered: the disk may hold it instead.
    unanswered: Option<String>,
    writes: usize,
}

impl Track {
    pub(super) fn new(index: usize, seed: u64, driver: Driver) -> Self {
        let cli = index.is_multiple_of(2);
        let user = format!("chaos-{index}").parse().expect("a plain name is a user id");
        Self {
            user: cli.then_some(user),
            // One of each kind where there are many.
            stays: index.is_multiple_of(3),
            driver,
            random: Random::new(seed.wrapping_mul(1000).wrapping_add(index as u64)),
            vm: None,
            written: None,
            unanswered: None,
            writes: 0,
        }
    }

    /// What is to be asked next to get to `goal`, and how many requests that takes. None if this track never does.
    pub(super) fn way_to(&self, goal: Goal) -> Option<(usize, Operation)> {
        use Operation::{Create, Destroy, Hibernate, Resume};
        if goal.cli != self.user.is_some() {
            return None;
        }
        let asleep = self.vm.as_ref().map(|vm| vm.asleep);
        match (goal.operation, asleep) {
            (Create, None) => Some((1, Create)),
            (Create, Some(_)) => (!self.stays).then_some((2, Destroy)),
            (Destroy, None) => (!self.stays).then_some((2, Create)),
            (Destroy, Some(_)) => (!self.stays).then_some((1, Destroy)),
            (Hibernate, None) => goal.cli.then_some((2, Create)),
            (Hibernate, Some(false)) => goal.cli.then_some((1, Hibernate)),
            (Hibernate, Some(true)) => Some((2, Resume)),
            (Resume, None) => goal.cli.then_some((3, Create)),
            (Resume, Some(false)) => goal.cli.then_some((2, Hibernate)),
            (Resume, Some(true)) => Some((1, Resume)),
            (Operation::Put | Operation::Get | Operation::Ping, _) => None,
        }
    }

    /// The plan: what to ask next, most of the time on the way to one of the goals.
    pub(super) fn next(&mut self, goals: &BTreeSet<Goal>) -> Operation {
        let astray = self.random.unit() < ASTRAY;
        let way = goals.iter().filter_map(|goal| self.way_to(*goal)).min();
        if let Some((_, operation)) = way.filter(|_| !astray) {
            return operation;
        }
        let at = self.random.unit();
        let Some(vm) = &self.vm else { return Operation::Create };
        if vm.asleep {
            return if at < 0.2 && !self.stays { Operation::Destroy } else { Operation::Resume };
        }
        match at {
            at if at < 0.30 && !self.stays => Operation::Destroy,
            at if at < 0.70 && self.user.is_some() => Operation::Hibernate,
            at if at < 0.80 && self.user.is_some() && self.driver.has_disk() => Operation::Put,
            at if at < 0.90 && self.user.is_some() && self.driver.has_disk() => Operation::Get,
            _ => Operation::Ping,
        }
    }

    /// Asks for it and takes note of the answer. An error says that the manager is of no use any more.
    pub(super) fn perform(
        &mut self,
        operation: Operation,
        caller: &Caller,
        machine: &Machine,
        report: &Report,
    ) -> Result<(), Failure> {
        if operation == Operation::Create {
            let id = match &self.user {
                Some(_) => VmId::from_uuid(uuid::Uuid::new_v4()),
                None => caller.draw()?,
            };
            self.vm = Some(Known { id, slot: None, process: None, asleep: false, boot: None, doing: None });
        }
        let Some(vm) = &mut self.vm else { return Ok(()) };
        vm.doing = Some(operation);
        let id = vm.id;
        let asked = match operation {
            Operation::Create => caller.create(id, self.user.clone()).map(|slot| {
                vm.slot = Some(slot);
                vm.process = machine.recorded_process(id);
            }),
            Operation::Hibernate => caller.hibernate(id).map(|()| vm.asleep = true),
            Operation::Resume => caller.resume(id).map(|lost| {
                let process = machine.recorded_process(id);
                if let Some(words) = lost {
                    report.lost(format!("memory of sleeping VM {id}: {words}"));
                    vm.boot = None;
                } else if self.driver.sleeps_in_place() && process != vm.process {
                    report.lost(format!("VM {id} fell asleep as {:?} and woke as {process:?}", vm.process));
                }
                vm.asleep = false;
                vm.process = process;
            }),
            Operation::Destroy => caller.destroy(id),
            Operation::Put => {
                self.writes += 1;
                let text = format!("FAKE {id} {}", self.writes);
                self.unanswered = Some(text.clone());
                caller.put(id, text).map(|()| self.written = self.unanswered.take())
            }
            Operation::Get => return self.read_back(caller, report),
            Operation::Ping => return self.answers(caller, machine, report),
        };
        match asked {
            Ok(()) => {
                report.performed(operation);
                vm.doing = None;
                if operation == Operation::Destroy {
                    self.vm = None;
                }
                Ok(())
            }
            Err(Failure::Refused(words)) => {
                report.failed(format!("{operation:?} of VM {id}: {words}"));
                vm.doing = None;
                if operation == Operation::Create {
                    self.vm = None;
                }
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// The VM's agent answers, from the memory it had. What it says otherwise is a VM that is lost.
    pub(super) fn answers(
        &mut self,
        caller: &Caller,
        machine: &Machine,
        report: &Report,
    ) -> Result<(), Failure> {
        let Some(vm) = &mut self.vm else { return Ok(()) };
        let id = vm.id;
        let answer = caller.ping(id);
        let answer = if self.driver.has_toy() { answer.and_then(|_| toy_boot(machine, id)) } else { answer };
        match answer {
            Ok(boot) => {
                report.performed(Operation::Ping);
                vm.doing = None;
                if vm.boot.get_or_insert_with(|| boot.clone()) != &boot {
                    report.lost(format!("VM {id} was started anew: its memory is lost"));
                    vm.boot = Some(boot);
                }
                Ok(())
            }
            Err(Failure::Refused(words)) => {
                report.lost(format!("VM {id} does not answer: {words}"));
                self.vm = None;
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// The disk holds what was written last.
    pub(super) fn read_back(&mut self, caller: &Caller, report: &Report) -> Result<(), Failure> {
        let Some(vm) = self.vm.as_mut().filter(|_| self.driver.has_disk()) else { return Ok(()) };
        let id = vm.id;
        match caller.get(id) {
            Ok(found) => {
                report.performed(Operation::Get);
                vm.doing = None;
                if found != self.written && (found.is_none() || found != self.unanswered) {
                    report.corrupted(format!(
                        "disk of VM {id} holds {found:?}; it was to hold {:?} or {:?}",
                        self.written, self.unanswered
                    ));
                }
                // What was not answered may still arrive.
                if found == self.unanswered {
                    self.unanswered = None;
                }
                self.written = found;
                Ok(())
            }
            Err(Failure::Refused(words)) => {
                report.lost(format!("VM {id} does not read its disk: {words}"));
                self.vm = None;
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }
}

/// Waits until a toy guest says more, which it does for as long as it runs. Which boot it is shows in what it said: its
/// banner only when it boots, dots from then on.
fn toy_boot(machine: &Machine, id: VmId) -> Result<String, Failure> {
    let (before, deadline) = (machine.console(id).len(), Instant::now() + TOY_LIMIT);
    loop {
        let said = machine.console(id);
        // Less if it was cut meanwhile.
        if said.len() != before {
            return Ok(if is_booted_anew(&said) { "anew" } else { "first" }.to_owned());
        }
        if Instant::now() > deadline {
            return Err(Failure::Refused("its guest stands still".to_owned()));
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// What the VMM says has no two dots side by side.
fn is_booted_anew(console: &str) -> bool {
    console.rsplit_once(toy::BANNER).is_some_and(|(before, _)| before.contains(".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Operation::{Create, Destroy, Hibernate, Resume};

    fn way(track: &Track, operation: Operation) -> Option<(usize, Operation)> {
        track.way_to(Goal { operation, cli: track.user.is_some() })
    }

    fn with_vm(index: usize, asleep: bool) -> Track {
        let id = VmId::from_uuid(uuid::Uuid::nil());
        let vm = Known { id, slot: None, process: None, asleep, boot: None, doing: None };
        Track { vm: Some(vm), ..Track::new(index, 1, Driver::Qemu) }
    }

    #[test]
    fn a_track_takes_the_shortest_way_to_where_a_manager_is_to_die() {
        let cli = Track::new(2, 1, Driver::Qemu);
        assert_eq!(way(&cli, Create), Some((1, Create)));
        assert_eq!(way(&cli, Resume), Some((3, Create)));
        assert_eq!(way(&with_vm(2, false), Resume), Some((2, Hibernate)));
        assert_eq!(way(&with_vm(2, true), Resume), Some((1, Resume)));
        assert_eq!(way(&with_vm(2, true), Hibernate), Some((2, Resume)));
        assert_eq!(way(&with_vm(2, false), Create), Some((2, Destroy)));
    }

    #[test]
    fn a_toys_banner_behind_its_dots_is_a_boot_anew() {
        let (banner, vmm) = (toy::BANNER, "Running Firecracker v1.16.1\n");
        assert!(!is_booted_anew(&format!("{vmm}{banner}....{vmm}....")), "woken");
        assert!(!is_booted_anew("...."), "of a template, or cut");
        assert!(is_booted_anew(&format!("{vmm}{banner}....{vmm}{banner}...")));
    }

    #[test]
    fn a_browser_vm_never_sleeps_and_a_vm_that_stays_is_never_destroyed() {
        let browser = with_vm(1, false);
        assert_eq!((way(&browser, Hibernate), way(&browser, Resume)), (None, None));
        assert_eq!(way(&browser, Destroy), Some((1, Destroy)));
        let stays = with_vm(0, false);
        assert_eq!((way(&stays, Destroy), way(&stays, Create)), (None, None));
        assert_eq!(browser.way_to(Goal { operation: Create, cli: true }), None, "not of its kind");
    }
}
