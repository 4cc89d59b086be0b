//! QEMU's command line.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use polydev_core::guest::{self, network::MAC};

use super::{Accel, CHANNEL, QMP};
use crate::{golden::Layer, host::LogKind, net::constants::TAP};

/// A VM's hardware.
pub(super) struct Machine<'a> {
    pub(super) accel: Accel,
    pub(super) vcpus: u8,
    pub(super) memory_mib: u32,
    pub(super) memory: Memory<'a>,
    pub(super) kernel: &'a Path,
    pub(super) initrd: &'a Path,
    /// Topmost first.
    pub(super) layers: &'a [Layer],
    /// Ext4, for what is written. Without it that stays in memory.
    pub(super) disk: Option<&'a Path>,
    /// The namespace with its TAP; none: it has no network device.
    pub(super) netns: Option<&'a Path>,
}

/// Where the guest's memory is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Memory<'a> {
    /// Nowhere but in memory.
    Plain,
    /// In a file that is being made into a template.
    Saved {
        /// The file, made by QEMU.
        file: &'a Path,
    },
    /// Copied on write from a template's file; the devices' state is loaded by QMP.
    Restored {
        /// The file, never written to.
        file: &'a Path,
    },
}

impl Machine<'_> {
    /// All arguments. Relative names are in QEMU's working directory, the VM's run directory.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut all: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: String| all.extend([name.into(), value.into()]);
        let (accel, cpu) = match self.accel {
            Accel::Kvm => ("kvm", "host"),
            Accel::Tcg => ("tcg,thread=multi", "Nehalem"),
        };
        let backend = if matches!(self.memory, Memory::Plain) { "" } else { ",memory-backend=memory" };
        option("-machine", format!("q35,usb=off,vmport=off,smbus=off{backend}"));
        option("-accel", accel.to_owned());
        option("-cpu", cpu.to_owned());
        option("-smp", self.vcpus.to_string());
        option("-m", format!("{}M", self.memory_mib));
        option("-display", "none".to_owned());
        option("-vga", "none".to_owned());
        option("-qmp", format!("unix:{QMP},server=on,wait=off"));
        option("-chardev", format!("file,id=console,path={},append=on", LogKind::Console.file_name()));
        option("-serial", "chardev:console".to_owned());
        option("-device", "virtio-serial-pci".to_owned());
        option("-chardev", format!("socket,id=agent,path={CHANNEL},server=on,wait=off"));
        option("-device", format!("virtserialport,chardev=agent,name={}", guest::VIRTIO_CHANNEL));
        option("-object", "rng-random,id=rng,filename=/dev/urandom".to_owned());
        option("-device", "virtio-rng-pci,rng=rng".to_owned());
        if self.netns.is_some() {
            option("-netdev", format!("tap,id=net,ifname={TAP},script=no,downscript=no"));
            let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
            option("-device", format!("virtio-net-pci,netdev=net,mac={mac},romfile="));
        }
        option("-append", self.command_line());
        let size = self.memory_mib;
        match self.memory {
            Memory::Plain => {}
            Memory::Saved { file } => {
                let options = format!("memory-backend-file,id=memory,size={size}M,share=on,mem-path=");
                all.extend(["-object".into(), with_path(&options, file)]);
            }
            Memory::Restored { file } => {
                let options = format!("memory-backend-file,id=memory,size={size}M,share=off,mem-path=");
                all.extend(["-object".into(), with_path(&options, file), "-incoming".into(), "defer".into()]);
            }
        }
        all.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(Into::into));
        all.extend(["-kernel".into(), self.kernel.into(), "-initrd".into(), self.initrd.into()]);
        for (index, layer) in self.layers.iter().enumerate() {
            let options = format!("if=none,id=layer{index},format=raw,readonly=on,file.locking=off,file=");
            all.extend(["-drive".into(), with_path(&options, &layer.path)]);
            let device = format!("virtio-blk-pci,drive=layer{index},serial={}", layer.name);
            all.extend(["-device".into(), device.into()]);
        }
        if let Some(disk) = self.disk {
            all.extend(["-drive".into(), with_path("if=none,id=data,format=raw,discard=unmap,file=", disk)]);
            all.extend(["-device".into(), "virtio-blk-pci,drive=data,serial=data".into()]);
        }
        all
    }

    fn command_line(&self) -> String {
        let names: Vec<&str> = self.layers.iter().map(|layer| layer.name.as_str()).collect();
        let upper = if self.disk.is_some() { "disk" } else { "tmpfs" };
        // A guest that panics ends its QEMU: -no-reboot turns the reboot into an exit.
        format!(
            "console=ttyS0 quiet loglevel=4 panic=-1 tsc=reliable no_timer_check random.trust_cpu=on \
             polydev.layers={} polydev.upper={upper}{}",
            names.join(","),
            if self.netns.is_some() { format!(" {}", guest::NETWORK_OPTION) } else { String::new() },
        )
    }
}

/// In QEMU's option lists a comma in a value is doubled.
fn with_path(options: &str, path: &Path) -> OsString {
    let mut bytes = options.as_bytes().to_vec();
    for byte in path.as_os_str().as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_file_names_do_not_become_options() {
        assert_eq!(with_path("file=", Path::new("/a,b")), OsString::from("file=/a,,b"));
    }

    #[test]
    fn a_vm_has_a_network_device_only_where_a_namespace_has_its_tap() {
        let machine = Machine {
            accel: Accel::Tcg,
            vcpus: 2,
            memory_mib: 512,
            memory: Memory::Plain,
            kernel: Path::new("/kernel"),
            initrd: Path::new("/initrd"),
            layers: &[Layer { name: "base".to_owned(), path: "/base".into(), sha256: String::new() }],
            disk: Some(Path::new("/disk")),
            netns: None,
        };
        let all: Vec<String> = machine.arguments().into_iter().map(|it| it.into_string().unwrap()).collect();
        assert!(all.contains(&"-nodefaults".to_owned()));
        assert!(!all.iter().any(|it| it.contains("net")), "{all:?}");
        assert!(all.iter().any(|it| it.ends_with("polydev.layers=base polydev.upper=disk")));

        let with_device = Machine { netns: Some(Path::new("/netns/1")), ..machine };
        let all: Vec<String> =
            with_device.arguments().into_iter().map(|it| it.into_string().unwrap()).collect();
        assert!(all.contains(&"tap,id=net,ifname=tap0,script=no,downscript=no".to_owned()));
        assert!(all.contains(&"virtio-net-pci,netdev=net,mac=02:fc:00:00:00:05,romfile=".to_owned()));
        assert!(all.iter().any(|it| it.ends_with("polydev.upper=disk polydev.network=tap")));
    }
}
