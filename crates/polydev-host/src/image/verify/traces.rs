//! Looks for what must not be in an image: set-user-id programs and traces of the machine that built it.

use std::fs;
use std::path::Path;

use crate::image::error::{ImageError, IoContext};
use crate::image::tree;

/// Larger files are programs and archives that packages bring as they are.
const LARGEST_BYTES: u64 = 4 << 20;
/// Shorter host names are words that occur anywhere.
const SHORTEST_NAME: usize = 6;
const SET_ID: u32 = 0o6000;

/// One fault per offending file.
pub(crate) fn find(root: &Path, image: &Path) -> Result<Vec<String>, ImageError> {
    let words = machine_words(image);
    let mut faults = Vec::new();
    tree::walk(root, &mut |path, meta| {
        let shown = || format!("/{}", path.strip_prefix(root).unwrap_or(path).display());
        if meta.is_file() && std::os::unix::fs::MetadataExt::mode(meta) & SET_ID != 0 {
            faults.push(format!("{}: runs with other rights than its caller's", shown()));
        }
        if meta.is_file() && meta.len() <= LARGEST_BYTES {
            let content = fs::read(path).or_io("read", path)?;
            let found = words.iter().find(|(_, word)| contains(&content, word));
            faults.extend(found.map(|(what, _)| format!("{}: holds {what}", shown())));
        }
        Ok(())
    })?;
    for dir in ["etc/apt/sources.list.d", "var/lib/apt/lists", "root", "tmp", "var/tmp"] {
        let left = fs::read_dir(root.join(dir))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let left: Vec<_> = left.filter(|name| ![".bashrc", ".profile"].contains(&name.as_str())).collect();
        if !left.is_empty() {
            faults.push(format!("/{dir}: must be empty, has {}", left.join(", ")));
        }
    }
    if root.join("etc/apt/sources.list").exists() {
        faults.push("/etc/apt/sources.list: names the build's package archive".to_owned());
    }
    Ok(faults)
}

/// What would give the build machine away.
fn machine_words(image: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let mut words = Vec::new();
    if let Some(dir) = image.parent() {
        words.push((
            "the build machine's image directory",
            dir.join(".work").into_os_string().into_encoded_bytes(),
        ));
    }
    let of = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    if let Some(name) =
        of("/proc/sys/kernel/hostname").filter(|name| name.len() >= SHORTEST_NAME && name != "localhost")
    {
        words.push(("the build machine's name", name.into_bytes()));
    }
    if let Some(id) = of("/etc/machine-id").filter(|id| id.len() == 32) {
        words.push(("the build machine's id", id.into_bytes()));
    }
    words
}

fn contains(content: &[u8], word: &[u8]) -> bool {
    let Some((first, rest)) = word.split_first() else { return false };
    let mut from = 0;
    while let Some(at) = content[from..].iter().position(|byte| byte == first) {
        from += at + 1;
        if content[from..].starts_with(rest) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn traces_and_privileges_are_found_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc/apt/sources.list.d")).unwrap();
        let image = dir.path().join("images/some-id");
        fs::write(root.join("etc/clean"), "nothing").unwrap();
        assert_eq!(find(&root, &image).unwrap(), Vec::<String>::new());

        fs::write(root.join("etc/path"), format!("x{}/images/.work/base", dir.path().display())).unwrap();
        fs::write(root.join("etc/apt/sources.list.d/a.sources"), "").unwrap();
        fs::write(root.join("etc/su"), "").unwrap();
        fs::set_permissions(root.join("etc/su"), fs::Permissions::from_mode(0o4755)).unwrap();
        let faults = find(&root, &image).unwrap();
        for start in ["/etc/path: ", "/etc/su: ", "/etc/apt/sources.list.d: "] {
            assert!(faults.iter().any(|fault| fault.starts_with(start)), "{start} {faults:?}");
        }
        assert_eq!(faults.len(), 3);
    }
}
