//! A lock that keeps a second process off something, and says whose it is.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    path::Path,
};

use crate::error::HostError;

/// Held until it is dropped; the kernel lets go of it whatever happens to the process.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "its lock lives as long as it is open")] File);

impl Hold {
    /// Keeps a second host off a run directory, whatever socket it listens on.
    pub fn of_run_dir(dir: &Path) -> Result<Self, HostError> {
        // Named otherwise than the lock of `host.sock`, which may lie there, too.
        fs::create_dir_all(dir).map_err(HostError::os(format!("make {}", dir.display())))?;
        Self::take(&dir.join("run.lock"), &dir.display().to_string())
    }

    /// Takes the lock `file`, which is about `what`, or names the process that has it.
    pub fn take(file: &Path, what: &str) -> Result<Self, HostError> {
        let os = |op: &str| HostError::os(format!("{op} {}", file.display()));
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(file);
        let mut lock = opened.map_err(os("open"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let read = lock.read_to_string(&mut text);
                let pid = read.ok().and_then(|_| text.trim().parse().ok());
                return Err(HostError::Held { what: what.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(os("lock")(error)),
        }
        let noted = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        noted.map_err(os("write"))?;
        Ok(Self(lock))
    }
}
