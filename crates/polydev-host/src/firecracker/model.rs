//! Requests and answers, as Firecracker's API description words them. Optional fields are left out when not given:
//! Firecracker refuses fields that it does not know.

use serde::{Deserialize, Serialize};

/// `PUT /logger`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Logger {
    /// An existing file or named pipe.
    pub log_path: String,
    /// `Error`, `Warning`, `Info`, `Debug`.
    pub level: &'static str,
    /// Whether each line names its level.
    pub show_level: bool,
}

/// `PUT /metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// An existing file or named pipe.
    pub metrics_path: String,
}

/// `PUT /serial`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Serial {
    /// An existing file; standard output otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<String>,
    /// Bytes beyond it are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucket>,
}

/// `PUT /machine-config`, and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// 1 to 32; 1 or even with `smt`.
    pub vcpu_count: u8,
    /// Memory in MiB.
    pub mem_size_mib: u32,
    /// Whether vCPUs come in pairs of hyperthreads.
    pub smt: bool,
    /// Needed for diff snapshots; not kept in a snapshot.
    pub track_dirty_pages: bool,
    /// What backs the memory.
    pub huge_pages: HugePages,
}

/// What backs a VM's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// Pages of 4 KiB.
    None,
    /// Pages of 2 MiB from hugetlbfs.
    #[serde(rename = "2M")]
    TwoMib,
}

/// `PUT /boot-source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootSource {
    /// An uncompressed ELF kernel.
    pub kernel_image_path: String,
    /// Its initramfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// Kernel command line; Firecracker adds the devices.
    pub boot_args: String,
}

/// `PUT /drives/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drive {
    /// The id of the path, again.
    pub drive_id: String,
    /// File, best relative to the VMM's working directory: it is kept in snapshots.
    pub path_on_host: String,
    /// Whether the kernel is told to mount it as root.
    pub is_root_device: bool,
    /// Whether the guest can write.
    pub is_read_only: bool,
    /// How fast the guest may use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `PATCH /drives/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DriveLimits {
    /// The id of the path, again.
    pub drive_id: String,
    /// How fast the guest may use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `PUT /network-interfaces/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkInterface {
    /// The id of the path, again.
    pub iface_id: String,
    /// A TAP that exists: with CAP_NET_ADMIN a wrong name would silently make one.
    pub host_dev_name: String,
    /// The guest's address.
    pub guest_mac: String,
    /// Towards the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// From the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PATCH /network-interfaces/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkLimits {
    /// The id of the path, again.
    pub iface_id: String,
    /// Towards the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// From the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// Limits of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations or packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// `size` tokens come back within `refill_time` milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TokenBucket {
    /// Tokens it holds.
    pub size: u64,
    /// Milliseconds until an empty one is full.
    pub refill_time: u64,
}

/// `PUT /vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vsock {
    /// The guest's address, 3 or higher.
    pub guest_cid: u32,
    /// Unix socket that Firecracker makes; relative to its working directory.
    pub uds_path: String,
}

/// `PUT /entropy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Entropy {
    /// How fast the guest may draw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `PUT /balloon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Balloon {
    /// Memory taken from the guest.
    pub amount_mib: u32,
    /// Whether it gives way when the guest runs out of memory.
    pub deflate_on_oom: bool,
    /// How often the guest reports; 0 = never.
    pub stats_polling_interval_s: u16,
}

/// `PATCH /balloon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BalloonTarget {
    /// Memory taken from the guest.
    pub amount_mib: u32,
}

/// `GET /balloon/statistics`; what the guest has not reported is absent. Bytes, unless named otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct BalloonStats {
    /// Memory it is to take.
    pub target_mib: u32,
    /// Memory it has taken.
    pub actual_mib: u32,
    /// Unused memory.
    pub free_memory: Option<u64>,
    /// All memory.
    pub total_memory: Option<u64>,
    /// Memory that programs could still get.
    pub available_memory: Option<u64>,
    /// Page cache.
    pub disk_caches: Option<u64>,
}

/// `PUT /actions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "action_type")]
pub enum Action {
    /// Boots the guest.
    InstanceStart,
    /// Asks the guest to end (x86).
    SendCtrlAltDel,
    /// Writes the metrics now.
    FlushMetrics,
}

/// `PATCH /vm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "state")]
pub enum VmState {
    /// vCPUs stand still.
    Paused,
    /// vCPUs run.
    Resumed,
}

/// How much of the memory a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum SnapshotKind {
    /// All of it.
    Full,
    /// Pages written since the last one; needs dirty tracking.
    Diff,
}

/// `PUT /snapshot/create`; the VM must be paused. Existing files are overwritten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TakeSnapshot {
    /// How much.
    pub snapshot_type: SnapshotKind,
    /// State of the devices.
    pub snapshot_path: String,
    /// Memory.
    pub mem_file_path: String,
}

/// `PUT /snapshot/load`, in a process that has not been configured otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoadSnapshot {
    /// State of the devices.
    pub snapshot_path: String,
    /// Memory.
    pub mem_backend: Backend,
    /// Whether diff snapshots are to be possible from here on.
    pub track_dirty_pages: bool,
    /// Whether the vCPUs run at once.
    pub resume_vm: bool,
    /// Whether the guest's wall clock is moved to now (guests with kvm-clock).
    pub clock_realtime: bool,
    /// Other TAPs than those of the snapshot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another socket than that of the snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
}

/// Where the memory of a loaded VM comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// What the path names.
    pub backend_type: BackendType,
    /// A file that nobody ever writes to again, or a pager's socket.
    pub backend_path: String,
}

/// What [`Backend::backend_path`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum BackendType {
    /// A file, mapped privately.
    File,
    /// The socket of a userfaultfd handler.
    Uffd,
}

/// Another TAP for an interface of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkOverride {
    /// Which interface.
    pub iface_id: String,
    /// Its TAP now.
    pub host_dev_name: String,
}

/// Another socket for the vsock of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VsockOverride {
    /// Its socket now.
    pub uds_path: String,
}

/// `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct InstanceInfo {
    /// `--id` of the process.
    pub id: String,
    /// How it stands.
    pub state: InstanceState,
    /// Firecracker's version.
    pub vmm_version: String,
}

/// How a VM stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum InstanceState {
    /// Neither booted nor loaded.
    #[serde(rename = "Not started")]
    NotStarted,
    /// vCPUs run.
    Running,
    /// vCPUs stand still.
    Paused,
}
