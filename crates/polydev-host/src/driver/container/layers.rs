//! The image's layers, mounted once per host and shared by all its containers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::mount::{UnmountFlags, unmount};

use crate::{error::HostError, golden::Layer, mounts};

/// Mount points under the host's run directory. They stay while VMs come and go, so that the page cache stays warm;
/// a host that ends without VMs takes them along, and a later one finds and uses what was left.
pub(super) struct Layers {
    run: PathBuf,
    mounting: tokio::sync::Mutex<()>,
}

impl Layers {
    pub(super) fn new(run: PathBuf) -> Self {
        Self { run, mounting: tokio::sync::Mutex::new(()) }
    }

    /// The mount points of `layers`, in that order.
    pub(super) async fn mount_all(&self, layers: &[Layer]) -> Result<Vec<PathBuf>, HostError> {
        // Only one task may look and mount, or a layer is mounted twice.
        let _mounting = self.mounting.lock().await;
        let dir = self.run.join("layers");
        let mounted = mounts::under(&dir).map_err(HostError::os("read the mount table"))?;
        let mut points = Vec::new();
        for layer in layers {
            let point = dir.join(&layer.sha256[..16]);
            if !mounted.contains(&point) {
                fs::create_dir_all(&point).map_err(HostError::os(format!("make {}", point.display())))?;
                mounts::erofs(&layer.path, &point).await?;
            }
            points.push(point);
        }
        Ok(points)
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        sweep(&self.run);
    }
}

/// Unmounts all layers if no VM is left. Returns what it removed.
fn sweep(run: &Path) {
    let no_vms = fs::read_dir(run.join("vm")).map_or(true, |mut vms| vms.next().is_none());
    let dir = run.join("layers");
    if !no_vms || !dir.exists() {
        return;
    }
    for point in mounts::under(&dir).unwrap_or_default() {
        if let Err(error) = unmount(&point, UnmountFlags::NOFOLLOW) {
            tracing::warn!(point = %point.display(), %error, "layer cannot be unmounted");
        }
    }
    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
        // Not recursive: what is still mounted must not be touched.
        let _ = fs::remove_dir(entry.path());
    }
    let _ = fs::remove_dir(&dir);
}
