use super::*;
use std::process::{Child, Command, Stdio};

const MIB: u64 = 1 << 20;

fn limits() -> Limits {
    let io = Some(IoLimit { device: (8, 0), bytes_per_second: 5_000_000 });
    Limits { memory_bytes: 64 * MIB, cpu_percent: 150, cpu_weight: 200, pids_max: 77, io }
}

fn vm() -> VmId {
    VmId::from_uuid(uuid::Uuid::new_v4())
}

/// Files as the kernel would show them; it makes a group's files, here the test does.
fn files(dir: &Path, all: &[(&str, &str)]) {
    fs::create_dir_all(dir).unwrap();
    for (name, content) in all {
        fs::write(dir.join(name), content).unwrap();
    }
}

fn content(dir: &Path, file: &str) -> String {
    fs::read_to_string(dir.join(file)).unwrap()
}

const V2_LIMITS: [&str; 7] =
    ["memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "cpu.weight", "pids.max", "io.max"];

#[test]
fn on_v2_limits_lie_in_one_group_and_controllers_are_passed_down() {
    let root = tempfile::tempdir().unwrap();
    let id = vm();
    let subtree = ("cgroup.subtree_control", "");
    files(root.path(), &[("cgroup.controllers", "cpuset cpu io memory pids\n"), subtree]);
    let group = root.path().join("polydev-t").join(id.to_string());
    files(&group, &V2_LIMITS.map(|file| (file, "")));
    files(&root.path().join("polydev-t"), &[subtree]);
    let joined = Groups::below(root.path(), "t").make(id, &limits()).unwrap();
    assert_eq!(joined, [group.join("cgroup.procs")]);
    let set = V2_LIMITS.map(|file| content(&group, file));
    assert_eq!(
        set,
        ["67108864", "0", "1", "150000 100000", "200", "77", "8:0 rbps=5000000 wbps=5000000"]
            .map(str::to_owned)
    );
    for dir in [root.path(), &root.path().join("polydev-t")] {
        assert!(content(dir, "cgroup.subtree_control").starts_with('+'));
    }
}

#[test]
fn on_v2_what_was_used_is_read_back() {
    let root = tempfile::tempdir().unwrap();
    let id = vm();
    files(root.path(), &[("cgroup.controllers", "cpu io memory pids\n")]);
    files(
        &root.path().join("polydev-t").join(id.to_string()),
        &[
            ("memory.current", "4096\n"),
            ("memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 1\n"),
            ("cpu.stat", "usage_usec 1500000\nuser_usec 1\n"),
            ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=1\n8:16 rbytes=1 wbytes=2 rios=0 wios=0\n"),
            ("pids.current", "5\n"),
        ],
    );
    let groups = Groups::below(root.path(), "t");
    let expected = GroupUsage {
        memory_bytes: 4096,
        cpu: Duration::from_millis(1500),
        read_bytes: 11,
        written_bytes: 22,
        tasks: 5,
        oom_kills: 2,
    };
    assert_eq!(groups.usage(id), Some(expected));
    assert!(groups.ran_out_of_memory(id));
    assert_eq!(groups.usage(vm()), None);
    assert_eq!(groups.traces(), BTreeSet::from([id]));
}

#[test]
fn a_controller_of_v2_that_is_missing_is_reported_and_limits_nothing() {
    let root = tempfile::tempdir().unwrap();
    files(root.path(), &[("cgroup.controllers", "cpu pids\n")]);
    let support = support_below(root.path());
    assert_eq!(support.version, Some(Version::V2));
    assert_eq!((support.usable, support.missing), (vec!["cpu", "pids"], vec!["memory", "io"]));
    Groups::below(root.path(), "t").make(vm(), &limits()).unwrap();
    assert_eq!(support_below(&root.path().join("none")).version, None);
}

#[test]
fn on_v1_controllers_that_share_a_hierarchy_are_joined_once() {
    let root = tempfile::tempdir().unwrap();
    for hierarchy in ["memory", "cpu,cpuacct", "pids"] {
        files(&root.path().join(hierarchy), &[("cgroup.procs", "")]);
    }
    for link in ["cpu", "cpuacct"] {
        std::os::unix::fs::symlink("cpu,cpuacct", root.path().join(link)).unwrap();
    }
    let id = vm();
    let groups = Groups::below(root.path(), "t");
    let joined = groups.make(id, &limits()).unwrap();
    let below = |name: &str| root.path().join(name).join("polydev-t").join(id.to_string());
    let expected = ["memory", "cpu,cpuacct", "pids"].map(|name| below(name).join("cgroup.procs"));
    assert_eq!(joined, expected);
    files(&below("cpu,cpuacct"), &[("cpuacct.usage", "2000000000\n")]);
    files(
        &below("memory"),
        &[
            ("memory.usage_in_bytes", "7\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"),
        ],
    );
    let usage = groups.usage(id).unwrap();
    assert_eq!((usage.memory_bytes, usage.cpu, usage.oom_kills), (7, Duration::from_secs(2), 0));
}

#[test]
fn traffic_of_block_devices_is_summed_on_v1() {
    let root = tempfile::tempdir().unwrap();
    files(&root.path().join("blkio"), &[("cgroup.procs", "")]);
    let id = vm();
    let stat = "8:0 Read 100\n8:0 Write 7\n8:0 Sync 1\n8:16 Read 1\nTotal 108\n";
    files(
        &root.path().join("blkio/polydev-t").join(id.to_string()),
        &[("blkio.throttle.io_service_bytes_recursive", stat)],
    );
    let usage = Groups::below(root.path(), "t").usage(id).unwrap();
    assert_eq!((usage.read_bytes, usage.written_bytes), (101, 7));
}

/// A process in a real group of this machine.
struct Member {
    groups: Groups,
    id: VmId,
    child: Child,
}

impl Member {
    /// `None`, said aloud, where this process may not make groups.
    fn start(limits: &Limits, script: &str) -> Option<Self> {
        let support = support();
        if !support.usable.contains(&"memory") {
            eprintln!("skipped: no memory controller to use ({support:?})");
            return None;
        }
        let (id, tag) = (vm(), uuid::Uuid::new_v4().simple().to_string());
        let groups = Groups::open(&tag[..8]);
        let joined = groups.make(id, limits).unwrap();
        let join: String = joined.iter().map(|file| format!("echo 0 > {}; ", file.display())).collect();
        let child = Command::new("sh")
            .args(["-c", &format!("{join}{script}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Some(Self { groups, id, child })
    }
}

#[tokio::test]
async fn a_real_group_holds_its_process_and_goes_with_it() {
    let Some(mut member) = Member::start(&limits_here(), "echo in; sleep 600 & wait") else { return };
    let mut said = [0; 3];
    io::Read::read_exact(member.child.stdout.as_mut().unwrap(), &mut said).unwrap();
    let pid = i32::try_from(member.child.id()).unwrap();
    assert!(member.groups.processes(member.id).contains(&pid));
    assert_eq!(member.groups.traces(), BTreeSet::from([member.id]));
    let usage = member.groups.usage(member.id).unwrap();
    assert!(usage.memory_bytes > 0 && usage.tasks >= 1 && usage.cpu > Duration::ZERO, "{usage:?}");
    assert!(!member.groups.ran_out_of_memory(member.id));
    // The shell is this test's child and has to be waited for; its own child is killed as a leftover.
    let reaper = std::thread::spawn(move || member.child.wait().unwrap());
    member.groups.remove(member.id).await.unwrap();
    assert!(!reaper.join().unwrap().success(), "it was killed");
    assert!(member.groups.traces().is_empty());
    assert!(member.groups.parents().is_empty(), "the parent goes with the last");
    member.groups.remove(member.id).await.expect("none is fine");
}

#[tokio::test]
async fn a_real_group_ends_a_process_that_takes_too_much_memory() {
    // `tail` keeps everything of a line that never ends.
    let Some(mut member) = Member::start(&limits_here(), "exec tail /dev/zero") else { return };
    let status = member.child.wait().unwrap();
    assert!(!status.success());
    assert!(member.groups.ran_out_of_memory(member.id), "{:?}", member.groups.usage(member.id));
    member.groups.remove(member.id).await.unwrap();
}

/// Without a device: which one there is differs.
fn limits_here() -> Limits {
    Limits { io: None, ..limits() }
}
