//! Patterns of the recipe: a path in which `*` stands for any text within one component.
//!
//! Matching walks the tree itself and never follows a symbolic link, so a link of the guest cannot lead to files of the build machine.

use std::path::{Path, PathBuf};

/// Whether a pattern may be used to remove files: absolute, at least two components deep, no `..`.
pub(crate) fn is_safe(pattern: &str) -> bool {
    let Some(below_root) = pattern.strip_prefix('/') else { return false };
    let parts: Vec<_> = below_root.split('/').collect();
    parts.len() >= 2 && !parts[0].contains('*') && !parts.iter().any(|part| matches!(*part, "" | "." | ".."))
}

/// Paths below `root` that `pattern` matches, in order.
pub(crate) fn expand(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = found.iter().flat_map(|dir| children(dir, part)).collect();
    }
    found
}

/// Whether `path`, seen from the root of the guest, lies at or below what `pattern` matches.
pub(crate) fn covers(pattern: &str, path: &str) -> bool {
    let mut parts = path.split('/');
    pattern.split('/').all(|wanted| parts.next().is_some_and(|part| matches(wanted, part)))
}

fn children(dir: &Path, part: &str) -> Vec<PathBuf> {
    let is_dir = dir.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    if !is_dir {
        return Vec::new();
    }
    if !part.contains('*') {
        let path = dir.join(part);
        return if path.symlink_metadata().is_ok() { vec![path] } else { Vec::new() };
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| matches(part, name)))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Whether `text` is what `pattern` describes.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => {
            let Some(tail) = text.strip_prefix(head) else { return false };
            (0..=tail.len()).filter(|&at| tail.is_char_boundary(at)).any(|at| matches(rest, &tail[at..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_within_one_component() {
        assert!(matches("lib*.so*", "libLLVM-15.so.1") && !matches("lib*.so", "libz.a"));
        assert!(covers("/usr/lib/*/x", "/usr/lib/a/x/deep/file") && !covers("/usr/*/x", "/usr/lib/a/x"));
    }

    #[test]
    fn rules_that_could_remove_the_root_are_refused() {
        for bad in ["", "/", "usr/x", "/*", "/usr/../etc", "/*/x", "/usr"] {
            assert!(!is_safe(bad), "{bad}");
        }
        assert!(is_safe("/usr/lib/*") && is_safe("/usr/share/doc"));
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("usr")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("usr/out")).unwrap();
        assert_eq!(expand(dir.path(), "/usr/out/*"), Vec::<PathBuf>::new());
        assert_eq!(expand(dir.path(), "/usr/o*"), vec![dir.path().join("usr/out")]);
    }
}
