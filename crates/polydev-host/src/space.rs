//! Room on the host's disks. Whoever is about to write something large asks here first: a disk that is full takes the
//! database and every VM's log with it.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::statvfs;

use crate::error::{HostError, Room};

/// What has been let through and is being written. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Promised(Arc<AtomicU64>);

/// Bytes that somebody may write; dropping it says that they are written or will not be.
#[derive(Debug)]
#[must_use]
pub(crate) struct Promise {
    of: Promised,
    bytes: u64,
}

impl Promised {
    /// Lets a write through for which there is room beside all others that have been. What others have written already
    /// counts twice until they are done: on a disk that gets full one too many is refused rather than one too few.
    pub(crate) fn room(
        &self,
        dir: &Path,
        bytes: u64,
        reserve_bytes: u64,
        what: &str,
    ) -> Result<Promise, HostError> {
        let others = self.0.fetch_add(bytes, Ordering::Relaxed);
        let promise = Promise { of: self.clone(), bytes };
        check(dir, bytes, reserve_bytes.saturating_add(others), what)?;
        Ok(promise)
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Refuses a write of `bytes` that would leave less than `reserve_bytes` on the disk `dir` is or will be on.
pub(crate) fn check(dir: &Path, bytes: u64, reserve_bytes: u64, what: &str) -> Result<(), HostError> {
    let free_bytes = free(dir).map_err(HostError::os(format!("look at the disk of {}", dir.display())))?;
    if free_bytes >= bytes.saturating_add(reserve_bytes) {
        return Ok(());
    }
    let room = Room {
        wanted_mib: bytes.div_ceil(1 << 20),
        free_mib: free_bytes >> 20,
        reserve_mib: reserve_bytes >> 20,
    };
    Err(HostError::NoSpace { what: format!("{what} in {}", dir.display()), room: Some(room) })
}

/// Bytes that are free on the disk of a directory or of its nearest parent that exists. Blocks that a file system keeps
/// for root do not count: a VMM in a jail may not use them, nor a controller without privileges.
pub(crate) fn free(dir: &Path) -> io::Result<u64> {
    let mut dir = dir;
    loop {
        match statvfs(dir) {
            Ok(disk) => return Ok(disk.f_bavail.saturating_mul(disk.f_frsize)),
            Err(rustix::io::Errno::NOENT) => dir = dir.parent().ok_or(io::ErrorKind::NotFound)?,
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_that_begin_together_have_room_together() {
        let dir = tempfile::tempdir().unwrap();
        let promised = Promised::default();
        let most = free(dir.path()).unwrap() / 3 * 2;
        let room = || promised.room(dir.path(), most, 0, "a template");
        let first = room().unwrap();
        assert!(matches!(room(), Err(HostError::NoSpace { .. })), "two thirds and two thirds");
        drop(first);
        drop(room().expect("the first is done, and the second was not let through"));
        assert_eq!(promised.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_write_that_fits_above_the_reserve_is_let_through_and_another_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let there = free(dir.path()).unwrap();
        assert!(there > 0);
        check(dir.path(), 1, 0, "a byte").unwrap();
        // Others write to this disk too: ask for far more than is there.
        let error = check(&dir.path().join("not/yet"), 1 << 20, there * 2, "a template").unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, HostError::NoSpace { room: Some(Room { wanted_mib: 1, .. }), .. }), "{text}");
        assert!(text.contains("a template") && text.contains("it takes 1 MiB"), "{text}");
        assert!(check(dir.path(), u64::MAX, 1, "everything").is_err());
    }
}
