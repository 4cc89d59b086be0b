//! Driver `qemu`: real VMs, by KVM where that works and emulated otherwise.
//!
//! QEMU's standard streams are files, it is in a session of its own and no child of the controller, so it survives it.

mod hibernate;
mod machine;
pub(crate) mod probe;
mod qmp;
mod template;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use polydev_core::{ids::VmId, vm::Process};
use rustix::process::Signal;

use self::{
    machine::{Machine, Memory},
    template::Size,
};
use super::{
    Driver, DriverInfo, Hibernation, Places, SocketConnector, container::Programs, initrd, kill_all,
    main_process, mark_started, process_seen, user_disk, with_processes,
};
use crate::{
    agent::Connector,
    config::NetworkMode,
    error::HostError,
    failpoint,
    golden::{GoldenImage, Layer},
    host::{LogKind, VmKind},
    launch::Launch,
    mounts,
    net::namespace_of,
    record::VmRecord,
};

pub(crate) const NAME: &str = "qemu";
pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// The agent's channel, in the VM's run directory.
const CHANNEL: &str = "agent.sock";
/// QEMU's control socket, in the VM's run directory.
const QMP: &str = "qmp.sock";

/// Most memory that translated guest code takes (`tb-size`, by default at most this).
const TRANSLATIONS_MIB: u32 = 1024;

/// What executes guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accel {
    Kvm,
    Tcg,
}

/// See the module.
pub(crate) struct QemuDriver {
    places: Places,
    image: GoldenImage,
    programs: Programs,
    accel: Accel,
    /// Of the template, and so of the VMs that are restored from it.
    network: NetworkMode,
    making: tokio::sync::Mutex<()>,
}

impl QemuDriver {
    pub(crate) fn new(
        places: Places,
        image: GoldenImage,
        programs: Programs,
        accel: Accel,
        network: NetworkMode,
    ) -> Self {
        Self { places, image, programs, accel, network, making: tokio::sync::Mutex::default() }
    }

    fn layers(&self, kind: &VmKind) -> Result<Vec<Layer>, HostError> {
        self.image.layers(match kind {
            VmKind::Browser => &["tools", "desktop", "base"],
            VmKind::Cli { .. } => &["tools", "base"],
        })
    }

    /// The namespace with the VM's TAP, if it has one.
    fn netns(&self, vm: &VmRecord) -> Option<PathBuf> {
        (vm.network == NetworkMode::Tap).then(|| namespace_of(&self.places.run, vm.slot))
    }

    fn initrd(&self) -> Result<PathBuf, HostError> {
        initrd::make(&self.image.modules_cpio, &self.programs, &self.places.data.join("cache"))
    }

    fn machine<'a>(
        &'a self,
        size: &Size,
        initrd: &'a Path,
        layers: &'a [Layer],
        disk: Option<&'a Path>,
        memory: Memory<'a>,
    ) -> Machine<'a> {
        Machine {
            accel: self.accel,
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            memory,
            kernel: &self.image.vmlinux,
            initrd,
            layers,
            disk,
            netns: None,
        }
    }

    /// Starts QEMU in `dir`.
    async fn launch(&self, id: VmId, dir: &Path, machine: &Machine<'_>) -> Result<(), HostError> {
        self.launch_with(id, dir, (machine.vcpus, machine.memory_mib), machine.arguments(), machine.netns)
            .await
    }

    async fn launch_with(
        &self,
        id: VmId,
        dir: &Path,
        (vcpus, memory_mib): (u8, u32),
        arguments: Vec<OsString>,
        netns: Option<&Path>,
    ) -> Result<(), HostError> {
        let overhead_mib = match self.accel {
            Accel::Kvm => 0,
            Accel::Tcg => TRANSLATIONS_MIB,
        };
        let limits = self.places.limits(vcpus, memory_mib, Some(overhead_mib));
        let groups = self.places.groups.make(id, &limits)?;
        mark_started(dir)?;
        let launch = Launch {
            id,
            instance: &self.places.instance,
            program: Path::new(QEMU),
            arguments,
            dir,
            log: &dir.join(LogKind::Driver.file_name()),
            groups: &groups,
            netns,
        };
        failpoint::reach("qemu/before-launch");
        launch.start().await.map_err(|error| error.of_vm(id))?;
        failpoint::reach("qemu/launched");
        Ok(())
    }

    /// With its process all of a guest stands still. One that has ended is left alone.
    fn signal(&self, id: VmId, dir: &Path, signal: Signal) -> Result<(), HostError> {
        match main_process(&self.places, id, dir)? {
            Some(process) => process.send(signal).map_err(HostError::os(format!("signal VM {id}"))),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Driver for QemuDriver {
    fn info(&self) -> DriverInfo {
        match self.accel {
            Accel::Kvm => DriverInfo {
                name: NAME,
                shown: "qemu",
                shared_kernel: false,
                slow_factor: 1,
                start_limit: Duration::from_secs(30),
                hibernation: Hibernation::Save,
            },
            Accel::Tcg => DriverInfo {
                name: NAME,
                shown: "qemu (emulated)",
                shared_kernel: false,
                slow_factor: 6,
                start_limit: Duration::from_secs(180),
                hibernation: Hibernation::Save,
            },
        }
    }

    async fn start(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        let initrd = self.initrd()?;
        let size = Size { vcpus: vm.vcpus, memory_mib: vm.memory_mib };
        let disk = match &vm.kind {
            // A template has one kind of network; a VM of before another configuration has a record that says the other.
            VmKind::Browser => match self.template(&size, &initrd).filter(|_| vm.network == self.network) {
                Some(template) => match self.restore(vm, dir, &size, &initrd, &template).await {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        tracing::warn!(vm.id = %vm.id, %error, "restore failed; booting instead");
                        self.stop(vm.id, dir).await?;
                        self.discard(&template, dir)?;
                        None
                    }
                },
                None => None,
            },
            VmKind::Cli { user } => {
                Some(user_disk::open(&self.places.user(user), &self.places.resources).await?)
            }
        };
        let layers = self.layers(&vm.kind)?;
        let netns = self.netns(vm);
        let machine = self.machine(&size, &initrd, &layers, disk.as_deref(), Memory::Plain);
        let machine = Machine { netns: netns.as_deref(), ..machine };
        self.launch(vm.id, dir, &machine).await
    }

    fn process(&self, id: VmId, dir: &Path) -> Result<Process, HostError> {
        Ok(match process_seen(&self.places, id, dir)? {
            // One that has a process may have to be ended first, or woken: only without one it is at rest.
            Process::Ended | Process::NeverStarted if self.is_saved(id) => Process::Held,
            seen => seen,
        })
    }

    fn connector(&self, id: VmId, dir: &Path) -> Arc<dyn Connector> {
        Arc::new(SocketConnector::new(&self.places, id, dir, dir.join(CHANNEL)))
    }

    async fn hibernate(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        self.save_memory(vm, dir).await
    }

    async fn resume(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        self.restore_memory(vm, dir).await
    }

    async fn pause(&self, id: VmId, dir: &Path) -> Result<(), HostError> {
        self.signal(id, dir, Signal::STOP)
    }

    async fn go_on(&self, id: VmId, dir: &Path) -> Result<(), HostError> {
        self.signal(id, dir, Signal::CONT)
    }

    async fn stop(&self, id: VmId, _dir: &Path) -> Result<(), HostError> {
        kill_all(&self.places, id).await?;
        // Without a process what is saved would still count as a VM that can go on.
        self.forget_saved(id)
    }

    async fn release(&self, id: VmId, dir: &Path) -> Result<(), HostError> {
        self.forget_saved(id)?;
        self.places.groups.remove(id).await?;
        mounts::unmount_under(dir)
    }

    fn traces(&self) -> Result<BTreeSet<VmId>, HostError> {
        let mut found = with_processes(&self.places)?;
        found.extend(self.saved());
        Ok(found)
    }

    async fn prepare(&self, vcpus: u8, memory_mib: u32, desktop_px: (u16, u16)) -> Result<(), HostError> {
        match self.accel {
            // Only measured emulated; a guest with KVM boots in a fraction of the time.
            Accel::Kvm => Ok(()),
            Accel::Tcg => self.make_template(&Size { vcpus, memory_mib }, desktop_px).await,
        }
    }
}
