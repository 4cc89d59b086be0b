//! An opened image. While it is open (in any process) clean-up leaves it and its layers alone.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::error::{ImageError, IoContext};
use super::manifest::{ImageManifest, SCHEMA, read_json};

/// A golden image that is held in use: a shared lock on its `image.json` lives as long as this value.
#[derive(Debug)]
pub struct Image {
    dir: PathBuf,
    manifest: ImageManifest,
    _lease: File,
}

impl Image {
    /// Directory with `image.json`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the image is made of.
    pub fn manifest(&self) -> &ImageManifest {
        &self.manifest
    }

    /// Content address of the image.
    pub fn id(&self) -> &str {
        &self.manifest.id
    }

    /// The erofs file of a layer, or `None` for a name the image does not have.
    pub fn layer(&self, name: &str) -> Option<PathBuf> {
        self.manifest.layers.iter().find(|layer| layer.name == name).map(|layer| self.dir.join(&layer.path))
    }

    /// The compressed kernel.
    pub fn bzimage(&self) -> PathBuf {
        self.dir.join(&self.manifest.kernel.bzimage)
    }

    /// The uncompressed kernel.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join(&self.manifest.kernel.vmlinux)
    }

    /// The archive with the kernel modules and their order.
    pub fn modules_cpio(&self) -> PathBuf {
        self.dir.join(&self.manifest.modules_cpio)
    }
}

/// Opens the image that `current` points at.
pub fn open_current(image_dir: &Path) -> Result<Image, ImageError> {
    let link = image_dir.join("current");
    let target = std::fs::read_link(&link).map_err(|_| ImageError::NoImage(image_dir.to_owned()))?;
    match target.to_str() {
        Some(id) if !id.contains('/') => open(image_dir, id),
        _ => Err(ImageError::Manifest {
            path: link,
            reason: format!("points at {}, not at an image beside it", target.display()),
        }),
    }
}

/// Opens an image by id and checks that every file of it is there.
pub fn open(image_dir: &Path, id: &str) -> Result<Image, ImageError> {
    let dir = image_dir.join(id);
    let path = dir.join("image.json");
    let lease = File::open(&path)
        .map_err(|e| ImageError::Manifest { path: path.clone(), reason: format!("cannot be opened: {e}") })?;
    flock(&lease, FlockOperation::LockShared).or_io("lock", &path)?;
    let manifest: ImageManifest = read_json(&path)?;
    let bad = |reason: String| ImageError::Manifest { path: path.clone(), reason };
    if manifest.schema != SCHEMA {
        return Err(bad(format!("schema {} is not known, {SCHEMA} is", manifest.schema)));
    }
    let image = Image { dir, manifest, _lease: lease };
    for layer in &image.manifest.layers {
        let file = image.dir.join(&layer.path);
        let size = file
            .metadata()
            .map_err(|e| bad(format!("layer {} ({}): {e}", layer.name, file.display())))?
            .len();
        if size != layer.size_bytes {
            return Err(bad(format!(
                "layer {} has {size} bytes, {} are recorded",
                layer.name, layer.size_bytes
            )));
        }
    }
    for file in [image.bzimage(), image.vmlinux(), image.modules_cpio()] {
        if !file.is_file() {
            return Err(bad(format!("{} is missing", file.display())));
        }
    }
    Ok(image)
}
