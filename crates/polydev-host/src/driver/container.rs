//! Driver `container`: namespaces of the host's kernel, through runc. Same image and agent as the other drivers.
//!
//! A container's standard streams are files and runc is gone once it runs, so it survives the controller.

mod layers;
mod oci;

use std::{
    collections::BTreeSet,
    fs, io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use polydev_core::{ids::VmId, vm::Process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::time::timeout;

use self::layers::Layers;
use super::{
    Driver, DriverInfo, Hibernation, PROCESS, Places, SocketConnector, kill_all, main_process, mark_started,
    process_seen, user_disk, with_processes,
};
use crate::{
    agent::Connector,
    cgroup::Freezer,
    command::{command, run},
    config::NetworkMode,
    error::HostError,
    failpoint,
    golden::GoldenImage,
    host::{LogKind, VmKind},
    launch, logs, mounts,
    net::guest_namespace_of,
    process::{self, INSTANCE_VARIABLE, VM_VARIABLE},
    record::VmRecord,
};

pub(crate) const NAME: &str = "container";
const RUNC: &str = "runc";
const RUNC_LIMIT: Duration = Duration::from_secs(30);
/// Share of a browser VM's memory that its writable layer may take, as a divisor.
const SCRATCH_DIVISOR: u32 = 2;

/// See the module.
pub(crate) struct ContainerDriver {
    places: Places,
    layers: Layers,
    image: GoldenImage,
    programs: Programs,
}

/// Files of the host that every container gets.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) agent: PathBuf,
    pub(crate) desktop: PathBuf,
    pub(crate) overlay: Option<PathBuf>,
}

impl ContainerDriver {
    pub(crate) fn new(places: Places, image: GoldenImage, programs: Programs) -> Self {
        Self { layers: Layers::new(places.run.clone()), places, image, programs }
    }

    /// Runs a real container to see whether that works here.
    pub(crate) async fn probe(run_dir: &Path) -> Result<String, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root".to_owned());
        }
        let dir = run_dir.join(format!("probe-{}", uuid::Uuid::new_v4().simple()));
        let result = probe_in(&dir).await;
        let swept = mounts::unmount_under(&dir);
        let removed = fs::remove_dir_all(&dir);
        if let (Err(error), _) = (&swept, &removed) {
            tracing::warn!(%error, "probe left a mount behind");
        }
        result
    }

    fn runc_root(&self) -> PathBuf {
        self.places.run.join("runc")
    }

    fn runc(&self) -> tokio::process::Command {
        let mut runc = command(RUNC);
        runc.arg("--root").arg(self.runc_root());
        runc
    }

    /// Mounts layers and the writable layer; returns the root.
    async fn make_root(&self, vm: &VmRecord, dir: &Path) -> Result<PathBuf, HostError> {
        let names: &[&str] = match vm.kind {
            VmKind::Browser => &["tools", "desktop", "base"],
            VmKind::Cli { .. } => &["tools", "base"],
        };
        let mut lowers = Vec::new();
        lowers.extend(self.programs.overlay.clone());
        lowers.extend(self.layers.mount_all(&self.image.layers(names)?).await?);
        let scratch = match &vm.kind {
            VmKind::Browser => {
                let scratch = dir.join("scratch");
                make_dir(&scratch, 0o700)?;
                mounts::tmpfs(&scratch, (vm.memory_mib / SCRATCH_DIVISOR).max(64))?;
                scratch
            }
            VmKind::Cli { user } => {
                let workspace = dir.join("workspace");
                make_dir(&workspace, 0o700)?;
                user_disk::mount(&self.places.user(user), &workspace, &self.places.resources).await?;
                workspace
            }
        };
        let (upper, work, root) = (scratch.join("upper"), scratch.join("work"), dir.join("root"));
        make_dir(&upper, 0o755)?;
        make_dir(&work, 0o700)?;
        make_dir(&root, 0o755)?;
        mounts::overlay(&lowers, &upper, &work, &root)?;
        Ok(root)
    }

    fn freezer(&self, id: VmId) -> Option<Freezer> {
        Freezer::of(&self.places.groups.dirs(id))
    }

    fn runc_knows(&self, id: VmId) -> bool {
        self.runc_root().join(id.to_string()).exists()
    }
}

#[async_trait]
impl Driver for ContainerDriver {
    fn info(&self) -> DriverInfo {
        DriverInfo {
            name: NAME,
            shown: NAME,
            shared_kernel: true,
            slow_factor: 1,
            start_limit: Duration::from_secs(20),
            hibernation: Hibernation::Freeze,
        }
    }

    async fn start(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        failpoint::reach("container/before-root");
        let root = self.make_root(vm, dir).await?;
        failpoint::reach("container/root-made");
        let (channel, bundle) = (dir.join("channel"), dir.join("bundle"));
        make_dir(&channel, 0o700)?;
        make_dir(&bundle, 0o700)?;
        let desktop = (vm.kind == VmKind::Browser).then_some(self.programs.desktop.as_path());
        let netns = (vm.network == NetworkMode::Tap).then(|| guest_namespace_of(&self.places.run, vm.slot));
        let config = oci::config(&oci::Container {
            netns: netns.as_deref(),
            vm,
            root: &root,
            channel: &channel,
            agent: &self.programs.agent,
            desktop,
            instance: &self.places.instance,
            cgroup: self.places.groups.path(vm.id),
            limits: self.places.limits(vm.vcpus, vm.memory_mib, None),
        });
        let write = || -> io::Result<fs::File> {
            fs::write(bundle.join("config.json"), serde_json::to_vec(&config)?)?;
            logs::open_append(&dir.join(LogKind::Console.file_name()))
        };
        let console = write().map_err(HostError::os(format!("write to {}", dir.display())))?;
        let driver_log = dir.join(LogKind::Driver.file_name());
        let pid_file = dir.join("pid");
        mark_started(dir)?;
        let mut runc = launch::joining(&self.places.groups.make_unlimited(vm.id)?);
        runc.arg(RUNC)
            .arg("--root")
            .arg(self.runc_root())
            .arg("--log")
            .arg(&driver_log)
            .args(["--log-format", "text"]);
        runc.args(["run", "--detach", "--no-new-keyring", "--pid-file"]).arg(&pid_file);
        runc.arg("--bundle").arg(&bundle).arg(vm.id.to_string());
        let clone = console.try_clone().map_err(HostError::os("open console log"))?;
        // One that outlives this process in the middle of its work is found and killed like the VM itself.
        runc.env(VM_VARIABLE, vm.id.to_string()).env(INSTANCE_VARIABLE, &self.places.instance);
        runc.stdout(clone).stderr(console).kill_on_drop(true);
        let failed = |detail: String| HostError::StartFailed { id: vm.id, step: "runc run", detail };
        failpoint::reach("container/before-run");
        let mut running = runc.spawn().map_err(HostError::os("run runc"))?;
        failpoint::reach("container/runc-started");
        let ended = timeout(RUNC_LIMIT, running.wait()).await;
        failpoint::reach("container/runc-ended");
        match ended {
            // The program may not have replaced runc's yet, and with it the environment it is found by.
            Ok(Ok(status)) if status.success() => match process::from_pid_file(&pid_file) {
                Some(process) => {
                    process.write(&dir.join(PROCESS)).map_err(HostError::os("write process file"))
                }
                None => Ok(()),
            },
            Ok(Ok(status)) => {
                let words = logs::tail(&driver_log, 1000).unwrap_or_default();
                Err(failed(format!("{status}: {}", words.trim())))
            }
            Ok(Err(error)) => Err(HostError::os("run runc")(error)),
            Err(_) => Err(failed(format!("no end within {} s", RUNC_LIMIT.as_secs()))),
        }
    }

    fn process(&self, id: VmId, dir: &Path) -> Result<Process, HostError> {
        let seen = process_seen(&self.places, id, dir)?;
        let frozen = seen == Process::Alive && self.freezer(id).is_some_and(|freezer| freezer.is_frozen());
        Ok(if frozen { Process::Held } else { seen })
    }

    async fn hibernate(&self, vm: &VmRecord, _dir: &Path) -> Result<(), HostError> {
        let failed = |detail: String| HostError::HibernateFailed { id: vm.id, detail };
        let freezer = self.freezer(vm.id).ok_or_else(|| failed("its control group has no freezer".into()))?;
        failpoint::reach("container/before-freeze");
        freezer.freeze().await.map_err(|error| failed(error.to_string()))?;
        failpoint::reach("container/frozen");
        Ok(())
    }

    async fn resume(&self, vm: &VmRecord, _dir: &Path) -> Result<(), HostError> {
        let lost = |detail: String| HostError::MemoryLost { id: vm.id, detail };
        let freezer = self.freezer(vm.id).ok_or_else(|| lost("its control group is gone".into()))?;
        failpoint::reach("container/before-thaw");
        freezer.thaw().map_err(HostError::os(format!("thaw VM {}", vm.id)))?;
        failpoint::reach("container/thawed");
        Ok(())
    }

    async fn pause(&self, id: VmId, _dir: &Path) -> Result<(), HostError> {
        let freezer = self.freezer(id).ok_or(HostError::NoSuchVm(id))?;
        freezer.freeze().await.map_err(HostError::os(format!("freeze VM {id}")))
    }

    async fn go_on(&self, id: VmId, _dir: &Path) -> Result<(), HostError> {
        let Some(freezer) = self.freezer(id) else { return Ok(()) };
        freezer.thaw().map_err(HostError::os(format!("thaw VM {id}")))
    }

    async fn rename(&self, vm: &VmRecord, dir: &Path) -> Result<(), HostError> {
        let Some(process) = main_process(&self.places, vm.id, dir)? else {
            return Err(HostError::NoSuchVm(vm.id));
        };
        let (namespace, name) = (process.namespace("uts"), vm.hostname.clone());
        let renamed = tokio::task::spawn_blocking(move || name_in(&namespace, &name)).await;
        renamed.map_err(io::Error::other).flatten().map_err(HostError::os(format!("rename VM {}", vm.id)))
    }

    fn connector(&self, id: VmId, dir: &Path) -> Arc<dyn Connector> {
        let socket = dir.join("channel").join("agent.sock");
        Arc::new(SocketConnector::new(&self.places, id, dir, socket))
    }

    async fn stop(&self, id: VmId, _dir: &Path) -> Result<(), HostError> {
        let os = |what: &str| HostError::os(format!("{what} VM {id}"));
        if let Some(freezer) = self.freezer(id).filter(Freezer::is_frozen) {
            // What is frozen does not take the signal, and what is thawed first would run on for a moment.
            for process in process::of_vm(&self.places.instance, id).map_err(os("find"))? {
                process.send_kill().map_err(os("kill"))?;
            }
            freezer.thaw().map_err(os("thaw"))?;
        }
        kill_all(&self.places, id).await
    }

    async fn release(&self, id: VmId, dir: &Path) -> Result<(), HostError> {
        if self.runc_knows(id) {
            let mut runc = self.runc();
            runc.args(["delete", "--force"]).arg(id.to_string());
            if let Err(error) = run(runc, "runc delete", RUNC_LIMIT).await {
                // A state directory that runc itself cannot read must not make the VM immortal.
                tracing::warn!(vm.id = %id, %error, "runc could not delete the container; removing its state");
                let state = self.runc_root().join(id.to_string());
                fs::remove_dir_all(&state).map_err(HostError::os(format!("remove {}", state.display())))?;
            }
        }
        failpoint::reach("container/deleted");
        self.places.groups.remove(id).await?;
        failpoint::reach("container/group-removed");
        mounts::unmount_under(dir)
    }

    fn traces(&self) -> Result<BTreeSet<VmId>, HostError> {
        let mut found = with_processes(&self.places)?;
        let known_to_runc = fs::read_dir(self.runc_root()).into_iter().flatten().flatten();
        found.extend(known_to_runc.filter_map(|entry| entry.file_name().to_str()?.parse::<VmId>().ok()));
        Ok(found)
    }

    async fn prepare(&self, _vcpus: u8, _memory_mib: u32, _desktop_px: (u16, u16)) -> Result<(), HostError> {
        // A container starts fast as it is.
        Ok(())
    }
}

/// Sets the host name in a namespace. On a thread of its own, which ends afterwards: it stays in that namespace.
fn name_in(namespace: &Path, name: &str) -> io::Result<()> {
    let file = fs::File::open(namespace)?;
    let named = std::thread::scope(|scope| {
        let work = scope.spawn(|| -> io::Result<()> {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::HostNameAndNISDomainName))?;
            Ok(rustix::system::sethostname(name.as_bytes())?)
        });
        work.join()
    });
    named.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

fn make_dir(path: &Path, mode: u32) -> Result<(), HostError> {
    let make = || -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    make().map_err(HostError::os(format!("make {}", path.display())))
}

async fn probe_in(dir: &Path) -> Result<String, String> {
    let words = |error: HostError| error.to_string();
    for part in ["scratch", "root", "bundle"] {
        make_dir(&dir.join(part), 0o755).map_err(words)?;
    }
    let scratch = dir.join("scratch");
    mounts::tmpfs(&scratch, 1).map_err(words)?;
    for part in ["upper", "work"] {
        make_dir(&scratch.join(part), 0o755).map_err(words)?;
    }
    // The host's own programs as lower layer, where `/bin` and `/lib` are what `/usr/bin` and `/usr/lib` are outside.
    let lowers = [PathBuf::from("/usr")];
    mounts::overlay(&lowers, &scratch.join("upper"), &scratch.join("work"), &dir.join("root"))
        .map_err(words)?;
    let config =
        serde_json::to_vec(&oci::probe_config(&dir.join("root"))).map_err(|error| error.to_string())?;
    fs::write(dir.join("bundle/config.json"), config).map_err(|error| error.to_string())?;
    let mut runc = command(RUNC);
    runc.arg("--root")
        .arg(dir.join("state"))
        .args(["run", "--no-new-keyring", "--bundle"])
        .arg(dir.join("bundle"));
    runc.arg(format!("polydev-{}", dir.file_name().unwrap_or_default().to_string_lossy()));
    run(runc, "run a container", RUNC_LIMIT).await.map_err(words)?;
    let version = run(
        {
            let mut runc = command(RUNC);
            runc.arg("--version");
            runc
        },
        "runc --version",
        RUNC_LIMIT,
    )
    .await
    .map_err(words)?;
    Ok(format!("{}; shares the host's kernel", version.lines().next().unwrap_or(RUNC)))
}
