//! A driver without VMs: each is a task that speaks the agent's side of the guest channel over a unix socket.
//!
//! Clones share one world, so a test can drop a [`crate::Host`] and open another one on the same "machine". It
//! passes the contract suite of the real drivers and serves tests of everything above them.

mod agent;
mod desktop;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use polydev_core::{
    ids::{UserId, VmId},
    vm::Process,
    wire::{AgentEvent, EgressReply},
};
use tokio::{
    io::DuplexStream,
    net::{UnixListener, UnixStream},
    runtime::Handle,
    task::AbortHandle,
};

pub use self::{
    agent::{FakeAgent, Files},
    desktop::FakeDesktop,
};
use super::{Driver, DriverInfo, Hibernation, STARTED};
use crate::{
    agent::{ByteStream, Connector},
    error::HostError,
    host::{LogKind, VmKind},
    record::VmRecord,
    space,
};

/// Makes fake VMs; clones share them.
#[derive(Clone, Default)]
pub struct FakeDriver {
    world: Arc<Mutex<World>>,
    /// Where VMs run; that of whoever starts them unless it is said.
    machine: Option<Handle>,
}

#[derive(Default)]
struct World {
    vms: BTreeMap<VmId, FakeVm>,
    workspaces: BTreeMap<UserId, Files>,
    fail_next: Option<String>,
    paints: bool,
    disk_free: Option<u64>,
}

struct FakeVm {
    agent: Arc<FakeAgent>,
    task: AbortHandle,
    /// It sleeps, its memory kept.
    held: bool,
    /// What it held is of no use.
    damaged: bool,
}

impl FakeDriver {
    /// VMs run on the runtime of this call and outlive that of the host, as real ones outlive its process.
    pub fn on_this_runtime() -> Self {
        Self { machine: Some(Handle::current()), ..Self::default() }
    }

    /// The next VM dies while it starts and leaves these last words on its console.
    pub fn fail_next_start(&self, last_words: &str) {
        self.world().fail_next = Some(last_words.to_owned());
    }

    /// From now on a desktop that is started shows its first picture at once.
    pub fn paint_desktops(&self) {
        self.world().paints = true;
    }

    /// From now on the disk that VMs write on has so much free; `None`: what the real one has.
    pub fn set_disk_free(&self, bytes: Option<u64>) {
        self.world().disk_free = bytes;
    }

    /// What a VM that sleeps holds in memory is of no use any more.
    pub fn damage_memory(&self, id: VmId) {
        if let Some(vm) = self.world().vms.get_mut(&id) {
            vm.damaged = true;
        }
    }

    /// Ends a VM as a crash would.
    pub fn kill(&self, id: VmId) {
        if let Some(vm) = self.world().vms.get_mut(&id) {
            vm.agent.end();
            vm.task.abort();
        }
    }

    /// Drops a VM's connection; the VM lives on.
    pub fn drop_connection(&self, id: VmId) {
        if let Some(agent) = self.agent(id) {
            agent.drop_connection();
        }
    }

    /// Reports an event as the VM's agent would.
    pub fn emit(&self, id: VmId, event: AgentEvent) {
        if let Some(agent) = self.agent(id) {
            agent.emit(event);
        }
    }

    /// Asks for a connection as a program in the guest would. `None` without a connection to the host.
    pub async fn egress(&self, id: VmId, host: &str, port: u16) -> Option<(EgressReply, DuplexStream)> {
        let agent = self.agent(id)?;
        agent.egress(host, port).await
    }

    /// VMs that are there.
    pub fn ids(&self) -> Vec<VmId> {
        self.world().vms.keys().copied().collect()
    }

    /// A VM's agent, to look at what it was asked.
    pub fn agent(&self, id: VmId) -> Option<Arc<FakeAgent>> {
        self.world().vms.get(&id).map(|vm| Arc::clone(&vm.agent))
    }

    fn stand_still(&self, id: VmId, still: bool) {
        if let Some(vm) = self.world().vms.get_mut(&id) {
            vm.held = still;
            vm.agent.stand_still(still);
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn info(&self) -> DriverInfo {
        DriverInfo {
            name: "fake",
            shown: "fake",
            shared_kernel: true,
            slow_factor: 1,
            start_limit: Duration::from_secs(5),
            hibernation: Hibernation::Save,
        }
    }

    async fn start(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        let write = |name: &str, text: &str| fs::write(dir.join(name), text).map_err(HostError::os("write"));
        write(STARTED, "")?;
        let mut world = self.world();
        if let Some(last_words) = world.fail_next.take() {
            return write(LogKind::Console.file_name(), &last_words);
        }
        write(LogKind::Console.file_name(), "fake agent listens\n")?;
        write(LogKind::Driver.file_name(), "fake driver started it\n")?;
        let files = match &vm.kind {
            VmKind::Browser => Files::default(),
            VmKind::Cli { user } => world.workspaces.entry(user.clone()).or_default().clone(),
        };
        let agent = Arc::new(FakeAgent::new(files, world.paints));
        let machine = self.machine.clone().unwrap_or_else(Handle::current);
        let _inside = machine.enter();
        let listener = UnixListener::bind(dir.join("agent.sock")).map_err(HostError::os("listen"))?;
        let task = tokio::spawn(Arc::clone(&agent).serve(listener));
        world.vms.insert(vm.id, FakeVm { agent, task: task.abort_handle(), held: false, damaged: false });
        Ok(())
    }

    fn process(&self, id: VmId, dir: &Path) -> Result<Process, HostError> {
        let (alive, held) = self.world().vms.get(&id).map_or((false, false), |vm| (vm.alive(), vm.held));
        Ok(match (alive, dir.join(STARTED).exists()) {
            (true, _) if held => Process::Held,
            (true, _) => Process::Alive,
            (false, true) => Process::Ended,
            (false, false) => Process::NeverStarted,
        })
    }

    fn connector(&self, id: VmId, dir: &Path) -> Arc<dyn Connector> {
        Arc::new(FakeConnector { driver: self.clone(), id, socket: dir.join("agent.sock") })
    }

    async fn hibernate(&self, vm: &VmRecord, _dir: &Path) -> Result<(), HostError> {
        let mut world = self.world();
        let vm = world.vms.get_mut(&vm.id).ok_or(HostError::NoSuchVm(vm.id))?;
        vm.agent.drop_connection();
        vm.held = true;
        Ok(())
    }

    async fn resume(&self, vm: &VmRecord, _dir: &Path) -> Result<(), HostError> {
        let mut world = self.world();
        let held = world.vms.get_mut(&vm.id).ok_or(HostError::NoSuchVm(vm.id))?;
        if held.damaged {
            return Err(HostError::MemoryLost { id: vm.id, detail: "a test damaged it".to_owned() });
        }
        held.held = false;
        Ok(())
    }

    async fn pause(&self, id: VmId, _dir: &Path) -> Result<(), HostError> {
        self.stand_still(id, true);
        Ok(())
    }

    async fn go_on(&self, id: VmId, _dir: &Path) -> Result<(), HostError> {
        self.stand_still(id, false);
        Ok(())
    }

    fn disk_free(&self, data: &Path) -> io::Result<u64> {
        self.world().disk_free.map_or_else(|| space::free(data), Ok)
    }

    async fn stop(&self, id: VmId, _dir: &Path) -> Result<(), HostError> {
        self.kill(id);
        Ok(())
    }

    async fn release(&self, id: VmId, _dir: &Path) -> Result<(), HostError> {
        self.world().vms.remove(&id);
        Ok(())
    }

    fn traces(&self) -> Result<BTreeSet<VmId>, HostError> {
        Ok(self.world().vms.keys().copied().collect())
    }

    async fn prepare(&self, _vcpus: u8, _memory_mib: u32, _desktop_px: (u16, u16)) -> Result<(), HostError> {
        Ok(())
    }
}

impl FakeVm {
    fn alive(&self) -> bool {
        !self.agent.ended()
    }
}

struct FakeConnector {
    driver: FakeDriver,
    id: VmId,
    socket: PathBuf,
}

#[async_trait]
impl Connector for FakeConnector {
    async fn dial(&self) -> std::io::Result<Box<dyn ByteStream>> {
        Ok(Box::new(self.dial_socket().await?))
    }

    async fn dial_socket(&self) -> std::io::Result<UnixStream> {
        if !self.alive() {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        UnixStream::connect(&self.socket).await
    }

    fn alive(&self) -> bool {
        self.driver.world().vms.get(&self.id).is_some_and(|vm| vm.alive() && !vm.held)
    }
}
