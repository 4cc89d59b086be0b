//! The disk of a user's CLI VM: a sparse ext4 file, for drivers whose guests have disks.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    command::{command, run},
    error::HostError,
};

/// A new user's disk. Sparse: it takes what is written.
const DISK_BYTES: u64 = 16 << 30;
const MKFS_LIMIT: Duration = Duration::from_secs(60);

/// The disk in a user's directory, made on first use.
pub(super) async fn open(dir: &Path) -> Result<PathBuf, HostError> {
    let disk = dir.join("disk.ext4");
    if disk.exists() {
        return Ok(disk);
    }
    let fresh = dir.join("disk.new");
    let allocate = || -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::File::create(&fresh)?.set_len(DISK_BYTES)
    };
    allocate().map_err(HostError::os(format!("make {}", fresh.display())))?;
    let mut mkfs = command("mkfs.ext4");
    mkfs.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]).arg(&fresh);
    run(mkfs, "make the user's file system", MKFS_LIMIT).await?;
    // A disk under its own name is a whole one.
    fs::rename(&fresh, &disk).map_err(HostError::os(format!("make {}", disk.display())))?;
    Ok(disk)
}
