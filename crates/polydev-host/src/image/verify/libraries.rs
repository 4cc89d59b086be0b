//! Finds programs and libraries of a guest whose shared libraries are missing, by the dynamic linker's rules (`ld.so(8)`), without running anything.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::image::elf::{self, Dynamic};
use crate::image::error::{ImageError, IoContext};
use crate::image::{glob, tree};

const DEFAULT_PATHS: [&str; 4] = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"];

/// Number of ELF files looked at, and one fault per file with missing libraries. `ignore` holds patterns of files left alone.
pub(crate) fn unresolved(root: &Path, ignore: &[String]) -> Result<(usize, Vec<String>), ImageError> {
    let mut guest = Guest::open(root)?;
    let mut files = Vec::new();
    tree::walk(root, &mut |path, meta| {
        let inside = guest_path(root, path);
        if meta.is_file() && !ignore.iter().any(|pattern| glob::covers(pattern, &inside)) {
            files.extend(elf::dynamic(path).map(|dynamic| (inside, dynamic)));
        }
        Ok(())
    })?;
    let mut faults = Vec::new();
    for (file, dynamic) in &files {
        let mut missing: Vec<_> =
            dynamic.needed.iter().filter(|name| guest.find(file, dynamic, name).is_none()).cloned().collect();
        missing.extend(dynamic.interpreter.iter().filter(|path| !guest.has(path)).cloned());
        if !missing.is_empty() {
            faults.push(format!("{file}: cannot be loaded, {} is missing", missing.join(", ")));
        }
    }
    Ok((files.len(), faults))
}

/// A guest's root directory, in which links are followed as the guest would.
pub(crate) struct Guest {
    root: File,
    path: PathBuf,
    search: Vec<String>,
    known: HashMap<String, bool>,
}

impl Guest {
    pub(crate) fn open(root: &Path) -> Result<Self, ImageError> {
        let handle = File::open(root).or_io("open", root)?;
        let mut search = Vec::new();
        let dir = root.join("etc/ld.so.conf.d");
        let mut files: Vec<_> =
            fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            let text = fs::read_to_string(&file).or_io("read", &file)?;
            search
                .extend(text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(str::to_owned));
        }
        search.extend(DEFAULT_PATHS.map(str::to_owned));
        Ok(Self { root: handle, path: root.to_owned(), search, known: HashMap::new() })
    }

    /// Path in the guest of the library `name` that `file` asks for.
    pub(crate) fn find(&mut self, file: &str, dynamic: &Dynamic, name: &str) -> Option<String> {
        if name.contains('/') {
            return self.has(name).then(|| name.to_owned());
        }
        let origin = file.rsplit_once('/').map_or("", |(dir, _)| dir);
        let own =
            dynamic.search.iter().map(|dir| dir.replace("${ORIGIN}", origin).replace("$ORIGIN", origin));
        let candidates: Vec<_> =
            own.chain(self.search.iter().cloned()).map(|dir| format!("{dir}/{name}")).collect();
        candidates.into_iter().find(|path| self.has(path))
    }

    /// Whether the guest has something at `path`.
    pub(crate) fn has(&mut self, path: &str) -> bool {
        if let Some(known) = self.known.get(path) {
            return *known;
        }
        let found = self.open_file(path, OFlags::PATH).is_ok();
        self.known.insert(path.to_owned(), found);
        found
    }

    /// Content of a file of the guest.
    pub(crate) fn read(&self, path: &str) -> Result<Vec<u8>, ImageError> {
        let shown = self.path.join(path.trim_start_matches('/'));
        let mut content = Vec::new();
        let mut file = self.open_file(path, OFlags::RDONLY).or_io("open", &shown)?;
        std::io::Read::read_to_end(&mut file, &mut content).or_io("read", &shown)?;
        Ok(content)
    }

    fn open_file(&self, path: &str, how: OFlags) -> rustix::io::Result<File> {
        openat2(&self.root, path, how | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT).map(File::from)
    }
}

fn guest_path(root: &Path, path: &Path) -> String {
    format!("/{}", path.strip_prefix(root).unwrap_or(path).display())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with the test's own program and the libraries named.
    fn root_with(libraries: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("usr/lib/x86_64-linux-gnu");
        fs::create_dir_all(&lib).unwrap();
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        fs::create_dir_all(dir.path().join("lib64")).unwrap();
        fs::write(dir.path().join("lib64/ld-linux-x86-64.so.2"), "").unwrap();
        for name in libraries {
            fs::write(lib.join(name), "").unwrap();
        }
        fs::copy("/proc/self/exe", dir.path().join("usr/bin/program")).unwrap();
        dir
    }

    #[test]
    fn a_program_with_all_its_libraries_is_no_fault() {
        let needed = elf::dynamic(Path::new("/proc/self/exe")).unwrap().needed;
        let dir = root_with(&needed.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(unresolved(dir.path(), &[]).unwrap(), (1, vec![]));
    }

    #[test]
    fn a_missing_library_is_named_with_its_program() {
        let dir = root_with(&["libgcc_s.so.1"]);
        let (_, faults) = unresolved(dir.path(), &[]).unwrap();
        assert!(
            matches!(&faults[..], [one] if one.starts_with("/usr/bin/program: ") && one.contains("libc.so.6")),
            "{faults:?}"
        );
        assert_eq!(unresolved(dir.path(), &["/usr/bin/prog*".to_owned()]).unwrap(), (0, vec![]));
    }

    #[test]
    fn links_are_followed_inside_the_guest_only() {
        let dir = root_with(&[]);
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("usr/bin/out")).unwrap();
        assert!(!Guest::open(dir.path()).unwrap().has("/usr/bin/out"));
    }
}
