//! What a [`crate::Host`] needs to know. Read from the configuration file by the binary.

use std::path::PathBuf;

pub use crate::firecracker::FirecrackerConfig;

/// Which driver to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverChoice {
    /// The first that a real probe shows to work: `firecracker`, `qemu` with KVM, `container`, `qemu` emulated.
    #[default]
    Auto,
    /// microVMs of Firecracker.
    Firecracker,
    /// Namespaces of the host's kernel through an OCI runtime.
    Container,
    /// QEMU with KVM where it works, emulated otherwise.
    Qemu,
    /// VMs of Firecracker whose guests are toys: what there is of Firecracker on machines whose KVM runs no Linux.
    #[cfg(feature = "chaos")]
    #[serde(rename = "firecracker-toy")]
    FirecrackerToy,
    /// Processes that serve a fake agent.
    #[cfg(feature = "chaos")]
    Fake,
}

/// Measures by which one more VM is admitted or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Capacity {
    /// Memory of the machine that stays available whatever is asked, in MiB.
    pub reserve_mib: u64,
    /// What a browser VM is expected to take, in MiB.
    pub browser_mib: u64,
    /// What a CLI VM is expected to take, in MiB.
    pub cli_mib: u64,
    /// Virtual CPUs of all running VMs per core of the machine.
    pub vcpus_per_core: u64,
}

/// How new VMs' traffic is to get to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkChoice {
    /// Through a network device where this process can make one, otherwise on the guest channel.
    Auto,
    /// [`NetworkMode::Channel`].
    #[default]
    Channel,
    /// [`NetworkMode::Tap`].
    Tap,
}

impl NetworkChoice {
    /// For a host whose driver is given, not chosen: a device only if it is asked for.
    #[cfg(feature = "fake")]
    pub(crate) const fn without_probe(self) -> NetworkMode {
        match self {
            Self::Auto | Self::Channel => NetworkMode::Channel,
            Self::Tap => NetworkMode::Tap,
        }
    }
}

/// How a VM's traffic gets to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// As streams on the guest channel: the VM has no network device.
    #[default]
    Channel,
    /// Through a network device whose only other end is the host's gateway ([`crate::net`]).
    Tap,
}

/// Places, sizes and limits.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Driver.
    pub driver: DriverChoice,
    /// Persistent state: CLI VMs' disks, VM records, archived logs, snapshots.
    pub data_dir: PathBuf,
    /// Volatile state of running VMs; must be short (unix sockets live in it). Emptied by a reboot.
    pub run_dir: PathBuf,
    /// Golden images (`images/<id>/...` and the link `current`).
    pub image_dir: PathBuf,
    /// Static `polydev-agent`.
    pub agent_path: PathBuf,
    /// Static `polydev-desktop`.
    pub desktop_path: PathBuf,
    /// Extra read-only layer directory put on top of the image: the demo and test certificate authority. Never in production.
    pub overlay_dir: Option<PathBuf>,
    /// Most VMs at one time, 1..=253.
    pub slots: u8,
    /// Archive of VMs' logs: most bytes kept per log file.
    pub log_bytes_max: u64,
    /// Archive of VMs' logs: most VMs kept.
    pub log_vms_max: usize,
    /// Keep the run directory of browser VMs whose sign-in failed (`DEBUG_KEEP_FAILED_BROWSER_VMS`).
    pub keep_failed: bool,
    /// When a VM is refused for want of memory or cores; `None`: never.
    pub capacity: Option<Capacity>,
    /// How new VMs' traffic gets to the host.
    pub network: NetworkChoice,
    /// What each VM may use of its way out.
    pub egress_limits: crate::egress::EgressLimits,
    /// What VMs may take of the machine.
    pub resources: Resources,
    /// Programs, users and rates of the driver `firecracker`.
    pub firecracker: FirecrackerConfig,
}

/// What VMs may take of the machine. Enforced by control groups and by a check before every write that could fill a
/// disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    /// CPU time per virtual CPU, in percent.
    pub cpu_percent: u32,
    /// A VM's share of busy CPUs, 1..=10000; what is not polydev's has 100.
    pub cpu_weight: u32,
    /// Most processes and threads of one VM on the host.
    pub pids_max: u32,
    /// Most bytes read, and most bytes written, per second by one VM on the disk of the data directory; 0: no limit.
    pub io_bytes_per_second: u64,
    /// Memory of a virtual machine monitor besides its guest's, in MiB.
    pub vmm_overhead_mib: u32,
    /// Size of a user's file system.
    pub user_disk_bytes: u64,
    /// What is left free on the disk of the data directory.
    pub disk_reserve_bytes: u64,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu_percent: 100,
            cpu_weight: 100,
            pids_max: 4096,
            io_bytes_per_second: 0,
            vmm_overhead_mib: 256,
            user_disk_bytes: 16 << 30,
            disk_reserve_bytes: 1 << 30,
        }
    }
}
