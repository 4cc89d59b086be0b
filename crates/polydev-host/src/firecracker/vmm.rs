//! One Firecracker process: started in a session of its own, found again by a later manager, driven, saved, ended.
//!
//! ```text
//! launch ──▶ idle ──boot──▶ running ◀──resume── paused ──capture──▶ paused
//!              └───────────load────────────────▶ paused
//! adopt ───▶ whatever it is
//! ```
//!
//! Its standard output is a file, opened for appending: a pipe of a manager that died would hang its API for ever, and
//! the host cuts the guest's console while it grows.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use polydev_core::ids::VmId;

use super::{
    Action, Api, ApiError, Backend, BackendType, Balloon, BootSource, Drive, DriveLimits, Entropy, HugePages,
    InstanceState, LoadSnapshot, MachineConfig, NetworkInterface, NetworkLimits, NetworkOverride,
    RateLimiter, Serial, SnapshotKind, TakeSnapshot, TokenBucket, VmState, Vsock, VsockOverride, exit,
    home::{self, API_SOCKET, VSOCK},
};
pub use super::{
    home::{Home, Item},
    jail::Jail,
    program::{Program, ProgramError},
};
use crate::{
    driver::PROCESS,
    error::HostError,
    failpoint,
    host::LogKind,
    launch::Launch,
    logs,
    process::ProcessId,
    snapshot::{DEVICES, MEMORY},
};

/// Where Firecracker writes its metrics, in the run directory: a pipe. A file would grow for ever, and its limit end the
/// VM.
pub(crate) const METRICS: &str = "metrics";
/// From start of the process to its first answer; milliseconds on a machine that is not overloaded.
const READY_LIMIT: Duration = Duration::from_secs(15);
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// What a guest may write to its console per second.
const CONSOLE_BYTES: u64 = 256 << 10;
/// What a guest may draw from the entropy device per second.
const ENTROPY_BYTES: u64 = 64 << 10;
/// The host's address is 2.
const GUEST_CID: u32 = 3;
const INTERFACE: &str = "eth0";
/// How much of the log of an earlier process is kept when the next one begins to write.
const LOG_KEPT_BYTES: u64 = 256 << 10;

/// Why a VMM could not do something.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// No usable program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A call to its API.
    #[error("VM {id}: {source}")]
    Api {
        /// Which VM.
        id: VmId,
        /// What happened.
        source: ApiError,
    },
    /// The process ended by itself.
    #[error("VM {id}: firecracker ended: {how}")]
    Ended {
        /// Which VM.
        id: VmId,
        /// How, as far as that can be known.
        how: String,
    },
    /// The machine refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The process that runs is not the one of this VM.
    #[error("VM {id} is run by a process that is not its own: {what}")]
    NotOurs {
        /// Which VM.
        id: VmId,
        /// What differs.
        what: &'static str,
    },
    /// It is there already.
    #[error("VM {0} has a process already")]
    Exists(VmId),
}

impl VmmError {
    /// As the failure of a step in a VM's life.
    pub(crate) fn of_step(self, id: VmId, step: &'static str) -> HostError {
        match self {
            Self::Host(error) => error,
            Self::Api { source, .. } if source.is_no_space() => {
                HostError::NoSpace { what: format!("{step} of VM {id}"), room: None }
            }
            other => HostError::StartFailed { id, step, detail: other.to_string() },
        }
    }

    /// Whether nobody knows any more what the process does: it has to be killed.
    pub(crate) fn is_hung(&self) -> bool {
        matches!(self, Self::Api { source: ApiError::TimedOut { .. } | ApiError::Broken { .. }, .. })
    }
}

/// What a VM is made of. Files are named as the VMM's [`Item`]s.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Uncompressed ELF kernel.
    pub kernel: String,
    /// Initramfs.
    pub initrd: Option<String>,
    /// Kernel command line.
    pub command_line: String,
    /// Disks in the order in which the guest sees them, and whether it can write to them.
    pub disks: Vec<(String, bool)>,
    /// Its network interface.
    pub network: Option<Network>,
    /// How fast it may use its devices.
    pub limits: Limits,
}

/// A VM's network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// A TAP that exists in the VMM's network namespace.
    pub tap: String,
    /// The guest's address.
    pub guest_mac: String,
}

/// How fast a VM may use its devices; none: as fast as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Limits {
    /// Each disk.
    pub disk: Option<RateLimiter>,
    /// The network interface, each way.
    pub network: Option<RateLimiter>,
}

/// How a process is started.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Firecracker.
    pub program: &'a Program,
    /// Without: root of the host. For tests and tiny guests of our own only.
    pub jail: Option<&'a Jail>,
    /// What it may use.
    pub items: Vec<Item>,
    /// `cgroup.procs` of the cgroups it is to be in.
    pub groups: Vec<PathBuf>,
    /// File that names the network namespace it is to be in.
    pub netns: Option<PathBuf>,
}

impl<'a> Setup<'a> {
    /// No cgroups, the manager's network namespace.
    pub fn new(program: &'a Program, jail: Option<&'a Jail>, items: Vec<Item>) -> Self {
        Self { program, jail, items, groups: Vec::new(), netns: None }
    }
}

/// A VM's process and the way to its API. Dropping it leaves the VM alone.
#[derive(Debug)]
pub struct Vmm {
    home: Home,
    process: ProcessId,
    end: exit::Watch,
    api: Api,
}

impl Vmm {
    /// Starts a process that has no VM yet.
    pub async fn launch(home: Home, setup: &Setup<'_>) -> Result<Self, VmmError> {
        let id = home.id;
        let os = |what: &str| HostError::os(format!("{what} {}", home.dir.display()));
        if home.process().map_err(os("look for processes of"))?.is_some() {
            return Err(VmmError::Exists(id));
        }
        // No owner lives: what an earlier process left would be in the way.
        home.clear().map_err(os("clear"))?;
        let log = home.dir.join(LogKind::Driver.file_name());
        // Firecracker writes from the beginning of the file on.
        logs::set_aside(&log, LOG_KEPT_BYTES).map_err(os("keep the log in"))?;
        fs::File::create(&log).map_err(os("write to"))?;
        make_pipe(&home.dir.join(METRICS)).map_err(os("write to"))?;
        failpoint::reach("firecracker/before-launch");
        let id_text = id.to_string();
        let own = [
            "--api-sock",
            API_SOCKET,
            "--log-path",
            LogKind::Driver.file_name(),
            "--level",
            "Info",
            "--show-level",
            "--metrics-path",
            METRICS,
        ];
        let (program, arguments) = match setup.jail {
            Some(jail) => {
                jail.build(&home, &setup.program.path, &setup.items).map_err(os("make a jail in"))?;
                failpoint::reach("firecracker/jail-built");
                (&jail.jailer, jail.arguments(&home, &setup.program.path, &own))
            }
            None => {
                home.link(&setup.items).map_err(os("link files into"))?;
                let arguments = [&["--id", id_text.as_str()], &own[..]].concat();
                (&setup.program.path, arguments.into_iter().map(str::to_owned).collect())
            }
        };
        let launch = Launch {
            id,
            instance: &home.instance,
            program,
            arguments: arguments.into_iter().map(OsString::from).collect(),
            dir: &home.dir,
            log: &home.dir.join(LogKind::Console.file_name()),
            groups: &setup.groups,
            netns: setup.netns.as_deref(),
        };
        launch.start().await.map_err(|error| error.of_vm(id))?;
        failpoint::reach("firecracker/launched");
        let found = home.process().map_err(os("look for processes of"))?;
        let ended = |end: Option<&exit::Watch>| VmmError::Ended { id, how: exit::how(end, &home) };
        let Some(process) = found else { return Err(ended(None)) };
        process.write(&home.dir.join(PROCESS)).map_err(os("write to"))?;
        let end = exit::Watch::of(process);
        let api = Api::new(home.root().join(API_SOCKET));
        match api.ready(READY_LIMIT, || process.alive()).await {
            Ok(_) => {}
            Err(_) if !process.alive() => return Err(ended(Some(&end))),
            Err(source) => return Err(VmmError::Api { id, source }),
        }
        failpoint::reach("firecracker/answers");
        Ok(Self { home, process, end, api })
    }

    /// Finds the process that an earlier manager started; `None` if it has ended or never was.
    ///
    /// It is taken over only if its API names this VM.
    pub async fn adopt(home: Home) -> Result<Option<Self>, VmmError> {
        let id = home.id;
        let found = home.process().map_err(HostError::os(format!("look for processes of VM {id}")))?;
        let Some(process) = found else { return Ok(None) };
        let api = Api::new(home.root().join(API_SOCKET));
        let info = api.info().await.map_err(|source| VmmError::Api { id, source })?;
        if info.id != id.to_string() {
            return Err(VmmError::NotOurs { id, what: "the id that its API names" });
        }
        Ok(Some(Self { home, process, end: exit::Watch::of(process), api }))
    }

    /// Boots a machine.
    pub async fn boot(&self, machine: &Machine) -> Result<(), VmmError> {
        let calls = async {
            self.console().await?;
            let (vcpu_count, mem_size_mib) = (machine.vcpus, machine.memory_mib);
            let (smt, track_dirty_pages, huge_pages) = (false, true, HugePages::None);
            self.api
                .machine(&MachineConfig { vcpu_count, mem_size_mib, smt, track_dirty_pages, huge_pages })
                .await?;
            let (kernel_image_path, initrd_path) = (machine.kernel.clone(), machine.initrd.clone());
            let boot_args = machine.command_line.clone();
            self.api.boot_source(&BootSource { kernel_image_path, initrd_path, boot_args }).await?;
            for (name, writable) in &machine.disks {
                let drive = Drive {
                    drive_id: name.clone(),
                    path_on_host: name.clone(),
                    is_root_device: false,
                    is_read_only: !writable,
                    rate_limiter: machine.limits.disk,
                };
                self.api.drive(&drive).await?;
            }
            if let Some(Network { tap, guest_mac }) = &machine.network {
                let interface = NetworkInterface {
                    iface_id: INTERFACE.to_owned(),
                    host_dev_name: tap.clone(),
                    guest_mac: guest_mac.clone(),
                    rx_rate_limiter: machine.limits.network,
                    tx_rate_limiter: machine.limits.network,
                };
                self.api.network(&interface).await?;
            }
            self.api.vsock(&Vsock { guest_cid: GUEST_CID, uds_path: VSOCK.to_owned() }).await?;
            let drawn = TokenBucket { size: ENTROPY_BYTES, refill_time: 1000 };
            let rate_limiter = Some(RateLimiter { bandwidth: Some(drawn), ops: None });
            self.api.entropy(&Entropy { rate_limiter }).await?;
            let balloon = Balloon { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: 1 };
            self.api.balloon(&balloon).await?;
            self.api.action(Action::InstanceStart).await
        };
        self.told(calls.await).await
    }

    /// Takes a machine's saved state from a directory that is one of the VMM's items, in a process that has no VM yet.
    /// It stands still afterwards, with this host's limits. Its memory file must not change while the VM lives.
    pub async fn load(&self, from: &str, machine: &Machine) -> Result<(), VmmError> {
        self.load_then(from, machine, false).await?;
        let calls = async {
            let Limits { disk, network } = machine.limits;
            if disk.is_some() {
                for (name, _) in &machine.disks {
                    let limits = DriveLimits { drive_id: name.clone(), rate_limiter: disk };
                    self.api.limit_drive(&limits).await?;
                }
            }
            if network.is_some() && machine.network.is_some() {
                let iface_id = INTERFACE.to_owned();
                let limits = NetworkLimits { iface_id, rx_rate_limiter: network, tx_rate_limiter: network };
                self.api.limit_network(&limits).await?;
            }
            Ok(())
        };
        self.told(calls.await).await
    }

    /// The same in one call, after which it runs; limits are those of when it was saved.
    pub async fn load_and_run(&self, from: &str, machine: &Machine) -> Result<(), VmmError> {
        self.load_then(from, machine, true).await
    }

    async fn load_then(&self, from: &str, machine: &Machine, resume_vm: bool) -> Result<(), VmmError> {
        let overridden = |network: &Network| NetworkOverride {
            iface_id: INTERFACE.to_owned(),
            host_dev_name: network.tap.clone(),
        };
        let calls = async {
            self.console().await?;
            self.api
                .load_snapshot(&LoadSnapshot {
                    snapshot_path: format!("{from}/{DEVICES}"),
                    mem_backend: Backend {
                        backend_type: BackendType::File,
                        backend_path: format!("{from}/{MEMORY}"),
                    },
                    track_dirty_pages: true,
                    resume_vm,
                    clock_realtime: true,
                    network_overrides: machine.network.iter().map(overridden).collect(),
                    vsock_override: Some(VsockOverride { uds_path: VSOCK.to_owned() }),
                })
                .await
        };
        self.told(calls.await).await
    }

    /// Stops the vCPUs.
    pub async fn pause(&self) -> Result<(), VmmError> {
        self.told(self.api.set_state(VmState::Paused).await).await
    }

    /// Lets them run again.
    pub async fn resume(&self) -> Result<(), VmmError> {
        self.told(self.api.set_state(VmState::Resumed).await).await
    }

    /// How the VM stands.
    pub async fn state(&self) -> Result<InstanceState, VmmError> {
        self.told(self.api.info().await.map(|info| info.state)).await
    }

    /// What the guest tells of its memory; none before its driver has spoken.
    pub async fn memory(&self) -> Result<super::BalloonStats, VmmError> {
        self.told(self.api.balloon_stats().await).await
    }

    /// Writes the paused VM to a directory that is, or is in, one of the VMM's items. A diff holds what was written to
    /// since the last capture or load; a capture that fails may have forgotten some of that.
    pub async fn capture(&self, snapshot_type: SnapshotKind, into: &str) -> Result<(), VmmError> {
        let take = TakeSnapshot {
            snapshot_type,
            snapshot_path: format!("{into}/{DEVICES}"),
            mem_file_path: format!("{into}/{MEMORY}"),
        };
        self.told(self.api.take_snapshot(&take).await).await
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

    /// User and system time it took so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        self.process.cpu_time()
    }

    /// Its directories.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The console is not kept in snapshots: it is set before a boot and before a load. Without a path it is standard
    /// output.
    async fn console(&self) -> Result<(), ApiError> {
        let rate_limiter = Some(TokenBucket { size: CONSOLE_BYTES, refill_time: 1000 });
        self.api.serial(&Serial { serial_out_path: None, rate_limiter }).await
    }

    async fn told<T>(&self, answer: Result<T, ApiError>) -> Result<T, VmmError> {
        let id = self.home.id;
        match answer {
            Ok(answer) => Ok(answer),
            Err(ApiError::Connect { .. } | ApiError::Broken { .. })
                if self.end.has_ended(self.process).await =>
            {
                Err(VmmError::Ended { id, how: exit::how(Some(&self.end), &self.home) })
            }
            Err(source) => Err(VmmError::Api { id, source }),
        }
    }
}

/// Makes a pipe with a name, in the place of whatever had it.
pub(crate) fn make_pipe(path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    home::remove(path)?;
    Ok(mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?)
}

/// Words for the end of a VM's process that is not there any more.
pub(crate) fn how_it_ended(home: &Home) -> String {
    exit::how(None, home)
}
