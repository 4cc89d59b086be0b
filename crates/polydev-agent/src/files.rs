//! Files of the CLI user, written and read on the host's behalf.
//!
//! The agent is root and the home is not: every path is opened beneath the home with no link followed, so nothing the
//! user's programs do there can steer a read or a write elsewhere.

use std::{
    collections::HashSet,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path},
};

use polydev_core::{
    guest::CLI_USER,
    wire::{
        ErrorCode, FileGet, FilePut, FileRead, Refusal,
        files::{FileBytes, MAX_FILE, MAX_FILES},
    },
};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Uid};
use zeroize::Zeroizing;

use crate::control::{refuse, refuse_os};

/// Writes all files or none.
pub(crate) fn put(files: &[FilePut]) -> Result<(), Refusal> {
    put_beneath(Path::new(CLI_USER.home), files)
}

/// Reads files; absent optional ones are left out.
pub(crate) fn get(files: &[FileGet]) -> Result<Vec<FileRead>, Refusal> {
    if files.len() > MAX_FILES {
        return Err(refuse(ErrorCode::BadRequest, "too many files"));
    }
    let mut read = Vec::new();
    for file in files {
        match read_beneath(Path::new(CLI_USER.home), &file.path) {
            Ok((mode, data)) => read.push(FileRead { path: file.path.clone(), mode, data: FileBytes(data) }),
            Err(refusal) if file.optional && refusal.code == ErrorCode::NotFound => {}
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(read)
}

/// A regular file's permission bits and content.
pub(crate) fn read_beneath(home: &Path, path: &str) -> Result<(u32, Zeroizing<Vec<u8>>), Refusal> {
    check_path(path)?;
    let home = open_home(home)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open_at(&home, path, flags).map_err(|error| refuse_os(path, &error))?;
    let status = rustix::fs::fstat(&file).map_err(|error| refuse_os(path, &error.into()))?;
    if rustix::fs::FileType::from_raw_mode(status.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(refuse(ErrorCode::BadRequest, format_args!("{path} is no regular file")));
    }
    // One spare byte shows a file that is over the limit; room for all of it, since growing would leave copies.
    let mut data = Zeroizing::new(Vec::with_capacity(MAX_FILE + 1));
    let limit = u64::try_from(MAX_FILE + 1).unwrap_or(u64::MAX);
    std::fs::File::from(file).take(limit).read_to_end(&mut data).map_err(|error| refuse_os(path, &error))?;
    if data.len() > MAX_FILE {
        return Err(refuse(
            ErrorCode::BadRequest,
            format_args!("{path} is over the limit of {MAX_FILE} bytes"),
        ));
    }
    Ok((status.st_mode & 0o7777, data))
}

fn put_beneath(home: &Path, files: &[FilePut]) -> Result<(), Refusal> {
    let mut names = HashSet::new();
    for file in files {
        check_path(&file.path)?;
        let mode_is_sound = file.mode & !0o777 == 0;
        if files.len() > MAX_FILES
            || file.data.0.len() > MAX_FILE
            || !mode_is_sound
            || !names.insert(&file.path)
        {
            return Err(refuse(
                ErrorCode::BadRequest,
                "too many or too large files, a bad mode or a path given twice",
            ));
        }
    }
    let root = open_home(home)?;
    let mut staged: Vec<Staged> = Vec::new();
    let outcome = (|| {
        for (index, file) in files.iter().enumerate() {
            let merged = (!file.merge_json.is_empty()).then(|| merge(home, file)).transpose()?;
            let data = merged.as_ref().unwrap_or(&file.data.0);
            staged.push(stage(&root, file, index, data).map_err(|error| refuse_os(&file.path, &error))?);
        }
        for index in 0..staged.len() {
            if let Err(error) = staged[index].swap_in() {
                for done in &mut staged[..index] {
                    done.swap_back();
                }
                return Err(refuse_os(&files[index].path, &error.into()));
            }
        }
        Ok(())
    })();
    for file in &staged {
        // The staged file, or what it replaced.
        let _ = rustix::fs::unlinkat(&file.directory, &file.staged_as, AtFlags::empty());
        let _ = rustix::fs::fsync(&file.directory);
    }
    outcome
}

/// A file that is complete beside its target.
struct Staged {
    directory: OwnedFd,
    staged_as: String,
    name: String,
    replaced: bool,
}

impl Staged {
    fn swap_in(&mut self) -> rustix::io::Result<()> {
        self.replaced = match self.rename(RenameFlags::EXCHANGE) {
            Err(rustix::io::Errno::NOENT) => {
                self.rename(RenameFlags::NOREPLACE)?;
                false
            }
            other => {
                other?;
                true
            }
        };
        Ok(())
    }

    fn swap_back(&mut self) {
        let _ = if self.replaced {
            self.rename(RenameFlags::EXCHANGE)
        } else {
            rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty())
        };
    }

    fn rename(&self, flags: RenameFlags) -> rustix::io::Result<()> {
        rustix::fs::renameat_with(&self.directory, &self.staged_as, &self.directory, &self.name, flags)
    }
}

fn stage(root: &OwnedFd, file: &FilePut, index: usize, data: &[u8]) -> io::Result<Staged> {
    let path = Path::new(&file.path);
    let name = path.file_name().and_then(|n| n.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    let directory = open_parents(root, path.parent().unwrap_or(Path::new("")))?;
    match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(status) if rustix::fs::FileType::from_raw_mode(status.st_mode).is_dir() => {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(_) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let staged_as = format!(".polydev-{}-{index}", std::process::id());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Left over from an agent that was cut short.
    let _ = rustix::fs::unlinkat(&directory, &staged_as, AtFlags::empty());
    let fd = rustix::fs::openat(&directory, &staged_as, flags, Mode::from_raw_mode(0o600))?;
    let staged = Staged { directory, staged_as, name: name.to_owned(), replaced: false };
    let written = (|| {
        let mut out = std::fs::File::from(fd);
        out.write_all(data)?;
        own(out.as_fd())?;
        rustix::fs::fchmod(&out, Mode::from_raw_mode(file.mode))?;
        out.sync_all()
    })();
    if let Err(error) = written {
        let _ = rustix::fs::unlinkat(&staged.directory, &staged.staged_as, AtFlags::empty());
        return Err(error);
    }
    Ok(staged)
}

/// Opens a directory beneath the root, making what is missing.
fn open_parents(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut current = open_at(root, ".", flags)?;
    for part in path.components() {
        let Component::Normal(part) = part else { return Err(io::ErrorKind::InvalidInput.into()) };
        match rustix::fs::mkdirat(&current, part, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                current = open_at(&current, part, flags)?;
                own(current.as_fd())?;
            }
            Err(rustix::io::Errno::EXIST) => current = open_at(&current, part, flags)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(current)
}

fn own(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        rustix::fs::fchown(fd, Some(Uid::from_raw(CLI_USER.uid)), Some(Gid::from_raw(CLI_USER.gid)))?;
    }
    Ok(())
}

fn open_home(home: &Path) -> Result<OwnedFd, Refusal> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(home, flags, Mode::empty())
        .map_err(|error| refuse_os("the home directory", &error.into()))
}

fn open_at(root: &OwnedFd, path: impl rustix::path::Arg, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?)
}

fn check_path(path: &str) -> Result<(), Refusal> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let bad = path.is_empty() || path.len() > 1024 || path.contains('\0') || path.ends_with('/') || !plain;
    if bad {
        Err(refuse(ErrorCode::BadRequest, "a path must be relative to the home, without `..`"))
    } else {
        Ok(())
    }
}

/// What is there, with the named pointers taken over from the new document.
fn merge(home: &Path, file: &FilePut) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let bad = |what: &str| refuse(ErrorCode::BadRequest, format_args!("{}: {what}", file.path));
    let mut current: serde_json::Value = match read_beneath(home, &file.path) {
        Ok((_, data)) if data.trim_ascii().is_empty() => serde_json::json!({}),
        Ok((_, data)) => serde_json::from_slice(&data).map_err(|_| bad("what is there is not JSON"))?,
        Err(refusal) if refusal.code == ErrorCode::NotFound => serde_json::json!({}),
        Err(refusal) => return Err(refusal),
    };
    let new: serde_json::Value =
        serde_json::from_slice(&file.data.0).map_err(|_| bad("the new content is not JSON"))?;
    for pointer in &file.merge_json {
        let value = new.pointer(pointer).ok_or_else(|| bad("a pointer leads nowhere in the new content"))?;
        let mut place = &mut current;
        for key in pointer.split('/').skip(1) {
            let key = key.replace("~1", "/").replace("~0", "~");
            let object = place
                .as_object_mut()
                .ok_or_else(|| bad("a pointer leads through something not an object"))?;
            place = object.entry(key).or_insert_with(|| serde_json::json!({}));
        }
        *place = value.clone();
    }
    let merged = serde_json::to_vec_pretty(&current).map_err(|_| bad("cannot be written as JSON"))?;
    Ok(Zeroizing::new(merged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn file(path: &str, data: &[u8]) -> FilePut {
        FilePut { path: path.into(), mode: 0o600, data: FileBytes::new(data.to_vec()), merge_json: vec![] }
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_missing_directories_are_private() {
        let home = tempfile::tempdir().unwrap();
        put_beneath(home.path(), &[file(".config/tool/auth.json", b"one")]).unwrap();
        put_beneath(home.path(), &[file(".config/tool/auth.json", b"two")]).unwrap();
        let (mode, data) = read_beneath(home.path(), ".config/tool/auth.json").unwrap();
        assert_eq!((mode, data.as_slice()), (0o600, b"two".as_slice()));
        let parent = std::fs::metadata(home.path().join(".config/tool")).unwrap();
        assert_eq!(parent.permissions().mode() & 0o777, 0o700);
        assert_eq!(
            std::fs::read_dir(home.path().join(".config/tool")).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn links_and_dots_never_lead_out_of_the_home() {
        let outside = tempfile::tempdir().unwrap();
        let home = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "FAKE").unwrap();
        symlink(outside.path(), home.path().join("link")).unwrap();
        symlink(outside.path().join("secret"), home.path().join("file-link")).unwrap();
        for path in ["link/secret", "file-link", "../x", "/etc/passwd", "a/../../x", "", "a/"] {
            assert!(read_beneath(home.path(), path).is_err(), "{path}");
            assert!(path == "file-link" || put_beneath(home.path(), &[file(path, b"x")]).is_err(), "{path}");
        }
        // Writing to a link replaces the link, not what it points to.
        put_beneath(home.path(), &[file("file-link", b"x")]).unwrap();
        assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"FAKE");
    }

    #[test]
    fn when_one_file_cannot_be_written_none_is() {
        let home = tempfile::tempdir().unwrap();
        put_beneath(home.path(), &[file("a", b"old")]).unwrap();
        std::fs::create_dir(home.path().join("b")).unwrap();
        assert!(
            put_beneath(home.path(), &[file("a", b"new"), file("c", b"new"), file("b", b"new")]).is_err()
        );
        assert_eq!(read_beneath(home.path(), "a").unwrap().1.as_slice(), b"old");
        assert_eq!(read_beneath(home.path(), "c").unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 2);
    }

    #[test]
    fn merging_changes_the_named_pointers_only() {
        let home = tempfile::tempdir().unwrap();
        put_beneath(home.path(), &[file("s.json", br#"{"keep":1,"a":{"b":"old","keep":2}}"#)]).unwrap();
        let mut put = file("s.json", br#"{"keep":9,"a":{"b":"new"},"c":{"d":[1]}}"#);
        put.merge_json = vec!["/a/b".into(), "/c/d".into()];
        put_beneath(home.path(), &[put]).unwrap();
        let merged: serde_json::Value =
            serde_json::from_slice(&read_beneath(home.path(), "s.json").unwrap().1).unwrap();
        assert_eq!(merged, serde_json::json!({"keep":1,"a":{"b":"new","keep":2},"c":{"d":[1]}}));
    }

    #[test]
    fn devices_and_oversized_files_are_not_read() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("big"), vec![0; MAX_FILE + 1]).unwrap();
        assert_eq!(read_beneath(home.path(), "big").unwrap_err().code, ErrorCode::BadRequest);
        std::fs::create_dir(home.path().join("dir")).unwrap();
        assert_eq!(read_beneath(home.path(), "dir").unwrap_err().code, ErrorCode::BadRequest);
    }
}
