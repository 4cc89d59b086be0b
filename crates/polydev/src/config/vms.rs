//! How VMs are made and what they may reach.

use std::{path::PathBuf, str::FromStr, time::Duration};

use polydev_core::ids::Slot;
use polydev_host::{Capacity, DriverChoice, EgressLimits, FirecrackerConfig, NetworkChoice, Resources};

use super::Settings;

const BROWSER: VmSize = VmSize { vcpus: 2, memory_mib: 4096 };
const CLI: VmSize = VmSize { vcpus: 2, memory_mib: 2048 };
/// A browser VM below this does not reach a page (measured on the golden image).
const BROWSER_MEMORY_FLOOR_MIB: u32 = 512;
const CLI_MEMORY_FLOOR_MIB: u32 = 128;
const DEFAULT_SLOTS: u8 = 16;
const LOG_BYTES_MAX: u64 = 4 << 20;
const LOG_VMS_MAX: usize = 200;
const DESKTOP_SIZE: (u16, u16) = (1280, 800);
const HIBERNATE_AFTER_S: u64 = 15 * 60;
/// What a VM was seen to take: a browser with a page open (container: 0.5 GiB, restored under QEMU: 0.7 GiB), a shell.
const CAPACITY: Capacity = Capacity { reserve_mib: 512, browser_mib: 768, cli_mib: 256, vcpus_per_core: 32 };

/// For so many seconds' worth, connections may come at once.
const CONNECTIONS_BURST_S: u64 = 4;

/// Size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmSize {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
}

/// What a VM may reach when no route names the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressPolicy {
    /// Nothing.
    Deny,
    /// Public addresses, through this machine's own connection.
    Direct,
}

/// Users below belong to people and services; those of all slots fit in above.
const JAIL_UIDS: std::ops::RangeInclusive<u32> = 65_536..=4_000_000_000;

/// How VMs are made.
#[derive(Debug, Clone)]
pub struct VmsConfig {
    /// Driver.
    pub driver: DriverChoice,
    /// Most VMs at one time.
    pub slots: u8,
    /// Size of a browser VM.
    pub browser: VmSize,
    /// Size of a CLI VM.
    pub cli: VmSize,
    /// Width and height of the desktop in pixels.
    pub desktop_px: (u16, u16),
    /// Demo and test layer on top of the image.
    pub overlay_dir: Option<PathBuf>,
    /// Routes of egress to loopback services (demo and tests).
    pub egress_routes: Option<PathBuf>,
    /// Everything that no route names.
    pub egress: EgressPolicy,
    /// Most bytes kept per archived log.
    pub log_bytes_max: u64,
    /// Most VMs whose logs are kept.
    pub log_vms_max: usize,
    /// Keep the run directory of browser VMs whose sign-in failed.
    pub keep_failed: bool,
    /// Browser VMs that wait for somebody: below the first mark more are made, up to the second. 0: none. Without a
    /// setting the host's means decide.
    pub warm: Option<(usize, usize)>,
    /// A CLI VM that nobody used for so long is put to sleep; `None`: never.
    pub hibernate_after: Option<Duration>,
    /// When a VM is refused for want of memory or cores.
    pub capacity: Capacity,
    /// How VMs' traffic gets to the host.
    pub network: NetworkChoice,
    /// What they may take of the machine.
    pub resources: Resources,
    /// What each may take of the machine's own connection.
    pub egress_limits: EgressLimits,
    /// Programs, users and rates of the driver `firecracker`.
    pub firecracker: FirecrackerConfig,
}

impl VmsConfig {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let driver = settings.get("driver", Driver(DriverChoice::Auto)).0;
        let slots = settings.get("slots", DEFAULT_SLOTS);
        if Slot::new(slots).is_none() {
            settings.reject("slots", format!("must be 1 to {}", Slot::MAX));
        }
        let browser =
            size(settings, ["browser_vm_vcpus", "browser_vm_memory_mib"], BROWSER, BROWSER_MEMORY_FLOOR_MIB);
        let cli = size(settings, ["cli_vm_vcpus", "cli_vm_memory_mib"], CLI, CLI_MEMORY_FLOOR_MIB);
        let desktop_px =
            (settings.get("desktop_width", DESKTOP_SIZE.0), settings.get("desktop_height", DESKTOP_SIZE.1));
        if desktop_px.0 < 320 || desktop_px.1 < 200 || desktop_px.0 > 7680 || desktop_px.1 > 4320 {
            settings.reject("desktop_width", "the desktop is 320x200 to 7680x4320 pixels");
        }
        let hibernate_after_s = settings.get("hibernate_after_s", HIBERNATE_AFTER_S);
        let capacity = Capacity {
            reserve_mib: settings.get("memory_reserve_mib", CAPACITY.reserve_mib),
            browser_mib: settings.get("browser_vm_expected_mib", CAPACITY.browser_mib),
            cli_mib: settings.get("cli_vm_expected_mib", CAPACITY.cli_mib),
            vcpus_per_core: settings.get("vcpus_per_core", CAPACITY.vcpus_per_core),
        };
        Self {
            driver,
            slots,
            browser,
            cli,
            desktop_px,
            overlay_dir: settings.optional("overlay_dir"),
            egress_routes: settings.optional("egress_routes"),
            egress: settings.get("egress", EgressPolicy::Deny),
            log_bytes_max: settings.get("log_bytes_max", LOG_BYTES_MAX),
            log_vms_max: settings.get("log_vms_max", LOG_VMS_MAX),
            keep_failed: settings.get("keep_failed_browser_vms", Flag(false)).0,
            warm: warm(settings),
            hibernate_after: (hibernate_after_s > 0).then(|| Duration::from_secs(hibernate_after_s)),
            capacity,
            network: settings.get("network", Network(NetworkChoice::default())).0,
            resources: resources(settings),
            egress_limits: egress_limits(settings),
            firecracker: firecracker(settings),
        }
    }
}

/// One mark alone is both.
fn warm(settings: &mut Settings) -> Option<(usize, usize)> {
    let (low, high) = (settings.optional("warm_browser_vms_low"), settings.optional("warm_browser_vms_high"));
    let (low, high) = (low.or(high)?, high.or(low)?);
    if low > high {
        settings.reject("warm_browser_vms_low", "must not be above `warm_browser_vms_high`");
    }
    Some((low, high))
}

fn size(settings: &mut Settings, names: [&'static str; 2], default: VmSize, floor_mib: u32) -> VmSize {
    let [vcpus_name, memory_name] = names;
    let size = VmSize {
        vcpus: settings.get(vcpus_name, default.vcpus),
        memory_mib: settings.get(memory_name, default.memory_mib),
    };
    if size.vcpus == 0 || size.vcpus > 32 {
        settings.reject(vcpus_name, "must be 1 to 32");
    }
    if size.memory_mib < floor_mib {
        settings.reject(memory_name, format!("must be at least {floor_mib} MiB"));
    }
    size
}

fn firecracker(settings: &mut Settings) -> FirecrackerConfig {
    let default = FirecrackerConfig::default();
    let read = FirecrackerConfig {
        program: settings.get("firecracker_path", default.program),
        jailer: settings.get("jailer_path", default.jailer),
        jailed: settings.optional("jailer").map(|Flag(jailed)| jailed),
        first_uid: settings.get("jailer_first_uid", default.first_uid),
        disk_mib_per_s: settings.optional("vm_disk_mib_per_s"),
        disk_ops_per_s: settings.optional("vm_disk_ops_per_s"),
        network_mib_per_s: settings.optional("vm_network_mib_per_s"),
    };
    if !JAIL_UIDS.contains(&read.first_uid) {
        let (first, last) = (JAIL_UIDS.start(), JAIL_UIDS.end());
        settings.reject("jailer_first_uid", format!("must be {first} to {last}"));
    }
    read
}

fn resources(settings: &mut Settings) -> Resources {
    let default = Resources::default();
    let mut number = |name, default, floor, top| number(settings, name, default, floor..=top);
    Resources {
        cpu_percent: number("vm_cpu_percent", default.cpu_percent, 10, 100),
        cpu_weight: number("vm_cpu_weight", default.cpu_weight, 1, 10_000),
        pids_max: number("vm_pids_max", default.pids_max, 256, 1 << 20),
        io_bytes_per_second: u64::from(number("vm_io_mib_per_second", 0, 0, 1 << 20)) << 20,
        vmm_overhead_mib: number("vmm_overhead_mib", default.vmm_overhead_mib, 64, 1 << 16),
        user_disk_bytes: u64::from(number("user_disk_mib", mib(default.user_disk_bytes), 64, 1 << 24)) << 20,
        disk_reserve_bytes: u64::from(number(
            "disk_reserve_mib",
            mib(default.disk_reserve_bytes),
            0,
            1 << 24,
        )) << 20,
    }
}

/// What one VM may take of the machine's own connection.
fn egress_limits(settings: &mut Settings) -> EgressLimits {
    let default = EgressLimits::default();
    let mut number = |name, default, floor, top| number(settings, name, default, floor..=top);
    let at_once = number("vm_egress_connections", 256, 1, 4096);
    let per_second = u64::from(number("vm_egress_connections_per_second", 50, 0, 1 << 16));
    let mib_per_second = number("vm_egress_mib_per_second", mib(default.bytes_per_second), 0, 1 << 20);
    EgressLimits {
        connections: at_once as usize,
        half_open: default.half_open.min(at_once as usize),
        connections_per_second: per_second,
        connections_burst: per_second * CONNECTIONS_BURST_S,
        bytes_per_second: u64::from(mib_per_second) << 20,
        ..default
    }
}

fn number(
    settings: &mut Settings,
    name: &'static str,
    default: u32,
    allowed: std::ops::RangeInclusive<u32>,
) -> u32 {
    let value = settings.get(name, default);
    if !allowed.contains(&value) {
        settings.reject(name, format!("must be {} to {}", allowed.start(), allowed.end()));
    }
    value
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

struct Network(NetworkChoice);

impl FromStr for Network {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed: Result<NetworkChoice, _> = serde_json::from_value(text.into());
        parsed.map(Self).map_err(|_| "must be `auto`, `tap` or `channel`")
    }
}

struct Driver(DriverChoice);

impl FromStr for Driver {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed: Result<DriverChoice, _> = serde_json::from_value(text.into());
        parsed.map(Self).map_err(|_| "must be `auto`, `firecracker`, `qemu` or `container`")
    }
}

impl FromStr for EgressPolicy {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "deny" => Ok(Self::Deny),
            "direct" => Ok(Self::Direct),
            _ => Err("must be `deny` or `direct`"),
        }
    }
}

/// A boolean that also takes the spellings of environment variables.
struct Flag(bool);

impl FromStr for Flag {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(Self(true)),
            "" | "0" | "false" | "no" | "off" => Ok(Self(false)),
            _ => Err("must be true or false"),
        }
    }
}
