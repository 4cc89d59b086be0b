//! VMs' logs: kept small while they grow, archived when the VM goes, readable in both cases.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use polydev_core::ids::VmId;

use crate::{error::HostError, host::LogKind};

/// All kinds.
pub(crate) const KINDS: [LogKind; 3] = [LogKind::Console, LogKind::Driver, LogKind::Agent];

impl LogKind {
    /// Name of its file.
    pub(crate) const fn file_name(self) -> &'static str {
        match self {
            Self::Console => "console.log",
            Self::Driver => "driver.log",
            Self::Agent => "agent.log",
        }
    }
}

/// Opens a log for a program to append to. It must be opened so: logs are cut while programs write.
pub(crate) fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Moves what is in a log behind what was cut from it before, as much as fits: its next writer begins at its start.
pub(crate) fn set_aside(path: &Path, bytes_max: u64) -> io::Result<()> {
    let said = last_bytes(path, bytes_max)?;
    if said.is_empty() {
        return Ok(());
    }
    let (_, tail) = side_files(path);
    let kept = bytes_max.saturating_sub(said.len() as u64);
    let mut all = if kept == 0 { Vec::new() } else { last_bytes(&tail, kept)? };
    all.extend(said);
    fs::write(tail, all)?;
    fs::remove_file(path)
}

/// Keeps a growing log under `bytes_max`: the first quarter ever written and the last half stay.
pub(crate) fn cut(path: &Path, bytes_max: u64) -> io::Result<()> {
    let len = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if len <= bytes_max {
        return Ok(());
    }
    let (head, tail) = side_files(path);
    if !head.exists() {
        fs::write(&head, read_range(path, 0, bytes_max / 4)?)?;
    }
    fs::write(&tail, read_range(path, len - bytes_max / 2, bytes_max / 2)?)?;
    // The writer's next line starts at the new end, since it appends. Lines written since are lost: it is a cap.
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

/// The end of a log, with what was cut before it.
pub(crate) fn tail(path: &Path, bytes_max: usize) -> io::Result<String> {
    let (_, tail) = side_files(path);
    let limit = bytes_max as u64;
    let mut bytes = last_bytes(&tail, limit)?;
    bytes.extend(last_bytes(path, limit)?);
    let start = bytes.len().saturating_sub(bytes_max);
    Ok(String::from_utf8_lossy(&bytes[start..]).into_owned())
}

/// Copies a VM's logs into the archive, each cut to its first and last bytes.
pub(crate) fn archive(run_dir: &Path, archive: &Path, id: VmId, bytes_max: u64) -> Result<(), HostError> {
    let target = archive.join(id.to_string());
    let copy = || -> io::Result<()> {
        fs::create_dir_all(&target)?;
        for kind in KINDS {
            let from = run_dir.join(kind.file_name());
            let (head, tail) = side_files(&from);
            let mut all = Vec::new();
            for (part, note) in [(&head, ""), (&tail, "\n[... left out ...]\n"), (&from, "")] {
                let bytes = last_bytes(part, bytes_max)?;
                if !bytes.is_empty() {
                    all.extend_from_slice(note.as_bytes());
                    all.extend(bytes);
                }
            }
            if !all.is_empty() {
                write_ends(&target.join(kind.file_name()), &all, bytes_max)?;
            }
        }
        Ok(())
    };
    copy().map_err(HostError::os(format!("archive logs of VM {id}")))
}

/// Removes the oldest archives over the limit.
pub(crate) fn prune(archive: &Path, vms_max: usize) -> io::Result<()> {
    let mut kept: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(archive)? {
        let entry = entry?;
        kept.push((entry.metadata()?.modified()?, entry.path()));
    }
    kept.sort();
    let surplus = kept.len().saturating_sub(vms_max);
    for (_, path) in kept.into_iter().take(surplus) {
        fs::remove_dir_all(path)?;
    }
    Ok(())
}

fn write_ends(path: &Path, bytes: &[u8], bytes_max: u64) -> io::Result<()> {
    let max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    let mut file = File::create(path)?;
    if bytes.len() <= max {
        return file.write_all(bytes);
    }
    file.write_all(&bytes[..max / 2])?;
    file.write_all(b"\n[... left out ...]\n")?;
    file.write_all(&bytes[bytes.len() - max / 2..])
}

fn side_files(path: &Path) -> (PathBuf, PathBuf) {
    (path.with_extension("log.head"), path.with_extension("log.tail"))
}

fn last_bytes(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    match fs::metadata(path) {
        Ok(metadata) => read_range(path, metadata.len().saturating_sub(max), max),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn read_range(path: &Path, from: u64, max: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_grows_for_ever_stays_small_and_keeps_its_first_and_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let (run, kept) = (dir.path().join("run"), dir.path().join("kept"));
        fs::create_dir_all(&run).unwrap();
        let path = run.join("console.log");
        let mut writer = open_append(&path).unwrap();
        for line in 0..5000 {
            writeln!(writer, "line {line}").unwrap();
            cut(&path, 4096).unwrap();
        }
        let on_disk: u64 =
            fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(on_disk < 4096 * 2, "{on_disk}");
        assert!(tail(&path, 1000).unwrap().ends_with("line 4998\nline 4999\n"));

        let id = VmId::from_uuid(uuid::Uuid::new_v4());
        archive(&run, &kept, id, 4096).unwrap();
        let archived = fs::read_to_string(kept.join(id.to_string()).join("console.log")).unwrap();
        assert!(archived.starts_with("line 0\n") && archived.ends_with("line 4999\n"));
        assert!(archived.contains("left out") && archived.len() < 4096 + 100);
    }

    #[test]
    fn a_log_set_aside_is_read_before_what_its_next_writer_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("driver.log");
        set_aside(&path, 100).unwrap();
        for life in ["first\n", "second\n", "third\n"] {
            fs::write(&path, life).unwrap();
            set_aside(&path, 13).unwrap();
            assert!(!path.exists());
        }
        fs::write(&path, "fourth\n").unwrap();
        assert_eq!(tail(&path, 100).unwrap(), "second\nthird\nfourth\n");
    }

    #[test]
    fn the_archive_forgets_its_oldest_vms() {
        let dir = tempfile::tempdir().unwrap();
        for (age_s, name) in [(30, "old"), (20, "middle"), (10, "new")] {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            let then = SystemTime::now() - std::time::Duration::from_secs(age_s);
            File::open(&path).unwrap().set_modified(then).unwrap();
        }
        prune(dir.path(), 2).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["middle", "new"]);
    }
}
