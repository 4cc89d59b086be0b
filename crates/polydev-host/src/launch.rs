//! The one way a VMM's process is started: in a session of its own, with files as its standard streams, in the VM's
//! cgroups and network namespace from its first instruction on, and no child of the manager.
//!
//! A hook between fork and exec would make every start copy the manager's page tables. A chain of small programs does
//! the work instead, each replacing the one before: `sh` (cgroups, no core files, no OOM score of the manager's) →
//! `nsenter` (network namespace) → `setsid --fork`, which ends when the program's process is there. All of them carry
//! the VM's environment variables, so that whatever is left of a launch that was cut short is found and killed like the
//! VM itself.

use std::{
    ffi::OsString,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use polydev_core::ids::VmId;
use tokio::{process::Command, time::timeout};

use crate::{
    command::{PATH, command},
    error::HostError,
    logs,
    process::{INSTANCE_VARIABLE, VM_VARIABLE},
};

/// How long the chain may take; milliseconds on a machine that is not overloaded.
const LIMIT: Duration = Duration::from_secs(10);
/// Most characters of the chain's complaint that go into an error.
const COMPLAINT_MAX: usize = 600;
/// The script's exit status where a cgroup could not be joined.
const NOT_JOINED: i32 = 81;
/// Its arguments: how many cgroups, their `cgroup.procs`, then what to execute. Writing 0 moves the writer
/// (cgroups(7)); a core file would hold the guest's memory. A service may have the kernel spare the manager when memory
/// is short, not its VMs; who may not change that score keeps it.
const SCRIPT: &str = r#"ulimit -c 0; left=$1; shift
{ echo 0 > /proc/self/oom_score_adj; } 2> /dev/null
while [ "$left" -gt 0 ]; do echo 0 > "$1" || exit 81; shift; left=$((left - 1)); done
exec "$@""#;

/// A process to start.
pub(crate) struct Launch<'a> {
    /// The VM it runs.
    pub(crate) id: VmId,
    /// The instance of polydev it belongs to.
    pub(crate) instance: &'a str,
    /// A name that is looked up in [`PATH`], or a path.
    pub(crate) program: &'a Path,
    pub(crate) arguments: Vec<OsString>,
    /// Its working directory.
    pub(crate) dir: &'a Path,
    /// Takes what it writes to standard output and error, behind what is there.
    pub(crate) log: &'a Path,
    /// `cgroup.procs` of the cgroups it is to be in.
    pub(crate) groups: &'a [PathBuf],
    /// File that names the network namespace it is to be in; none: the manager's.
    pub(crate) netns: Option<&'a Path>,
}

/// Why a process was not started: the step that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("no program {0}")]
    NoProgram(String),
    #[error("open {path}: {source}")]
    Log { path: String, source: io::Error },
    #[error("run sh: {0}")]
    Spawn(io::Error),
    #[error("join cgroup: {0}")]
    Group(String),
    #[error("enter network namespace {path}: {complaint}")]
    Namespace { path: String, complaint: String },
    #[error("make a session: {0}")]
    Session(String),
    #[error("no end within {} s", LIMIT.as_secs())]
    Late,
}

impl LaunchError {
    /// The step, as errors name it.
    pub(crate) fn step(&self) -> &'static str {
        match self {
            Self::NoProgram(_) => "look-up of its program",
            Self::Log { .. } => "opening of its log",
            Self::Spawn(_) | Self::Session(_) | Self::Late => "launch of its process",
            Self::Group(_) => "joining of its cgroups",
            Self::Namespace { .. } => "entry into its network namespace",
        }
    }

    /// As the failed start of a VM.
    pub(crate) fn of_vm(self, id: VmId) -> HostError {
        if let Self::Log { path, source } = self {
            return HostError::os(format!("open {path}"))(source);
        }
        HostError::StartFailed { id, step: self.step(), detail: self.to_string() }
    }
}

impl Launch<'_> {
    /// Starts it. When this returns the process is there, perhaps not yet executing its program: a program that
    /// cannot be executed says so in the log and ends.
    pub(crate) async fn start(&self) -> Result<(), LaunchError> {
        let program =
            find(self.program).ok_or_else(|| LaunchError::NoProgram(self.program.display().to_string()))?;
        let open =
            || logs::open_append(self.log).and_then(|log| Ok((log.try_clone()?, log.metadata()?.len(), log)));
        let (stdout, said_before, stderr) =
            open().map_err(|source| LaunchError::Log { path: self.log.display().to_string(), source })?;
        let mut chain = joining(self.groups);
        if let Some(netns) = self.netns {
            let mut option = OsString::from("--net=");
            option.push(netns);
            chain.arg("nsenter").arg(option).arg("--");
        }
        chain.args(["setsid", "--fork"]).arg(program).args(&self.arguments);
        chain.env(VM_VARIABLE, self.id.to_string()).env(INSTANCE_VARIABLE, self.instance);
        chain.current_dir(self.dir).stdout(stdout).stderr(stderr);
        let status = match timeout(LIMIT, chain.status()).await {
            Ok(Ok(status)) if status.success() => return Ok(()),
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Err(LaunchError::Spawn(error)),
            Err(_) => return Err(LaunchError::Late),
        };
        let complaint = self.said_since(said_before);
        let complaint = if complaint.is_empty() { status.to_string() } else { complaint };
        Err(match (status.code(), self.netns) {
            (Some(NOT_JOINED), _) => LaunchError::Group(complaint),
            (_, Some(netns)) if complaint.starts_with("nsenter:") => {
                LaunchError::Namespace { path: netns.display().to_string(), complaint }
            }
            _ => LaunchError::Session(complaint),
        })
    }

    fn said_since(&self, before: u64) -> String {
        let size = std::fs::metadata(self.log).map_or(0, |it| it.len());
        let new = usize::try_from(size.saturating_sub(before)).unwrap_or(usize::MAX);
        let text = logs::tail(self.log, new.min(COMPLAINT_MAX)).unwrap_or_default();
        text.trim().to_owned()
    }
}

/// A command that joins cgroups, takes no privilege of the manager's along, and executes what its further arguments name.
pub(crate) fn joining(groups: &[PathBuf]) -> Command {
    let mut command = command("sh");
    command.args(["-c", SCRIPT, "sh"]).arg(groups.len().to_string()).args(groups);
    command
}

/// The program's file. Looked up here because the chain has ended before the program is executed.
fn find(program: &Path) -> Option<PathBuf> {
    let runs =
        |file: &Path| file.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0);
    if program.components().count() > 1 {
        return runs(program).then(|| program.to_path_buf());
    }
    PATH.split(':').map(|dir| Path::new(dir).join(program)).find(|file| runs(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;
    use std::{fs, time::Instant};

    struct Place {
        dir: tempfile::TempDir,
        id: VmId,
        instance: String,
    }

    impl Place {
        fn new() -> Self {
            let id = VmId::from_uuid(uuid::Uuid::new_v4());
            Self { dir: tempfile::tempdir().unwrap(), id, instance: format!("launch-{id}") }
        }

        async fn start(
            &self,
            script: &str,
            groups: &[PathBuf],
            netns: Option<&Path>,
        ) -> Result<(), LaunchError> {
            Launch {
                id: self.id,
                instance: &self.instance,
                program: Path::new("sh"),
                arguments: ["-c", script, "sh", "an argument; $(false)"].map(OsString::from).to_vec(),
                dir: self.dir.path(),
                log: &self.log(),
                groups,
                netns,
            }
            .start()
            .await
        }

        fn log(&self) -> PathBuf {
            self.dir.path().join("log")
        }

        async fn logged(&self, wanted: &str) -> String {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let text = fs::read_to_string(self.log()).unwrap_or_default();
                if text.contains(wanted) {
                    return text;
                }
                assert!(Instant::now() < deadline, "no {wanted:?} in {text:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            for (_, process) in process::all(&self.instance).unwrap_or_default() {
                let _ = process.send_kill();
            }
        }
    }

    #[tokio::test]
    async fn a_launched_process_has_its_own_session_directory_environment_and_argument() {
        let place = Place::new();
        let script = r#"echo "$1|$PWD|$(cut -d' ' -f1,6 /proc/$$/stat)|$$|$(readlink /proc/$$/fd/0)|$(ulimit -c)|end"; exec sleep 600"#;
        place.start(script, &[], None).await.unwrap();
        let text = place.logged("|end").await;
        let fields: Vec<&str> = text.trim().split('|').collect();
        assert_eq!(fields[0], "an argument; $(false)");
        assert_eq!(Path::new(fields[1]), fs::canonicalize(place.dir.path()).unwrap());
        let (pid, session) = fields[2].split_once(' ').unwrap();
        assert_eq!((pid, session), (fields[3], fields[3]), "it leads its session");
        assert_eq!((fields[4], fields[5]), ("/dev/null", "0"));
        let found = process::all(&place.instance).unwrap();
        assert_eq!(found.iter().map(|(vm, _)| *vm).collect::<Vec<_>>(), [place.id]);
    }

    #[tokio::test]
    async fn a_manager_that_the_kernel_is_to_spare_does_not_pass_that_on() {
        const SCORE: &str = "/proc/self/oom_score_adj";
        let place = Place::new();
        let own = fs::read_to_string(SCORE).unwrap();
        // Any process may give itself a higher one, root may take it back.
        fs::write(SCORE, "321").unwrap();
        let started = place.start("echo \"$(cat /proc/$$/oom_score_adj) end\"", &[], None).await;
        let restored = fs::write(SCORE, own.trim());
        started.unwrap();
        if restored.is_err() {
            println!("SKIPPED: needs root");
            return;
        }
        assert_eq!(place.logged("end").await.trim(), "0 end");
    }

    #[tokio::test]
    async fn every_cgroup_is_joined_before_the_program_runs() {
        let place = Place::new();
        let groups = ["one", "two with blank"].map(|name| place.dir.path().join(name));
        let script = r#"echo "$(cat one 'two with blank' | tr '\n' ' ')end""#;
        place.start(script, &groups, None).await.unwrap();
        assert_eq!(place.logged("end").await.trim(), "0 0 end");
    }

    #[tokio::test]
    async fn each_step_that_fails_is_named() {
        let place = Place::new();
        let nowhere = place.dir.path().join("none/cgroup.procs");
        let error = place.start("exit", &[nowhere], None).await.unwrap_err();
        assert!(matches!(&error, LaunchError::Group(words) if words.contains("cgroup.procs")), "{error}");
        let error = place.start("exit", &[], Some(Path::new("/run/no-such-namespace"))).await.unwrap_err();
        assert!(
            matches!(&error, LaunchError::Namespace { complaint, .. } if complaint.contains("No such file")),
            "{error}"
        );
        let log = place.log();
        let no_program = Launch {
            id: place.id,
            instance: &place.instance,
            program: Path::new("polydev-no-such-program"),
            arguments: Vec::new(),
            dir: place.dir.path(),
            log: &log,
            groups: &[],
            netns: None,
        };
        let error = no_program.start().await.unwrap_err();
        assert!(
            matches!(&error, LaunchError::NoProgram(name) if name == "polydev-no-such-program"),
            "{error}"
        );
        let no_log = Launch { program: Path::new("sh"), log: Path::new("/proc/none/log"), ..no_program };
        assert!(matches!(no_log.start().await, Err(LaunchError::Log { .. })));
        assert!(process::all(&place.instance).unwrap().is_empty());
    }
}
