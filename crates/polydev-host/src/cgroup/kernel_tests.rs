//! Groups on a real kernel: that of the machine the tests run on, and version 2 in the guest that `crate::qemu` boots
//! with this very program. There nothing may be skipped.

use std::process::{Child, Command, ExitStatus, Stdio};

use super::{
    tests::{MIB, limits, vm},
    *,
};

/// For what the kernel does a moment later, on a machine that is emulated.
const PATIENCE: Duration = Duration::from_secs(60);
/// A disk is mounted here in the guest; a file system on a disk will do elsewhere.
const ON_DISK: [&str; 2] = ["/disk", "/"];

/// A process in a group of its own.
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
            println!("SKIPPED: no memory controller to use ({support:?})");
            return None;
        }
        Some(Self::start_in(Groups::open(&tag()), limits, script))
    }

    fn start_in(groups: Groups, limits: &Limits, script: &str) -> Self {
        let id = vm();
        let joined = groups.make(id, limits).unwrap();
        let join: String = joined.iter().map(|file| format!("echo 0 > {}; ", file.display())).collect();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{join}echo in; {script}")]);
        let mut child =
            shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut said = [0; 3];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        Self { groups, id, child }
    }

    /// A file of the group, in whichever hierarchy it lies.
    fn file(&self, name: &str) -> String {
        let dirs = self.groups.dirs(self.id);
        let text = dirs.iter().find_map(|dir| fs::read_to_string(dir.join(name)).ok());
        text.unwrap_or_else(|| panic!("no {name} in {dirs:?}"))
    }

    fn usage(&self) -> GroupUsage {
        self.groups.usage(self.id).unwrap()
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "not in time: {what}; {:?}", self.usage());
            sleep(EMPTY_POLL).await;
        }
    }

    /// Removes the group with all that is in it; how the shell ended.
    async fn end(mut self) -> ExitStatus {
        let Self { groups, id, child } = &mut self;
        let reaped = async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    return status;
                }
                sleep(EMPTY_POLL).await;
            }
        };
        let (removed, status) = tokio::join!(groups.remove(*id), reaped);
        removed.unwrap();
        assert!(groups.traces().is_empty());
        assert!(groups.parents().is_empty(), "the parent goes with the last");
        status
    }
}

impl Drop for Member {
    /// A test that fails leaves nothing either.
    fn drop(&mut self) {
        for dir in self.groups.dirs(self.id) {
            kill_all(&dir);
        }
        let _ = self.child.wait();
        for parent in self.groups.parents() {
            let _ = remove_tree(&parent);
        }
    }
}

fn tag() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..8].to_owned()
}

/// Without a device: which one there is differs.
fn limits_here() -> Limits {
    Limits { io: None, ..limits() }
}

fn is_v2() -> bool {
    let found = support();
    let is_v2 = found.version == Some(Version::V2) && found.missing.is_empty();
    if !is_v2 {
        println!("SKIPPED: needs version 2 with all controllers ({found:?})");
    }
    is_v2
}

fn disk(bytes_per_second: u64) -> Option<IoLimit> {
    let found = ON_DISK.iter().find_map(|dir| IoLimit::of(Path::new(dir), bytes_per_second));
    if found.is_none() {
        println!("SKIPPED: {ON_DISK:?} lie on no disk");
    }
    found
}

fn pass_down_from(dir: &Path, controllers: &[&str]) {
    for controller in controllers {
        fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    }
}

#[tokio::test]
async fn a_group_holds_its_process_and_goes_with_it() {
    let Some(member) = Member::start(&limits_here(), "sleep 600 & wait") else { return };
    let pid = i32::try_from(member.child.id()).unwrap();
    assert!(member.groups.processes(member.id).contains(&pid));
    assert_eq!(member.groups.traces(), BTreeSet::from([member.id]));
    let usage = member.usage();
    assert!(usage.memory_bytes > 0 && usage.tasks >= 1 && usage.cpu > Duration::ZERO, "{usage:?}");
    assert!(!member.groups.ran_out_of_memory(member.id));
    let (groups, id) = (member.groups.clone(), member.id);
    assert!(!member.end().await.success(), "it was killed");
    groups.remove(id).await.expect("none is fine");
}

#[tokio::test]
async fn memory_above_the_limit_ends_whoever_takes_it_and_is_counted() {
    // `tail` keeps everything of a line that never ends.
    let Some(mut member) = Member::start(&limits_here(), "sleep 600 & exec tail /dev/zero") else { return };
    assert!(!member.child.wait().unwrap().success());
    assert!(member.groups.ran_out_of_memory(member.id), "{:?}", member.usage());
    let v2 = member.groups.layout.version() == Version::V2;
    let peak = member.file(if v2 { "memory.peak" } else { "memory.max_usage_in_bytes" });
    let peak: u64 = peak.trim().parse().unwrap();
    assert!((32 * MIB..=64 * MIB).contains(&peak), "{peak}");
    if v2 {
        assert!(member.file("memory.events").contains("\noom_group_kill 1"), "half a VM is none");
        member.until("all of it is gone", |it| it.groups.processes(it.id).is_empty()).await;
    }
    member.end().await;
}

#[tokio::test]
async fn processes_above_the_limit_are_not_made() {
    let limits = Limits { pids_max: 8, ..limits_here() };
    let script = "i=0; while [ $i -lt 30 ]; do sleep 600 & i=$((i+1)); done; wait";
    let Some(mut member) = Member::start(&limits, script) else { return };
    assert!(!member.child.wait().unwrap().success(), "the shell could not go on");
    let tasks = member.usage().tasks;
    assert!((1..8).contains(&tasks), "{tasks}");
    assert!(!member.file("pids.events").starts_with("max 0"));
    member.end().await;
}

#[tokio::test]
async fn processor_time_above_the_limit_has_to_be_waited_for() {
    let began = Instant::now();
    let limits = Limits { cpu_percent: 20, ..limits_here() };
    let Some(member) = Member::start(&limits, "while :; do :; done") else { return };
    member.until("it takes time", |it| it.usage().cpu >= Duration::from_millis(400)).await;
    // 0.4 s at a fifth of the time take 2 s; the first period is full.
    assert!(began.elapsed() >= Duration::from_millis(1400), "{:?}", began.elapsed());
    assert!(!member.file("cpu.stat").contains("nr_throttled 0"));
    member.end().await;
}

#[tokio::test]
async fn what_goes_on_starting_processes_is_ended_all_the_same() {
    let script = "for i in 1 2 3 4; do (while :; do sleep 0; done) & done; wait";
    let Some(member) = Member::start(&limits_here(), script) else { return };
    member.until("it is under way", |it| it.usage().tasks > 4).await;
    assert!(!member.end().await.success());
}

#[tokio::test]
async fn on_v2_the_kernel_reads_every_limit_back() {
    if !is_v2() {
        return;
    }
    let Some(io) = disk(5_000_000) else { return };
    let Some(member) = Member::start(&Limits { io: Some(io), ..limits() }, "sleep 600") else { return };
    let device = format!("{}:{} rbps=5000000 wbps=5000000 riops=max wiops=max", io.device.0, io.device.1);
    for (file, expected) in [
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("cpu.max", "150000 100000"),
        ("cpu.weight", "200"),
        ("pids.max", "77"),
        ("io.max", &device),
    ] {
        assert_eq!(member.file(file).trim(), expected, "{file}");
    }
    // What a service manager does that knows nothing of the group.
    let taken_back = fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "-memory").unwrap_err();
    assert_eq!(taken_back.kind(), io::ErrorKind::ResourceBusy);
    assert_eq!(member.file("memory.max").trim(), "67108864");
    member.end().await;
}

#[tokio::test]
async fn on_v2_reading_a_disk_is_counted_and_slowed_down() {
    if !is_v2() {
        return;
    }
    let Some(io) = disk(MIB) else { return };
    let (major, minor) = io.device;
    let uevent = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap();
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).unwrap();
    let began = Instant::now();
    let script = format!("exec dd if=/dev/{name} of=/dev/null bs=64k count=48 iflag=direct");
    let Some(mut member) = Member::start(&Limits { io: Some(io), ..limits() }, &script) else { return };
    assert!(member.child.wait().unwrap().success());
    assert!(began.elapsed() >= Duration::from_millis(1500), "3 MiB at one a second: {:?}", began.elapsed());
    let usage = member.usage();
    assert!((3 * MIB..4 * MIB).contains(&usage.read_bytes), "{usage:?}");
    member.end().await;
}

#[tokio::test]
async fn on_v2_a_group_stops_goes_on_and_can_be_ended_while_it_is_stopped() {
    if !is_v2() {
        return;
    }
    let Some(member) = Member::start(&limits_here(), "while :; do :; done") else { return };
    let freezer = Freezer::of(&member.groups.dirs(member.id)).unwrap();
    member.until("it takes time", |it| it.usage().cpu > Duration::ZERO).await;
    freezer.freeze().await.unwrap();
    let stopped = (freezer.is_frozen(), member.usage().cpu);
    sleep(Duration::from_millis(200)).await;
    assert_eq!((freezer.is_frozen(), member.usage().cpu), stopped);
    freezer.thaw().unwrap();
    member.until("it goes on", |it| it.usage().cpu > stopped.1).await;
    freezer.freeze().await.unwrap();
    assert!(!member.end().await.success());
}

#[tokio::test]
async fn on_v2_whoever_is_in_the_way_of_a_delegated_group_steps_aside() {
    if !is_v2() {
        return;
    }
    let before = fs::read_to_string("/proc/self/cgroup").unwrap();
    let before = before.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    let root = Path::new(ROOT).join(format!("delegated-{}", tag()));
    fs::create_dir(&root).unwrap();
    fs::write(root.join("cgroup.procs"), "0").unwrap();
    let busy = fs::write(root.join("cgroup.subtree_control"), "+memory").unwrap_err();
    assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy, "no internal processes");

    let member = Member::start_in(Groups::below(&root, "t"), &limits_here(), "sleep 600");
    assert_eq!(member.file("memory.max").trim(), "67108864");
    assert_eq!(member.file("pids.max").trim(), "77");
    let aside = fs::read_to_string(root.join("polydev-manager/cgroup.procs")).unwrap();
    assert!(aside.lines().any(|pid| pid == std::process::id().to_string()), "{aside}");
    assert!(support_below(&root).missing.is_empty());
    member.end().await;
    fs::write(Path::new(ROOT).join(before).join("cgroup.procs"), "0").unwrap();
    remove_tree(&root).unwrap();
}

#[tokio::test]
async fn on_v2_a_controller_that_is_not_passed_down_limits_nothing_and_is_reported() {
    if !is_v2() {
        return;
    }
    let above = Path::new(ROOT).join(format!("partial-{}", tag()));
    let root = above.join("inner");
    fs::create_dir_all(&root).unwrap();
    pass_down_from(&above, &["memory", "cpu"]);
    let found = support_below(&root);
    assert_eq!((found.usable, found.missing), (vec!["memory", "cpu"], vec!["pids", "io"]));
    let member = Member::start_in(Groups::below(&root, "t"), &limits(), "sleep 600");
    assert_eq!(member.file("memory.max").trim(), "67108864");
    assert!(!member.groups.dirs(member.id)[0].join("pids.max").exists());
    member.end().await;
    remove_tree(&above).unwrap();
}
