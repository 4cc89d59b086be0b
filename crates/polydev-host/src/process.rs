//! Finds and ends VMs' processes by what the kernel says about them, never by a bare pid.
//!
//! Every main process of a VM carries two environment variables: the VM's id and the instance of polydev it belongs
//! to. They survive the death of the controller, and a guest's own processes cannot fake them: those never run as
//! root of the host.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    thread,
    time::{Duration, Instant},
};

use polydev_core::ids::VmId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{io::unix::AsyncFd, task::spawn_blocking, time::timeout};

/// USER_HZ, which is part of the kernel's interface on x86-64 and arm64.
const TICKS_PER_SECOND: u64 = 100;
/// How long programs may be between one environment and the next, in one look at the process table: the first pages of
/// a program may come from a busy disk.
const EXEC_LIMIT: Duration = Duration::from_secs(2);
const EXEC_POLL: Duration = Duration::from_millis(1);
/// Of an environment, so much is looked at: those of VMs' processes are far smaller.
const ENVIRONMENT_MAX: usize = 32 << 10;
/// Names the VM.
pub(crate) const VM_VARIABLE: &str = "POLYDEV_VM";
/// Names the run directory's tag.
pub(crate) const INSTANCE_VARIABLE: &str = "POLYDEV_INSTANCE";

/// The kernel's name for the time since the machine was started (random(4)).
static BOOT_ID: LazyLock<String> = LazyLock::new(|| {
    let read = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    read.map(|text| text.trim().to_owned()).unwrap_or_else(|error| {
        tracing::error!(%error, "the boot id cannot be read; a reboot of the host will not be noticed");
        String::new()
    })
});

tokio::task_local! {
    /// What [`with_snapshot`] looked up.
    static SNAPSHOT: Arc<Snapshot>;
}

/// The boot of the machine that this process runs in.
pub(crate) fn boot_id() -> &'static str {
    &BOOT_ID
}

/// A VM's main process as a later process of the host can tell it from every other one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProcessIdentity {
    /// Number; comes again.
    pub pid: i32,
    /// When it was started, in the kernel's ticks since boot.
    pub start_ticks: u64,
    /// The boot these ticks count from.
    pub boot_id: String,
    /// What it executes, once that is the VM's program and no longer what launched it.
    pub program: Option<ProgramFile>,
}

/// The file of a program that is executed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProgramFile {
    /// As seen by the process itself; for people.
    pub path: PathBuf,
    /// Device of the file.
    pub device: u64,
    /// Inode of the file.
    pub inode: u64,
}

impl ProcessIdentity {
    /// Whether the very process still runs, what it executes included.
    pub fn is_running(&self) -> bool {
        let process = ProcessId { pid: self.pid, start_ticks: self.start_ticks };
        let same_program = || {
            let file = || fs::metadata(process.exe()).ok();
            self.program.as_ref().is_none_or(|program| {
                file().is_some_and(|file| (file.dev(), file.ino()) == (program.device, program.inode))
            })
        };
        // The start is asked for last: nothing seen before can then have been of another process.
        self.boot_id == boot_id() && same_program() && process.alive()
    }
}

/// A process, told apart from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ProcessId {
    pid: i32,
    /// Field 22 of /proc/pid/stat (proc_pid_stat(5)).
    start_ticks: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, start_ticks: start_ticks(pid)? })
    }

    /// Notes it in a file, for [`ProcessId::read`].
    pub(crate) fn write(self, file: &Path) -> io::Result<()> {
        fs::write(file, format!("{} {} {}", self.pid, self.start_ticks, boot_id()))
    }

    /// The process that a file names, whether it still runs or not. None if it is of an earlier boot.
    pub(crate) fn read(file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let mut words = text.split(' ');
        let (pid, start_ticks) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        // Files of before there was a third word are of this boot: run directories do not outlive one.
        words.next().is_none_or(|boot| boot == boot_id()).then_some(Self { pid, start_ticks })
    }

    /// What a later process of the host knows it by. With `executes_vm` what it executes belongs to that.
    pub(crate) fn identity(self, executes_vm: bool) -> ProcessIdentity {
        let program = || {
            let file = fs::metadata(self.exe()).ok()?;
            Some(ProgramFile { path: fs::read_link(self.exe()).ok()?, device: file.dev(), inode: file.ino() })
        };
        ProcessIdentity {
            pid: self.pid,
            start_ticks: self.start_ticks,
            boot_id: boot_id().to_owned(),
            program: executes_vm.then(program).flatten(),
        }
    }

    /// Its number, which may be another process's by now.
    pub(crate) const fn pid(self) -> i32 {
        self.pid
    }

    /// Whether it still runs; one that ended but was not waited for does not.
    pub(crate) fn alive(self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// The link to one of its namespaces, `uts` for example.
    pub(crate) fn namespace(self, kind: &str) -> PathBuf {
        format!("/proc/{}/ns/{kind}", self.pid).into()
    }

    /// What it was started with, its own name left out (proc_pid_cmdline(5)).
    pub(crate) fn arguments(self) -> io::Result<Vec<String>> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid))?;
        if !self.alive() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let text = String::from_utf8(bytes).map_err(io::Error::other)?;
        Ok(text.strip_suffix('\0').unwrap_or(&text).split('\0').skip(1).map(str::to_owned).collect())
    }

    /// The link to its program.
    pub(crate) fn exe(self) -> PathBuf {
        format!("/proc/{}/exe", self.pid).into()
    }

    /// Memory that it has in RAM (`VmRSS` of proc_pid_status(5)); zero once it is gone.
    pub(crate) fn resident_bytes(self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// User and system time it took so far; zero once it is gone.
    pub(crate) fn cpu_time(self) -> Duration {
        let fields = |text: String| {
            let (_, fields) = text.rsplit_once(") ")?;
            let mut fields = fields.split(' ').skip(11);
            Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
        };
        let ticks = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok().and_then(fields).unwrap_or(0);
        Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
    }

    /// Kills it and waits until it has ended.
    pub(crate) async fn kill(self, limit: Duration) -> io::Result<()> {
        self.send_kill()?;
        self.ended(limit).await
    }

    /// Kills it and does not wait for its end.
    pub(crate) fn send_kill(self) -> io::Result<()> {
        self.send(Signal::KILL)
    }

    /// Whether it was stopped by a signal.
    #[cfg(feature = "chaos")]
    pub(crate) fn is_stopped(self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T')) && self.alive()
    }

    /// Sends it a signal. Nothing happens if it has ended.
    pub(crate) fn send(self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::NONBLOCK) else { return Ok(()) };
        // The handle may be that of a successor: only what is still the same process gets it.
        if !self.alive() {
            return Ok(());
        }
        match pidfd_send_signal(&handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(self, limit: Duration) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::NONBLOCK) else { return Ok(()) };
        if !self.alive() {
            return Ok(());
        }
        // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, and `AsyncFd` owns it till then.
        let handle = unsafe { AsyncFd::register_with_interest(handle, tokio::io::Interest::READABLE) }?;
        match timeout(limit, handle.readable()).await {
            Ok(ready) => ready.map(drop),
            Err(_) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {} does not end", self.pid)))
            }
        }
    }
}

/// The process that a pid file names now. Right only when asked while the file is fresh.
pub(crate) fn from_pid_file(file: &Path) -> Option<ProcessId> {
    ProcessId::of(fs::read_to_string(file).ok()?.trim().parse().ok()?)
}

/// The process table as one look at it showed it.
struct Snapshot {
    instance: String,
    found: Vec<(VmId, ProcessId)>,
}

/// Runs work that asks for the processes of many VMs, and starts none, with one look at the process table.
///
/// In it [`all`] gives those of the first look that still live. Work that it spawns looks for itself.
pub(crate) async fn with_snapshot<T>(instance: &str, work: impl Future<Output = T>) -> io::Result<T> {
    let instance = instance.to_owned();
    let look = move || scan(&instance).map(|found| Snapshot { instance, found });
    let snapshot = spawn_blocking(look).await.map_err(io::Error::other)??;
    Ok(SNAPSHOT.scope(Arc::new(snapshot), work).await)
}

/// All processes of this instance's VMs.
pub(crate) fn all(instance: &str) -> io::Result<Vec<(VmId, ProcessId)>> {
    let seen = SNAPSHOT.try_with(|snapshot| {
        let alive = |(_, process): &&(VmId, ProcessId)| process.alive();
        (snapshot.instance == instance)
            .then(|| snapshot.found.iter().filter(alive).copied().collect::<Vec<_>>())
    });
    match seen {
        Ok(Some(seen)) => Ok(seen),
        _ => scan(instance),
    }
}

/// All processes of one VM.
pub(crate) fn of_vm(instance: &str, id: VmId) -> io::Result<Vec<ProcessId>> {
    let seen = SNAPSHOT.try_with(|snapshot| {
        let of_vm = snapshot.found.iter().filter(|(vm, process)| *vm == id && process.alive());
        (snapshot.instance == instance).then(|| of_vm.map(|(_, process)| *process).collect::<Vec<_>>())
    });
    if let Ok(Some(seen)) = seen {
        return Ok(seen);
    }
    Ok(scan(instance)?.into_iter().filter(|(vm, _)| *vm == id).map(|(_, process)| process).collect())
}

/// What a look at a process showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// It says that it belongs to this VM.
    OfVm(VmId),
    /// None of this instance's.
    Stranger,
    /// It is about to execute another program: whose it is can be seen in a moment.
    Executing,
}

fn scan(instance: &str) -> io::Result<Vec<(VmId, ProcessId)>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(owned(pids, instance))
}

/// Those of these processes that belong to VMs. All of them that execute another program are waited for together.
fn owned(mut pids: Vec<i32>, instance: &str) -> Vec<(VmId, ProcessId)> {
    let deadline = Instant::now() + EXEC_LIMIT;
    let mut found = Vec::new();
    loop {
        pids.retain(|pid| {
            let Some(process) = ProcessId::of(*pid) else { return false };
            let look = look(*pid, instance);
            if let Look::OfVm(vm) = look {
                found.push((vm, process));
            }
            look == Look::Executing
        });
        if pids.is_empty() || Instant::now() >= deadline {
            return found;
        }
        thread::sleep(EXEC_POLL);
    }
}

/// Looks whose a process is. Those of guests' users are not believed, and not waited for: they can look like one that
/// executes a program for as long as they like. A VM's process that is no longer root's is found by its jail.
///
/// While a process executes another program the kernel shows an empty environment for a moment, and to whoever opened
/// that of the program before: taking that for the truth would overlook a VM that is just being launched. So an empty
/// one is believed only where the kernel says that it is.
fn look(pid: i32, instance: &str) -> Look {
    if real_uid(pid) != Some(0) {
        return Look::Stranger;
    }
    let Ok(environment) = read_environment(pid) else { return Look::Stranger };
    if environment.is_empty() && !has_none(pid) {
        return Look::Executing;
    }
    let value = |name: &str| {
        let mut variables = environment.split(|byte| *byte == 0);
        variables.find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    if value(INSTANCE_VARIABLE) != Some(instance.as_bytes()) {
        return Look::Stranger;
    }
    let vm = value(VM_VARIABLE).and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
    vm.map_or(Look::Stranger, Look::OfVm)
}

/// With one call to the kernel: between two of them the process may execute another program.
fn read_environment(pid: i32) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(format!("/proc/{pid}/environ"))?;
    let mut environment = vec![0; ENVIRONMENT_MAX];
    let size = file.read(&mut environment)?;
    environment.truncate(size);
    Ok(environment)
}

/// Whether a process has an environment without anything in it, or no program (any more) to have one. Fields 26, 50
/// and 51 of proc_pid_stat(5) are where its code begins, zero until its environment is in place, and where that begins
/// and ends.
fn has_none(pid: i32) -> bool {
    let is_empty = |stat: String| {
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.trim_end().split(' ');
        let is_over = matches!(fields.next()?, "Z" | "X");
        let (code, begin, end) = (fields.nth(22)?, fields.nth(23)?, fields.next()?);
        Some(is_over || (code != "0" && begin == end))
    };
    // Threads of the kernel have no program.
    fs::read_link(format!("/proc/{pid}/exe")).is_err()
        || fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(is_empty).unwrap_or(true)
}

fn real_uid(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, spaces and parentheses too.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        os::unix::process::CommandExt,
        process::{Command, Stdio},
    };

    /// Tests are processes of their own that run side by side.
    fn instance() -> String {
        format!("test-{}", std::process::id())
    }

    fn sleeper(vm: VmId) -> std::process::Child {
        let mut command = Command::new("sleep");
        command.arg("600").env(INSTANCE_VARIABLE, instance()).env(VM_VARIABLE, vm.to_string());
        command.stdin(Stdio::null()).spawn().unwrap()
    }

    #[tokio::test]
    async fn a_vms_process_is_found_by_its_environment_and_killed() {
        let vm = VmId::from_uuid(uuid::Uuid::new_v4());
        let mut child = sleeper(vm);
        // `spawn` returns once the child executes its program, perhaps before its environment is in place.
        let (_, found) =
            all(&instance()).unwrap().into_iter().find(|(owner, _)| *owner == vm).expect("found");
        assert_eq!(found.pid, i32::try_from(child.id()).unwrap());
        assert!(all("other000").unwrap().is_empty());
        found.kill(Duration::from_secs(5)).await.unwrap();
        assert!(!found.alive());
        child.wait().unwrap();
        found.kill(Duration::from_secs(5)).await.expect("killing what has ended is fine");
    }

    #[test]
    fn a_process_that_executes_one_program_after_the_other_is_never_overlooked() {
        const PROGRAMS: &str = "3000";
        let vm = VmId::from_uuid(uuid::Uuid::new_v4());
        let script = r#"[ "$1" -eq 0 ] || exec sh -c "$0" "$0" $(($1 - 1)); exec sleep 600"#;
        let mut command = Command::new("sh");
        command.args(["-c", script, script, PROGRAMS]).stdin(Stdio::null());
        command.env(INSTANCE_VARIABLE, instance()).env(VM_VARIABLE, vm.to_string());
        let mut child = command.spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let name = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        let (mut looks, mut overlooked) = (0, 0);
        while name().trim() != "sleep" {
            assert!(child.try_wait().unwrap().is_none(), "it was ended");
            looks += 1;
            overlooked += usize::from(!owned(vec![pid], &instance()).iter().any(|(owner, _)| *owner == vm));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(overlooked, 0, "of {looks} looks");
    }

    #[test]
    fn a_guests_program_that_took_its_environment_away_is_not_waited_for() {
        // Its pages begin within the padding, so that nothing else the program needs is in them.
        const SCRIPT: &str = r#"
import ctypes, sys, time
stat = open("/proc/self/stat").read().rsplit(") ", 1)[1].split()
begin, end = int(stat[47]) & ~4095, int(stat[48]) + 4095 & ~4095
libc = ctypes.CDLL(None)
if libc.munmap(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin)): sys.exit(1)
print("gone", flush=True)
time.sleep(600)
"#;
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: needs root");
            return;
        }
        let vm = VmId::from_uuid(uuid::Uuid::new_v4());
        let look_at = |uid: u32| {
            let mut command = Command::new("/usr/bin/python3");
            command.args(["-c", SCRIPT, &"x".repeat(3 * 4096)]).uid(uid);
            command.env_clear().env("PADDING", "x".repeat(3 * 4096));
            command.env(INSTANCE_VARIABLE, instance()).env(VM_VARIABLE, vm.to_string());
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
            let mut said = [0; 5];
            let ready = child.stdout.as_mut().unwrap().read_exact(&mut said);
            let seen = look(i32::try_from(child.id()).unwrap(), &instance());
            child.kill().unwrap();
            child.wait().unwrap();
            ready.unwrap();
            seen
        };
        assert_eq!(look_at(0), Look::Executing, "as the kernel shows it, it executes a program");
        assert_eq!(look_at(65534), Look::Stranger);
    }

    #[tokio::test]
    async fn one_look_at_the_process_table_serves_many_questions_and_forgets_the_dead() {
        let (first, second) = (VmId::from_uuid(uuid::Uuid::new_v4()), VmId::from_uuid(uuid::Uuid::new_v4()));
        let mut child = sleeper(first);
        let work = async {
            let mut later = sleeper(second);
            assert_eq!(of_vm(&instance(), first).unwrap().len(), 1);
            assert!(of_vm(&instance(), second).unwrap().is_empty(), "started after the look");
            all(&instance()).unwrap()[0].1.kill(Duration::from_secs(5)).await.unwrap();
            assert!(all(&instance()).unwrap().is_empty(), "what has ended since is not shown");
            later.kill().unwrap();
            later.wait().unwrap();
        };
        with_snapshot(&instance(), work).await.unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn an_identity_holds_for_one_process_with_one_program_in_one_boot() {
        let me = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let identity = me.identity(true);
        assert!(identity.is_running());
        let program = identity.program.clone().unwrap();
        let others = [
            ProcessIdentity { start_ticks: identity.start_ticks + 1, ..identity.clone() },
            ProcessIdentity { boot_id: "an earlier boot".to_owned(), ..identity.clone() },
            ProcessIdentity {
                program: Some(ProgramFile { inode: program.inode + 1, ..program }),
                ..identity
            },
        ];
        assert!(others.iter().all(|other| !other.is_running()));
    }

    #[test]
    fn a_process_file_of_an_earlier_boot_names_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("process");
        let me = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        me.write(&file).unwrap();
        assert_eq!(ProcessId::read(&file), Some(me));
        fs::write(&file, format!("{} {} another", me.pid, me.start_ticks)).unwrap();
        assert_eq!(ProcessId::read(&file), None);
    }

    #[test]
    fn a_pid_that_was_given_to_another_process_is_not_the_same_process() {
        let me = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.alive());
        assert!(!ProcessId { start_ticks: me.start_ticks + 1, ..me }.alive());
    }
}
