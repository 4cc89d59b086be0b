//! The mounts the host makes, found again in the kernel's own table.

use std::{
    ffi::CString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    command::{command, run},
    error::HostError,
};

const MOUNT_LIMIT: Duration = Duration::from_secs(20);

/// Mounts a read-only erofs image: straight from the file where the kernel can, through a loop device elsewhere.
pub(crate) async fn erofs(image: &Path, target: &Path) -> Result<(), HostError> {
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    match mount(image, target, "erofs", flags, None) {
        Ok(()) => return Ok(()),
        // The kernel's word for "this filesystem wants a block device".
        Err(rustix::io::Errno::NOTBLK) => {}
        Err(error) => return Err(HostError::os(format!("mount layer {}", image.display()))(error)),
    }
    let mut tool = command("mount");
    tool.args(["-t", "erofs", "-o", "ro,loop,nodev,nosuid"]).arg(image).arg(target);
    run(tool, &format!("mount layer {} by loop device", image.display()), MOUNT_LIMIT).await.map(drop)
}

/// Mounts a memory-backed filesystem of limited size.
pub(crate) fn tmpfs(target: &Path, size_mib: u32) -> Result<(), HostError> {
    let options = CString::new(format!("size={size_mib}m,mode=0700")).expect("digits hold no NUL");
    mount("polydev", target, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, options.as_c_str())
        .map_err(HostError::os(format!("mount tmpfs on {}", target.display())))
}

/// Mounts `lowers` (topmost first) under a writable `upper`.
pub(crate) fn overlay(lowers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<(), HostError> {
    let op = || format!("mount overlay on {}", target.display());
    let mut options = b"index=off,lowerdir=".to_vec();
    for (index, lower) in lowers.iter().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        options.extend_from_slice(&option_path(lower).map_err(HostError::os(op()))?);
    }
    for (name, path) in [(&b",upperdir="[..], upper), (b",workdir=", work)] {
        options.extend_from_slice(name);
        options.extend_from_slice(&option_path(path).map_err(HostError::os(op()))?);
    }
    let options = CString::new(options).map_err(|error| HostError::os(op())(io::Error::other(error)))?;
    mount("polydev", target, "overlay", MountFlags::empty(), options.as_c_str()).map_err(HostError::os(op()))
}

/// Mount points at or below `dir` as this thread sees them, deepest first.
pub(crate) fn under(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/thread-self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(mount_point)
        .filter(|point| point.starts_with(dir))
        .collect();
    // Later lines lie on top of or below earlier ones.
    found.reverse();
    Ok(found)
}

/// Unmounts everything at or below `dir`. What is still busy is detached: its last user is being killed.
pub(crate) fn unmount_under(dir: &Path) -> Result<(), HostError> {
    for point in under(dir).map_err(HostError::os("read the mount table"))? {
        let unmounted = unmount(&point, UnmountFlags::NOFOLLOW)
            .or_else(|_| unmount(&point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH));
        match unmounted {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(HostError::os(format!("unmount {}", point.display()))(error)),
        }
    }
    Ok(())
}

/// A path for use in overlayfs options, where `:`, `,` and `\` have a meaning.
fn option_path(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.iter().any(|byte| matches!(byte, b':' | b',' | b'\\')) {
        let message = format!("{} holds a colon, comma or backslash", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(bytes.to_vec())
}

/// Fifth field of a mountinfo line (proc_pid_mountinfo(5)); blanks are octal escapes there.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let escape = tail.first_chunk::<3>().filter(|_| byte == b'\\');
        match escape.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(escaped) => {
                path.push(escaped);
                rest = &tail[3..];
            }
            None => {
                path.push(byte);
                rest = tail;
            }
        }
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_read_back() {
        let line = br"36 35 98:0 /mnt1 /mnt\040two/\134x rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line), Some(PathBuf::from("/mnt two/\\x")));
        assert_eq!(mount_point(b""), None);
    }

    #[test]
    fn paths_that_overlayfs_would_misread_are_refused() {
        assert!(option_path(Path::new("/a:b")).is_err());
        assert!(option_path(Path::new("/a,b")).is_err());
        assert!(option_path(Path::new("/a b")).is_ok());
    }
}
