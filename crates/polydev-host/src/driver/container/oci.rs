//! The OCI runtime configuration of a container (OCI Runtime Specification 1.0.2).

use std::path::Path;

use polydev_core::guest;
use serde_json::{Value, json};

use crate::{
    cgroup::{CPU_PERIOD_US, Limits},
    host::VmKind,
    process::{INSTANCE_VARIABLE, VM_VARIABLE},
    record::VmRecord,
};

/// What PID 1 needs: to switch users, to write their files, to end their processes, to listen below port 1024.
const CAPABILITIES: [&str; 7] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETUID",
];
/// Calls that reach parts of the kernel no guest program needs. Namespaces stay allowed: Chromium's sandbox is
/// made of them.
const FORBIDDEN: &[&str] = &[
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "reboot",
    "request_key",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "userfaultfd",
];

/// A container to configure.
pub(super) struct Container<'a> {
    pub(super) vm: &'a VmRecord,
    pub(super) root: &'a Path,
    pub(super) channel: &'a Path,
    pub(super) agent: &'a Path,
    pub(super) desktop: Option<&'a Path>,
    pub(super) instance: &'a str,
    pub(super) cgroup: String,
    pub(super) limits: Limits,
    /// File that names the network namespace it is to be in; none: a new one with loopback only.
    pub(super) netns: Option<&'a Path>,
}

fn block_io(limits: &Limits) -> Value {
    let Some(io) = limits.io else { return json!({}) };
    let throttle = json!([{ "major": io.device.0, "minor": io.device.1, "rate": io.bytes_per_second }]);
    json!({ "throttleReadBpsDevice": throttle, "throttleWriteBpsDevice": throttle })
}

/// The whole `config.json`.
pub(super) fn config(container: &Container<'_>) -> Value {
    let Container { vm, root, channel, agent, desktop, instance, cgroup, limits, netns } = container;
    let channel_target = Path::new(guest::CONTAINER_CHANNEL).parent().unwrap_or(Path::new(guest::RUN_DIR));
    let mut mounts = base_mounts(vm);
    mounts.push(bind(agent, Path::new(guest::AGENT_PATH), &["ro", "nosuid", "nodev"]));
    if let Some(desktop) = desktop {
        mounts.push(bind(desktop, Path::new(guest::DESKTOP_PATH), &["ro", "nosuid", "nodev"]));
    }
    mounts.push(bind(channel, channel_target, &["rw", "nosuid", "nodev", "noexec"]));
    let mut env = vec![
        format!("PATH={}", guest::PATH),
        format!("{VM_VARIABLE}={}", vm.id),
        format!("{INSTANCE_VARIABLE}={instance}"),
    ];
    if netns.is_some() {
        env.push(format!("{}=tap", guest::NETWORK_VARIABLE));
    }
    json!({
        "ociVersion": "1.0.2",
        "hostname": vm.hostname,
        "root": { "path": root, "readonly": false },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "cwd": "/",
            "args": [guest::AGENT_PATH, "--container"],
            "env": env,
            "noNewPrivileges": true,
            // The manager's may be one that spares it.
            "oomScoreAdj": 0,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
                "inheritable": [], "ambient": [],
            },
        },
        "mounts": mounts,
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces(*netns),
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }],
                // Memory and swap together: none is left for swap.
                "memory": { "limit": limits.memory_bytes, "swap": limits.memory_bytes },
                "pids": { "limit": limits.pids_max },
                "cpu": {
                    "period": CPU_PERIOD_US, "quota": limits.cpu_quota_us(), "shares": limits.cpu_shares(),
                },
                "blockIO": block_io(limits),
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [{ "names": FORBIDDEN, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
            },
            "maskedPaths": [
                "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
                "/sys/devices/virtual/powercap",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// Runs `true` of the host's own system, isolated like a VM.
pub(super) fn probe_config(root: &Path) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": root, "readonly": false },
        "process": {
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["/bin/true"], "env": [], "noNewPrivileges": true,
        },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": namespaces(None) },
    })
}

fn namespaces(netns: Option<&Path>) -> Value {
    let new = ["pid", "ipc", "uts", "mount", "cgroup"].into_iter().map(|kind| json!({ "type": kind }));
    let network =
        netns.map_or_else(|| json!({ "type": "network" }), |path| json!({ "type": "network", "path": path }));
    new.chain([network]).collect()
}

fn base_mounts(vm: &VmRecord) -> Vec<Value> {
    // Chromium shares its pictures through /dev/shm; a terminal needs next to nothing there.
    let shm_mib = match vm.kind {
        VmKind::Browser => (vm.memory_mib / 4).max(64),
        VmKind::Cli { .. } => 64,
    };
    let half = format!("size={}m", (vm.memory_mib / 2).max(64));
    let shm = format!("size={shm_mib}m");
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=64k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "nodev", "noexec", "mode=1777", &shm]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777", &half]),
        mount("/run", "tmpfs", &["nosuid", "nodev", "mode=755", "size=64m"]),
        // The runtime would make it under the manager's umask, and users' programs start what is in it.
        mount(guest::RUN_DIR, "tmpfs", &["nosuid", "nodev", "mode=755", "size=64m"]),
    ]
}

fn bind(source: &Path, destination: &Path, options: &[&str]) -> Value {
    let options: Vec<&str> = std::iter::once("bind").chain(options.iter().copied()).collect();
    json!({ "destination": destination, "type": "bind", "source": source, "options": options })
}
