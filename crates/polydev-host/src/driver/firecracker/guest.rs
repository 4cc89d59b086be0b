//! What a VM runs: the golden image, or for the chaos suite a guest without an operating system.

use std::path::Path;

use polydev_core::{guest::VSOCK_OPTION, ids::VmId};

use crate::{
    driver::{Places, container::Programs, initrd, user_disk},
    error::HostError,
    firecracker::vmm::{Item, Limits, Machine},
    golden::{GoldenImage, Layer},
    host::VmKind,
    record::VmRecord,
};

/// Name of a CLI VM's own disk; the agent knows it by its place.
pub(super) const DATA_DISK: &str = "data";
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";

/// What VMs of a driver run.
pub(super) enum Guest {
    Linux {
        image: GoldenImage,
        programs: Programs,
    },
    #[cfg(feature = "chaos")]
    Toy(super::toy::ToyGuest),
}

/// Where the agents of a driver's VMs are.
#[derive(Clone)]
pub(super) enum Agents {
    InGuest,
    #[cfg(feature = "chaos")]
    StandIn(super::toy::StandIns),
}

impl Guest {
    /// A machine that boots, and the files it uses.
    pub(super) async fn boot(
        &self,
        vm: &VmRecord,
        dir: &Path,
        places: &Places,
    ) -> Result<(Machine, Vec<Item>), HostError> {
        let (mut machine, mut items) = self.machine(vm, dir, places).await?;
        match self {
            Self::Linux { image, programs } => {
                let initrd = initrd::make(&image.modules_cpio, programs, &places.data.join("cache"))?;
                items.extend([Item::read(KERNEL, &image.vmlinux), Item::read(INITRD, initrd)]);
                machine.initrd = Some(INITRD.to_owned());
            }
            #[cfg(feature = "chaos")]
            Self::Toy(guest) => items.push(Item::read(KERNEL, guest.kernel(dir)?)),
        }
        Ok((machine, items))
    }

    /// The machine as a VM that is restored needs it: its disks.
    pub(super) async fn machine(
        &self,
        vm: &VmRecord,
        _dir: &Path,
        places: &Places,
    ) -> Result<(Machine, Vec<Item>), HostError> {
        let disk = match &vm.kind {
            VmKind::Browser => None,
            VmKind::Cli { user } => Some(match self {
                Self::Linux { .. } => user_disk::open(&places.user(user), &places.resources).await?,
                #[cfg(feature = "chaos")]
                Self::Toy(guest) => guest.disk(&places.user(user))?,
            }),
        };
        let layers = self.layers(&vm.kind)?;
        let command_line = match self {
            Self::Linux { .. } => command_line(&layers, disk.is_some()),
            #[cfg(feature = "chaos")]
            Self::Toy(_) => "console=ttyS0".to_owned(),
        };
        let mut disks: Vec<_> = layers.iter().map(|layer| (layer.name.clone(), false)).collect();
        let mut items: Vec<_> = layers.into_iter().map(|layer| Item::read(layer.name, layer.path)).collect();
        if let Some(disk) = disk {
            disks.push((DATA_DISK.to_owned(), true));
            items.push(Item::write(DATA_DISK, disk));
        }
        let machine = Machine {
            vcpus: vm.vcpus,
            memory_mib: vm.memory_mib,
            kernel: KERNEL.to_owned(),
            initrd: None,
            command_line,
            disks,
            network: None,
            limits: Limits::default(),
        };
        Ok((machine, items))
    }

    /// What a VM's saved state depends on, besides its size: it changes with the image and the guest programs.
    pub(super) fn key(&self, places: &Places) -> Result<serde_json::Value, HostError> {
        match self {
            Self::Linux { image, programs } => {
                // The initramfs is named after its content: agent, desktop, overlay and kernel modules.
                let initrd = initrd::make(&image.modules_cpio, programs, &places.data.join("cache"))?;
                let initrd = initrd.file_name().map(|name| name.to_string_lossy().into_owned());
                let layers = self.layers(&VmKind::Browser)?;
                let layers: Vec<_> = layers.into_iter().map(|layer| layer.sha256).collect();
                Ok(serde_json::json!([image.id, layers, initrd]))
            }
            #[cfg(feature = "chaos")]
            Self::Toy(_) => Ok(serde_json::json!("toy")),
        }
    }

    pub(super) fn agents(&self) -> Agents {
        match self {
            Self::Linux { .. } => Agents::InGuest,
            #[cfg(feature = "chaos")]
            Self::Toy(guest) => Agents::StandIn(guest.agents()),
        }
    }

    /// Lets go of what is kept for a VM that is no more.
    pub(super) fn forget(&self, _id: VmId) {
        match self {
            Self::Linux { .. } => {}
            #[cfg(feature = "chaos")]
            Self::Toy(guest) => guest.agents().forget(_id),
        }
    }

    fn layers(&self, kind: &VmKind) -> Result<Vec<Layer>, HostError> {
        match self {
            Self::Linux { image, .. } => image.layers(match kind {
                VmKind::Browser => &["tools", "desktop", "base"],
                VmKind::Cli { .. } => &["tools", "base"],
            }),
            #[cfg(feature = "chaos")]
            Self::Toy(_) => Ok(Vec::new()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

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
