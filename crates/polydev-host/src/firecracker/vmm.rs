//! One Firecracker process: started in a session of its own, found again by a later manager, driven, saved, ended.
//!
//! ```text
//! launch ──▶ idle ──boot──▶ running ◀──resume── paused ──save──▶ paused
//!              └───────────load────▶ running ────pause───▶ paused
//! adopt ───▶ whatever it is
//! ```
//!
//! Its working directory is the VM's run directory, and every path it is given is relative to that: unix socket
//! addresses are short, and paths are kept in snapshots. Its standard streams are files: a pipe of a manager that
//! died would hang its API for ever.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use polydev_core::ids::VmId;
use serde::{Deserialize, Serialize};

use super::{
    Action, Api, ApiError, Backend, BackendType, Balloon, BootSource, Drive, Entropy, HugePages,
    InstanceState, LoadSnapshot, Logger, MachineConfig, Metrics, Serial, SnapshotKind, TakeSnapshot,
    TokenBucket, VersionError, VmState, Vsock, VsockOverride, check_version,
};
use crate::{
    command::{command, run},
    error::HostError,
    host::LogKind,
    logs,
    process::{self, INSTANCE_VARIABLE, ProcessId, VM_VARIABLE},
    record::write_durably,
    snapshot::{self, DEVICES, MEMORY},
};

const API_SOCKET: &str = "api.sock";
/// The guest's vsock, from outside.
pub const VSOCK: &str = "v.sock";
const VMM_LOG: &str = "vmm.log";
const METRICS: &str = "metrics";
/// Who the VM's process is.
const IDENTITY: &str = "vmm.json";
const VERSION_LIMIT: Duration = Duration::from_secs(5);
/// From start of the process to its first answer; milliseconds on a machine that is not overloaded.
const READY_LIMIT: Duration = Duration::from_secs(15);
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// What a guest may write to its console per second.
const CONSOLE_BYTES: u64 = 256 << 10;
/// The host's address is 2.
const GUEST_CID: u32 = 3;

/// Why a VMM could not do something.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// No usable program.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// A call to its API.
    #[error("VM {id}: {source}")]
    Api {
        /// Which VM.
        id: VmId,
        /// What happened.
        source: ApiError,
    },
    /// The machine refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The process that runs is not the one that was recorded for this VM.
    #[error("VM {id} is run by a process that is not the recorded one: {what}")]
    NotOurs {
        /// Which VM.
        id: VmId,
        /// What differs.
        what: &'static str,
    },
    /// It is there already.
    #[error("VM {0} has a process already")]
    Exists(VmId),
    /// A snapshot that cannot be used.
    #[error("snapshot {path} cannot be used: {reason}")]
    Snapshot {
        /// Where it lies.
        path: String,
        /// Why not.
        reason: String,
    },
}

/// A checked firecracker program.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    /// Its version.
    pub version: [u32; 3],
}

impl Program {
    /// Asks the program for its version.
    pub async fn check(path: &Path) -> Result<Self, VmmError> {
        let mut ask = command(path);
        ask.arg("--version");
        let said = run(ask, &format!("run {} --version", path.display()), VERSION_LIMIT).await?;
        Ok(Self { path: path.to_owned(), version: check_version(&said)? })
    }
}

/// Where a VM lives and whose it is.
#[derive(Debug, Clone)]
pub struct Home {
    /// The VM.
    pub id: VmId,
    /// Its run directory; made by the caller.
    pub dir: PathBuf,
    /// Which host on this machine it belongs to.
    pub instance: String,
}

/// What a VM is made of.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Uncompressed ELF kernel.
    pub kernel: PathBuf,
    /// Initramfs.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub command_line: String,
    /// Disks in the order in which the guest sees them, and whether it can write to them.
    pub disks: Vec<(String, PathBuf, bool)>,
}

/// A VM's process and the way to its API. Dropping it leaves the VM alone.
#[derive(Debug)]
pub struct Vmm {
    home: Home,
    process: ProcessId,
    api: Api,
}

/// Tells a process from every other one, on this boot of the machine and on later ones.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    process: ProcessId,
    boot_id: String,
    /// Device and inode of the program.
    program: (u64, u64),
}

impl Vmm {
    /// Starts a process that has no VM yet.
    pub async fn launch(program: &Program, home: Home) -> Result<Self, VmmError> {
        let Home { id, dir, instance } = &home;
        if process_of(&home)?.is_some() {
            return Err(VmmError::Exists(*id));
        }
        let os = |what: &str| HostError::os(format!("{what} {}", dir.display()));
        // No owner lives: what an earlier process left would be in the way.
        for stale in [API_SOCKET, VSOCK, IDENTITY] {
            match fs::remove_file(dir.join(stale)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(os("clear")(error).into());
                }
                _ => {}
            }
        }
        // Firecracker wants them to be there.
        for file in [LogKind::Console.file_name(), VMM_LOG, METRICS] {
            logs::open_append(&dir.join(file)).map_err(os("write to"))?;
        }
        let out = logs::open_append(&dir.join(LogKind::Driver.file_name())).map_err(os("write to"))?;
        let err = out.try_clone().map_err(os("write to"))?;
        let mut start = command("setsid");
        start.arg("--fork").arg(&program.path).args(["--api-sock", API_SOCKET, "--id", &id.to_string()]);
        start.args(["--log-path", VMM_LOG, "--level", "Info"]).current_dir(dir).stdout(out).stderr(err);
        start.env(VM_VARIABLE, id.to_string()).env(INSTANCE_VARIABLE, instance);
        let started = start.status().await.map_err(os("start firecracker in"))?;
        if !started.success() {
            return Err(os("start firecracker in")(io::Error::other(started.to_string())).into());
        }
        // It is there once `setsid` has ended, and the same one before and after it executes firecracker.
        let process = process_of(&home)?.ok_or(VmmError::NotOurs { id: *id, what: "it has ended" })?;
        let api = Api::new(dir.join(API_SOCKET));
        let failed = |source| VmmError::Api { id: *id, source };
        api.ready(READY_LIMIT, || process.alive()).await.map_err(failed)?;
        let identity = Identity::of(process).map_err(os("look at the process of"))?;
        let bytes = serde_json::to_vec(&identity).map_err(|error| os("write to")(io::Error::other(error)))?;
        write_durably(&dir.join(IDENTITY), &bytes).map_err(os("write to"))?;
        Ok(Self { home, process, api })
    }

    /// Finds the process that an earlier manager started; `None` if it has ended or never was.
    ///
    /// It is taken over only if everything that was recorded of it still holds and its API names this VM.
    pub async fn adopt(home: Home) -> Result<Option<Self>, VmmError> {
        let Some(process) = process_of(&home)? else { return Ok(None) };
        let id = home.id;
        let recorded =
            fs::read(home.dir.join(IDENTITY)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(recorded) = recorded else {
            return Err(VmmError::NotOurs { id, what: "nothing is recorded of it" });
        };
        let seen = Identity::of(process).map_err(HostError::os(format!("look at the process of VM {id}")))?;
        if seen != recorded {
            return Err(VmmError::NotOurs { id, what: "pid, start time, boot or program" });
        }
        let api = Api::new(home.dir.join(API_SOCKET));
        let info = api.info().await.map_err(|source| VmmError::Api { id, source })?;
        if info.id != id.to_string() {
            return Err(VmmError::NotOurs { id, what: "the id that its API names" });
        }
        Ok(Some(Self { home, process, api }))
    }

    /// Boots a machine.
    pub async fn boot(&self, machine: &Machine) -> Result<(), VmmError> {
        let calls = async {
            self.observe().await?;
            let (vcpu_count, mem_size_mib) = (machine.vcpus, machine.memory_mib);
            let (smt, track_dirty_pages, huge_pages) = (false, true, HugePages::None);
            self.api
                .machine(&MachineConfig { vcpu_count, mem_size_mib, smt, track_dirty_pages, huge_pages })
                .await?;
            let kernel_image_path = text(&machine.kernel);
            let initrd_path = machine.initrd.as_deref().map(text);
            let boot_args = machine.command_line.clone();
            self.api.boot_source(&BootSource { kernel_image_path, initrd_path, boot_args }).await?;
            for (name, file, writable) in &machine.disks {
                let drive = Drive {
                    drive_id: name.clone(),
                    path_on_host: text(file),
                    is_root_device: false,
                    is_read_only: !writable,
                    rate_limiter: None,
                };
                self.api.drive(&drive).await?;
            }
            self.api.vsock(&Vsock { guest_cid: GUEST_CID, uds_path: VSOCK.to_owned() }).await?;
            self.api.entropy(&Entropy::default()).await?;
            let balloon = Balloon { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: 1 };
            self.api.balloon(&balloon).await?;
            self.api.action(Action::InstanceStart).await
        };
        calls.await.map_err(self.api_error())
    }

    /// Continues from a snapshot, in a process that has no VM yet. The memory file must not change while the VM lives.
    pub async fn load(&self, from: &Path) -> Result<(), VmmError> {
        let unusable = |reason| VmmError::Snapshot { path: from.display().to_string(), reason };
        snapshot::check(from).map_err(unusable)?;
        let calls = async {
            self.observe().await?;
            self.api
                .load_snapshot(&LoadSnapshot {
                    snapshot_path: text(&from.join(DEVICES)),
                    mem_backend: Backend {
                        backend_type: BackendType::File,
                        backend_path: text(&from.join(MEMORY)),
                    },
                    track_dirty_pages: true,
                    resume_vm: true,
                    clock_realtime: true,
                    network_overrides: Vec::new(),
                    vsock_override: Some(VsockOverride { uds_path: VSOCK.to_owned() }),
                })
                .await
        };
        calls.await.map_err(self.api_error())
    }

    /// Stops the vCPUs.
    pub async fn pause(&self) -> Result<(), VmmError> {
        self.api.set_state(VmState::Paused).await.map_err(self.api_error())
    }

    /// Lets them run again.
    pub async fn resume(&self) -> Result<(), VmmError> {
        self.api.set_state(VmState::Resumed).await.map_err(self.api_error())
    }

    /// How the VM stands.
    pub async fn state(&self) -> Result<InstanceState, VmmError> {
        self.api.info().await.map(|info| info.state).map_err(self.api_error())
    }

    /// Writes the paused VM to a directory, which appears when it is whole.
    pub async fn save(&self, to: &Path) -> Result<(), VmmError> {
        let fresh = to.with_extension("new");
        let os = |what: &str| HostError::os(format!("{what} snapshot {}", to.display()));
        snapshot::remove(&fresh).map_err(os("clear"))?;
        fs::create_dir_all(&fresh).map_err(os("make"))?;
        let take = TakeSnapshot {
            snapshot_type: SnapshotKind::Full,
            snapshot_path: text(&fresh.join(DEVICES)),
            mem_file_path: text(&fresh.join(MEMORY)),
        };
        let saved = async {
            self.api.take_snapshot(&take).await.map_err(self.api_error())?;
            snapshot::describe(&fresh, None).map_err(os("describe"))?;
            snapshot::remove(to).map_err(os("replace"))?;
            fs::rename(&fresh, to).map_err(os("name"))?;
            Ok(())
        }
        .await;
        if saved.is_err() {
            snapshot::remove(&fresh).map_err(os("clear"))?;
        }
        saved
    }

    /// Brings a snapshot that this VM alone continued from, or was last saved to, up to date: only pages that were
    /// written since are read and written. The VM must be paused, and is of no further use once its memory file has
    /// changed under it: end it.
    ///
    /// Until it is done the snapshot has no description and is not used: a crash half way loses it, never mixes it.
    pub async fn save_changes(&self, onto: &Path) -> Result<(), VmmError> {
        let os = |what: &str| HostError::os(format!("{what} snapshot {}", onto.display()));
        let (devices, layer) = (self.home.dir.join("changes.state"), self.home.dir.join("changes"));
        let take = TakeSnapshot {
            snapshot_type: SnapshotKind::Diff,
            snapshot_path: text(&devices),
            mem_file_path: text(&layer),
        };
        self.api.take_snapshot(&take).await.map_err(self.api_error())?;
        snapshot::forget(onto).map_err(os("reopen"))?;
        snapshot::merge(&layer, &onto.join(MEMORY)).map_err(os("write changes to"))?;
        fs::copy(&devices, onto.join(DEVICES)).map_err(os("write devices to"))?;
        snapshot::describe(onto, None).map_err(os("describe"))?;
        for part in [devices, layer] {
            fs::remove_file(part).map_err(os("clear what became"))?;
        }
        Ok(())
    }

    /// Ends the process and waits until it has ended.
    pub async fn kill(self) -> Result<(), VmmError> {
        let op = format!("kill VM {}", self.home.id);
        self.process.kill(KILL_LIMIT).await.map_err(HostError::os(op))?;
        Ok(())
    }

    /// Whether the process still runs.
    pub fn alive(&self) -> bool {
        self.process.alive()
    }

    /// Logs, metrics and console are not kept in snapshots: they are set before a boot and before a load.
    async fn observe(&self) -> Result<(), ApiError> {
        let log_path = VMM_LOG.to_owned();
        self.api.logger(&Logger { log_path, level: "Info", show_level: true }).await?;
        self.api.metrics(&Metrics { metrics_path: METRICS.to_owned() }).await?;
        let rate_limiter = Some(TokenBucket { size: CONSOLE_BYTES, refill_time: 1000 });
        let serial_out_path = LogKind::Console.file_name().to_owned();
        self.api.serial(&Serial { serial_out_path, rate_limiter }).await
    }

    fn api_error(&self) -> impl FnOnce(ApiError) -> VmmError {
        let id = self.home.id;
        move |source| VmmError::Api { id, source }
    }
}

impl Identity {
    fn of(process: ProcessId) -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let program = fs::metadata(process.exe())?;
        Ok(Self { process, boot_id, program: (program.dev(), program.ino()) })
    }
}

fn process_of(home: &Home) -> Result<Option<ProcessId>, HostError> {
    let all = process::all(&home.instance).map_err(HostError::os("read the process table"))?;
    Ok(all.into_iter().find(|(vm, _)| *vm == home.id).map(|(_, process)| process))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
