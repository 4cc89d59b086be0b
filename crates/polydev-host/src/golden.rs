//! Reads an installed golden image: which layers, which kernel.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::HostError,
    image::{ImageManifest, LayerEntry, SCHEMA},
};

/// An installed image. Its files never change: a new build gets a new id.
#[derive(Debug, Clone)]
pub(crate) struct GoldenImage {
    pub(crate) id: String,
    layers: Vec<Layer>,
    pub(crate) vmlinux: PathBuf,
    pub(crate) modules_cpio: PathBuf,
}

/// One read-only layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) sha256: String,
}

impl GoldenImage {
    /// The image that `current` points to. Sizes are compared; checksums are the builder's `verify`.
    pub(crate) fn current(image_dir: &Path) -> Result<Self, HostError> {
        let missing = || HostError::ImageMissing { dir: image_dir.display().to_string() };
        let dir = fs::canonicalize(image_dir.join("current")).map_err(|_| missing())?;
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let damaged = |what: String| HostError::ImageDamaged { id: name.clone(), what };
        let bytes = match fs::read(dir.join("image.json")) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(HostError::os("read image.json")(error)),
        };
        let file: ImageManifest =
            serde_json::from_slice(&bytes).map_err(|error| damaged(format!("image.json: {error}")))?;
        if file.schema != SCHEMA {
            return Err(damaged(format!(
                "image.json has schema {}, this program reads {SCHEMA}",
                file.schema
            )));
        }
        let mut layers = Vec::new();
        for LayerEntry { name, path, sha256, size_bytes, .. } in file.layers {
            let path = dir.join(path);
            let size = fs::metadata(&path).map_err(|error| damaged(format!("layer {name}: {error}")))?.len();
            if size != size_bytes {
                return Err(damaged(format!("layer {name} has {size} bytes instead of {size_bytes}")));
            }
            if sha256.len() < 16 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(damaged(format!("layer {name} has no checksum")));
            }
            layers.push(Layer { name, path: fs::canonicalize(&path).unwrap_or(path), sha256 });
        }
        let (vmlinux, modules_cpio) = (dir.join(file.kernel.vmlinux), dir.join(file.modules_cpio));
        for path in [&vmlinux, &modules_cpio] {
            fs::metadata(path).map_err(|error| damaged(format!("{}: {error}", path.display())))?;
        }
        Ok(Self { id: file.id, layers, vmlinux, modules_cpio })
    }

    /// Layers by name, in the order asked for.
    pub(crate) fn layers(&self, names: &[&str]) -> Result<Vec<Layer>, HostError> {
        let find = |name: &&str| {
            let found = self.layers.iter().find(|layer| layer.name == **name).cloned();
            let what = || HostError::ImageDamaged { id: self.id.clone(), what: format!("no layer {name}") };
            found.ok_or_else(what)
        };
        names.iter().map(find).collect()
    }
}
