//! What a [`crate::Host`] needs to know. Read from the configuration file by the binary.

use std::path::PathBuf;

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
}
