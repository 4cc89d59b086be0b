use super::*;

pub(super) const MIB: u64 = 1 << 20;

pub(super) fn limits() -> Limits {
    let io = Some(IoLimit { device: (8, 0), bytes_per_second: 5_000_000 });
    Limits { memory_bytes: 64 * MIB, cpu_percent: 150, cpu_weight: 200, pids_max: 77, io }
}

pub(super) fn vm() -> VmId {
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
    files(&group, &[("cgroup.controllers", "cpuset cpu io memory pids\n")]);
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
fn a_machine_without_groups_has_no_version() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(support_below(&root.path().join("none")).version, None);
}

#[test]
fn a_group_is_made_while_the_last_other_one_takes_their_parent_away() {
    let root = tempfile::tempdir().unwrap();
    let parent = root.path().join("polydev-t");
    std::thread::scope(|scope| {
        for name in ["one", "two"] {
            let (parent, group) = (&parent, parent.join(name));
            scope.spawn(move || {
                for _ in 0..500 {
                    make_group(parent, &group).unwrap();
                    fs::remove_dir(&group).unwrap();
                    remove_parent(parent);
                }
            });
        }
    });
}

#[test]
fn on_v1_controllers_that_share_a_hierarchy_are_joined_once() {
    let root = tempfile::tempdir().unwrap();
    for hierarchy in ["memory", "cpu,cpuacct", "pids", "systemd", "unified"] {
        files(&root.path().join(hierarchy), &[("cgroup.procs", "")]);
    }
    for link in ["cpu", "cpuacct"] {
        std::os::unix::fs::symlink("cpu,cpuacct", root.path().join(link)).unwrap();
    }
    let id = vm();
    let groups = Groups::below(root.path(), "t");
    let joined = groups.make(id, &limits()).unwrap();
    let below = |name: &str| root.path().join(name).join("polydev-t").join(id.to_string());
    let expected = ["memory", "cpu,cpuacct", "pids", "systemd", "unified"];
    let expected = expected.map(|name| below(name).join("cgroup.procs"));
    assert_eq!(joined, expected, "the two by which systemd tells services apart, too");
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
