//! Driver `fake` of the chaos suite: VMs without a guest, each a process of its own that outlives its host.
//!
//! A VM is a process `PROGRAM chaos-guest DIR [FILES]`, where the variable `XTASK_CHAOS_GUEST` names the program; it
//! serves the fake agent by [`guest`]. The host finds, adopts and kills it like every other VM's process.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use polydev_core::{ids::VmId, vm::Process};
use rustix::process::Signal;
use tokio::net::UnixListener;

use super::{
    Driver, DriverInfo, Hibernation, Places, SocketConnector,
    fake::{FakeAgent, Files},
    firecracker, kill_all, main_process, mark_started, process_seen, with_processes,
};
use crate::{
    agent::Connector,
    config::{DriverChoice, HostConfig},
    error::HostError,
    failpoint,
    host::{LogKind, VmKind},
    launch::Launch,
    record::VmRecord,
};

const SOCKET: &str = "agent.sock";
/// Names the program that is a guest when its first argument is [`GUEST_ARGUMENT`].
pub const GUEST_VARIABLE: &str = "XTASK_CHAOS_GUEST";
/// See [`GUEST_VARIABLE`].
pub const GUEST_ARGUMENT: &str = "chaos-guest";

/// See the module.
struct ProcessDriver {
    places: Places,
    program: PathBuf,
}

/// The driver of a host that has no golden image, if that is what is asked for.
pub(crate) fn without_image(config: &HostConfig) -> Result<Option<Arc<dyn Driver>>, HostError> {
    Ok(match config.driver {
        DriverChoice::FirecrackerToy => {
            Some(firecracker::toy::driver(config, config.network.without_probe())?)
        }
        DriverChoice::Fake => {
            let program = env::var_os(GUEST_VARIABLE).map(PathBuf::from);
            let unset = || HostError::DriverUnusable {
                driver: "fake".to_owned(),
                reason: format!("{GUEST_VARIABLE} names no program"),
            };
            let program = program.ok_or_else(unset)?;
            Some(Arc::new(ProcessDriver { places: Places::open(config)?, program }))
        }
        DriverChoice::Auto | DriverChoice::Firecracker | DriverChoice::Container | DriverChoice::Qemu => None,
    })
}

impl ProcessDriver {
    fn signal(&self, id: VmId, dir: &Path, signal: Signal) -> Result<(), HostError> {
        let process = main_process(&self.places, id, dir)?.ok_or(HostError::NoSuchVm(id))?;
        failpoint::reach("fake/before-signal");
        process.send(signal).map_err(HostError::os(format!("signal VM {id}")))?;
        failpoint::reach("fake/signalled");
        Ok(())
    }
}

/// Serves a fake agent in the VM's directory until it is killed. With `files` these are read now and kept there.
pub fn guest(dir: &Path, files: Option<&Path>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _runtime = runtime.enter();
    let kept = match files {
        Some(path) => match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Default::default(),
            Err(error) => return Err(error),
        },
        None => Default::default(),
    };
    let files_kept: Files = Arc::new(Mutex::new(kept));
    let agent = Arc::new(FakeAgent::alone(files_kept, files.map(Path::to_path_buf)));
    let listener = UnixListener::bind(dir.join(SOCKET))?;
    fs::write(dir.join(LogKind::Console.file_name()), "fake agent listens\n")?;
    runtime.block_on(agent.serve(listener));
    Ok(())
}

#[async_trait]
impl Driver for ProcessDriver {
    fn info(&self) -> DriverInfo {
        DriverInfo {
            name: "fake",
            shown: "fake",
            shared_kernel: true,
            slow_factor: 1,
            start_limit: Duration::from_secs(20),
            hibernation: Hibernation::Freeze,
        }
    }

    async fn start(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        let mut arguments = vec![OsString::from(GUEST_ARGUMENT), dir.into()];
        if let VmKind::Cli { user } = &vm.kind {
            let workspace = self.places.user(user);
            fs::create_dir_all(&workspace).map_err(HostError::os("make a user's directory"))?;
            arguments.push(workspace.join("files.json").into());
        }
        mark_started(dir)?;
        failpoint::reach("fake/before-launch");
        let launch = Launch {
            id: vm.id,
            instance: &self.places.instance,
            program: &self.program,
            arguments,
            dir,
            log: &dir.join(LogKind::Driver.file_name()),
            groups: &[],
            netns: None,
        };
        launch.start().await.map_err(|error| error.of_vm(vm.id))?;
        failpoint::reach("fake/launched");
        Ok(())
    }

    fn process(&self, id: VmId, dir: &Path) -> Result<Process, HostError> {
        match main_process(&self.places, id, dir)? {
            Some(process) if process.is_stopped() => Ok(Process::Held),
            _ => process_seen(&self.places, id, dir),
        }
    }

    fn connector(&self, id: VmId, dir: &Path) -> Arc<dyn Connector> {
        Arc::new(SocketConnector::new(&self.places, id, dir, dir.join(SOCKET)))
    }

    async fn hibernate(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        self.signal(vm.id, dir, Signal::STOP)
    }

    async fn resume(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        self.signal(vm.id, dir, Signal::CONT)
    }

    async fn pause(&self, id: VmId, dir: &Path) -> Result<(), HostError> {
        self.signal(id, dir, Signal::STOP)
    }

    async fn go_on(&self, id: VmId, dir: &Path) -> Result<(), HostError> {
        self.signal(id, dir, Signal::CONT)
    }

    async fn stop(&self, id: VmId, _dir: &Path) -> Result<(), HostError> {
        kill_all(&self.places, id).await
    }

    async fn release(&self, _id: VmId, _dir: &Path) -> Result<(), HostError> {
        Ok(())
    }

    fn traces(&self) -> Result<BTreeSet<VmId>, HostError> {
        with_processes(&self.places)
    }

    async fn prepare(&self, _vcpus: u8, _memory_mib: u32, _desktop_px: (u16, u16)) -> Result<(), HostError> {
        Ok(())
    }
}

/// Keeps a fake user's files as a real disk would.
pub(super) fn store(path: &Path, files: &Files) -> io::Result<()> {
    let files = files.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    crate::record::write_durably(path, &serde_json::to_vec(&files)?)
}
