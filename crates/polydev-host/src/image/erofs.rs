//! Turns a directory into a layer: an erofs file, measured, hashed and put in place in one step.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::command::{EPOCH, Runner};
use super::error::{ImageError, IoContext};
use super::manifest::{LayerEntry, hash_file, read_json, write_json};
use super::tree;

/// Equal trees give equal files only with a fixed filesystem id; it is the address of the layer in this form.
fn filesystem_id(address: &str) -> String {
    let part = |from: usize, to: usize| address.get(from..to).unwrap_or("0000");
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

/// Directory of a layer.
pub(crate) fn place(image_dir: &Path, address: &str) -> PathBuf {
    image_dir.join("layers").join(address)
}

/// A finished layer with this address, whole and of the recorded size.
pub(crate) fn finished(image_dir: &Path, address: &str) -> Option<LayerEntry> {
    let dir = place(image_dir, address);
    let entry: LayerEntry = read_json(&dir.join("layer.json")).ok()?;
    let size = dir.join("layer.erofs").metadata().ok()?.len();
    (size == entry.size_bytes).then_some(entry)
}

/// Packs `root` as the layer `name`. Uncompressed: a cold compressed layer costs seconds at the first start of a browser, disk space is cheap.
pub(crate) fn pack(
    runner: &Runner<'_>,
    image_dir: &Path,
    name: &str,
    address: &str,
    root: &Path,
    packages: BTreeMap<String, String>,
) -> Result<LayerEntry, ImageError> {
    runner.say(name, "packing");
    let fresh = image_dir.join("layers").join(format!(".new-{address}"));
    tree::remove(&fresh)?;
    fs::create_dir_all(&fresh).or_io("create", &fresh)?;
    let file = fresh.join("layer.erofs");
    let mut mkfs = runner.offline("mkfs.erofs");
    mkfs.args(["-d0", "-T", &EPOCH.to_string(), "-U", &filesystem_id(address)]).arg(&file).arg(root);
    runner.run(name, "mkfs.erofs", &mut mkfs)?;
    let compressed_bytes =
        runner.count_output("zstd", runner.offline("zstd").args(["-3", "-q", "-c"]).arg(&file))?;
    let size_bytes = file.metadata().or_io("measure", &file)?.len();
    let path = PathBuf::from(format!("../layers/{address}/layer.erofs"));
    let entry = LayerEntry {
        name: name.to_owned(),
        path,
        sha256: hash_file(&file)?,
        size_bytes,
        compressed_bytes,
        packages,
    };
    fs::File::open(&file).and_then(|f| f.sync_all()).or_io("write", &file)?;
    write_json(&fresh.join("layer.json"), &entry)?;
    let done = place(image_dir, address);
    tree::remove(&done)?;
    fs::rename(&fresh, &done).or_io("move into place", &done)?;
    runner.say(name, format!("done: {} MiB, {} MiB compressed", size_bytes >> 20, compressed_bytes >> 20));
    Ok(entry)
}
