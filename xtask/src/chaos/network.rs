//! Looks at VMs' networks: their namespaces, what is in these, and whether each VM is in the one of its slot.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    thread,
};

use polydev_core::ids::VmId;
use polydev_host::net::constants::{GUEST_SUFFIX, NAMESPACES, TAP, VETH};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::{
    machine::{Found, Inode, Machine, inode, names},
    orphans::{Expected, Orphans},
};

/// A container's end of its link.
const CONTAINER_LINK: &str = "eth0";

/// What was on the machine before and is nobody's here.
#[derive(Debug)]
pub(super) struct Baseline {
    host: Seen,
    /// What the kernel puts into every new namespace.
    every: BTreeSet<String>,
    /// The machine's own namespace.
    own: Option<Inode>,
}

/// What is in one namespace.
#[derive(Debug, Default)]
struct Seen {
    links: BTreeSet<String>,
    tables: BTreeSet<String>,
}

impl Baseline {
    pub(super) fn look() -> Self {
        let new = || {
            // SAFETY: only the calling thread's network namespace changes, and the thread ends with this.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            Ok(links())
        };
        let every = on_own_thread(new).unwrap_or_default();
        Self { host: Seen::here(), every, own: inode(Path::new("/proc/self/ns/net")) }
    }
}

/// What of networks is left behind, or was taken from a VM that lives.
pub(super) fn look(
    machine: &Machine,
    baseline: &Baseline,
    expected: &Expected<'_>,
    processes: &[Found],
) -> Orphans {
    let mut found = Orphans::new();
    let dir = machine.run.join(NAMESPACES);
    let named = names(&dir);
    // Those of slots may be held ready, until everything is to be gone.
    let of_a_slot = |name: &str| name.strip_suffix(GUEST_SUFFIX).unwrap_or(name).parse::<u8>().is_ok();
    let stray = named.iter().filter(|name| expected.drained || !of_a_slot(name));
    found.extend(stray.map(|name| ("netns", name.clone())));
    let Seen { links, tables } = Seen::here();
    let ours = |name: &&String| name.starts_with("pd") || [TAP, VETH].contains(&name.as_str());
    found.extend(links.difference(&baseline.host.links).filter(ours).map(|it| ("link", it.clone())));
    let ours = |name: &&String| name.contains("polydev");
    found.extend(tables.difference(&baseline.host.tables).filter(ours).map(|it| ("nft", it.clone())));
    for name in &named {
        // It may go at any moment.
        let Some(Seen { links, tables }) = Seen::in_namespace(&dir.join(name)) else { continue };
        let ours = |link: &str| [TAP, VETH, CONTAINER_LINK].contains(&link) || baseline.every.contains(link);
        let stray = links.iter().filter(|link| !ours(link));
        found.extend(stray.map(|link| ("link", format!("{link} in namespace {name}"))));
        // Nothing is filtered there.
        found.extend(tables.iter().map(|table| ("nft", format!("{table} in namespace {name}"))));
    }
    if !named.is_empty() {
        found.extend(elsewhere(machine, baseline, expected, processes));
    }
    found
}

/// Namespaces of VMs that are not the ones of their slots: such a VM is cut off, and its namespace has no name.
fn elsewhere(
    machine: &Machine,
    baseline: &Baseline,
    expected: &Expected<'_>,
    processes: &[Found],
) -> Orphans {
    let records = machine.records();
    let slot = |vm: VmId| records.get(&vm)?.as_ref()?["slot"].as_u64();
    let dir = machine.run.join(NAMESPACES);
    let namespaces: BTreeMap<Inode, String> =
        names(&dir).into_iter().filter_map(|name| Some((inode(&dir.join(&name))?, name))).collect();
    let stray = processes.iter().filter(|it| it.is_main).filter_map(|it| {
        let vm = it.vm.filter(|vm| expected.live.contains(vm))?;
        let own = inode(Path::new(&format!("/proc/{}/ns/net", it.id.pid)))?;
        let slot = slot(vm)?.to_string();
        let name = namespaces.get(&own).map(String::as_str);
        // Processes with a fake agent need none.
        let is_there = Some(own) == baseline.own
            || name.is_some_and(|name| name.strip_suffix(GUEST_SUFFIX).unwrap_or(name) == slot);
        let words = format!("VM {vm} of slot {slot} is in namespace {}", name.unwrap_or("without a name"));
        (!is_there).then_some(("netns", words))
    });
    stray.collect()
}

impl Seen {
    /// In the calling thread's namespace.
    fn here() -> Self {
        // Programs that are started from a thread are where it is.
        let output = Command::new("nft").args(["list", "tables"]).output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        Self { links: links(), tables: text.lines().map(str::to_owned).collect() }
    }

    fn in_namespace(path: &Path) -> Option<Self> {
        let namespace = fs::File::open(path).ok()?;
        on_own_thread(move || {
            use std::os::fd::AsFd as _;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(Self::here())
        })
    }
}

/// The thread may leave the program's namespace: it does not outlive this.
fn on_own_thread<T: Send>(work: impl FnOnce() -> rustix::io::Result<T> + Send) -> Option<T> {
    thread::scope(|scope| scope.spawn(work).join().ok()?.ok())
}

/// Names of the links in the calling thread's namespace.
fn links() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}
