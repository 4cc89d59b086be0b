//! VMs of the real Firecracker without a real guest, for the chaos suite and tests: the guest says dots on its console,
//! and what the host asks its agent is answered by a stand-in in the host's own process.
//!
//! The stand-in dies with the manager and is there again in the next one; whether a VM lives, sleeps or is gone is
//! Firecracker's alone.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use polydev_core::ids::VmId;
use tokio::net::UnixStream;

use super::{FirecrackerDriver, guest::Guest};
use crate::{
    config::{HostConfig, NetworkMode},
    driver::{
        Driver, Places,
        fake::{FakeAgent, Files},
    },
    error::HostError,
    firecracker::{toy, vmm::Home},
};

/// What the guest counts between two dots: some milliseconds where the KVM interprets.
const ROUNDS: u32 = 20_000;
const DISK_BYTES: u64 = 1 << 20;
/// Longer than any test.
const SESSION_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// The guest's files, and its agents.
pub(super) struct ToyGuest {
    agents: StandIns,
}

/// Agents of the VMs of one driver; clones share them.
#[derive(Clone, Default)]
pub(super) struct StandIns(Arc<Mutex<BTreeMap<VmId, Arc<FakeAgent>>>>);

/// A driver whose VMs are real and whose guests are toys.
pub(crate) fn driver(config: &HostConfig, network: NetworkMode) -> Result<Arc<dyn Driver>, HostError> {
    Ok(Arc::new(of_places(Places::open(config)?, config, network)))
}

pub(crate) fn of_places(places: Places, config: &HostConfig, network: NetworkMode) -> FirecrackerDriver {
    let guest = Guest::Toy(ToyGuest { agents: StandIns::default() });
    FirecrackerDriver::of(places, guest, config, network)
}

impl ToyGuest {
    pub(super) fn agents(&self) -> StandIns {
        self.agents.clone()
    }

    pub(super) fn kernel(&self, dir: &Path) -> Result<PathBuf, HostError> {
        let kernel = dir.join("toy.elf");
        fs::write(&kernel, toy::elf(ROUNDS)).map_err(HostError::os(format!("write {}", kernel.display())))?;
        Ok(kernel)
    }

    pub(super) fn disk(&self, user_dir: &Path) -> Result<PathBuf, HostError> {
        let disk = user_dir.join("toy.disk");
        let make = || -> io::Result<()> {
            fs::create_dir_all(user_dir)?;
            File::options().write(true).create(true).truncate(false).open(&disk)?.set_len(DISK_BYTES)
        };
        make().map_err(HostError::os(format!("make {}", disk.display())))?;
        Ok(disk)
    }
}

impl StandIns {
    /// A connection to the agent of a VM that is there.
    pub(super) fn dial(&self, home: &Home) -> io::Result<UnixStream> {
        let (near, far) = UnixStream::pair()?;
        let (agent, is_new) = {
            let mut all = self.all();
            let is_new = !all.contains_key(&home.id);
            let agent =
                all.entry(home.id).or_insert_with(|| Arc::new(FakeAgent::new(Files::default(), true)));
            (Arc::clone(agent), is_new)
        };
        if is_new {
            tokio::spawn(power_off(Arc::clone(&agent), home.clone()));
        }
        let Some(process) = home.process()? else { return Err(io::ErrorKind::ConnectionRefused.into()) };
        tokio::spawn(async move {
            // A guest's connections end with its VM.
            tokio::select! {
                ended = agent.session(far) => ended,
                ended = process.ended(SESSION_LIMIT) => ended,
            }
        });
        Ok(near)
    }

    pub(super) fn forget(&self, id: VmId) {
        self.all().remove(&id);
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<VmId, Arc<FakeAgent>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guest that is told to power off ends its VM.
async fn power_off(agent: Arc<FakeAgent>, home: Home) {
    agent.powered_off().await;
    for process in home.processes().unwrap_or_default() {
        if let Err(error) = process.send_kill() {
            tracing::warn!(vm.id = %home.id, %error, "toy guest cannot be powered off");
        }
    }
}
