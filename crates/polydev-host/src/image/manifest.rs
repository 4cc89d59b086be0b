//! `image.json` and `layer.json`: what an image is made of and where its files lie. The files are the contract with drivers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{ImageError, IoContext};

/// Version of `image.json`.
pub(crate) const SCHEMA: u32 = 1;

/// Content of `image.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageManifest {
    /// Version of the format.
    pub schema: u32,
    /// Content address: equal inputs give equal ids.
    pub id: String,
    /// Name of the recipe.
    pub recipe: String,
    /// Suite of the distribution.
    pub suite: String,
    /// When the build finished.
    pub created_unix: u64,
    /// Layers, lowest first.
    pub layers: Vec<LayerEntry>,
    /// The kernel.
    pub kernel: KernelEntry,
    /// Path of the module archive, relative to the image's directory.
    pub modules_cpio: PathBuf,
    /// Version of each notable program.
    pub versions: BTreeMap<String, String>,
}

/// A layer of an image; also the content of `layer.json`, there with `packages`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerEntry {
    /// `base`, `desktop` or `tools`.
    pub name: String,
    /// Path of the erofs file, relative to the image's directory.
    pub path: PathBuf,
    /// Hash of the erofs file, lower-case hex.
    pub sha256: String,
    /// Size of the erofs file.
    pub size_bytes: u64,
    /// Size after `zstd -3`, what a download or an archive would cost.
    pub compressed_bytes: u64,
    /// Inputs with their versions, in `layer.json` only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub packages: BTreeMap<String, String>,
}

/// The kernel of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KernelEntry {
    /// Release string.
    pub version: String,
    /// Compressed kernel, relative to the image's directory.
    pub bzimage: PathBuf,
    /// Uncompressed kernel, relative to the image's directory.
    pub vmlinux: PathBuf,
    /// Hashes of `bzimage` and `vmlinux`.
    pub sha256: BTreeMap<String, String>,
}

/// Reads a JSON file of an image.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ImageError> {
    let bad = |reason: String| ImageError::Manifest { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| bad(format!("cannot be read: {e}")))?;
    serde_json::from_str(&text).map_err(|e| bad(e.to_string()))
}

/// Writes a JSON file so that it is whole on disk before it returns.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ImageError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| ImageError::io("serialise", path, e))?;
    text.push(b'\n');
    let mut file = File::create(path).or_io("create", path)?;
    file.write_all(&text).and_then(|()| file.sync_all()).or_io("write", path)
}

/// SHA-256 of a file, lower-case hex.
pub(crate) fn hash_file(path: &Path) -> Result<String, ImageError> {
    let mut file = File::open(path).or_io("open", path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).or_io("read", path)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
