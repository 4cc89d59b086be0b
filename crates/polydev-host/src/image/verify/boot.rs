//! Boots an image's kernel with its modules and layers in QEMU, from an initramfs made of the build machine's shell and tools.
//!
//! It shows what only a boot can: that the modules load in their order, find the devices, and that the layers stack under this kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use polydev_core::guest::VIRTIO_CHANNEL;

use super::BootCheck;
use super::libraries::Guest;
use crate::image::command::Runner;
use crate::image::cpio::Archive;
use crate::image::error::{ImageError, IoContext};
use crate::image::lease::Image;
use crate::image::{elf, tree};

/// Programs of the build machine in the initramfs, by the name they get there.
const PROGRAMS: [(&str, &str); 6] = [
    ("sh", "/usr/bin/dash"),
    ("mount", "/usr/bin/mount"),
    ("insmod", "/usr/bin/kmod"),
    ("mkdir", "/usr/bin/mkdir"),
    ("sleep", "/usr/bin/sleep"),
    ("chroot", "/usr/sbin/chroot"),
];
/// Drivers that must have registered.
const DRIVERS: [&str; 5] =
    ["virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "vmw_vsock_virtio_transport"];
const MARK: &str = "polydev-check";
const MACHINE: [&str; 10] =
    ["-machine", "q35,accel=tcg", "-cpu", "Nehalem", "-smp", "2", "-m", "1024", "-nodefaults", "-no-reboot"];

/// Boots and returns one line per fault.
pub(crate) fn faults(
    runner: &Runner<'_>,
    image: &Image,
    check: &BootCheck,
) -> Result<Vec<String>, ImageError> {
    runner.say("boot", "starting QEMU");
    let initramfs = runner.work.join("initramfs");
    let modules = fs::read(image.modules_cpio()).or_io("read", &image.modules_cpio())?;
    let names: Vec<_> = image.manifest().layers.iter().map(|layer| layer.name.as_str()).collect();
    tree::write(&initramfs, 0o600, [modules, archive(&names)?].concat())?;

    let mut qemu = runner.offline(&check.qemu);
    qemu.args(MACHINE)
        .args(["-display", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(image.vmlinux())
        .arg("-initrd")
        .arg(&initramfs);
    qemu.args(["-append", "console=ttyS0 quiet loglevel=3 panic=-1 tsc=reliable"]);
    for layer in &image.manifest().layers {
        // Commas separate QEMU's options; a doubled one stands for itself.
        let file = image.dir().join(&layer.path).display().to_string().replace(',', ",,");
        qemu.arg("-drive").arg(format!("if=none,id={0},format=raw,readonly=on,file={file}", layer.name));
        qemu.arg("-device").arg(format!("virtio-blk-pci,drive={0},serial={0}", layer.name));
    }
    qemu.args([
        "-device",
        "virtio-serial-pci",
        "-chardev",
        "null,id=channel",
        "-device",
        &format!("virtserialport,chardev=channel,name={VIRTIO_CHANNEL}"),
    ]);
    qemu.args([
        "-netdev",
        "user,id=net,restrict=on",
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
        "-device",
        "virtio-rng-pci",
    ]);
    let (_, output) = runner.attempt("boot", "booting the image", check.limit, &mut qemu)?;
    Ok(read_faults(&output))
}

/// Faults the guest reported, or that it never came to its end.
fn read_faults(console: &str) -> Vec<String> {
    let lines: Vec<_> =
        console.lines().filter_map(|line| line.split_once(MARK)?.1.trim().split_once(' ')).collect();
    let mut faults: Vec<_> =
        lines.iter().filter(|(kind, _)| *kind == "fault").map(|(_, text)| (*text).to_owned()).collect();
    if !lines.iter().any(|(kind, _)| *kind == "end") {
        let tail: Vec<_> = console.lines().rev().take(8).collect();
        faults.push(format!(
            "kernel: the boot did not come to its end; last output: {}",
            tail.into_iter().rev().collect::<Vec<_>>().join(" | ")
        ));
    }
    faults
}

/// An initramfs with the check as `/init`.
fn archive(layers: &[&str]) -> Result<Vec<u8>, ImageError> {
    Ok(initramfs(&PROGRAMS, &init(layers))?.finish())
}

/// An initramfs with programs of this machine in `/bin`, by the name they get there, their libraries, and a script as
/// `/init`. The image itself need not have them.
pub(crate) fn initramfs(programs: &[(&str, &str)], init: &str) -> Result<Archive, ImageError> {
    let mut machine = Guest::open(Path::new("/"))?;
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut open: Vec<(String, String)> =
        programs.iter().map(|(name, path)| (format!("bin/{name}"), (*path).to_owned())).collect();
    while let Some((name, path)) = open.pop() {
        if files.contains_key(&name) {
            continue;
        }
        files.insert(name, machine.read(&path)?);
        let dynamic = elf::dynamic(Path::new(&path)).unwrap_or_default();
        for library in &dynamic.needed {
            let found = machine.find(&path, &dynamic, library).ok_or_else(|| ImageError::Tree {
                path: path.clone().into(),
                rule: "the boot check needs this program whole",
            })?;
            open.push((format!("lib/x86_64-linux-gnu/{library}"), found));
        }
        open.extend(
            dynamic
                .interpreter
                .iter()
                .map(|linker| (linker.trim_start_matches('/').to_owned(), linker.clone())),
        );
    }
    let mut archive = Archive::default();
    let parents: BTreeSet<_> = files
        .keys()
        .flat_map(|name| Path::new(name).ancestors().skip(1))
        .filter_map(Path::to_str)
        .filter(|dir| !dir.is_empty())
        .collect();
    for dir in parents.into_iter().chain(["dev", "proc", "sys", "layer", "up", "root"]) {
        archive.directory(dir);
    }
    archive.link("usr", ".");
    for (name, content) in &files {
        archive.file(name, 0o755, content);
    }
    archive.file("init", 0o755, init.as_bytes());
    Ok(archive)
}

/// The check itself, as a shell script that reports on the console and restarts the machine at its end.
fn init(layers: &[&str]) -> String {
    let lower: Vec<_> = layers.iter().rev().map(|name| format!("/layer/{name}")).collect();
    format!(
        r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
exec >/dev/console 2>&1 </dev/null
# Through the kernel's log, which reaches the serial line before the machine is reset; a terminal's buffer would be lost.
report() {{ echo "<0>{MARK} $*" >/dev/kmsg; }}
fault() {{ report "fault $*"; }}
while read -r module; do insmod "/modules/$module" || fault "module $module: does not load"; done </modules/order
for driver in {drivers}; do
  [ -e "/sys/bus/virtio/drivers/$driver" ] || fault "driver $driver: is not registered"
done
for name in {names}; do
  tries=0; disk=
  while [ -z "$disk" ] && [ $tries -lt 100 ]; do
    for block in /sys/block/vd*; do
      # The attribute ends without a newline, which `read` reports as failure.
      serial=; read -r serial <"$block/serial"
      [ "$serial" = "$name" ] && disk=${{block##*/}}
    done
    [ -n "$disk" ] || {{ tries=$((tries + 1)); sleep 0.1; }}
  done
  mkdir -p "/layer/$name"
  mount -t erofs -o ro "/dev/$disk" "/layer/$name" || fault "layer $name: cannot be mounted"
done
mount -t tmpfs tmpfs /up; mkdir /up/upper /up/work
mount -t overlay -o lowerdir={lower},upperdir=/up/upper,workdir=/up/work overlay /root || fault "overlay: the layers do not stack"
for entry in /sys/class/virtio-ports/*; do read -r port <"$entry/name"; done
[ "$port" = "{VIRTIO_CHANNEL}" ] || fault "virtio-serial: port {VIRTIO_CHANNEL} is not there"
modules=$(while read -r name rest; do echo "$name"; done </proc/modules)
case "$modules" in *vsock*) ;; *) fault "vsock: is not loaded";; esac
chroot /root /bin/bash -c 'echo written >/home/dev/file && [ "$(cat /home/dev/file)" = written ]' || fault "/bin/bash: does not run on the stacked layers"
report "end of check"
echo b >/proc/sysrq-trigger
"#,
        drivers = DRIVERS.join(" "),
        names = layers.join(" "),
        lower = lower.join(":"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_that_ends_without_faults_passes() {
        assert_eq!(read_faults("[ 1.0] x\npolydev-check end of check\r\n"), Vec::<String>::new());
    }

    #[test]
    fn reported_faults_and_a_missing_end_are_faults() {
        assert_eq!(
            read_faults("polydev-check fault module a.ko: does not load\r\npolydev-check end of check"),
            ["module a.ko: does not load"]
        );
        assert!(read_faults("Kernel panic - not syncing")[0].contains("Kernel panic"));
    }
}
