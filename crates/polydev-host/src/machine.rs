//! What this machine has of what VMs need, with what to do about the rest. For `polydev doctor`; starts nothing but a
//! few harmless programs.

use std::{
    fs::{self, File},
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
    all.extend(
        [("firecracker", FIRECRACKER), ("jailer", JAILER)]
            .map(|(name, advice)| program(name, "firecracker", advice)),
    );
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
const FIRECRACKER: &str = "install firecracker 1.16.1 or later (the official static build) to /usr/local/bin";
const JAILER: &str = "install the jailer of the same release beside firecracker";
const FILE_SYSTEMS: [(&str, &str); 3] =
    [("overlay", "container"), ("erofs", "container"), ("ext4", "container (CLI VMs)")];

fn kvm() -> Need {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let flags = read("/proc/cpuinfo");
    let hardware = flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    let (met, found, advice) = match (&opened, hardware) {
        (Ok(_), true) => (true, "/dev/kvm opens and the processor virtualises".to_owned(), ""),
        (Ok(_), false) => (
            false,
            format!(
                "/dev/kvm opens, but the processor shows no vmx or svm{}: guests' kernels are interpreted",
                if Path::new("/sys/module/kvm_pvm").exists() { " (kvm_pvm)" } else { "" }
            ),
            "use a machine with virtualisation, or nested virtualisation; until then `qemu` emulates",
        ),
        (Err(error), true) => (
            false,
            format!("/dev/kvm: {error}"),
            "load kvm_intel or kvm_amd and give the manager's user access to /dev/kvm",
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
    let opened = File::options().read(true).write(true).open(path);
    let found = match &opened {
        Ok(_) => path.to_owned(),
        Err(error) => format!("{path}: {error}"),
    };
    Need { what, by, met: opened.is_ok(), found, advice }
}

fn program(what: &'static str, by: &'static str, advice: &'static str) -> Need {
    let place = PATH.split(':').map(|dir| Path::new(dir).join(what)).find(|file| file.is_file());
    let found =
        place.as_ref().map_or_else(|| format!("not in {PATH}"), |it: &PathBuf| it.display().to_string());
    Need { what, by, met: place.is_some(), found, advice }
}

fn control_groups() -> Need {
    let support = cgroup::support();
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
            "{version}; usable: {}; missing: {}",
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
    }
}
