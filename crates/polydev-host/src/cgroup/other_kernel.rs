//! Runs this very test program once more, on the golden image's kernel with version 2 of control groups: what `cgroup.rs`
//! does there is judged by a real kernel even where the machine mounts version 1.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    golden::GoldenImage,
    image::{DEFAULT_IMAGE_DIR, verify::boot::initramfs},
};

const QEMU: &str = "qemu-system-x86_64";
/// A minute on a machine that has nothing else to do.
const LIMIT: Duration = Duration::from_secs(540);
/// What the tests need in the guest besides this program.
const PROGRAMS: [(&str, &str); 7] = [
    ("sh", "/usr/bin/dash"),
    ("mount", "/usr/bin/mount"),
    ("insmod", "/usr/bin/kmod"),
    ("sleep", "/usr/bin/sleep"),
    ("tail", "/usr/bin/tail"),
    ("dd", "/usr/bin/dd"),
    ("true", "/usr/bin/true"),
];
const MODULES: &str =
    "virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk libcrc32c erofs";
const END: &str = "polydev-check: the tests ended with";
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
exec >/dev/ttyS0 2>&1 </dev/null
for module in @MODULES@; do insmod /modules/$module.ko || echo "FAULT: module $module"; done
mount -t erofs -o ro /dev/vda /disk || echo "FAULT: no disk"
mount -t cgroup2 none /sys/fs/cgroup || echo "FAULT: no version 2 of control groups"
test-program cgroup::kernel_tests:: --test-threads=1 --nocapture
echo "@END@ $?"
while :; do sleep 600; done
"#;

/// A QEMU that ends with the test.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn groups_of_vms_limit_count_stop_and_end_processes_on_a_kernel_with_version_2() {
    let images = env::var_os("POLYDEV_IMAGE_DIR").map_or_else(|| DEFAULT_IMAGE_DIR.into(), PathBuf::from);
    let image = match GoldenImage::current(&images) {
        Ok(image) => image,
        Err(error) => return println!("SKIPPED: {error}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let initrd = dir.path().join("initrd");
    fs::write(&initrd, archive(&image, dir.path())).unwrap();
    let layer = image.layers(&["base"]).unwrap().remove(0).path;
    let mut qemu = Command::new(QEMU);
    qemu.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2", "-m", "768"]);
    qemu.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    qemu.arg("-kernel").arg(&image.vmlinux).arg("-initrd").arg(&initrd);
    qemu.args(["-append", "console=ttyS0 quiet loglevel=3 panic=-1 tsc=reliable no_timer_check"]);
    let file = layer.display().to_string().replace(',', ",,");
    qemu.arg("-drive").arg(format!("if=none,id=disk,format=raw,readonly=on,file={file}"));
    qemu.args(["-device", "virtio-blk-pci,drive=disk"]);
    let began = Instant::now();
    let child = match qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => return println!("SKIPPED: {QEMU}: {error}"),
    };
    let mut guest = Guest(child);
    let said = console(&mut guest, LIMIT);
    println!("{} ms from QEMU's start", began.elapsed().as_millis());
    assert!(said.contains(&format!("{END} 0")), "they passed");
    for unwanted in ["SKIPPED", "FAULT", "running 0 tests"] {
        assert!(!said.contains(unwanted), "{unwanted}");
    }
}

/// What the guest says until the tests have ended, or the guest has.
fn console(guest: &mut Guest, limit: Duration) -> String {
    let (lines, heard) = mpsc::channel();
    let output = BufReader::new(guest.0.stdout.take().expect("it is a pipe"));
    thread::spawn(move || {
        for line in output.split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    let (deadline, mut said) = (Instant::now() + limit, String::new());
    while let Ok(line) = heard.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        println!("{line}");
        said.push_str(&line);
        said.push('\n');
        if line.contains(END) {
            break;
        }
    }
    said
}

fn archive(image: &GoldenImage, dir: &Path) -> Vec<u8> {
    let this = env::current_exe().unwrap();
    // Symbols would take most of the guest's memory.
    let small = dir.join("test-program");
    let stripped = Command::new("strip").arg("-o").arg(&small).arg(&this).status();
    let program = if stripped.is_ok_and(|status| status.success()) { small } else { this };
    let program = program.to_str().unwrap();
    let programs: Vec<_> = PROGRAMS.into_iter().chain([("test-program", program)]).collect();
    let init = INIT.replace("@MODULES@", MODULES).replace("@END@", END);
    let mut own = initramfs(&programs, &init).unwrap();
    for name in ["tmp", "disk"] {
        own.directory(name);
    }
    [fs::read(&image.modules_cpio).unwrap(), own.finish()].concat()
}
