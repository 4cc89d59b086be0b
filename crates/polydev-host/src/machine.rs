//! What this machine has of what VMs need, with what to do about the rest. For `polydev doctor`; starts nothing but a
//! few harmless programs.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    cgroup::{self, Version},
    command::{PATH, command, run},
    config::HostConfig,
    net::{self, LinkKind},
    space,
};

const TRY_LIMIT: Duration = Duration::from_secs(10);
/// A template of a browser VM of the usual size and a few users' workspaces.
const COMFORTABLE_BYTES: u64 = 8 << 30;

/// Something a driver needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// What.
    pub what: &'static str,
    /// Who needs it: drivers' names, or `all`.
    pub by: &'static str,
    /// Whether it is there.
    pub met: bool,
    /// What was found.
    pub found: String,
    /// What to do when it is not there.
    pub advice: &'static str,
}

/// Looks at everything.
pub async fn needs(config: &HostConfig) -> Vec<Need> {
    let mut all = vec![kvm(), device("tun", "/dev/net/tun", "firecracker, qemu", TUN)];
    let firecracker = &config.firecracker;
    all.push(installed("firecracker", &firecracker.program, FIRECRACKER));
    if firecracker.jailed != Some(false) {
        all.push(installed("jailer", &firecracker.jailer, JAILER));
    }
    all.push(program("qemu-system-x86_64", "qemu", "install the package qemu-system-x86"));
    all.push(program("runc", "container", "install the package runc"));
    for name in ["mkfs.ext4", "e2fsck", "resize2fs"] {
        all.push(program(name, "all (CLI VMs)", "install the package e2fsprogs"));
    }
    for name in ["nsenter", "setsid", "mount"] {
        all.push(program(name, "all", "install the packages util-linux and mount"));
    }
    all.push(control_groups());
    all.extend(FILE_SYSTEMS.map(|(name, by)| file_system(name, by)));
    all.push(device("loop devices", "/dev/loop-control", "container (CLI VMs)", LOOP));
    all.push(namespaces().await);
    for (what, by, kind) in NETWORKS {
        all.push(network(what, by, kind).await);
    }
    all.push(room(config));
    all
}

const TUN: &str = "load the module (`modprobe tun`) and, in a container, pass /dev/net/tun in";
const LOOP: &str = "load the module (`modprobe loop`) and, in a container, pass /dev/loop-control in";
const DENIED: &str = "run the manager as root; a container has to be given the device";
const FIRECRACKER: &str = "install firecracker 1.16.1 or later (the official static build) there, or name its place in `vms.firecracker`";
const JAILER: &str = "install the jailer of the same release there, or name its place in `vms.jailer_path`";
const FILE_SYSTEMS: [(&str, &str); 3] =
    [("overlay", "container"), ("erofs", "container"), ("ext4", "container (CLI VMs)")];

fn kvm() -> Need {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
    let opened = File::options().read(true).write(true).open("/dev/kvm").map(drop);
    kvm_as_found(opened, hardware, Path::new("/sys/module/kvm_pvm").exists())
}

fn kvm_as_found(opened: io::Result<()>, hardware: bool, pvm: bool) -> Need {
    let (met, found, advice) = match (opened, hardware) {
        (Ok(()), true) => (true, "/dev/kvm opens and the processor virtualises".to_owned(), ""),
        (Ok(()), false) => (
            false,
            format!(
                "/dev/kvm opens, but the processor shows no vmx or svm{}: guests' kernels are interpreted",
                if pvm { " (kvm_pvm)" } else { "" }
            ),
            "use a machine with virtualisation, or nested virtualisation; until then `qemu` emulates",
        ),
        (Err(error), _) if error.kind() == io::ErrorKind::PermissionDenied => {
            (false, format!("/dev/kvm: {error}"), DENIED)
        }
        (Err(error), true) => (
            false,
            format!("/dev/kvm: {error}"),
            "load kvm_intel or kvm_amd; a container has to be given /dev/kvm",
        ),
        (Err(error), false) => (
            false,
            format!("/dev/kvm: {error}; the processor shows no vmx or svm"),
            "turn virtualisation on in the firmware, or nested virtualisation on the machine below",
        ),
    };
    Need { what: "KVM", by: "firecracker, qemu-kvm", met, found, advice }
}

fn device(what: &'static str, path: &str, by: &'static str, advice: &'static str) -> Need {
    device_as_found(what, path, by, File::options().read(true).write(true).open(path).map(drop), advice)
}

fn device_as_found(
    what: &'static str,
    path: &str,
    by: &'static str,
    opened: io::Result<()>,
    advice: &'static str,
) -> Need {
    let (met, found, advice) = match opened {
        Ok(()) => (true, path.to_owned(), advice),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            (false, format!("{path}: {error}"), DENIED)
        }
        Err(error) => (false, format!("{path}: {error}"), advice),
    };
    Need { what, by, met, found, advice }
}

/// A program that the configuration names.
fn installed(what: &'static str, place: &Path, advice: &'static str) -> Need {
    let met = place.is_file();
    let found = if met { place.display().to_string() } else { format!("no {}", place.display()) };
    Need { what, by: "firecracker", met, found, advice }
}

fn program(what: &'static str, by: &'static str, advice: &'static str) -> Need {
    let place = PATH.split(':').map(|dir| Path::new(dir).join(what)).find(|file| file.is_file());
    let found =
        place.as_ref().map_or_else(|| format!("not in {PATH}"), |it: &PathBuf| it.display().to_string());
    Need { what, by, met: place.is_some(), found, advice }
}

fn control_groups() -> Need {
    control_groups_as_found(&cgroup::support())
}

fn control_groups_as_found(support: &cgroup::Support) -> Need {
    let version = match support.version {
        None => "none are mounted",
        Some(Version::V1) => "version 1",
        Some(Version::V2) => "version 2",
    };
    let listed = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(" ") };
    Need {
        what: "cgroup controllers",
        by: "all",
        met: ["memory", "cpu", "pids"].iter().all(|name| support.usable.contains(name)),
        found: format!(
            "{version}; usable: {}; missing or not writable: {}",
            listed(&support.usable),
            listed(&support.missing)
        ),
        advice: "mount cgroups with memory, cpu and pids writable for the manager; without them VMs have no limits",
    }
}

/// In the kernel, or a module of it.
fn file_system(what: &'static str, by: &'static str) -> Need {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let built_in = known.lines().any(|line| line.split_whitespace().next_back() == Some(what));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release.trim()).join("modules.dep");
    let listed = fs::read_to_string(modules).unwrap_or_default();
    let module = listed.lines().any(|line| {
        let file = line.split(':').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        file.split('.').next() == Some(what)
    });
    let found = match (built_in, module) {
        (true, _) => "the kernel knows it",
        (false, true) => "a module of the kernel",
        (false, false) => "unknown to the kernel",
    };
    let advice = "use a kernel that has it, or install the package with the kernel's extra modules";
    Need { what, by, met: built_in || module, found: found.to_owned(), advice }
}

async fn namespaces() -> Need {
    let mut unshare = command("unshare");
    unshare.args(["--net", "--", "true"]);
    let made = run(unshare, "make a network namespace", TRY_LIMIT).await;
    let found = match &made {
        Ok(_) => "one was made".to_owned(),
        Err(error) => error.to_string(),
    };
    let advice = "run the manager as root with CAP_SYS_ADMIN and CAP_NET_ADMIN";
    Need { what: "network namespaces", by: "all", met: made.is_ok(), found, advice }
}

/// By what a VM's network device needs of the machine.
const NETWORKS: [(&str, &str, LinkKind); 2] = [
    ("network device", "firecracker, qemu", LinkKind::Tap),
    ("network device (veth)", "container", LinkKind::Veth),
];

async fn network(what: &'static str, by: &'static str, kind: LinkKind) -> Need {
    let made = net::try_out(kind).await;
    let found = match &made {
        Ok(()) => "one was made in a namespace of its own".to_owned(),
        Err(error) => error.to_string(),
    };
    let advice =
        "with vms.network = auto the traffic of VMs takes the guest channel instead, which is slower";
    Need { what, by, met: made.is_ok(), found, advice }
}

fn room(config: &HostConfig) -> Need {
    let reserve = config.resources.disk_reserve_bytes;
    let (met, found) = match space::free(&config.data_dir) {
        Ok(free) => (
            free >= reserve.saturating_add(COMFORTABLE_BYTES),
            format!(
                "{} MiB free in {}, {} of which stay free",
                free >> 20,
                config.data_dir.display(),
                reserve >> 20
            ),
        ),
        Err(error) => (false, format!("{}: {error}", config.data_dir.display())),
    };
    let advice = "free some space or choose another data directory; vms.disk_reserve_mib is what stays free";
    Need { what: "room", by: "all", met, found, advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_said_with_what_to_do() {
        let need = program("polydev-no-such-program", "nobody", "install it");
        assert!(!need.met && need.found.starts_with("not in "));
        assert!(program("sh", "everybody", "").met);
        assert!(!device("nothing", "/dev/polydev-none", "nobody", "").met);
        assert!(!file_system("polydevfs", "nobody").met);
        assert!(file_system("proc", "everybody").met);
        assert!(installed("sh", Path::new("/bin/sh"), "").met);
        let none = installed("firecracker", Path::new("/opt/none/firecracker"), FIRECRACKER);
        assert_eq!(none.found, "no /opt/none/firecracker");
        assert!(!none.met && none.advice.contains("`vms.firecracker`"));
    }

    #[test]
    fn each_state_of_kvm_has_its_own_advice() {
        let failed = |errno: rustix::io::Errno| Err(io::Error::from(errno));
        let missing = rustix::io::Errno::NOENT;
        let cases = [
            (kvm_as_found(Ok(()), true, false), "", "virtualises"),
            (
                kvm_as_found(Ok(()), false, true),
                "nested virtualisation",
                "(kvm_pvm): guests' kernels are interpreted",
            ),
            (kvm_as_found(failed(missing), true, false), "load kvm_intel", "No such file"),
            (kvm_as_found(failed(missing), false, false), "firmware", "no vmx or svm"),
            (kvm_as_found(failed(rustix::io::Errno::ACCESS), false, false), "as root", "Permission denied"),
        ];
        for (need, advice, found) in cases {
            assert_eq!(need.met, advice.is_empty(), "{need:?}");
            assert!(need.advice.contains(advice) && need.found.contains(found), "{need:?}");
        }
    }

    #[test]
    fn a_device_that_is_missing_and_one_that_may_not_be_opened_are_told_apart() {
        let tun = |errno: rustix::io::Errno| {
            device_as_found("tun", "/dev/net/tun", "firecracker, qemu", Err(errno.into()), TUN)
        };
        assert_eq!(tun(rustix::io::Errno::NOENT).advice, TUN);
        // A container whose device cgroup forbids it.
        assert_eq!(tun(rustix::io::Errno::PERM).advice, DENIED);
        assert!(!tun(rustix::io::Errno::ACCESS).met);
    }

    #[test]
    fn control_groups_that_cannot_be_written_to_are_not_usable() {
        let support = |usable: &[&'static str], missing: &[&'static str]| cgroup::Support {
            version: Some(Version::V1),
            usable: usable.to_vec(),
            missing: missing.to_vec(),
        };
        let read_only = control_groups_as_found(&support(&[], &["memory", "cpu", "pids", "io"]));
        assert!(!read_only.met);
        assert_eq!(read_only.found, "version 1; usable: none; missing or not writable: memory cpu pids io");
        assert!(control_groups_as_found(&support(&["memory", "cpu", "pids"], &["io"])).met);
    }
}
