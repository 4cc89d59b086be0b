//! One caller and the VMs it has, one after the other: what it wants, what it knows, what it is waiting for.

use polydev_core::ids::{Slot, UserId, VmId};

use super::{
    caller::{Ask, Caller, Failure},
    machine::{Machine, ProcessId},
    report::Report,
};
use crate::random::Random;

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
    /// The guest's boot: the same as long as its memory is.
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
    /// What is written to the disk outlives the manager.
    has_disk: bool,
    random: Random,
    pub(super) vm: Option<Known>,
    /// What the disk holds: the last text whose writing was answered.
    written: Option<String>,
    /// A text whose writing was not answered: the disk may hold it instead.
    unanswered: Option<String>,
    writes: usize,
}

impl Track {
    pub(super) fn new(index: usize, seed: u64, has_disk: bool) -> Self {
        let cli = index.is_multiple_of(2);
        let user = format!("chaos-{index}").parse().expect("a plain name is a user id");
        Self {
            user: cli.then_some(user),
            stays: index < 2,
            has_disk,
            random: Random::new(seed.wrapping_mul(1000).wrapping_add(index as u64)),
            vm: None,
            written: None,
            unanswered: None,
            writes: 0,
        }
    }

    /// The plan: what to ask next.
    pub(super) fn next(&mut self) -> Operation {
        let at = self.random.unit();
        let Some(vm) = &self.vm else { return Operation::Create };
        if vm.asleep {
            return if at < 0.2 && !self.stays { Operation::Destroy } else { Operation::Resume };
        }
        match at {
            at if at < 0.30 && !self.stays => Operation::Destroy,
            at if at < 0.70 && self.user.is_some() => Operation::Hibernate,
            at if at < 0.80 && self.user.is_some() && self.has_disk => Operation::Put,
            at if at < 0.90 && self.user.is_some() && self.has_disk => Operation::Get,
            _ => Operation::Ping,
        }
    }

    /// Asks for it and takes note of the answer. An error says that the manager is of no use any more.
    pub(super) fn perform(
        &mut self,
        operation: Operation,
        caller: &mut Caller,
        machine: &Machine,
        report: &Report,
    ) -> Result<(), Failure> {
        if operation == Operation::Create {
            let id = match &self.user {
                Some(_) => VmId::from_uuid(uuid::Uuid::new_v4()),
                None => caller.ask(&Ask::Draw)?,
            };
            self.vm = Some(Known { id, slot: None, process: None, asleep: false, boot: None, doing: None });
        }
        let Some(vm) = &mut self.vm else { return Ok(()) };
        vm.doing = Some(operation);
        let id = vm.id;
        let asked = match operation {
            Operation::Create => {
                let asked = caller.ask::<Slot>(&Ask::Create { id, user: self.user.clone() });
                asked.map(|slot| {
                    vm.slot = Some(slot);
                    vm.process = machine.recorded_process(id);
                })
            }
            Operation::Hibernate => caller.ask(&Ask::Hibernate { id }).map(|()| vm.asleep = true),
            Operation::Resume => caller.ask::<Option<String>>(&Ask::Resume { id }).map(|lost| {
                if let Some(words) = lost {
                    report.lost(format!("memory of sleeping VM {id}: {words}"));
                    vm.boot = None;
                }
                vm.asleep = false;
                vm.process = machine.recorded_process(id);
            }),
            Operation::Destroy => caller.ask(&Ask::Destroy { id }),
            Operation::Put => {
                self.writes += 1;
                let text = format!("FAKE {id} {}", self.writes);
                self.unanswered = Some(text.clone());
                caller.ask(&Ask::Put { id, text }).map(|()| self.written = self.unanswered.take())
            }
            Operation::Get => return self.read_back(caller, report),
            Operation::Ping => return self.answers(caller, report),
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
    pub(super) fn answers(&mut self, caller: &mut Caller, report: &Report) -> Result<(), Failure> {
        let Some(vm) = &mut self.vm else { return Ok(()) };
        let id = vm.id;
        match caller.ask::<String>(&Ask::Ping { id }) {
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
    pub(super) fn read_back(&mut self, caller: &mut Caller, report: &Report) -> Result<(), Failure> {
        let Some(vm) = self.vm.as_mut().filter(|_| self.has_disk) else { return Ok(()) };
        let id = vm.id;
        match caller.ask::<Option<String>>(&Ask::Get { id }) {
            Ok(found) => {
                report.performed(Operation::Get);
                vm.doing = None;
                if found != self.written && (found.is_none() || found != self.unanswered) {
                    report.corrupted(format!(
                        "disk of VM {id} holds {found:?}; it was to hold {:?} or {:?}",
                        self.written, self.unanswered
                    ));
                }
                self.written = found;
                self.unanswered = None;
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
