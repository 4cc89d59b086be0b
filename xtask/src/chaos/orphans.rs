//! Counts what is on the machine and belongs to no VM, class by class.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use polydev_core::ids::VmId;

use super::{
    machine::{Found, Machine, ProcessId, names},
    network::{self, Baseline},
};

/// How deep VMs' control groups lie at most.
const CGROUP_DEPTH: usize = 6;

/// What can be left behind, in the order of the report.
pub(super) const CLASSES: [&str; 9] =
    ["process", "netns", "link", "nft", "cgroup", "directory", "mount", "slot", "port"];

/// What is left behind: class and words for a person.
pub(super) type Orphans = BTreeSet<(&'static str, String)>;

/// What may be there.
pub(super) struct Expected<'a> {
    /// VMs that the manager lists.
    pub(super) live: &'a BTreeSet<VmId>,
    pub(super) manager: Option<i32>,
    /// Slots that the manager says are in use.
    pub(super) slots_used: usize,
    /// Nothing is to be held ready for later VMs either.
    pub(super) drained: bool,
}

/// Looks once. What was released a moment ago may still be there.
pub(super) fn look(machine: &Machine, baseline: &Baseline, expected: &Expected<'_>) -> Orphans {
    let mut found = Orphans::new();
    let processes = machine.processes();
    let live = |vm: Option<VmId>| vm.is_some_and(|vm| expected.live.contains(&vm));
    let stray = |it: &&Found| !live(it.vm) && Some(it.id.pid) != expected.manager && !is_ours(it.id);
    found.extend(processes.iter().filter(stray).map(|it| {
        ("process", format!("{} {}", it.id.pid, it.command.chars().take(160).collect::<String>()))
    }));
    found.extend(seconds(machine, &processes, expected));
    found.extend(network::look(machine, baseline, expected, &processes));
    cgroups(Path::new("/sys/fs/cgroup"), CGROUP_DEPTH, machine, expected, &mut found);
    found.extend(directories(machine, expected));
    found.extend(mounts(machine, expected));
    let listed = expected.live.len();
    if expected.slots_used != listed {
        found.insert(("slot", format!("{} in use by {listed} VMs", expected.slots_used)));
    }
    found.extend(ports(&processes, expected));
    found
}

/// Processes of a VM that lives beside the one that its record names.
fn seconds(machine: &Machine, processes: &[Found], expected: &Expected<'_>) -> Orphans {
    let of_live = processes.iter().filter(|it| it.is_main);
    let stray = of_live.filter_map(|it| {
        let vm = it.vm.filter(|vm| expected.live.contains(vm))?;
        let main = machine.recorded_process(vm)?;
        (main != it.id)
            .then(|| ("process", format!("{} {} beside {} of VM {vm}", it.id.pid, it.command, main.pid)))
    });
    stray.collect()
}

/// This program and its threads name the directories too.
fn is_ours(process: ProcessId) -> bool {
    u32::try_from(process.pid) == Ok(std::process::id())
}

fn cgroups(dir: &Path, depth: usize, machine: &Machine, expected: &Expected<'_>, found: &mut Orphans) {
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // Hierarchies of one mount are links to each other.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if path.to_string_lossy().contains(&machine.instance) {
            let vm: Option<VmId> = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let stray = vm.is_some_and(|vm| !expected.live.contains(&vm));
            if stray || expected.drained {
                found.insert(("cgroup", path.display().to_string()));
            }
        }
        cgroups(&path, depth - 1, machine, expected, found);
    }
}

fn directories(machine: &Machine, expected: &Expected<'_>) -> Orphans {
    let live = |name: &str| name.parse().is_ok_and(|vm| expected.live.contains(&vm));
    let mut found = Orphans::new();
    for place in ["vm", "runc"] {
        let dir = machine.run.join(place);
        let stray = names(&dir).into_iter().filter(|name| !live(name));
        found.extend(stray.map(|name| ("directory", dir.join(name).display().to_string())));
    }
    let records = machine.data.join("vms");
    let stray = names(&records).into_iter().filter(|name| !name.strip_suffix(".json").is_some_and(live));
    found.extend(stray.map(|name| ("directory", records.join(name).display().to_string())));
    let held = machine.data.join("held");
    let stray = names(&held).into_iter().filter(|name| !live(name));
    found.extend(stray.map(|name| ("directory", held.join(name).display().to_string())));
    let unfinished = names(&machine.data.join("templates")).into_iter().filter(|name| name.ends_with(".new"));
    found.extend(unfinished.map(|name| ("directory", format!("template {name}"))));
    let users = machine.data.join("users");
    // Alone it is what the user's next VM begins anew.
    let both = |name: &String| ["disk.ext4", "disk.new"].iter().all(|it| users.join(name).join(it).exists());
    found
        .extend(names(&users).into_iter().filter(both).map(|name| ("directory", format!("{name}/disk.new"))));
    let probes = names(&machine.run).into_iter().filter(|name| name.starts_with("probe-"));
    found.extend(probes.map(|name| ("directory", machine.run.join(name).display().to_string())));
    found
}

fn mounts(machine: &Machine, expected: &Expected<'_>) -> Orphans {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let run = machine.run.to_string_lossy().into_owned();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let stray = points.filter_map(|point| {
        let below = point.strip_prefix(&run)?;
        let vm: Option<VmId> =
            below.strip_prefix("/vm/").and_then(|rest| rest.split('/').next()).and_then(|id| id.parse().ok());
        // Layers of the image are shared by all VMs and go with the last one.
        let stray = vm.map_or(expected.drained, |vm| !expected.live.contains(&vm));
        stray.then(|| ("mount", point.to_owned()))
    });
    stray.collect()
}

/// TCP sockets that processes of VMs, or programs that a manager left behind, listen on.
fn ports(processes: &[Found], expected: &Expected<'_>) -> Orphans {
    let mut listening = BTreeMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // State 0A is TCP_LISTEN (proc_net_tcp(5)).
            if let (Some(local), Some(&"0A"), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) {
                listening.insert(format!("socket:[{inode}]"), (*local).to_owned());
            }
        }
    }
    let mut found = Orphans::new();
    let others = processes.iter().filter(|it| Some(it.id.pid) != expected.manager && !is_ours(it.id));
    for process in others {
        let descriptors = Path::new("/proc").join(process.id.pid.to_string()).join("fd");
        for descriptor in names(&descriptors) {
            let target = fs::read_link(descriptors.join(descriptor)).unwrap_or_default();
            if let Some(local) = listening.get(&*target.to_string_lossy()) {
                found.insert(("port", format!("{local} of {}", process.command)));
            }
        }
    }
    found
}
