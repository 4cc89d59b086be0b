//! Stops all processes of a control group and lets them go on: `freezer.state` of cgroups(7) version 1, `cgroup.freeze`
//! of version 2.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::time::sleep;

/// How long the kernel may take to stop all processes.
const LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// The one group of several hierarchies that can be frozen.
#[derive(Debug)]
pub(crate) enum Freezer {
    V1(PathBuf),
    V2(PathBuf),
}

impl Freezer {
    /// Among a container's groups. On a hybrid host the unified one could be frozen, too: one of them is used always.
    pub(crate) fn of(groups: &[PathBuf]) -> Option<Self> {
        let with = |name: &str| groups.iter().find(|group| group.join(name).exists()).cloned();
        with("freezer.state").map(Self::V1).or_else(|| with("cgroup.freeze").map(Self::V2))
    }

    /// Stops them; returns when all have stopped. When that takes too long they go on.
    pub(crate) async fn freeze(&self) -> io::Result<()> {
        let deadline = Instant::now() + LIMIT;
        self.set(true)?;
        while !self.is_frozen() {
            if Instant::now() >= deadline {
                self.set(false)?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the processes do not stop"));
            }
            sleep(POLL).await;
            // Version 1 may stay half-way until it is told once more.
            if matches!(self, Self::V1(_)) {
                self.set(true)?;
            }
        }
        Ok(())
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        self.set(false)
    }

    pub(crate) fn is_frozen(&self) -> bool {
        let read = |dir: &Path, name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        match self {
            Self::V1(dir) => read(dir, "freezer.state").trim() == "FROZEN",
            Self::V2(dir) => read(dir, "cgroup.events").lines().any(|line| line == "frozen 1"),
        }
    }

    fn set(&self, frozen: bool) -> io::Result<()> {
        match (self, frozen) {
            (Self::V1(dir), true) => fs::write(dir.join("freezer.state"), "FROZEN"),
            (Self::V1(dir), false) => fs::write(dir.join("freezer.state"), "THAWED"),
            (Self::V2(dir), true) => fs::write(dir.join("cgroup.freeze"), "1"),
            (Self::V2(dir), false) => fs::write(dir.join("cgroup.freeze"), "0"),
        }
    }
}
