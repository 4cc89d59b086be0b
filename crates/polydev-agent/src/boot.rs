//! First stage in a VM: from the initramfs to the real root, still as PID 1.
//!
//! ```text
//! initramfs --modules--> disks by serial --erofs, ext4--> overlay --move, chroot--> exec /run/polydev/polydev-agent --vm
//! ```

use std::{
    collections::HashMap,
    convert::Infallible,
    ffi::CString,
    fs,
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use polydev_core::guest::{AGENT_PATH, DESKTOP_PATH, RUN_DIR};
use rustix::mount::{MountFlags, mount, mount_move};

/// How long a disk may take to appear after its driver was loaded.
const DISK_LIMIT: Duration = Duration::from_secs(20);
const NEW_ROOT: &str = "/newroot";

/// Why the machine cannot come up.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub(crate) struct BootError {
    step: String,
    #[source]
    source: io::Error,
}

trait Step<T> {
    fn step(self, step: impl Into<String>) -> Result<T, BootError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, BootError> {
        self.map_err(|source| BootError { step: step.into(), source: source.into() })
    }
}

/// Returns only when it failed.
pub(crate) fn boot() -> BootError {
    match run() {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn run() -> Result<Infallible, BootError> {
    let nothing = MountFlags::empty();
    let hardened = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_new("proc", "/proc", "proc", hardened, "")?;
    mount_new("sysfs", "/sys", "sysfs", hardened, "")?;
    mount_new("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755")?;
    let command_line = fs::read_to_string("/proc/cmdline").step("read /proc/cmdline")?;
    let options = Options::parse(&command_line);
    load_modules();

    let disks = options.find_disks()?;
    let mut lower = Vec::new();
    if Path::new("/overlay").is_dir() {
        mount_new("overlay-files", "/layers/overlay", "tmpfs", nothing, "mode=0755")?;
        copy_tree(Path::new("/overlay"), Path::new("/layers/overlay")).step("copy the overlay directory")?;
        lower.push("/layers/overlay".to_owned());
    }
    for Disk { name, .. } in &options.layers {
        let place = format!("/layers/{name}");
        mount_new(&disks[name], &place, "erofs", MountFlags::RDONLY | MountFlags::NODEV, "")?;
        lower.push(place);
    }
    match options.upper {
        Upper::Tmpfs => mount_new("upper", "/upper", "tmpfs", nothing, "mode=0700")?,
        Upper::Disk(_) => {
            // What is deleted is given back to the host's disk where the VMM passes that on.
            let flags = MountFlags::NOATIME | MountFlags::NODEV;
            mount_new(&disks[DATA_DISK], "/upper", "ext4", flags, "discard")?;
            fs::set_permissions("/upper", fs::Permissions::from_mode(0o700)).step("protect /upper")?;
        }
    }
    for directory in ["/upper/upper", "/upper/work"] {
        fs::create_dir_all(directory).step(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).step(directory)?;
    }
    let data = format!("lowerdir={},upperdir=/upper/upper,workdir=/upper/work", lower.join(":"));
    mount_new("root", NEW_ROOT, "overlay", nothing, &data)?;

    for place in ["/proc", "/sys", "/dev"] {
        move_mount(place)?;
    }
    let new = |path: &str| format!("{NEW_ROOT}{path}");
    mount_new("run", &new("/run"), "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=0755")?;
    mount_new("tmp", &new("/tmp"), "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777")?;
    mount_new("shm", &new("/dev/shm"), "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777")?;
    let pts = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_new("devpts", &new("/dev/pts"), "devpts", pts, "gid=5,mode=620,ptmxmode=666")?;
    link_dev(NEW_ROOT);

    let upper = format!("{NEW_ROOT}{RUN_DIR}/upper");
    fs::create_dir_all(&upper).step(upper.as_str())?;
    mount_move("/upper", &upper).step("move /upper")?;
    fs::copy("/init", new(AGENT_PATH)).step("copy the agent")?;
    fs::set_permissions(new(AGENT_PATH), fs::Permissions::from_mode(0o755)).step("copy the agent")?;
    if Path::new("/polydev-desktop").exists() {
        fs::copy("/polydev-desktop", new(DESKTOP_PATH)).step("copy the desktop program")?;
        fs::set_permissions(new(DESKTOP_PATH), fs::Permissions::from_mode(0o755))
            .step("copy the desktop program")?;
    }
    // The initramfs stays in memory for as long as its files exist. Failing to free them harms nothing.
    for leftover in ["/modules", "/overlay"] {
        let _ = fs::remove_dir_all(leftover);
    }
    for leftover in ["/init", "/polydev-desktop"] {
        let _ = fs::remove_file(leftover);
    }
    std::env::set_current_dir(NEW_ROOT).step("enter the new root")?;
    mount_move(".", "/").step("move the new root")?;
    rustix::process::chroot(".").step("chroot")?;
    std::env::set_current_dir("/").step("enter /")?;
    Err(Command::new(AGENT_PATH).arg("--vm").env_clear().exec()).step("start the second stage")
}

/// Serial of the disk that holds a CLI VM's own data.
const DATA_DISK: &str = "data";

#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// Topmost first.
    layers: Vec<Disk>,
    upper: Upper,
}

#[derive(Debug, PartialEq, Eq)]
enum Upper {
    Tmpfs,
    /// The data disk, under this kernel name if it has no serial.
    Disk(Option<String>),
}

/// A disk, found by its serial or, where the VMM sets none (Firecracker), by its kernel name: `name` or `name@vda`.
#[derive(Debug, PartialEq, Eq)]
struct Disk {
    name: String,
    device: Option<String>,
}

impl Disk {
    fn parse(text: &str) -> Self {
        let (name, device) = text.split_once('@').map_or((text, None), |(name, device)| (name, Some(device)));
        Self { name: name.to_owned(), device: device.map(str::to_owned) }
    }
}

impl Options {
    fn parse(command_line: &str) -> Self {
        let value = |name: &str| command_line.split_whitespace().find_map(|word| word.strip_prefix(name));
        let layers = value("polydev.layers=").unwrap_or("base");
        Self {
            layers: layers.split(',').filter(|l| !l.is_empty()).map(Disk::parse).collect(),
            upper: match value("polydev.upper=").map(Disk::parse) {
                Some(Disk { name, device }) if name == "disk" => Upper::Disk(device),
                _ => Upper::Tmpfs,
            },
        }
    }

    /// Device paths of all disks by name, once they are there.
    fn find_disks(&self) -> Result<HashMap<String, String>, BootError> {
        let data = match &self.upper {
            Upper::Tmpfs => None,
            Upper::Disk(device) => Some((DATA_DISK, device.as_deref())),
        };
        let layers = self.layers.iter().map(|disk| (disk.name.as_str(), disk.device.as_deref()));
        wait_for_disks(&layers.chain(data).collect::<Vec<_>>())
    }
}

/// A module that is built in, there twice or of no use here fails to load; what matters shows at the disks.
fn load_modules() {
    let order = fs::read_to_string("/modules/order").unwrap_or_default();
    for name in order.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let loaded = fs::File::open(format!("/modules/{name}"))
            .and_then(|file| Ok(rustix::system::finit_module(file.as_fd(), c"", 0)?));
        match loaded {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => eprintln!("polydev-agent: module {name}: {error}"),
        }
    }
}

/// Waits for virtio disks with these serials or kernel names.
fn wait_for_disks(wanted: &[(&str, Option<&str>)]) -> Result<HashMap<String, String>, BootError> {
    let deadline = Instant::now() + DISK_LIMIT;
    loop {
        let mut serials = HashMap::new();
        for entry in fs::read_dir("/sys/block").step("list /sys/block")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let mut serial = String::new();
            let read =
                fs::File::open(entry.path().join("serial")).and_then(|mut f| f.read_to_string(&mut serial));
            if read.is_ok() {
                serials.insert(serial.trim_matches(['\0', '\n', ' ']).to_owned(), name);
            }
        }
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        for (name, device) in wanted {
            let device = device.map(str::to_owned).or_else(|| serials.get(*name).cloned());
            match device.map(|device| format!("/dev/{device}")).filter(|path| Path::new(path).exists()) {
                Some(path) => drop(found.insert((*name).to_owned(), path)),
                None => missing.push(*name),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            let missing = missing.join(", ");
            return Err(io::Error::from(io::ErrorKind::NotFound)).step(format!("wait for disks {missing}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn mount_new(source: &str, place: &str, kind: &str, flags: MountFlags, data: &str) -> Result<(), BootError> {
    let step = format!("mount {kind} on {place}");
    fs::create_dir_all(place).step(step.as_str())?;
    let data = CString::new(data).map_err(io::Error::other).step(step.as_str())?;
    mount(source, place, kind, flags, data.as_c_str()).step(step)
}

fn move_mount(place: &str) -> Result<(), BootError> {
    let target = format!("{NEW_ROOT}{place}");
    fs::create_dir_all(&target).step(target.as_str())?;
    mount_move(place, &target).step(format!("move {place}"))
}

/// Links that devtmpfs does not make and shells expect.
fn link_dev(root: &str) {
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(target, format!("{root}/dev/{link}"));
    }
    let _ = fs::remove_file(format!("{root}/dev/ptmx"));
    let _ = std::os::unix::fs::symlink("pts/ptmx", format!("{root}/dev/ptmx"));
}

/// Copies directories, files and links with their modes; everything is root's.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut pending = vec![(PathBuf::from(from), PathBuf::from(to))];
    while let Some((from, to)) = pending.pop() {
        let metadata = fs::symlink_metadata(&from)?;
        if metadata.is_dir() {
            fs::create_dir_all(&to)?;
            fs::set_permissions(&to, metadata.permissions())?;
            for entry in fs::read_dir(&from)? {
                let entry = entry?;
                pending.push((entry.path(), to.join(entry.file_name())));
            }
        } else if metadata.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
        } else if metadata.is_file() {
            fs::copy(&from, &to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_the_layers_and_where_writes_go() {
        let disk = |name: &str, device: Option<&str>| Disk {
            name: name.to_owned(),
            device: device.map(str::to_owned),
        };
        let options = Options::parse("console=ttyS0 polydev.layers=tools,base polydev.upper=disk quiet");
        let layers = vec![disk("tools", None), disk("base", None)];
        assert_eq!(options, Options { layers, upper: Upper::Disk(None) });
        let options = Options::parse("polydev.layers=tools@vda,base@vdb polydev.upper=disk@vdc");
        let layers = vec![disk("tools", Some("vda")), disk("base", Some("vdb"))];
        assert_eq!(options, Options { layers, upper: Upper::Disk(Some("vdc".to_owned())) });
        let plain = Options { layers: vec![disk("base", None)], upper: Upper::Tmpfs };
        assert_eq!(Options::parse("quiet"), plain);
    }

    #[test]
    fn the_overlay_directory_is_copied_with_modes_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("usr/bin")).unwrap();
        fs::write(from.join("usr/bin/tool"), "#!").unwrap();
        fs::set_permissions(from.join("usr/bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("tool", from.join("usr/bin/link")).unwrap();
        copy_tree(&from, &to).unwrap();
        assert_eq!(fs::metadata(to.join("usr/bin/tool")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_link(to.join("usr/bin/link")).unwrap(), Path::new("tool"));
    }
}
