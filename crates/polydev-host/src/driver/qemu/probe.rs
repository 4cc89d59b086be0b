//! Runs a tiny guest to see what QEMU can do here.
//!
//! The guest is a boot sector that counts and then reports through the test device `isa-debug-exit`. A KVM that
//! opens but interprets the guest's kernel code would need minutes for the counting; it counts as absent.

use std::{fs, path::Path, time::Duration};

use super::QEMU;
use crate::command::{command, run};

/// How many rounds the guest counts under KVM: some tens of milliseconds at native speed.
const ROUNDS_KVM: u32 = 50_000_000;
/// Only shows that anything runs.
const ROUNDS_TCG: u32 = 1000;
const KVM_LIMIT: Duration = Duration::from_secs(4);
const TCG_LIMIT: Duration = Duration::from_secs(30);
/// What the guest reports; QEMU ends with twice that plus one.
const REPORT: u8 = 0x2a;
const EXIT_CODE: &str = "exit status: 85";

/// Whether KVM runs a guest at native speed.
pub(crate) async fn kvm(run_dir: &Path) -> Result<String, String> {
    if !Path::new("/dev/kvm").exists() {
        return Err("no /dev/kvm".to_owned());
    }
    boot(run_dir, "kvm", ROUNDS_KVM, KVM_LIMIT)
        .await
        .map(|()| "a guest ran at native speed".to_owned())
        .map_err(|reason| format!("/dev/kvm is there, but no guest ran at native speed ({reason})"))
}

/// Whether emulation works.
pub(crate) async fn tcg(run_dir: &Path) -> Result<String, String> {
    boot(run_dir, "tcg", ROUNDS_TCG, TCG_LIMIT).await.map(|()| "emulated: a guest ran, slowly".to_owned())
}

async fn boot(run_dir: &Path, accel: &str, rounds: u32, limit: Duration) -> Result<(), String> {
    let dir = run_dir.join(format!("probe-{}", uuid::Uuid::new_v4().simple()));
    let image = dir.join("disk");
    let written = fs::create_dir_all(&dir).and_then(|()| fs::write(&image, boot_sector(rounds)));
    written.map_err(|error| format!("cannot write to {}: {error}", dir.display()))?;
    let mut qemu = command(QEMU);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-m",
        "16M",
        "-accel",
        accel,
    ]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4", "-drive"]);
    qemu.arg(format!("if=ide,format=raw,readonly=off,snapshot=on,file={}", image.display()));
    let result = run(qemu, "run a tiny guest", limit).await;
    let removed = fs::remove_dir_all(&dir);
    if let Err(error) = removed {
        tracing::warn!(dir = %dir.display(), %error, "probe directory cannot be removed");
    }
    match result {
        // The guest's way out always gives an odd status: success would mean that it never ran.
        Ok(_) => Err("QEMU ended before the guest reported".to_owned()),
        Err(error) => {
            let words = match std::error::Error::source(&error) {
                Some(source) => source.to_string(),
                None => error.to_string(),
            };
            if words.starts_with(EXIT_CODE) { Ok(()) } else { Err(words) }
        }
    }
}

/// 16-bit code: `mov ecx, rounds; again: dec ecx; jnz again; mov al, REPORT; mov dx, 0xf4; out dx, al; hlt`.
fn boot_sector(rounds: u32) -> Vec<u8> {
    let mut code = vec![0x66, 0xb9];
    code.extend_from_slice(&rounds.to_le_bytes());
    code.extend_from_slice(&[0x66, 0x49, 0x75, 0xfc, 0xb0, REPORT, 0xba, 0xf4, 0x00, 0xee, 0xf4]);
    code.resize(510, 0);
    code.extend_from_slice(&[0x55, 0xaa]);
    code
}
