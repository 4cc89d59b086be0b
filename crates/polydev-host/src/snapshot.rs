//! A VM's saved memory and device state: a directory of two files and their description, which is written last.
//!
//! Memory that a VM was restored from backs that VM for its whole life: it is never written to again while more than one
//! name or VM may use it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use rustix::fs::{SeekFrom, seek};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::record::write_durably;

/// Device state.
pub(crate) const DEVICES: &str = "devices.state";
/// Guest memory.
pub(crate) const MEMORY: &str = "memory";
const ABOUT: &str = "snapshot.json";
const SCHEMA: u32 = 2;
/// Bytes copied at once when a layer is merged.
const CHUNK: usize = 1 << 20;

/// A snapshot's description.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    schema: u32,
    /// Size of the desktop that it shows, if it has one.
    pub(crate) desktop_px: Option<(u16, u16)>,
    devices_sha256: String,
    memory_bytes: u64,
    /// Tells whether anything wrote to the memory since; hashing gigabytes at each start would take too long.
    memory_modified_ns: i128,
}

/// Puts both files on stable storage and describes them.
pub(crate) fn describe(dir: &Path, desktop_px: Option<(u16, u16)>) -> io::Result<()> {
    let memory = File::open(dir.join(MEMORY))?;
    memory.sync_all()?;
    File::open(dir.join(DEVICES))?.sync_all()?;
    let (memory_bytes, memory_modified_ns) = stamp(&memory.metadata()?);
    let devices_sha256 = digest(&dir.join(DEVICES))?;
    let about = About { schema: SCHEMA, desktop_px, devices_sha256, memory_bytes, memory_modified_ns };
    write_durably(&dir.join(ABOUT), &serde_json::to_vec(&about)?)
}

/// The description, if the files are what it says; otherwise why not, in words.
pub(crate) fn check(dir: &Path) -> Result<About, String> {
    let words = |error: io::Error| error.to_string();
    let bytes = fs::read(dir.join(ABOUT)).map_err(words)?;
    let about: About = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let stamped = stamp(&fs::metadata(dir.join(MEMORY)).map_err(words)?);
    if about.schema != SCHEMA {
        return Err("of another version".to_owned());
    }
    if (about.memory_bytes, about.memory_modified_ns) != stamped {
        return Err("its memory was written to".to_owned());
    }
    if digest(&dir.join(DEVICES)).map_err(words)? != about.devices_sha256 {
        return Err("its device state is another".to_owned());
    }
    Ok(about)
}

/// Removes a snapshot, or what became of one; none is fine.
pub(crate) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a file; none is fine.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes the description away: until there is a new one, the snapshot is not used.
pub(crate) fn forget(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(ABOUT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::open(dir)?.sync_all()
}

/// Writes the pages that a diff snapshot holds onto a memory file that nothing else uses. A file with a second name
/// is refused: it may be the memory of a sibling.
pub(crate) fn merge(diff: &Path, onto: &Path) -> io::Result<()> {
    let (diff, onto) = (File::open(diff)?, File::options().write(true).open(onto)?);
    if onto.metadata()?.nlink() != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the memory file has other names"));
    }
    let len = diff.metadata()?.len();
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let begin = match seek(&diff, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole is left.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(&diff, SeekFrom::Hole(begin))?.min(len);
        at = begin;
        while at < end {
            let count = CHUNK.min(usize::try_from(end - at).unwrap_or(CHUNK));
            diff.read_exact_at(&mut chunk[..count], at)?;
            onto.write_all_at(&chunk[..count], at)?;
            at += count as u64;
        }
    }
    onto.sync_all()
}

fn stamp(file: &fs::Metadata) -> (u64, i128) {
    (file.len(), i128::from(file.mtime()) * 1_000_000_000 + i128::from(file.mtime_nsec()))
}

fn digest(path: &Path) -> io::Result<String> {
    Ok(Sha256::digest(fs::read(path)?).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_snapshot_that_anything_wrote_to_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let make = || {
            fs::write(path(MEMORY), "memory").unwrap();
            fs::write(path(DEVICES), "devices").unwrap();
            describe(dir.path(), Some((800, 600))).unwrap();
        };
        make();
        assert_eq!(check(dir.path()).unwrap().desktop_px, Some((800, 600)));
        fs::write(path(DEVICES), "Devices").unwrap();
        check(dir.path()).unwrap_err();
        make();
        let later = fs::metadata(path(MEMORY)).unwrap().modified().unwrap() + Duration::from_millis(1);
        File::open(path(MEMORY)).unwrap().set_modified(later).unwrap();
        check(dir.path()).unwrap_err();
        make();
        fs::write(path(ABOUT), "{").unwrap();
        check(dir.path()).unwrap_err();
        fs::remove_file(path(ABOUT)).unwrap();
        check(dir.path()).unwrap_err();
    }

    #[test]
    fn a_layer_replaces_only_the_pages_it_holds_and_never_a_siblings() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let pages = 64_usize;
        fs::write(path("base"), vec![b'b'; pages * 4096]).unwrap();
        let layer = File::create(path("layer")).unwrap();
        layer.set_len(pages as u64 * 4096).unwrap();
        for page in [3_u64, 4, 40] {
            layer.write_all_at(&[b'd'; 4096], page * 4096).unwrap();
        }
        merge(&path("layer"), &path("base")).unwrap();
        let merged = fs::read(path("base")).unwrap();
        assert_eq!(merged.len(), pages * 4096);
        for (page, bytes) in merged.chunks(4096).enumerate() {
            let expected = if [3, 4, 40].contains(&page) { b'd' } else { b'b' };
            assert!(bytes.iter().all(|byte| *byte == expected), "page {page}");
        }
        fs::hard_link(path("base"), path("sibling")).unwrap();
        assert_eq!(merge(&path("layer"), &path("base")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
