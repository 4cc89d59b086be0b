//! A VM's agent connection belongs to one process. Here the host gives it away, dials for somebody else, and takes
//! what only the owner of the connection can know.

use std::{io, time::Duration};

use polydev_core::{
    ids::{Slot, VmId},
    vm::Process,
};
use tokio::net::UnixStream;

use super::{Host, LogKind, VmKind, agent_logs, lifecycle::asleep_or_between};
use crate::error::HostError;

/// What another process needs to know of a VM to connect to its agent.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct VmFacts {
    /// Its id.
    pub(crate) id: VmId,
    /// What it is for.
    pub(crate) kind: VmKind,
    /// Its place.
    pub(crate) slot: Slot,
    /// Multiplies the agent's deadlines.
    pub(crate) slow_factor: u32,
    /// How long the agent may take to answer.
    pub(crate) answer_limit: Duration,
}

/// A connection that was not made.
#[derive(Debug)]
pub(crate) enum NotDialled {
    /// The VM is gone for good.
    Gone,
    /// It may work later.
    Later(io::Error),
}

impl Host {
    /// Lets go of the connection to a running VM's agent, if this process has one, so that another one can take it over.
    /// Whoever asks next connects anew.
    pub(crate) async fn hand_over(&self, id: VmId) -> Result<VmFacts, HostError> {
        let inner = &self.inner;
        inner.record_of(id).ok_or(HostError::NoSuchVm(id))?;
        let cell = inner.cell(id);
        let mut agent = cell.lock().await;
        inner.unpause(id).await?;
        let record = inner.record_of(id).ok_or(HostError::NoSuchVm(id))?;
        if asleep_or_between(&record) || !inner.is_settled(&record)? {
            return Err(HostError::NoSuchVm(id));
        }
        let driver = inner.driver_of(&record);
        // It belongs to this process, whoever owns the connection, and ended with the former one.
        inner.open_gateway(&record).await?;
        inner.watch_end(&record);
        if let Some(client) = agent.take() {
            client.sever();
        }
        let info = driver.info();
        Ok(VmFacts {
            id,
            kind: record.kind.clone(),
            slot: record.slot,
            slow_factor: info.slow_factor,
            answer_limit: info.start_limit,
        })
    }

    /// A connected socket to a VM's agent. Refused while something is being done with the VM: two connections would push
    /// each other out.
    pub(crate) async fn dial(&self, id: VmId) -> Result<UnixStream, NotDialled> {
        let inner = &self.inner;
        let record = inner.record_of(id).ok_or(NotDialled::Gone)?;
        let cell = inner.cell(id);
        let Ok(agent) = cell.try_lock() else {
            return Err(NotDialled::Later(io::ErrorKind::ResourceBusy.into()));
        };
        let (driver, dir) = (inner.driver_of(&record), inner.places.vm(id));
        match driver.process(id, &dir) {
            Ok(Process::Alive) => {}
            Ok(Process::Held | Process::Ended | Process::NeverStarted) => return Err(NotDialled::Gone),
            Err(error) => return Err(NotDialled::Later(io::Error::other(error))),
        }
        if agent.is_some() {
            return Err(NotDialled::Later(io::ErrorKind::ResourceBusy.into()));
        }
        driver.connector(id, &dir).dial_socket().await.map_err(NotDialled::Later)
    }

    /// Keeps a copy of a VM's agent log, made by the owner of the connection. Dropped when the VM is on its way out.
    pub(crate) fn keep_agent_log(&self, id: VmId, text: &str) -> Result<(), HostError> {
        let cell = self.inner.cell(id);
        let Ok(_agent) = cell.try_lock() else { return Ok(()) };
        let dir = self.inner.places.vm(id);
        if text.len() > agent_logs::BYTES_MAX as usize || !dir.exists() {
            return Ok(());
        }
        let path = dir.join(LogKind::Agent.file_name());
        agent_logs::replace(&path, text).map_err(HostError::os(format!("write {}", path.display())))
    }
}
