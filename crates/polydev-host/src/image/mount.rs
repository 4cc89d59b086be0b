//! Mounts of a build. They live in a private mount namespace of the build's threads and are gone with them, however the build ends.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::command::Runner;
use super::error::{ImageError, IoContext};
use crate::mounts;

/// Runs `work` on a thread with its own mount namespace; threads it starts share that namespace.
pub(crate) fn in_private_namespace<T: Send>(
    work: impl FnOnce() -> Result<T, ImageError> + Send,
) -> Result<T, ImageError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: a new mount namespace (and with it own root and working directory) for this thread alone; descriptors and memory stay shared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
                .or_io("leave the mount namespace at", Path::new("/"))?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).or_io("make private", Path::new("/"))?;
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A mount that is undone when dropped.
#[derive(Debug)]
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// Mounts a layer file read-only.
    pub(crate) fn erofs(runner: &Runner<'_>, file: &Path, at: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(at).or_io("create", at)?;
        let what = format!("mounting {}", file.display());
        runner.run(
            "image",
            &what,
            runner.offline("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(file).arg(at),
        )?;
        Ok(Self(at.to_owned()))
    }

    /// Stacks `lower` (topmost first); `upper` is a directory with `up` and `work`, or absent for a read-only union.
    pub(crate) fn overlay(lower: &[&Path], upper: Option<&Path>, at: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(at).or_io("create", at)?;
        let joined: Vec<_> = lower.iter().map(|path| path.to_string_lossy()).collect();
        let mut options = format!("lowerdir={}", joined.join(":"));
        if let Some(dir) = upper {
            let (up, work) = (dir.join("up"), dir.join("work"));
            fs::create_dir_all(&up).or_io("create", &up)?;
            fs::create_dir_all(&work).or_io("create", &work)?;
            // Without these features every change is a plain file, so the upper directory can become a layer.
            options += &format!(
                ",upperdir={},workdir={},redirect_dir=off,metacopy=off,index=off",
                up.display(),
                work.display()
            );
        }
        Self::new("overlay", at, &options)
    }

    /// Mounts a fresh tmpfs.
    pub(crate) fn tmpfs(at: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(at).or_io("create", at)?;
        Self::new("tmpfs", at, "mode=0755")
    }

    /// Shows `source` at `at`.
    pub(crate) fn bind(source: &Path, at: &Path) -> Result<Self, ImageError> {
        rustix::mount::mount_bind(source, at).or_io("bind-mount", at)?;
        Ok(Self(at.to_owned()))
    }

    fn new(kind: &str, at: &Path, options: &str) -> Result<Self, ImageError> {
        let text = std::ffi::CString::new(options).map_err(|e| ImageError::io("mount", at, e))?;
        mount(kind, at, kind, MountFlags::empty(), text.as_c_str()).or_io("mount", at)?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            tracing::warn!(path = %self.0.display(), %error, "cannot unmount");
        }
    }
}

/// Removes a scratch directory, refusing to descend into anything still mounted below it.
pub(crate) fn remove_scratch(dir: &Path) -> Result<(), ImageError> {
    if !dir.exists() {
        return Ok(());
    }
    for point in mounts::under(dir).or_io("read the mount table for", dir)? {
        unmount(&point, UnmountFlags::DETACH).or_io("unmount", &point)?;
    }
    fs::remove_dir_all(dir).or_io("remove", dir)
}
