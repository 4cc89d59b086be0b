//! The disk of a user's CLI VM: a sparse ext4 file with `upper` and `work` of an overlay, the same for every driver. Its
//! size is the user's quota. VMs with a kernel of their own get the file as a disk; for containers it is mounted here
//! through a loop device, which the kernel takes away with the last mount, whoever died in between.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, FileExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{
    command::{command, run},
    config::Resources,
    error::HostError,
    mounts, space,
};

/// Name of the disk in a user's directory.
pub(crate) const DISK: &str = "disk.ext4";
/// Directories of a workspace, in the disk.
const PARTS: [&str; 2] = ["upper", "work"];
/// What an empty file system takes, its journal included.
const EMPTY_BYTES: u64 = 96 << 20;
const MKFS_LIMIT: Duration = Duration::from_secs(60);
const GROW_LIMIT: Duration = Duration::from_secs(300);
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
const COPY_LIMIT: Duration = Duration::from_secs(600);
/// How long the kernel may take to let go of a disk whose VM has ended.
const LET_GO_LIMIT: Duration = Duration::from_secs(10);
const LET_GO_POLL: Duration = Duration::from_millis(5);

/// The disk in a user's directory: made on first use, grown when the configured size is larger.
pub(super) async fn open(dir: &Path, resources: &Resources) -> Result<PathBuf, HostError> {
    let disk = dir.join(DISK);
    let room = |bytes: u64, what: &str| space::check(dir, bytes, resources.disk_reserve_bytes, what);
    if !disk.exists() {
        room(EMPTY_BYTES, "a user's disk")?;
        make(dir, resources.user_disk_bytes, &disk).await?;
    } else {
        // What a VM writes to its disk grows it here; there has to be room for some of that.
        room(0, "what a CLI VM may write to its disk")?;
        let_go(&disk).await?;
        if size_bytes(&disk).map_err(HostError::os(format!("read {}", disk.display())))?
            < resources.user_disk_bytes
        {
            grow(&disk, resources.user_disk_bytes).await?;
        }
    }
    Ok(disk)
}

/// Mounts the disk of a user's directory at `target`, which exists.
pub(super) async fn mount(dir: &Path, target: &Path, resources: &Resources) -> Result<(), HostError> {
    let disk = open(dir, resources).await?;
    remove_directories(dir)?;
    mount_disk(&disk, target).await
}

/// Makes and removes one user's disk after the other in `dir` and says how long the first use of each took, and a later
/// one.
pub async fn measure(
    dir: &Path,
    rounds: usize,
    size_bytes: u64,
) -> Result<(Vec<Duration>, Vec<Duration>), HostError> {
    let resources = Resources { user_disk_bytes: size_bytes, ..Resources::default() };
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for samples in [&mut first, &mut later] {
            let began = Instant::now();
            open(dir, &resources).await?;
            samples.push(began.elapsed());
        }
        fs::remove_dir_all(dir).map_err(HostError::os(format!("remove {}", dir.display())))?;
    }
    Ok((first, later))
}

/// A disk under its own name is a whole one.
async fn make(dir: &Path, size_bytes: u64, disk: &Path) -> Result<(), HostError> {
    let fresh = dir.join("disk.new");
    let allocate = || -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        File::create(&fresh)?.set_len(size_bytes)
    };
    allocate().map_err(HostError::os(format!("make {}", fresh.display())))?;
    let mut mkfs = command("mkfs.ext4");
    // Without blocks set aside for growing while it is mounted: a disk grows between two VMs only, and writing those
    // blocks is most of what making one takes.
    mkfs.args(["-q", "-F", "-m", "0", "-O", "^resize_inode"]);
    mkfs.args(["-E", "lazy_itable_init=1,lazy_journal_init=1"]).arg(&fresh);
    run(mkfs, "make the user's file system", MKFS_LIMIT).await?;
    if dir.join(PARTS[0]).exists() {
        take_over_directories(dir, &fresh).await?;
    }
    fs::rename(&fresh, disk).map_err(HostError::os(format!("make {}", disk.display())))
}

/// Copies a workspace that is a directory onto a disk.
async fn take_over_directories(dir: &Path, fresh: &Path) -> Result<(), HostError> {
    let target = dir.join("disk.mount");
    fs::create_dir_all(&target).map_err(HostError::os(format!("make {}", target.display())))?;
    // An earlier attempt may have been cut short.
    mounts::unmount_under(&target)?;
    mount_disk(fresh, &target).await?;
    let mut copy = command("cp");
    copy.args(["--archive", "--sparse=always"]).arg(dir.join(PARTS[0])).arg(&target);
    let copied = run(copy, "copy a workspace onto its disk", COPY_LIMIT).await;
    mounts::unmount_under(&target)?;
    copied?;
    let_go(fresh).await?;
    fs::remove_dir(&target).map_err(HostError::os(format!("remove {}", target.display())))?;
    tracing::info!(workspace = %dir.display(), "workspace moved from a directory onto a disk");
    Ok(())
}

/// What is on the disk is not needed beside it.
fn remove_directories(dir: &Path) -> Result<(), HostError> {
    for part in PARTS {
        let part = dir.join(part);
        match fs::remove_dir_all(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(HostError::os(format!("remove {}", part.display()))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn mount_disk(disk: &Path, target: &Path) -> Result<(), HostError> {
    // Two loop devices on one file would be two file systems on one disk.
    let_go(disk).await?;
    let mut mount = command("mount");
    // What is deleted inside is given back to the host's disk.
    mount.args(["-t", "ext4", "-o", "loop,noatime,nodev,discard"]).arg(disk).arg(target);
    run(mount, "mount the user's disk", MOUNT_LIMIT).await.map(drop)
}

/// Waits until no loop device is on a disk.
async fn let_go(disk: &Path) -> Result<(), HostError> {
    let op = || format!("wait for {}", disk.display());
    let deadline = Instant::now() + LET_GO_LIMIT;
    while let Some(device) = loop_device(disk).map_err(HostError::os(op()))? {
        if Instant::now() >= deadline {
            let busy = io::Error::new(io::ErrorKind::ResourceBusy, format!("it is on {device}"));
            return Err(HostError::os(op())(busy));
        }
        sleep(LET_GO_POLL).await;
    }
    Ok(())
}

/// The loop device that a file is on, by what the kernel says.
fn loop_device(file: &Path) -> io::Result<Option<String>> {
    let file = fs::canonicalize(file)?;
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end_matches('\n')) == file {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

async fn grow(disk: &Path, size_bytes: u64) -> Result<(), HostError> {
    let lengthen = || File::options().write(true).open(disk)?.set_len(size_bytes);
    lengthen().map_err(HostError::os(format!("lengthen {}", disk.display())))?;
    // Its VM may have been killed: the journal has to be replayed first. Status 1 is "errors corrected".
    let mut check = command("sh");
    check.args(["-c", r#"e2fsck -f -p "$1" || [ $? -eq 1 ]"#, "sh"]).arg(disk);
    run(check, "check the user's file system", GROW_LIMIT).await?;
    let mut resize = command("resize2fs");
    resize.arg(disk);
    run(resize, "grow the user's file system", GROW_LIMIT).await?;
    tracing::info!(disk = %disk.display(), size_mib = size_bytes >> 20, "user's disk grown");
    Ok(())
}

/// Size of the file system, from its superblock (ext4 disk layout, kernel documentation).
fn size_bytes(disk: &Path) -> io::Result<u64> {
    const SUPERBLOCK: u64 = 1024;
    let file = File::open(disk)?;
    let number = |offset: u64| -> io::Result<u32> {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, SUPERBLOCK + offset)?;
        Ok(u32::from_le_bytes(bytes))
    };
    if number(0x38)? & 0xffff != 0xef53 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not an ext4 file system"));
    }
    let blocks = u64::from(number(0x4)?) | u64::from(number(0x150)?) << 32;
    Ok(blocks << (10 + number(0x18)?.min(6)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn resources(user_disk_mib: u64) -> Resources {
        Resources { user_disk_bytes: user_disk_mib * MIB, disk_reserve_bytes: 0, ..Resources::default() }
    }

    /// Unmounts when the test ends, however it ends.
    struct Mounted(PathBuf);

    impl Drop for Mounted {
        fn drop(&mut self) {
            mounts::unmount_under(&self.0).unwrap();
        }
    }

    #[tokio::test]
    async fn a_disk_grows_to_a_larger_size_and_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let disk = open(dir.path(), &resources(64)).await.unwrap();
        assert_eq!(size_bytes(&disk).unwrap(), 64 * MIB);
        open(dir.path(), &resources(128)).await.unwrap();
        assert_eq!(size_bytes(&disk).unwrap(), 128 * MIB);
        // A crash after the file was lengthened: the file system inside is what counts.
        File::options().write(true).open(&disk).unwrap().set_len(256 * MIB).unwrap();
        open(dir.path(), &resources(256)).await.unwrap();
        assert_eq!(size_bytes(&disk).unwrap(), 256 * MIB);
        open(dir.path(), &resources(64)).await.unwrap();
        assert_eq!(size_bytes(&disk).unwrap(), 256 * MIB);
    }

    #[tokio::test]
    async fn a_disk_is_refused_where_too_little_would_stay_free() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Resources { disk_reserve_bytes: u64::MAX / 2, ..resources(64) };
        let error = open(dir.path(), &reserve).await.unwrap_err();
        assert!(matches!(error, HostError::NoSpace { room: Some(_), .. }), "{error}");
        assert!(!dir.path().join(DISK).exists());
    }

    #[tokio::test]
    async fn a_full_host_disk_is_a_typed_error_and_leaves_no_half_disk_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let small = dir.path().join("small");
        fs::create_dir(&small).unwrap();
        if let Err(error) = mounts::tmpfs(&small, 1) {
            return eprintln!("skipped: no mounts here ({error})");
        }
        let _mounted = Mounted(small.clone());
        let user = small.join("user");
        let error = open(&user, &resources(64)).await.unwrap_err();
        assert!(matches!(error, HostError::NoSpace { room: Some(_), .. }), "{error}");
        // Past the guard, as when another writer is faster: mkfs itself meets the end of the disk.
        fs::write(small.join("other"), vec![1; 2 << 20]).unwrap_err();
        let error = make(&user, 1024 * MIB, &user.join(DISK)).await.unwrap_err();
        assert!(matches!(error, HostError::NoSpace { room: None, .. }), "{error}");
        assert!(!user.join(DISK).exists());
    }

    #[tokio::test]
    async fn a_workspace_that_is_a_directory_moves_onto_its_disk_and_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (user, target) = (dir.path().join("user"), dir.path().join("target"));
        fs::create_dir_all(user.join("upper/home")).unwrap();
        fs::create_dir_all(user.join("work")).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(user.join("upper/home/note"), "FAKE work").unwrap();
        if let Err(error) = mount(&user, &target, &resources(64)).await {
            return eprintln!("skipped: no loop devices here ({error})");
        }
        let mounted = Mounted(target.clone());
        let note = target.join("upper/home/note");
        assert_eq!(fs::read_to_string(&note).unwrap(), "FAKE work");
        assert!(!user.join("upper").exists() && !user.join("work").exists());
        // The user's quota is the size of the disk, and the host's disk is not what is full then.
        let full = fs::write(target.join("upper/large"), vec![1; 80 << 20]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        fs::remove_file(target.join("upper/large")).unwrap();
        assert!(loop_device(&user.join(DISK)).unwrap().is_some());
        drop(mounted);
        // As after a crash of the manager: nothing but the kernel detaches the device.
        mount(&user, &target, &resources(64)).await.unwrap();
        let mounted = Mounted(target.clone());
        assert_eq!(fs::read_to_string(&note).unwrap(), "FAKE work");
        drop(mounted);
        let_go(&user.join(DISK)).await.unwrap();
    }
}
