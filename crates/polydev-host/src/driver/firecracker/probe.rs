//! Runs a tiny guest to see what Firecracker can do here.
//!
//! The guest says its banner, counts, and says a dot. A KVM that opens but interprets the guest's kernel code would need
//! minutes for the counting; it counts as absent.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use polydev_core::ids::VmId;

use crate::{
    error::HostError,
    firecracker::{
        FirecrackerConfig, toy,
        vmm::{Home, Item, Limits, Machine, Program, ProgramError, Setup, Vmm, VmmError},
    },
    host::LogKind,
};

/// How many rounds the guest counts: some tens of milliseconds at native speed.
const ROUNDS: u32 = 50_000_000;
const LIMIT: Duration = Duration::from_secs(4);
const POLL: Duration = Duration::from_millis(5);
const MEMORY_MIB: u32 = 64;

/// Whether Firecracker and its jailer are there, new enough, and run a guest at native speed.
pub(crate) async fn firecracker(config: &FirecrackerConfig, run_dir: &Path) -> Result<String, String> {
    let words = |error: ProgramError| error.to_string();
    let program = Program::check(&config.program).await.map_err(words)?;
    let jail = if config.jails() {
        let jailer = Program::check(&config.jailer).await.map_err(words)?;
        if jailer.version != program.version {
            return Err(words(ProgramError::differ(&jailer, &program)));
        }
        "in a jail"
    } else {
        "without a jail: install the jailer beside it for production"
    };
    if !Path::new("/dev/kvm").exists() {
        return Err("no /dev/kvm".to_owned());
    }
    let id = VmId::from_uuid(uuid::Uuid::new_v4());
    let dir = run_dir.join(format!("probe-{id}"));
    let ran = count(&program, id, &dir).await;
    if let Err(error) = fs::remove_dir_all(&dir) {
        tracing::warn!(dir = %dir.display(), %error, "probe directory cannot be removed");
    }
    let [major, minor, patch] = program.version;
    match ran {
        Ok(true) => Ok(format!("{major}.{minor}.{patch}: a guest ran at native speed; VMs run {jail}")),
        Ok(false) => Err("/dev/kvm is there but does not run a guest at native speed".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn count(program: &Program, id: VmId, dir: &Path) -> Result<bool, VmmError> {
    let kernel = dir.join("toy.elf");
    let written = fs::create_dir_all(dir).and_then(|()| fs::write(&kernel, toy::elf(ROUNDS)));
    written.map_err(HostError::os(format!("write to {}", dir.display())))?;
    let home = Home { id, dir: dir.to_owned(), instance: format!("probe-{id}") };
    let items = vec![Item::read("kernel", kernel)];
    let vmm = Vmm::launch(home, &Setup::new(program, None, items)).await?;
    let machine = Machine {
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        kernel: "kernel".to_owned(),
        initrd: None,
        command_line: "console=ttyS0".to_owned(),
        disks: Vec::new(),
        network: None,
        limits: Limits::default(),
    };
    let counted = match vmm.boot(&machine).await {
        Ok(()) => Ok(dotted(&dir.join(LogKind::Console.file_name())).await),
        Err(error) => Err(error),
    };
    vmm.kill().await?;
    counted
}

async fn dotted(console: &Path) -> bool {
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        if fs::read(console).is_ok_and(|said| said.ends_with(b".")) {
            return true;
        }
        tokio::time::sleep(POLL).await;
    }
    false
}
