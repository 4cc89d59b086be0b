//! Driver `firecracker`: microVMs. For production.
//!
//! A VM boots the golden image's kernel with the same initramfs as under QEMU; the guest channel is a vsock. Its VMM
//! lives in a jail where the `jailer` is installed: the slot's own user, nothing of the host to see but the VM's files.

mod connector;
pub(crate) mod figures;
mod guest;
mod hibernate;
pub(crate) mod probe;
mod saved;
mod template;
#[cfg(feature = "chaos")]
pub(crate) mod toy;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use polydev_core::{
    guest::{NETWORK_OPTION, network as guest_network},
    ids::VmId,
    vm::Process,
};
use rustix::process::Signal;

use self::{connector::FirecrackerConnector, guest::Guest, saved::Saved};
use super::{
    Driver, DriverInfo, Hibernation, Places, STARTED, container::Programs, mark_started, with_processes,
};
use crate::{
    agent::Connector,
    config::{FirecrackerConfig, HostConfig, NetworkMode},
    error::HostError,
    failpoint,
    firecracker::{
        jail,
        program::{Checked, Program, ProgramError},
        vmm::{Home, Item, Jail, Machine, Network, Setup, Vmm, how_it_ended},
    },
    golden::GoldenImage,
    host::{LogKind, VmKind},
    logs, mounts,
    net::{constants::TAP, namespace_of},
    record::VmRecord,
};

pub(crate) const NAME: &str = "firecracker";
/// How long a killed process may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Most that a VMM may write besides its memory: its log.
const LOG_BYTES_MAX: u64 = 256 << 20;
/// The slot of VMs that templates are made of; real slots begin at 1.
const TEMPLATE_SLOT: u8 = 0;
/// Tells that the end of the VM's process was explained in its log.
const EXPLAINED: &str = "end-explained";

/// See the module.
pub(crate) struct FirecrackerDriver {
    places: Places,
    guest: Guest,
    config: FirecrackerConfig,
    network: NetworkMode,
    firecracker: Checked,
    jailer: Checked,
    making: tokio::sync::Mutex<()>,
}

impl FirecrackerDriver {
    pub(crate) fn new(
        places: Places,
        image: GoldenImage,
        programs: Programs,
        config: &HostConfig,
        network: NetworkMode,
    ) -> Self {
        Self::of(places, Guest::Linux { image, programs }, config, network)
    }

    fn of(places: Places, guest: Guest, host: &HostConfig, network: NetworkMode) -> Self {
        let config = host.firecracker.clone();
        Self {
            guest,
            firecracker: Checked::new(config.program.clone()),
            jailer: Checked::new(config.jailer.clone()),
            config,
            network,
            places,
            making: tokio::sync::Mutex::default(),
        }
    }

    fn home(&self, id: VmId, dir: &Path) -> Home {
        Home { id, dir: dir.to_owned(), instance: self.places.instance.clone() }
    }

    /// The program, and the jail for a slot if there is to be one.
    async fn programs(&self, slot: u8, memory_mib: u32) -> Result<(Program, Option<Jail>), ProgramError> {
        let program = self.firecracker.get().await?;
        if !self.config.jails() {
            return Ok((program, None));
        }
        let jailer = self.jailer.get().await?;
        if jailer.version != program.version {
            return Err(ProgramError::differ(&jailer, &program));
        }
        let largest = self.places.resources.user_disk_bytes.max(u64::from(memory_mib) << 20);
        let uid = self.config.first_uid + u32::from(slot);
        Ok((program, Some(Jail { jailer: jailer.path, uid, file_bytes_max: largest + LOG_BYTES_MAX })))
    }

    /// Starts a VMM that has no VM yet.
    async fn launch(
        &self,
        id: VmId,
        slot: u8,
        (vcpus, memory_mib): (u8, u32),
        dir: &Path,
        netns: Option<PathBuf>,
        items: Vec<Item>,
    ) -> Result<Vmm, HostError> {
        let (program, jail) = self.programs(slot, memory_mib).await.map_err(|error| unusable(&error))?;
        if jail.is_some() {
            jail::allow_programs(&self.places)
                .map_err(HostError::os("allow programs in the run directory"))?;
        }
        mark_started(dir)?;
        remove(&dir.join(EXPLAINED))?;
        let groups = self.places.groups.make(id, &self.places.limits(vcpus, memory_mib, Some(0)))?;
        failpoint::reach("firecracker/cgroup-made");
        let setup = Setup { groups, netns, ..Setup::new(&program, jail.as_ref(), items) };
        let launched = Vmm::launch(self.home(id, dir), &setup).await;
        launched.map_err(|error| error.of_step(id, "launch of firecracker"))
    }

    /// Gives a machine its network device, where it has one, and this host's limits.
    fn fit_out(&self, machine: &mut Machine, network: NetworkMode) {
        machine.limits = self.config.limits();
        if network == NetworkMode::Tap {
            let [a, b, c, d, e, f] = guest_network::MAC;
            let guest_mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
            machine.network = Some(Network { tap: TAP.to_owned(), guest_mac });
            machine.command_line = format!("{} {NETWORK_OPTION}", machine.command_line);
        }
    }

    /// The network namespace of a VM that has a network device.
    fn netns(&self, vm: &VmRecord) -> Option<PathBuf> {
        (vm.network == NetworkMode::Tap).then(|| namespace_of(&self.places.run, vm.slot))
    }

    /// What is kept of a VM that sleeps.
    fn saved(&self, id: VmId) -> Saved {
        Saved::of(&self.places, id)
    }

    /// Kills what runs a VM.
    async fn kill(&self, id: VmId, dir: &Path) -> Result<(), HostError> {
        let op = |what: &str| HostError::os(format!("{what} VM {id}"));
        for process in self.home(id, dir).processes().map_err(op("look for processes of"))? {
            process.kill(KILL_LIMIT).await.map_err(op("kill"))?;
        }
        Ok(())
    }

    /// Says in the VM's log how its process ended, once.
    fn explain_end(&self, id: VmId, dir: &Path) {
        if dir.join(EXPLAINED).exists() || !dir.join(STARTED).exists() {
            return;
        }
        let said = format!("firecracker ended: {}\n", how_it_ended(&self.home(id, dir)));
        let log = logs::open_append(&dir.join(LogKind::Driver.file_name()));
        let written = log.and_then(|mut log| std::io::Write::write_all(&mut log, said.as_bytes()));
        if let Err(error) = written.and_then(|()| fs::write(dir.join(EXPLAINED), b"")) {
            tracing::warn!(vm.id = %id, %error, "end of firecracker cannot be explained in its log");
        }
    }

    /// With its process all of a guest stands still. One that has ended is left alone.
    fn signal(&self, id: VmId, dir: &Path, signal: Signal) -> Result<(), HostError> {
        let op = || format!("signal VM {id}");
        match self.home(id, dir).process().map_err(HostError::os(op()))? {
            Some(process) => process.send(signal).map_err(HostError::os(op())),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Driver for FirecrackerDriver {
    fn info(&self) -> DriverInfo {
        DriverInfo {
            name: NAME,
            shown: NAME,
            shared_kernel: false,
            slow_factor: 1,
            start_limit: Duration::from_secs(30),
            hibernation: Hibernation::Save,
        }
    }

    async fn start(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        if vm.kind == VmKind::Browser && vm.network == self.network && self.restore(vm, dir).await? {
            return Ok(());
        }
        let (mut machine, mut items) = self.guest.boot(vm, dir, &self.places).await?;
        self.fit_out(&mut machine, vm.network);
        if matches!(vm.kind, VmKind::Cli { .. }) {
            let saved = self.saved(vm.id);
            // Memory of before must never meet the disk as this boot leaves it.
            let made = saved.discard().and_then(|()| saved.make());
            items.push(Item::write(
                saved::ITEM,
                made.map_err(HostError::os("make the directory for its memory"))?,
            ));
        }
        let vmm = self
            .launch(vm.id, vm.slot.index(), (vm.vcpus, vm.memory_mib), dir, self.netns(vm), items)
            .await?;
        vmm.boot(&machine).await.map_err(|error| error.of_step(vm.id, "boot"))?;
        saved::track_from_boot(dir).map_err(HostError::os(format!("write to {}", dir.display())))
    }

    fn process(&self, id: VmId, dir: &Path) -> Result<Process, HostError> {
        let home = self.home(id, dir);
        let found = home.process().map_err(HostError::os(format!("look for processes of VM {id}")))?;
        if found.is_some() {
            return Ok(Process::Alive);
        }
        if self.saved(id).is_whole() {
            return Ok(Process::Held);
        }
        self.explain_end(id, dir);
        Ok(if dir.join(STARTED).exists() { Process::Ended } else { Process::NeverStarted })
    }

    fn connector(&self, id: VmId, dir: &Path) -> Arc<dyn Connector> {
        Arc::new(FirecrackerConnector::new(self.home(id, dir), self.guest.agents()))
    }

    async fn hibernate(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        self.save(vm, dir).await
    }

    async fn resume(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        self.wake(vm, dir).await
    }

    async fn pause(&self, id: VmId, dir: &Path) -> Result<(), HostError> {
        self.signal(id, dir, Signal::STOP)
    }

    async fn go_on(&self, id: VmId, dir: &Path) -> Result<(), HostError> {
        self.signal(id, dir, Signal::CONT)
    }

    async fn stop(&self, id: VmId, dir: &Path) -> Result<(), HostError> {
        self.kill(id, dir).await?;
        self.saved(id).discard().map_err(HostError::os(format!("remove saved memory of VM {id}")))
    }

    async fn release(&self, id: VmId, dir: &Path) -> Result<(), HostError> {
        mounts::unmount_under(dir)?;
        jail::clear(dir).map_err(HostError::os(format!("remove the jail of VM {id}")))?;
        failpoint::reach("firecracker/jail-removed");
        self.saved(id).discard().map_err(HostError::os(format!("remove saved memory of VM {id}")))?;
        self.guest.forget(id);
        self.places.groups.remove(id).await
    }

    fn traces(&self) -> Result<BTreeSet<VmId>, HostError> {
        // A jailed process has no environment; it is found by way of its run directory, which outlives it.
        let mut found = with_processes(&self.places)?;
        found.extend(saved::all(&self.places));
        Ok(found)
    }

    async fn prepare(&self, vcpus: u8, memory_mib: u32, desktop_px: (u16, u16)) -> Result<(), HostError> {
        self.make_template(vcpus, memory_mib, desktop_px).await
    }
}

fn unusable(error: &ProgramError) -> HostError {
    HostError::DriverUnusable { driver: NAME.to_owned(), reason: error.to_string() }
}

/// Removes a file; none is fine.
fn remove(path: &Path) -> Result<(), HostError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(HostError::os(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}
