//! Puts a CLI VM to sleep and wakes it.

use std::{path::Path, sync::Arc, time::Instant};

use polydev_core::{
    ids::VmId,
    vm::{Link, Process, Step, Want, next_step},
    wire::{Identity, Request},
};

use super::{Host, Inner, Vm, VmKind, joined, lifecycle::elapsed_ms};
use crate::{
    agent::AgentClient,
    driver::{Driver, Hibernation},
    error::HostError,
    failpoint, process,
    record::{Phase, VmRecord, VmState},
    usage::Start,
};

/// A VM that was asked to go on.
#[derive(Debug, Clone)]
pub struct Resumed {
    /// It runs.
    pub vm: Vm,
    /// Why its memory was lost, if it was: it has started anew from its disk then.
    pub memory_lost: Option<String>,
}

impl Host {
    /// Puts a CLI VM to sleep: it keeps its place, its disk and all it holds in memory, and takes no CPU time. Its agent's
    /// connection ends. Fine for one that sleeps already. On error it runs on, or has
    /// ended, or has started anew from its disk, which the error says; [`Host::adopt`] connects to it again.
    ///
    /// Dropping the future does not stop what it began.
    pub async fn hibernate(&self, id: VmId) -> Result<(), HostError> {
        let inner = Arc::clone(&self.inner);
        joined(tokio::spawn(async move { inner.hibernate(id).await })).await
    }

    /// Wakes a VM that was put to sleep and connects to it; one that runs is only connected to. When its memory was
    /// damaged it starts anew from its disk, and the answer says so.
    ///
    /// Dropping the future does not stop what it began.
    pub async fn resume(&self, id: VmId) -> Result<Resumed, HostError> {
        let inner = Arc::clone(&self.inner);
        joined(tokio::spawn(async move { inner.resume(id).await })).await
    }
}

impl Inner {
    pub(super) async fn hibernate(&self, id: VmId) -> Result<(), HostError> {
        let began = Instant::now();
        let cell = self.cell(id);
        let mut agent = cell.lock().await;
        let mut record = self.record_of(id).ok_or(HostError::NoSuchVm(id))?;
        let driver = Arc::clone(self.driver_of(&record));
        let is_cli = matches!(record.kind, VmKind::Cli { .. });
        if !is_cli || driver.info().hibernation == Hibernation::None {
            return Err(HostError::NotHibernatable { id });
        }
        if matches!(record.phase, Phase::Creating | Phase::Starting | Phase::Destroying) {
            return Err(HostError::NoSuchVm(id));
        }
        // It stands still already, and what it has to write out finds no room.
        if record.state == VmState::Paused {
            self.must_have_disk()?;
            return Err(HostError::HibernateFailed { id, detail: "it was paused until now".to_owned() });
        }
        let dir = self.places.vm(id);
        let mut link = Link::Identified;
        loop {
            let seen = self.look(&*driver, id, &dir, link)?;
            let Some(step) = next_step(Want::Hibernated, &seen) else { break };
            if record.phase != Phase::Hibernating && !matches!(step, Step::GiveUp) {
                failpoint::reach("hibernate/before-record");
                self.note_phase(&mut record, Phase::Hibernating)?;
                failpoint::reach("hibernate/recorded");
            }
            match step {
                Step::Quiesce => {
                    self.quiesce(&*driver, id, agent.take()).await;
                    link = Link::Down;
                    failpoint::reach("hibernate/quiesced");
                }
                Step::Hold => {
                    if let Err(error) = driver.hibernate(&record, &dir).await {
                        // It goes on as after a manager that died here; what cannot be done now the next one asks for.
                        let lost = match self.look(&*driver, id, &dir, Link::Down)?.process {
                            Process::Alive | Process::Held => self.wake(&record).await,
                            Process::Ended | Process::NeverStarted => Err(HostError::NoSuchVm(id)),
                        };
                        let lost = match lost {
                            Ok((client, lost)) => {
                                *agent = Some(client);
                                lost
                            }
                            Err(error) => {
                                tracing::warn!(vm.id = %id, %error, "VM that was not put to sleep does not go on yet");
                                None
                            }
                        };
                        return Err(match (error, lost) {
                            (error, Some(lost)) => {
                                let detail = format!("{error}; it started anew from its disk: {lost}");
                                HostError::HibernateFailed { id, detail }
                            }
                            (
                                error @ (HostError::NoSpace { .. } | HostError::HibernateFailed { .. }),
                                None,
                            ) => error,
                            (other, None) => HostError::HibernateFailed { id, detail: other.to_string() },
                        });
                    }
                    failpoint::reach("hibernate/held");
                }
                Step::GiveUp => return Err(HostError::NoSuchVm(id)),
                Step::Record
                | Step::Start
                | Step::Connect
                | Step::Identify
                | Step::Paint
                | Step::Wake
                | Step::Stop
                | Step::KeepLogs
                | Step::Release
                | Step::Forget => unreachable!("{step:?} is no step towards a VM that sleeps"),
            }
        }
        if record.state != VmState::Hibernated || record.phase != Phase::Running {
            record.state = VmState::Hibernated;
            self.note_phase(&mut record, Phase::Running)?;
            failpoint::reach("hibernate/complete");
            tracing::info!(vm.id = %id, elapsed_ms = elapsed_ms(began), "VM hibernated");
        }
        self.asleep().insert(id);
        Ok(())
    }

    pub(super) async fn resume(&self, id: VmId) -> Result<Resumed, HostError> {
        let cell = self.cell(id);
        let mut agent = cell.lock().await;
        self.unpause(id).await?;
        let record = self.record_of(id).ok_or(HostError::NoSuchVm(id))?;
        if let Some(client) = agent.as_ref().filter(|client| !client.is_closed()) {
            let vm = Vm { id, kind: record.kind, slot: record.slot, agent: client.clone() };
            return Ok(Resumed { vm, memory_lost: None });
        }
        let (client, memory_lost) = self.wake(&record).await?;
        *agent = Some(client.clone());
        Ok(Resumed { vm: Vm { id, kind: record.kind, slot: record.slot, agent: client }, memory_lost })
    }

    /// Brings a VM up that sleeps, or that was being put to sleep or woken when an earlier process ended.
    pub(super) async fn wake(&self, record: &VmRecord) -> Result<(AgentClient, Option<String>), HostError> {
        let (began, id) = (Instant::now(), record.id);
        let mut watch = self.phases.watch(&record.kind, Start::Woken);
        let identity = record.identity.clone().ok_or(HostError::NotHibernatable { id })?;
        let driver = Arc::clone(self.driver_of(record));
        let dir = self.places.vm(id);
        let admitted = match record.state {
            // A VM that is frozen takes memory already.
            VmState::Hibernated if driver.info().hibernation == Hibernation::Save => {
                Some(self.make_room(id, &record.kind, record.vcpus).await?)
            }
            VmState::Hibernated | VmState::Active | VmState::Paused | VmState::Warm => None,
        };
        let mut record = record.clone();
        let mut memory_lost = None;
        if record.state == VmState::Hibernated || matches!(record.phase, Phase::Hibernating | Phase::Resuming)
        {
            failpoint::reach("resume/before-record");
            self.note_phase(&mut record, Phase::Resuming)?;
            failpoint::reach("resume/recorded");
            watch.enter("wake");
            memory_lost = self.let_go_on(&*driver, &record, &dir).await?;
            failpoint::reach("resume/woken");
        }
        record.state = VmState::Active;
        record.boot_id = Some(process::boot_id().to_owned());
        let came_up = self.bring_up(&mut record, identity.clone(), Want::Running, None, &mut watch).await;
        let client = match came_up {
            Err(error @ (HostError::StartFailed { .. } | HostError::AgentSilent { .. })) => {
                let reason = error.to_string();
                tracing::error!(vm.id = %id, reason, "hibernated VM does not go on; it starts anew from its disk");
                self.clear(&*driver, id, &dir).await?;
                memory_lost = Some(reason);
                self.bring_up(&mut record, identity, Want::Running, None, &mut watch).await?
            }
            other => other?,
        };
        self.asleep().remove(&id);
        drop(admitted);
        tracing::info!(
            vm.id = %id, memory_lost = memory_lost.as_deref(), elapsed_ms = elapsed_ms(began), "VM resumed"
        );
        Ok((client, memory_lost))
    }

    /// Has the driver wake the VM. Where nothing is left to wake, clears away what there is, so that the VM starts anew
    /// from its disk; the reason is returned.
    async fn let_go_on(
        &self,
        driver: &dyn Driver,
        record: &VmRecord,
        dir: &Path,
    ) -> Result<Option<String>, HostError> {
        let id = record.id;
        let seen = self.look(driver, id, dir, Link::Down)?;
        let lost = match next_step(Want::Running, &seen) {
            Some(Step::Wake | Step::Connect) => {
                // A reboot of the machine empties the directory of all run directories.
                self.make_dir(record, dir)?;
                let going_on = match self.keep_network(record).await {
                    Ok(()) => driver.resume(record, dir).await,
                    Err(error) => Err(error),
                };
                match going_on {
                    Ok(()) => return Ok(None),
                    Err(HostError::MemoryLost { detail, .. }) => detail,
                    Err(error) => return Err(error),
                }
            }
            _ => "nothing is left of it but its disk".to_owned(),
        };
        tracing::error!(vm.id = %id, reason = lost, "hibernated VM lost its memory; it starts anew from its disk");
        self.clear(driver, id, dir).await?;
        Ok(Some(lost))
    }

    /// Removes all there is of a VM but its record and its place.
    async fn clear(&self, driver: &dyn Driver, id: VmId, dir: &Path) -> Result<(), HostError> {
        loop {
            let seen = self.look(driver, id, dir, Link::Down)?;
            match next_step(Want::Gone, &seen) {
                Some(Step::Stop) => driver.stop(id, dir).await?,
                Some(Step::KeepLogs) => self.keep_logs(id, dir)?,
                Some(Step::Release) => self.release(driver, id, dir).await?,
                _ => return Ok(()),
            }
        }
    }

    /// Has the agent write everything out and let go. A guest that does not answer is put to sleep all the same: what it
    /// has not written yet is in the memory that is kept.
    async fn quiesce(&self, driver: &dyn Driver, id: VmId, client: Option<AgentClient>) {
        let client = match client.filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => match self.connect(driver, id, driver.info().start_limit).await {
                Ok(client) => client,
                Err(error) => {
                    tracing::warn!(vm.id = %id, %error, "VM is put to sleep without its agent's help");
                    return;
                }
            },
        };
        if let Err(error) = client.request(Request::Quiesce).await {
            tracing::warn!(vm.id = %id, %error, "VM is put to sleep without its agent's help");
        }
        client.sever();
    }
}

/// What is kept of an identity: not the randomness.
pub(super) fn without_entropy(identity: &Identity) -> Identity {
    Identity { entropy: String::new(), unix_time_ms: 0, ..identity.clone() }
}
