//! Driver `firecracker`: microVMs. For production.
//!
//! A VM boots the golden image's kernel with the same initramfs as under QEMU; the guest channel is a vsock. There is
//! no network device, as on every driver.

pub(crate) mod probe;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use polydev_core::{guest::VSOCK_OPTION, ids::VmId, vm::Process};

use super::{
    Driver, DriverInfo, Hibernation, Places, container::Programs, initrd, kill_all, mark_started,
    process_seen, process_to_reach, user_disk, vsock::VsockConnector, with_processes,
};
use crate::{
    agent::Connector,
    error::HostError,
    firecracker::vmm::{Home, Machine, Program, VSOCK, Vmm, VmmError},
    golden::{GoldenImage, Layer},
    host::VmKind,
    mounts,
    record::VmRecord,
};

pub(crate) const NAME: &str = "firecracker";
/// The program, unless the configuration names another one.
pub(crate) const PROGRAM: &str = "/usr/local/bin/firecracker";
/// Name of a CLI VM's own disk; the agent knows it by its place.
const DATA_DISK: &str = "data";

/// See the module.
pub(crate) struct FirecrackerDriver {
    places: Places,
    image: GoldenImage,
    programs: Programs,
    firecracker: PathBuf,
}

impl FirecrackerDriver {
    pub(crate) fn new(places: Places, image: GoldenImage, programs: Programs, firecracker: PathBuf) -> Self {
        Self { places, image, programs, firecracker }
    }

    async fn machine(&self, vm: &VmRecord) -> Result<Machine, HostError> {
        let (names, disk): (&[&str], _) = match &vm.kind {
            VmKind::Browser => (&["tools", "desktop", "base"], None),
            VmKind::Cli { user } => (
                &["tools", "base"],
                Some(user_disk::open(&self.places.user(user), &self.places.resources).await?),
            ),
        };
        let layers = self.image.layers(names)?;
        Ok(Machine {
            vcpus: vm.vcpus,
            memory_mib: vm.memory_mib,
            kernel: self.image.vmlinux.clone(),
            initrd: Some(initrd::make(
                &self.image.modules_cpio,
                &self.programs,
                &self.places.data.join("cache"),
            )?),
            command_line: command_line(&layers, disk.is_some()),
            disks: layers
                .into_iter()
                .map(|layer| (layer.name, layer.path, false))
                .chain(disk.map(|disk| (DATA_DISK.to_owned(), disk, true)))
                .collect(),
        })
    }
}

/// Disks are named by the order in which they are given: Firecracker sets no serials.
fn command_line(layers: &[Layer], has_disk: bool) -> String {
    let device = |index: usize| char::from(b'a' + u8::try_from(index).unwrap_or(25));
    let named = layers.iter().enumerate().map(|(index, layer)| format!("{}@vd{}", layer.name, device(index)));
    let upper = if has_disk { format!("disk@vd{}", device(layers.len())) } else { "tmpfs".to_owned() };
    format!(
        "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 i8042.nokbd i8042.noaux random.trust_cpu=on \
         clocksource=kvm-clock polydev.layers={} polydev.upper={upper} {VSOCK_OPTION}",
        named.collect::<Vec<_>>().join(",")
    )
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
            hibernation: Hibernation::None,
        }
    }

    async fn start(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        let failed = |step| {
            move |error| match error {
                VmmError::Host(error) => error,
                other => HostError::StartFailed { id: vm.id, step, detail: other.to_string() },
            }
        };
        let machine = self.machine(vm).await?;
        let program = Program::check(&self.firecracker).await.map_err(failed("check of firecracker"))?;
        mark_started(dir)?;
        let home = Home { id: vm.id, dir: dir.to_owned(), instance: self.places.instance.clone() };
        let vmm = Vmm::launch(&program, home).await.map_err(failed("launch of firecracker"))?;
        vmm.boot(&machine).await.map_err(failed("boot"))
    }

    fn process(&self, id: VmId, dir: &Path) -> Result<Process, HostError> {
        process_seen(&self.places, id, dir)
    }

    fn connector(&self, id: VmId, dir: &Path) -> Arc<dyn Connector> {
        let process = process_to_reach(&self.places, id, dir);
        Arc::new(VsockConnector { socket: dir.join(VSOCK), process })
    }

    async fn hibernate(&self, vm: &VmRecord, _dir: &Path) -> Result<(), HostError> {
        Err(HostError::NotHibernatable { id: vm.id })
    }

    async fn resume(&self, vm: &VmRecord, _dir: &Path) -> Result<(), HostError> {
        Err(HostError::NotHibernatable { id: vm.id })
    }

    async fn stop(&self, id: VmId, _dir: &Path) -> Result<(), HostError> {
        kill_all(&self.places, id).await
    }

    async fn release(&self, _id: VmId, dir: &Path) -> Result<(), HostError> {
        mounts::unmount_under(dir)
    }

    fn traces(&self) -> Result<BTreeSet<VmId>, HostError> {
        with_processes(&self.places)
    }

    async fn prepare(&self, _vcpus: u8, _memory_mib: u32, _desktop_px: (u16, u16)) -> Result<(), HostError> {
        // VMs boot; there is no snapshot of a desktop for this driver.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_every_disk_by_its_place() {
        let layer = |name: &str| Layer { name: name.to_owned(), path: PathBuf::new(), sha256: String::new() };
        let layers = [layer("tools"), layer("base")];
        let line = command_line(&layers, true);
        assert!(
            line.contains(" polydev.layers=tools@vda,base@vdb polydev.upper=disk@vdc polydev.channel=vsock"),
            "{line}"
        );
        assert!(command_line(&layers, false).contains("polydev.upper=tmpfs "));
    }
}
