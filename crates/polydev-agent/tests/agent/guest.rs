//! Starts the agent in namespaces of its own, on a throw-away copy of this machine's root.

use std::{
    io::Write,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::client::Client;

/// Most time anything in these tests may take.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Sets the new root up and becomes the agent. `$1` is the test's directory, `$2` the agent's executable.
const SETUP: &str = r#"
set -e
mount -t tmpfs guest "$1/fs"
mkdir "$1/fs/upper" "$1/fs/work" "$1/fs/root"
mount -t overlay guest -o "lowerdir=/,upperdir=$1/fs/upper,workdir=$1/fs/work" "$1/fs/root"
root="$1/fs/root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs run "$root/run"
mount -t tmpfs -o size=8m home "$root/home"
mkdir -p "$root/run/polydev/channel" "$root/home/dev"
chown 1000:1000 "$root/home/dev"
cp "$2" "$root/run/polydev/polydev-agent"
mount --bind "$1/channel" "$root/run/polydev/channel"
exec env -i PATH="$PATH" chroot "$root" /run/polydev/polydev-agent --container
"#;

/// A running guest; ended when dropped.
pub struct Guest {
    process: Child,
    directory: tempfile::TempDir,
}

impl Guest {
    /// `None`, with the reason printed, where namespaces cannot be made.
    pub fn start() -> Option<Self> {
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
            .args(["--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "sh", "-c", SETUP, "setup"])
            .arg(directory.path())
            .arg(env!("CARGO_BIN_EXE_polydev-agent"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("console"))
            .stderr(log)
            .spawn()
            .expect("unshare");
        Some(Self { process, directory })
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("channel/agent.sock")
    }

    /// Connects and says hello.
    pub async fn connect(&self) -> Client {
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

    pub fn console(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("console")).unwrap_or_default()
    }

    /// Waits until the whole guest is gone.
    pub async fn ended(&mut self) {
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
