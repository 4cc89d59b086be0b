//! Runs a tiny guest to see what Firecracker can do here.
//!
//! The guest says its banner and a dot, counts, and says the next dot. A KVM that opens but interprets the guest's kernel
//! code would need minutes for the counting; it counts as absent.

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
        Ok(()) => Ok(ticked(&dir.join(LogKind::Console.file_name())).await),
        Err(error) => Err(error),
    };
    vmm.kill().await?;
    counted
}

async fn ticked(console: &Path) -> bool {
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        if fs::read_to_string(console).is_ok_and(|said| has_counted(&said)) {
            return true;
        }
        tokio::time::sleep(POLL).await;
    }
    false
}

/// Whether the guest got from one dot to the next.
fn has_counted(console: &str) -> bool {
    console.split_once(toy::BANNER).is_some_and(|(_, said)| said.starts_with(".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_guest_has_counted_when_it_says_the_second_dot() {
        let said =
            |dots: &str| has_counted(&format!("2026 [probe] Running Firecracker ..\n{}{dots}", toy::BANNER));
        assert!(!said("") && !said("."), "it says the first one before it counts");
        assert!(said("..") && said("..."));
        assert!(!has_counted(".."), "not the guest's");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_kvm_that_interprets_is_told_from_one_that_runs() {
        let Some(program) = std::env::var_os("POLYDEV_FIRECRACKER").map(PathBuf::from) else {
            println!("SKIPPED: POLYDEV_FIRECRACKER names no firecracker 1.16.1");
            return;
        };
        let config = FirecrackerConfig { program, jailed: Some(false), ..FirecrackerConfig::default() };
        let dir = tempfile::Builder::new().prefix("pd-").tempdir_in("/tmp").unwrap();
        let found = firecracker(&config, dir.path()).await;
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap();
        if processor.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm")) {
            assert!(found.unwrap().contains("at native speed; VMs run without a jail"));
        } else {
            assert_eq!(found.unwrap_err(), "/dev/kvm is there but does not run a guest at native speed");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "it leaves nothing");
    }
}
