//! Starts the agent in namespaces of its own, on a throw-away copy of this machine's root.

use std::{
    io::Write,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::client::Client;

/// Most time anything in these tests may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Sets the new root up and becomes the agent. `$1` is the test's directory, `$2` the agent's executable, `$3` the
/// directories that make the root, topmost first.
const SETUP: &str = r#"
set -e
mount -t tmpfs guest "$1/fs"
mkdir "$1/fs/upper" "$1/fs/work" "$1/fs/root"
mount -t overlay guest -o "lowerdir=$3,upperdir=$1/fs/upper,workdir=$1/fs/work" "$1/fs/root"
root="$1/fs/root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs run "$root/run"
mount -t tmpfs tmp "$root/tmp"
mount -t tmpfs -o size=8m home "$root/home"
mkdir -p "$root/run/polydev/channel" "$root/home/dev"
chown 1000:1000 "$root/home/dev"
cp "$2" "$root/run/polydev/polydev-agent"
test -z "$4" || cp "$4" "$root/run/polydev/polydev-desktop"
# Moved to the very top: the kernel gives no user namespace, which the browser's sandbox needs, in a mere chroot.
mount --bind "$1/channel" "$root/run/polydev/channel"
cd "$root"
mount --move . /
exec env -i PATH="$PATH" chroot . /run/polydev/polydev-agent --container
"#;

/// A running guest; ended when dropped.
pub(crate) struct Guest {
    process: Child,
    directory: tempfile::TempDir,
}

impl Guest {
    /// On this machine's own root. `None`, with the reason printed, where namespaces cannot be made.
    pub(crate) fn start() -> Option<Self> {
        Self::start_on("/", "")
    }

    /// On a golden image's layers, named by `POLYDEV_TEST_LAYERS` (mounted directories, topmost first, separated by
    /// colons), with the desktop program that `POLYDEV_TEST_DESKTOP` names.
    pub(crate) fn start_on_image() -> Option<Self> {
        let (Ok(layers), Ok(desktop)) =
            (std::env::var("POLYDEV_TEST_LAYERS"), std::env::var("POLYDEV_TEST_DESKTOP"))
        else {
            println!("skipped: POLYDEV_TEST_LAYERS and POLYDEV_TEST_DESKTOP name no golden image");
            return None;
        };
        Self::start_on(&layers, &desktop)
    }

    fn start_on(layers: &str, desktop: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("temporary directory");
        for name in ["fs", "channel"] {
            std::fs::create_dir(directory.path().join(name)).expect("directory");
        }
        let probe = Command::new("unshare").args(["-m", "-p", "-n", "-u", "-i", "-f", "true"]).output();
        if !probe.as_ref().is_ok_and(|out| out.status.success()) {
            println!("skipped: namespaces cannot be made here ({probe:?})");
            return None;
        }
        let log = std::fs::File::create(directory.path().join("console")).expect("console file");
        let process = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--net",
                "--uts",
                "--ipc",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                SETUP,
                "setup",
            ])
            .arg(directory.path())
            .args([env!("CARGO_BIN_EXE_polydev-agent"), layers, desktop])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("console"))
            .stderr(log)
            .spawn()
            .expect("unshare");
        Some(Self { process, directory })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("channel/agent.sock")
    }

    /// Connects and says hello.
    pub(crate) async fn connect(&self) -> Client {
        let connected = tokio::time::timeout(LIMIT, async {
            loop {
                if let Ok(client) = Client::connect(&self.socket()).await {
                    return client;
                }
                tokio::task::yield_now().await;
            }
        });
        match connected.await {
            Ok(client) => client,
            Err(_) => panic!("the agent did not come up:\n{}", self.console()),
        }
    }

    pub(crate) fn console(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("console")).unwrap_or_default()
    }

    /// A process inside, as this machine sees it.
    fn agent_pid(&self) -> String {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        std::fs::read_to_string(children).expect("children of unshare").trim().to_owned()
    }

    /// The guest's network namespace, as `/proc/PID/ns/net` names it.
    pub(crate) fn network(&self) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/ns/net", self.agent_pid())).expect("namespace")
    }

    /// Kills the process inside whose command line has `pattern` and which is no helper of another.
    pub(crate) fn kill(&self, pattern: &str) {
        const FIND: &str = r#"for p in /proc/[0-9]*; do
            words=$(tr '\0' ' ' < "$p/cmdline" 2>/dev/null) || continue
            test "$(readlink "$p/ns/net")" = "$1" || continue
            echo "$words" | grep -q "$2" && ! echo "$words" | grep -q type= && echo "${p#/proc/}"
        done"#;
        let network = self.network();
        let found = Command::new("sh").args(["-c", FIND, "find"]).arg(network).arg(pattern).output();
        let found = found.expect("sh");
        let pids = String::from_utf8_lossy(&found.stdout);
        assert!(!pids.trim().is_empty(), "nothing inside is {pattern}");
        for pid in pids.split_whitespace() {
            // One may have ended with another.
            let _ = Command::new("kill").args(["-9", pid]).status();
        }
    }

    /// The guest's root directory, reachable from here.
    pub(crate) fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.agent_pid()))
    }

    /// Waits until the whole guest is gone.
    pub(crate) async fn ended(&mut self) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        while self.process.try_wait().expect("wait").is_none() {
            assert!(tokio::time::Instant::now() < deadline, "the guest did not end:\n{}", self.console());
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "console of the guest:\n{}", self.console());
        }
    }
}
