//! Work on an unpacked layer: strip, take away privileges, check that it stacks, list its Debian packages.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::command::EPOCH;
use super::error::{ImageError, IoContext};
use super::glob;

const SET_ID: u32 = 0o6000;

/// Calls `each` for every entry below `root`, parents first, never through a link.
pub(crate) fn walk(
    root: &Path,
    each: &mut dyn FnMut(&Path, &fs::Metadata) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let mut entries: Vec<PathBuf> = fs::read_dir(root)
        .or_io("list", root)?
        .map(|entry| Ok(entry.or_io("list", root)?.path()))
        .collect::<Result<_, ImageError>>()?;
    entries.sort();
    for path in entries {
        let meta = path.symlink_metadata().or_io("look at", &path)?;
        each(&path, &meta)?;
        if meta.is_dir() {
            walk(&path, each)?;
        }
    }
    Ok(())
}

/// Removes what the rules match; returns the bytes freed.
pub(crate) fn strip(root: &Path, rules: &[String]) -> Result<u64, ImageError> {
    let mut freed = 0;
    for path in rules.iter().flat_map(|rule| glob::expand(root, rule)) {
        let meta = path.symlink_metadata().or_io("look at", &path)?;
        if meta.is_dir() {
            walk(&path, &mut |_, meta| {
                freed += meta.blocks() * 512;
                Ok(())
            })?;
            fs::remove_dir_all(&path).or_io("remove", &path)?;
        } else {
            freed += meta.blocks() * 512;
            fs::remove_file(&path).or_io("remove", &path)?;
        }
    }
    Ok(freed)
}

/// Clears set-user-id and set-group-id everywhere: the agent is root already and switches users itself, so nobody in a guest needs a way up.
pub(crate) fn drop_set_id(root: &Path) -> Result<(), ImageError> {
    walk(root, &mut |path, meta| {
        if meta.is_file() && meta.mode() & SET_ID != 0 {
            fs::set_permissions(path, Permissions::from_mode(meta.mode() & 0o777))
                .or_io("change the mode of", path)?;
        }
        Ok(())
    })
}

/// Fails on what would make a layer hide something below it: whiteouts, opaque directories, redirects.
pub(crate) fn require_additive(root: &Path) -> Result<(), ImageError> {
    walk(root, &mut |path, meta| {
        if meta.file_type().is_char_device() && meta.rdev() == 0 {
            return Err(ImageError::Tree {
                path: path.to_owned(),
                rule: "a layer must not remove files of the layer below it",
            });
        }
        for name in ["trusted.overlay.opaque", "trusted.overlay.redirect"] {
            let mut value = [0u8; 256];
            if meta.is_dir() && rustix::fs::lgetxattr(path, name, &mut value).is_ok() {
                return Err(ImageError::Tree {
                    path: path.to_owned(),
                    rule: "a layer must not replace a directory of the layer below it",
                });
            }
        }
        Ok(())
    })
}

/// Removes overlayfs's own notes from a layer made as an upper directory over `below`. It marks every new directory as opaque to save look-ups; the mark
/// stays, and fails [`require_additive`], where it would really hide a directory.
pub(crate) fn drop_overlay_notes(root: &Path, below: &Path) -> Result<(), ImageError> {
    let clean = |path: &Path| {
        let opaque_for_speed =
            path.strip_prefix(root).is_ok_and(|inside| below.join(inside).symlink_metadata().is_err());
        for (name, removable) in [
            ("trusted.overlay.origin", true),
            ("trusted.overlay.impure", true),
            ("trusted.overlay.uuid", true),
            ("trusted.overlay.opaque", opaque_for_speed),
        ] {
            match if removable { rustix::fs::lremovexattr(path, name) } else { Ok(()) } {
                Ok(()) | Err(rustix::io::Errno::NODATA) => {}
                Err(error) => return Err(ImageError::io("remove an attribute of", path, error)),
            }
        }
        Ok(())
    };
    clean(root)?;
    walk(root, &mut |path, meta| if meta.is_symlink() { Ok(()) } else { clean(path) })
}

/// Sets the fixed date on every directory at and below `root`.
pub(crate) fn date_directories(root: &Path) -> Result<(), ImageError> {
    let when = Timespec { tv_sec: i64::try_from(EPOCH).expect("the fixed date fits"), tv_nsec: 0 };
    let times = Timestamps { last_access: when, last_modification: when };
    let set =
        |path: &Path| utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).or_io("set the date of", path);
    walk(root, &mut |path, meta| if meta.is_dir() { set(path) } else { Ok(()) })?;
    set(root)
}

/// Package to version of everything that dpkg's state in `root` calls installed.
pub(crate) fn installed_packages(root: &Path) -> Result<BTreeMap<String, String>, ImageError> {
    let path = root.join("var/lib/dpkg/status");
    let text = fs::read_to_string(&path).or_io("read", &path)?;
    let stanzas = text.split("\n\n").filter_map(|stanza| {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        (field("Status")? == "install ok installed").then_some(())?;
        Some((field("Package")?.to_owned(), field("Version")?.to_owned()))
    });
    Ok(stanzas.collect())
}

/// Writes a file with a mode, creating its directory.
pub(crate) fn write(path: &Path, mode: u32, content: impl AsRef<[u8]>) -> Result<(), ImageError> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).or_io("create", dir)?;
    }
    fs::write(path, content).or_io("write", path)?;
    fs::set_permissions(path, Permissions::from_mode(mode)).or_io("change the mode of", path)
}

/// Removes a file or a directory with its content; missing is fine.
pub(crate) fn remove(path: &Path) -> Result<(), ImageError> {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).or_io("remove", path),
        Ok(_) => fs::remove_file(path).or_io("remove", path),
        Err(_) => Ok(()),
    }
}

/// Empties a directory and keeps it; missing is fine.
pub(crate) fn empty(dir: &Path) -> Result<(), ImageError> {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        remove(&entry.or_io("list", dir)?.path())?;
    }
    Ok(())
}
