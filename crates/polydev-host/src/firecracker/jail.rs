//! The directory that a jailed VMM has for its whole world: Firecracker's `jailer` changes into it, gives up root for
//! the slot's own user, and executes a copy of firecracker there.
//!
//! ```text
//! <run directory>/jail/<program>/<vm>/root    the VMM's `/`; owned by the slot's user
//! <run directory>/r                           link to it, short enough for addresses of sockets
//! ```
//!
//! What the VMM uses is hard-linked where the file system allows it, and bind-mounted otherwise. The VMM owns its `/`:
//! the host never follows a name in it without looking at what is there.
//!
//! The slot's user reads the host's files as anybody would: whatever umask they were made under, what is brought in to be
//! read is made readable. The directories above it stay the host's.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{StatVfsMountFlags, statvfs},
    mount::{MountFlags, mount_bind, mount_remount},
};

use super::home::{Home, Item, remove};
use crate::{driver::Places, host::LogKind, mounts};

/// The jails of a VM, in its run directory.
const JAIL: &str = "jail";
/// Points to the VMM's root directory.
pub(super) const JAIL_LINK: &str = "r";
/// Files a VMM may have open: disks, sockets of 1023 vsock connections, event descriptors.
const OPEN_FILES_MAX: u32 = 4096;

/// How a VMM is confined.
#[derive(Debug, Clone)]
pub struct Jail {
    /// Firecracker's `jailer`.
    pub jailer: PathBuf,
    /// User and group that only this VM's slot has.
    pub uid: u32,
    /// Largest file it may write: its disk, its memory when it is saved.
    pub file_bytes_max: u64,
}

impl Jail {
    /// Makes the VMM's root directory with what it uses.
    pub(super) fn build(&self, home: &Home, program: &Path, items: &[Item]) -> io::Result<()> {
        // The jailer names the directory after the file that a link leads to.
        let program = fs::canonicalize(program)?;
        let name = program.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let below = Path::new(JAIL).join(name).join(home.id.to_string()).join("root");
        let root = home.dir.join(&below);
        fs::create_dir_all(&root)?;
        symlink(below, home.dir.join(JAIL_LINK))?;
        // The host reads them under a name that the VMM cannot replace.
        for log in [LogKind::Driver.file_name(), super::vmm::METRICS] {
            let file = home.dir.join(log);
            chown(&file, Some(self.uid), Some(self.uid))?;
            fs::hard_link(file, root.join(log))?;
        }
        for item in items {
            self.bring_in(item, &root.join(&item.name))?;
        }
        #[cfg(feature = "chaos")]
        libraries::bring_in(&root)?;
        Ok(())
    }

    /// Arguments of the jailer for a VMM that is given `arguments`.
    pub(super) fn arguments(&self, home: &Home, program: &Path, arguments: &[&str]) -> Vec<String> {
        let uid = self.uid.to_string();
        let base = home.dir.join(JAIL).to_string_lossy().into_owned();
        let limits = [format!("no-file={OPEN_FILES_MAX}"), format!("fsize={}", self.file_bytes_max)];
        let mut all: Vec<String> = [("--id", home.id.to_string()), ("--uid", uid.clone()), ("--gid", uid)]
            .into_iter()
            .chain([("--exec-file", program.to_string_lossy().into_owned()), ("--chroot-base-dir", base)])
            // It is in its cgroups and its network namespace already. Version 2 without values: none are made.
            .chain([
                ("--cgroup-version", "2".to_owned()),
                ("--parent-cgroup", format!("polydev-none-{}", home.id)),
            ])
            .chain(limits.into_iter().map(|limit| ("--resource-limit", limit)))
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect();
        all.push("--".to_owned());
        all.extend(arguments.iter().map(|it| (*it).to_owned()));
        all
    }

    fn bring_in(&self, item: &Item, target: &Path) -> io::Result<()> {
        let source = fs::canonicalize(&item.source)?;
        if item.writable && source.is_file() {
            chown(&source, Some(self.uid), Some(self.uid))?;
        }
        if !item.writable {
            allow(&source, if source.is_dir() { 0o555 } else { 0o444 })?;
        }
        if source.is_dir() {
            fs::create_dir(target)?;
        } else if fs::hard_link(&source, target).is_ok() {
            return Ok(());
        } else {
            // Another file system: a mount point instead.
            fs::File::create_new(target)?;
        }
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        mount_bind(&source, target)?;
        let flags = if item.writable { flags } else { flags | MountFlags::RDONLY };
        Ok(mount_remount(target, MountFlags::BIND | flags, c"")?)
    }
}

/// Adds to the permissions of a file of the host's.
fn allow(path: &Path, mode: u32) -> io::Result<()> {
    let present = fs::metadata(path)?.permissions().mode();
    if present & mode == mode {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode((present | mode) & 0o7777))
}

/// Removes a VM's jail, or what became of one. No process may be in it.
pub(crate) fn clear(dir: &Path) -> io::Result<()> {
    let jail = dir.join(JAIL);
    mounts::unmount_under(&jail).map_err(io::Error::other)?;
    // Removing what is still mounted would remove what lies behind it.
    if let Some(mounted) = mounts::under(&jail)?.first() {
        let busy = format!("{} is still mounted", mounted.display());
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, busy));
    }
    match fs::remove_dir_all(&jail) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    remove(&dir.join(JAIL_LINK))
}

/// Run directories often lie on file systems without programs and devices; a jail needs both. There, the directory of
/// the VMs is mounted onto itself without these limits.
pub(crate) fn allow_programs(places: &Places) -> io::Result<()> {
    let vms = places.run.join("vm");
    let forbidden = StatVfsMountFlags::NODEV | StatVfsMountFlags::NOEXEC;
    if !statvfs(&vms)?.f_flag.intersects(forbidden) {
        return Ok(());
    }
    mount_bind(&vms, &vms)?;
    Ok(mount_remount(&vms, MountFlags::BIND | MountFlags::NOSUID, c"")?)
}

/// Takes a directory that a jailed VMM has written to back from it, so that nothing in it changes any more. Whatever is
/// not a plain file of one name is refused: it would lead elsewhere.
pub(crate) fn take_back(dir: &Path, names: &[&str]) -> io::Result<()> {
    use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, open};
    let root = (Some(Uid::from_raw(0)), Some(Gid::from_raw(0)));
    let no_follow = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NONBLOCK;
    let own = |path: &Path, mode: u32, wanted: fn(&fs::Metadata) -> bool| -> io::Result<()> {
        let file = fs::File::from(open(path, no_follow, Mode::empty())?);
        if !wanted(&file.metadata()?) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is no plain file", path.display()),
            ));
        }
        if rustix::process::geteuid().is_root() {
            fchown(&file, root.0, root.1)?;
            fchmod(&file, Mode::from_raw_mode(mode))?;
        }
        Ok(())
    };
    own(dir, 0o755, fs::Metadata::is_dir)?;
    names.iter().try_for_each(|name| own(&dir.join(name), 0o644, |file| file.is_file() && file.nlink() == 1))
}

/// Lets a jailed VMM write to a directory of the host's.
pub(crate) fn hand_over(dir: &Path, uid: u32) -> io::Result<()> {
    chown(dir, Some(uid), Some(uid))?;
    fs::set_permissions(dir, PermissionsExt::from_mode(0o700))
}

/// Released firecracker programs are static; one that was built for the chaos suite may not be.
#[cfg(feature = "chaos")]
mod libraries {
    use super::{Path, allow, fs, io};

    const ALL: [&str; 3] = [
        "lib64/ld-linux-x86-64.so.2",
        "lib/x86_64-linux-gnu/libc.so.6",
        "lib/x86_64-linux-gnu/libgcc_s.so.1",
    ];

    pub(super) fn bring_in(root: &Path) -> io::Result<()> {
        for name in ALL {
            let Ok(source) = fs::canonicalize(Path::new("/").join(name)) else { continue };
            let target = root.join(name);
            if let Some(dir) = target.parent() {
                fs::create_dir_all(dir)?;
            }
            for dir in target.ancestors().skip(1).take_while(|dir| *dir != root) {
                allow(dir, 0o111)?;
            }
            if fs::hard_link(&source, &target).is_err() {
                fs::copy(&source, &target)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_brought_in_to_be_read_is_readable_whatever_umask_it_was_made_under() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("initrd.cpio"), dir.path().join("initrd"));
        fs::write(&source, "modules").unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o600)).unwrap();
        let jail = Jail { jailer: PathBuf::from("jailer"), uid: 1, file_bytes_max: 0 };
        jail.bring_in(&Item::read("initrd", &source), &target).unwrap();
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn what_a_vmm_left_is_taken_only_if_it_is_a_plain_file_of_one_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("plain"), "memory").unwrap();
        take_back(dir.path(), &["plain"]).unwrap();
        symlink("/etc/passwd", path("link")).unwrap();
        fs::hard_link(path("plain"), path("second")).unwrap();
        fs::create_dir(path("dir")).unwrap();
        for name in ["link", "plain", "second", "dir", "missing"] {
            take_back(dir.path(), &[name]).unwrap_err();
        }
    }
}
