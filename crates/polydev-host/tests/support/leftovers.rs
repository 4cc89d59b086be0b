//! What hosts may leave on the machine: nothing.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long the kernel may take to tear down what was released.
const SETTLE: Duration = Duration::from_secs(10);

/// Everything on this machine that carries the mark of a host with this run directory.
pub(crate) fn of(run_dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let run = run_dir.to_str().expect("test directories have plain names");
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
        if line.contains(run) {
            found.insert(format!("mount {line}"));
        }
    }
    for entry in read_dir(Path::new("/sys/block")) {
        let file = fs::read_to_string(entry.join("loop/backing_file")).unwrap_or_default();
        if file.contains(run) {
            found.insert(format!("loop device of {file}"));
        }
    }
    for entry in read_dir(Path::new("/proc")) {
        let words = |name: &str| fs::read(entry.join(name)).unwrap_or_default();
        let mine =
            [words("cmdline"), words("environ")].iter().any(|it| String::from_utf8_lossy(it).contains(run));
        let directory = fs::read_link(entry.join("cwd")).is_ok_and(|it| it.starts_with(run_dir));
        if (mine || directory) && entry.file_name().unwrap() != std::process::id().to_string().as_str() {
            found.insert(format!(
                "process {} {}",
                entry.display(),
                String::from_utf8_lossy(&words("cmdline"))
            ));
        }
    }
    for dir in ["vm", "layers", "runc"] {
        found.extend(read_dir(&run_dir.join(dir)).iter().map(|path| path.display().to_string()));
    }
    found.extend(
        read_dir(run_dir)
            .iter()
            .filter(|path| path.display().to_string().contains("probe-"))
            .map(|path| path.display().to_string()),
    );
    found
}

/// What of one VM is on the machine: its id is in every name.
pub(crate) fn of_vm(id: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(id)) {
        found.insert(format!("mount {line}"));
    }
    for entry in read_dir(Path::new("/proc")) {
        let words = |name: &str| {
            String::from_utf8_lossy(&fs::read(entry.join(name)).unwrap_or_default()).into_owned()
        };
        if words("cmdline").contains(id) || words("environ").contains(id) {
            found.insert(format!("process {} {}", entry.display(), words("cmdline")));
        }
    }
    for hierarchy in read_dir(Path::new("/sys/fs/cgroup")) {
        for group in read_dir(&hierarchy) {
            let name = group.display().to_string();
            if name.contains("polydev-") && group.join(id).exists() {
                found.insert(format!("cgroup {name}/{id}"));
            }
        }
    }
    for dir in ["/run/netns", "/var/run/netns", "/sys/class/net"] {
        let names = read_dir(Path::new(dir)).into_iter().map(|path| path.display().to_string());
        found.extend(names.filter(|name| name.contains(&id[..8])));
    }
    found
}

/// Network links and named namespaces, to compare before and after.
pub(crate) fn network() -> BTreeSet<PathBuf> {
    ["/sys/class/net", "/run/netns"].iter().flat_map(|dir| read_dir(Path::new(dir))).collect()
}

/// Fails if `look` still finds something once the kernel had time to tear it down.
#[track_caller]
pub(crate) fn assert_none(what: &str, look: impl Fn() -> BTreeSet<String>) {
    let deadline = Instant::now() + SETTLE;
    loop {
        let found = look();
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{what} left behind: {found:#?}");
        std::thread::yield_now();
    }
}

fn read_dir(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
