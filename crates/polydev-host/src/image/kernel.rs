//! Kernel of the guest: takes it out of its package, unpacks it, and packs the modules an initramfs needs.
//!
//! Nothing of the kernel package enters a layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::apt::Apt;
use super::command::Runner;
use super::cpio::Archive;
use super::elf;
use super::error::{ImageError, IoContext};
use super::modules::{depends_of, load_order, plain_name};
use super::recipe::Recipe;
use super::tree;

/// Offset of `setup_sects`, `payload_offset` and `payload_length` in a bzImage (Linux `Documentation/arch/x86/boot.rst`).
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
const DEFAULT_SETUP_SECTORS: usize = 4;
/// LZ4 legacy frame: magic, then blocks of at most 8 MiB with their compressed size in front.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZ4_BLOCK: usize = 8 << 20;

/// The kernel package that the recipe's metapackage stands for now.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct KernelPackage {
    pub(crate) package: String,
    pub(crate) version: String,
}

/// Asks the archive which package carries the kernel.
pub(crate) fn resolve(recipe: &Recipe, apt: &Apt<'_>) -> Result<KernelPackage, ImageError> {
    let wanted = &recipe.kernel.package;
    let offered = apt.resolve("kernel", None, std::slice::from_ref(wanted), &[])?;
    let real = |name: &&String| {
        name.strip_prefix("linux-image-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let package = offered
        .keys()
        .find(real)
        .ok_or_else(|| ImageError::Mirror(format!("{wanted} brings no kernel package")))?;
    Ok(KernelPackage { package: package.clone(), version: offered[package].clone() })
}

/// Writes `kernel/bzImage`, `kernel/vmlinux` and `modules.cpio` into `into`; returns the kernel's release string.
pub(crate) fn make(
    runner: &Runner<'_>,
    recipe: &Recipe,
    apt: &Apt<'_>,
    kernel: &KernelPackage,
    into: &Path,
) -> Result<String, ImageError> {
    runner.say("kernel", format!("unpacking {} {}", kernel.package, kernel.version));
    let root = runner.work.join("kernel");
    let (deb, _) = apt.fetch("kernel", &kernel.package)?;
    apt.unpack("kernel", &deb, &root)?;
    let release = kernel.package.trim_start_matches("linux-image-").to_owned();
    let path = root.join(format!("boot/vmlinuz-{release}"));
    let bzimage = fs::read(&path).or_io("read", &path)?;
    tree::write(&into.join("kernel/vmlinux"), 0o644, unpack_bzimage(&bzimage)?)?;
    tree::write(&into.join("kernel/bzImage"), 0o644, bzimage)?;
    let modules = [root.join("lib/modules"), root.join("usr/lib/modules")]
        .into_iter()
        .map(|dir| dir.join(&release))
        .find(|dir| dir.is_dir());
    let modules = modules.ok_or(ImageError::Kernel("the package has no modules directory"))?;
    tree::write(&into.join("modules.cpio"), 0o644, pack_modules(&modules, &recipe.kernel.modules)?)?;
    tree::remove(&root)?;
    Ok(release)
}

/// The ELF kernel inside a bzImage.
fn unpack_bzimage(image: &[u8]) -> Result<Vec<u8>, ImageError> {
    let short = ImageError::Kernel("is cut short");
    let word = |at: usize| image.get(at..at + 4)?.try_into().ok().map(|b| u32::from_le_bytes(b) as usize);
    let (Some(&sectors), Some(offset), Some(length)) =
        (image.get(SETUP_SECTORS), word(PAYLOAD_OFFSET), word(PAYLOAD_LENGTH))
    else {
        return Err(short);
    };
    let sectors = if sectors == 0 { DEFAULT_SETUP_SECTORS } else { usize::from(sectors) };
    let start = (sectors + 1) * SECTOR + offset;
    let payload = start.checked_add(length).and_then(|end| image.get(start..end)).ok_or(short)?;
    let Some(mut blocks) = payload.strip_prefix(&LZ4_LEGACY) else {
        return Err(ImageError::Kernel("is not compressed with LZ4, the only method known here"));
    };
    // The build of the kernel appends the unpacked size.
    let Some((rest, size)) = blocks.split_last_chunk::<4>() else {
        return Err(ImageError::Kernel("is cut short"));
    };
    (blocks, _) = (rest, ());
    let size = u32::from_le_bytes(*size) as usize;
    let mut kernel = Vec::with_capacity(size);
    let mut buffer = vec![0; LZ4_BLOCK];
    while let Some((head, rest)) = blocks.split_first_chunk::<4>() {
        let packed = rest
            .get(..u32::from_le_bytes(*head) as usize)
            .ok_or(ImageError::Kernel("holds a block longer than itself"))?;
        let count = lz4_flex::block::decompress_into(packed, &mut buffer)
            .map_err(|_| ImageError::Kernel("holds damaged LZ4 data"))?;
        kernel.extend_from_slice(&buffer[..count]);
        blocks = &rest[packed.len()..];
    }
    if kernel.len() != size || !elf::is_elf64(&kernel) {
        return Err(ImageError::Kernel("did not unpack to an ELF kernel of the announced size"));
    }
    Ok(kernel)
}

/// `modules/*.ko` and `modules/order` as a cpio archive.
fn pack_modules(dir: &Path, wanted: &[String]) -> Result<Vec<u8>, ImageError> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut depends = BTreeMap::new();
    tree::walk(dir, &mut |path, meta| {
        let Some(stem) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".ko")) else {
            return Ok(());
        };
        if meta.is_file() {
            let bytes = fs::read(path).or_io("read", path)?;
            depends.insert(
                plain_name(stem),
                depends_of(&bytes).ok_or(ImageError::Kernel("has a module without `depends`"))?,
            );
            files.insert(plain_name(stem), path.to_owned());
        }
        Ok(())
    })?;
    let list = dir.join("modules.builtin");
    let text = fs::read_to_string(&list).or_io("read", &list)?;
    let builtin: BTreeSet<_> =
        text.lines().filter_map(|line| Path::new(line).file_stem()?.to_str().map(plain_name)).collect();
    let order = load_order(wanted, &depends, &builtin)?;
    let mut archive = Archive::default();
    archive.directory("modules");
    let mut names = String::new();
    for module in &order {
        let path = &files[module];
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("modules/{name}"), 0o644, &fs::read(path).or_io("read", path)?);
        names += &format!("{name}\n");
    }
    archive.file("modules/order", 0o644, names.as_bytes());
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage in miniature: two blocks of LZ4 behind a setup header.
    fn bzimage(kernel: &[u8], announced: u32) -> Vec<u8> {
        let mut payload = LZ4_LEGACY.to_vec();
        for block in kernel.chunks(kernel.len().div_ceil(2)) {
            let packed = lz4_flex::block::compress(block);
            payload.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
            payload.extend_from_slice(&packed);
        }
        payload.extend_from_slice(&announced.to_le_bytes());
        let mut image = vec![0; 2 * SECTOR + 8];
        image[SETUP_SECTORS] = 1;
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&8u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4]
            .copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(&payload);
        image
    }

    #[test]
    fn the_kernel_comes_out_as_it_went_in() {
        let kernel = [b"\x7fELF\x02\x01".as_slice(), &[7; 5000]].concat();
        assert_eq!(unpack_bzimage(&bzimage(&kernel, 5006)).unwrap(), kernel);
    }

    #[test]
    fn a_wrong_size_or_a_cut_image_is_an_error() {
        let kernel = [b"\x7fELF\x02\x01".as_slice(), &[7; 5000]].concat();
        assert!(unpack_bzimage(&bzimage(&kernel, 5005)).is_err());
        let whole = bzimage(&kernel, 5006);
        for cut in [0, 100, 600, whole.len() - 1] {
            assert!(unpack_bzimage(&whole[..cut]).is_err(), "{cut}");
        }
    }
}
