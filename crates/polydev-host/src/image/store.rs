//! The directory of images: lock, list, clean-up.
//!
//! Layout: `<id>/image.json`, `layers/<address>/layer.erofs` with `layer.json`, `current` -> `<id>`, `.work` and `layers/.new-*` for unfinished work.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::error::{ImageError, IoContext};
use super::manifest::{ImageManifest, read_json};

/// An image as `list` sees it.
#[derive(Debug, Clone)]
pub struct ImageSummary {
    /// What it is made of.
    pub manifest: ImageManifest,
    /// Whether new VMs use it.
    pub current: bool,
    /// Whether a process holds it open.
    pub in_use: bool,
}

/// What a clean-up did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct GcReport {
    /// Ids of removed images.
    pub removed_images: Vec<String>,
    /// Addresses of removed layers.
    pub removed_layers: Vec<String>,
    /// Images and layers left because something uses them.
    pub kept_in_use: Vec<String>,
    /// Bytes given back.
    pub freed_bytes: u64,
}

/// All complete images, newest first.
pub fn list(image_dir: &Path) -> Result<Vec<ImageSummary>, ImageError> {
    let current = fs::read_link(image_dir.join("current")).ok();
    let mut found = Vec::new();
    for entry in fs::read_dir(image_dir).into_iter().flatten().flatten() {
        let path = entry.path().join("image.json");
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && path.is_file() {
            let manifest: ImageManifest = read_json(&path)?;
            let is_current = current.as_deref() == Some(Path::new(&entry.file_name()));
            found.push(ImageSummary { manifest, current: is_current, in_use: try_take(&path)?.is_none() });
        }
    }
    found.sort_by_key(|image| (std::cmp::Reverse(image.manifest.created_unix), image.manifest.id.clone()));
    Ok(found)
}

/// Keeps the current image, the `keep` newest others and everything in use; removes other images and layers that no image names.
pub fn gc(image_dir: &Path, keep: usize) -> Result<GcReport, ImageError> {
    let _lock = BuildLock::take(image_dir)?;
    let mut report = GcReport::default();
    let mut spare = keep;
    for image in list(image_dir)? {
        let dir = image_dir.join(&image.manifest.id);
        if image.current {
            continue;
        }
        if spare > 0 {
            spare -= 1;
            continue;
        }
        // Held until the directory is gone, so nobody can open the image in between.
        let Some(_exclusive) = try_take(&dir.join("image.json"))? else {
            report.kept_in_use.push(image.manifest.id);
            continue;
        };
        report.freed_bytes += size_of(&dir);
        fs::remove_dir_all(&dir).or_io("remove", &dir)?;
        report.removed_images.push(image.manifest.id);
    }
    let named: BTreeSet<_> = list(image_dir)?
        .iter()
        .flat_map(|image| image.manifest.layers.iter().filter_map(|layer| address_of(&layer.path)))
        .collect();
    let layers = image_dir.join("layers");
    let mounted = mounted_files();
    for entry in fs::read_dir(&layers).into_iter().flatten().flatten() {
        let address = entry.file_name().to_string_lossy().into_owned();
        if named.contains(&address) {
            continue;
        }
        let dir = entry.path();
        let file = dir.join("layer.erofs");
        if mounted.contains(&file.canonicalize().unwrap_or(file)) {
            report.kept_in_use.push(address);
            continue;
        }
        report.freed_bytes += size_of(&dir);
        fs::remove_dir_all(&dir).or_io("remove", &dir)?;
        report.removed_layers.push(address);
    }
    report.removed_layers.sort();
    Ok(report)
}

/// Held by whoever changes the directory of images.
#[derive(Debug)]
pub(crate) struct BuildLock {
    _file: File,
}

impl BuildLock {
    pub(crate) fn take(image_dir: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(image_dir).or_io("create", image_dir)?;
        let path = image_dir.join(".lock");
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).or_io("open", &path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(ImageError::Locked(path)),
            Err(error) => Err(ImageError::io("lock", &path, error)),
        }
    }
}

/// Fails when fewer than `need_mib` are free at `dir`.
pub(crate) fn require_space(dir: &Path, need_mib: u64) -> Result<(), ImageError> {
    let stat = rustix::fs::statvfs(dir).or_io("measure free space of", dir)?;
    let free_mib = (stat.f_bavail * stat.f_frsize) >> 20;
    if free_mib < need_mib {
        Err(ImageError::NoSpace { path: dir.to_owned(), free_mib, need_mib })
    } else {
        Ok(())
    }
}

/// Points `current` at an image in one step.
pub(crate) fn make_current(image_dir: &Path, id: &str) -> Result<(), ImageError> {
    let (link, fresh) = (image_dir.join("current"), image_dir.join(".current.new"));
    super::tree::remove(&fresh)?;
    std::os::unix::fs::symlink(id, &fresh).or_io("create", &fresh)?;
    fs::rename(&fresh, &link).or_io("replace", &link)
}

/// An exclusive lock on an image, or `None` while someone holds it open.
fn try_take(path: &Path) -> Result<Option<File>, ImageError> {
    let file = File::open(path).or_io("open", path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(ImageError::io("lock", path, error)),
    }
}

/// Name of the layer's directory in a path such as `../layers/<address>/layer.erofs`.
fn address_of(path: &Path) -> Option<String> {
    Some(path.parent()?.file_name()?.to_str()?.to_owned())
}

/// Files behind loop devices and file-backed mounts, which outlive the process that made them, and files that processes such as QEMU hold open.
fn mounted_files() -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        if let Ok(text) = fs::read_to_string(entry.path().join("loop/backing_file")) {
            files.insert(PathBuf::from(text.trim_end()));
        }
    }
    for process in fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|p| p.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
    {
        let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        files.extend(
            open.filter_map(|fd| fs::read_link(fd.path()).ok())
                .filter(|path| path.extension().is_some_and(|e| e == "erofs")),
        );
        let mounts = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        files.extend(
            mounts
                .lines()
                .filter_map(|line| line.split_once(" - ")?.1.split(' ').nth(1))
                .filter(|source| source.ends_with(".erofs"))
                .map(PathBuf::from),
        );
    }
    files
}

fn size_of(dir: &Path) -> u64 {
    let mut total = 0;
    // Only feeds the report; what cannot be measured counts as nothing.
    super::tree::walk(dir, &mut |_, meta| {
        total += std::os::unix::fs::MetadataExt::blocks(meta) * 512;
        Ok(())
    })
    .unwrap_or(());
    total
}
