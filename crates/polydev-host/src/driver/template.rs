//! What the templates of all drivers have in common: how the VM that one is made of comes to rest, its network, and which
//! templates are kept.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use polydev_core::ids::VmId;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::Places;
use crate::{config::NetworkMode, error::HostError, net::Scratch, snapshot};

/// At rest: less than this share of the time is spent executing the guest.
const REST_SHARE: f64 = 0.25;
/// What the names of Firecracker's templates begin with; QEMU's have nothing before the key.
pub(super) const FIRECRACKER: &str = "firecracker-";
/// Templates kept; older ones are those of earlier builds.
const KEPT: usize = 2;

/// How long a guest may take to come to rest, and how long it has to be at rest.
pub(super) struct Rest {
    pub(super) limit: Duration,
    pub(super) interval: Duration,
}

impl Rest {
    /// Waits until the guest has little left to do; what it would do later, every restored VM would do. `cpu` tells the
    /// time spent executing it so far.
    pub(super) async fn wait(&self, id: VmId, cpu: impl Fn() -> Duration) {
        let deadline = Instant::now() + self.limit;
        while Instant::now() < deadline {
            let before = cpu();
            sleep(self.interval).await;
            if cpu().saturating_sub(before).as_secs_f64() < self.interval.as_secs_f64() * REST_SHARE {
                return;
            }
        }
        tracing::info!(vm.id = %id, "guest did not come to rest; its template is saved all the same");
    }
}

/// The network that the VM of a template sees; it ends with the value.
pub(super) async fn network(
    places: &Places,
    mode: NetworkMode,
    id: VmId,
) -> Result<Option<Scratch>, HostError> {
    match mode {
        NetworkMode::Channel => Ok(None),
        NetworkMode::Tap => {
            let made = Scratch::open(&places.run, &format!("template-{id}")).await;
            made.map(Some).map_err(|error| HostError::NoNetwork { id, reason: error.to_string() })
        }
    }
}

/// A name that stands for everything a template depends on.
pub(super) fn name(key: &Value) -> String {
    let digest = Sha256::digest(key.to_string());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Removes what earlier builds of one driver left beside its newest template. `ours` tells a driver's templates by name.
pub(super) fn forget_old(newest: &Path, ours: impl Fn(&str) -> bool) -> Result<(), HostError> {
    let Some(dir) = newest.parent() else { return Ok(()) };
    let op = || format!("remove old templates in {}", dir.display());
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).map_err(HostError::os(op()))? {
        let entry = entry.map_err(HostError::os(op()))?;
        if ours(&entry.file_name().to_string_lossy()) && entry.path() != newest {
            let modified = entry.metadata().and_then(|it| it.modified()).map_err(HostError::os(op()))?;
            all.push((modified, entry.path()));
        }
    }
    all.sort();
    let surplus = (all.len() + 1).saturating_sub(KEPT);
    // VMs that run on a removed memory file keep it until they end.
    all.into_iter().take(surplus).try_for_each(|(_, path)| remove(&path))
}

/// Removes a template, or what became of one; none is fine.
pub(super) fn remove(dir: &Path) -> Result<(), HostError> {
    snapshot::remove(dir).map_err(HostError::os(format!("remove {}", dir.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drivers_oldest_templates_go_and_anothers_stay() {
        let dir = tempfile::tempdir().unwrap();
        for (age, name) in ["other-1", "own-1", "own-2", "own-3"].iter().enumerate() {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            let then = std::time::UNIX_EPOCH + Duration::from_secs(age as u64);
            fs::File::open(&path).unwrap().set_modified(then).unwrap();
        }
        forget_old(&dir.path().join("own-3"), |name| name.starts_with("own-")).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["other-1", "own-2", "own-3"]);
    }
}
