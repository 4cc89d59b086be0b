//! Looks for strings in everything that a guest can read: the memory of a whole microVM, which holds its programs, its
//! kernel and its writable layer; of a container the memory of all its processes and the files it may have written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use memchr::memmem::Finder;

const CHUNK: usize = 4 << 20;
/// Mappings of the kernel's own, which nobody can write to.
const UNREADABLE: [&str; 3] = ["[vvar]", "[vvar_vclock]", "[vsyscall]"];
/// File systems that hold files somebody may have written.
const WRITTEN: [&str; 4] = ["tmpfs", "ext4", "xfs", "btrfs"];

/// What is looked for, where it was found, and how much was looked at.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// Halves of what is looked for by its name: memory is made of pages, and one that is cut at a page's end has one
    /// of its halves whole.
    halves: Vec<(String, Finder<'static>)>,
    longest: usize,
    pub(crate) found: BTreeMap<String, BTreeSet<String>>,
    pub(crate) memory_bytes: u64,
    pub(crate) file_bytes: u64,
    pub(crate) processes: usize,
    pub(crate) files: usize,
    /// What could not be looked at: a search that has any is none.
    pub(crate) missed: Vec<String>,
}

impl Search {
    pub(crate) fn of<'a>(wanted: impl IntoIterator<Item = &'a str>) -> Self {
        let mut search = Self::default();
        for text in wanted {
            let (first, last) = text.as_bytes().split_at(text.len() / 2);
            for half in [first, last] {
                search.longest = search.longest.max(half.len());
                search.halves.push((text.to_owned(), Finder::new(half).into_owned()));
            }
        }
        search
    }

    /// All memory of a process.
    pub(crate) fn memory(&mut self, pid: u32) {
        let (maps, memory) =
            (fs::read_to_string(format!("/proc/{pid}/maps")), File::open(format!("/proc/{pid}/mem")));
        let (Ok(maps), Ok(memory)) = (maps, memory) else {
            // It ended while the others were looked at.
            if Path::new(&format!("/proc/{pid}/mem")).exists() {
                self.missed.push(format!("memory of process {pid}"));
            }
            return;
        };
        self.processes += 1;
        let place = format!("memory of {pid} ({})", name(pid));
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
            if !rights.starts_with('r') || UNREADABLE.iter().any(|it| line.ends_with(it)) {
                continue;
            }
            let (from, to) = range.split_once('-').unwrap();
            let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
            self.region(&memory, from..to, pid, &place, line);
        }
    }

    fn region(&mut self, memory: &File, range: std::ops::Range<u64>, pid: u32, place: &str, line: &str) {
        let mut buffer = vec![0; CHUNK.min(usize::try_from(range.end - range.start).unwrap())];
        let mut at = range.start;
        while at < range.end {
            let wanted = buffer.len().min(usize::try_from(range.end - at).unwrap());
            let Ok(count @ 1..) = memory.read_at(&mut buffer[..wanted], at) else {
                // Gone meanwhile, or pages of a file beyond its end.
                let mapped = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
                if mapped.lines().any(|it| it == line) && line.contains(" 00:00 0") {
                    self.missed.push(format!("{place}: {line}"));
                }
                return;
            };
            self.look(&buffer[..count], place);
            self.memory_bytes += count as u64;
            let step = count as u64;
            // The next look begins a little before where this one ended.
            at += if at + step < range.end { step.saturating_sub(self.longest as u64).max(1) } else { step };
        }
    }

    /// Every file on file systems that can be written to, as a container's first process sees them, and the layer below
    /// its root that takes what it writes.
    pub(crate) fn files_of(&mut self, init: u32, written: &Path) {
        self.tree(written);
        let mounts = fs::read_to_string(format!("/proc/{init}/mountinfo")).unwrap();
        for line in mounts.lines() {
            let (before, after) = line.split_once(" - ").unwrap();
            let at = before.split(' ').nth(4).unwrap();
            if WRITTEN.contains(&after.split(' ').next().unwrap()) {
                self.tree(Path::new(&format!("/proc/{init}/root{at}")));
            }
        }
    }

    /// Every file below a directory, or the one of that name, on the same file system.
    pub(crate) fn tree(&mut self, root: &Path) {
        let Ok(device) = fs::symlink_metadata(root).map(|it| it.dev()) else {
            self.missed.push(root.display().to_string());
            return;
        };
        let mut pending = vec![root.to_owned()];
        while let Some(path) = pending.pop() {
            // Files come and go.
            let Ok(about) = fs::symlink_metadata(&path) else { continue };
            if about.dev() != device {
                continue;
            }
            if about.is_dir() {
                match fs::read_dir(&path) {
                    Ok(entries) => pending.extend(entries.flatten().map(|entry| entry.path())),
                    Err(_) if !path.exists() => {}
                    Err(error) => self.missed.push(format!("{}: {error}", path.display())),
                }
            } else if about.is_file() {
                self.file(path);
            }
        }
    }

    fn file(&mut self, path: PathBuf) {
        let mut content = Vec::new();
        match File::open(&path).and_then(|mut file| file.read_to_end(&mut content)) {
            Ok(count) => {
                self.look(&content, &path.display().to_string());
                (self.files, self.file_bytes) = (self.files + 1, self.file_bytes + count as u64);
            }
            Err(_) if !path.exists() => {}
            Err(error) => self.missed.push(format!("{}: {error}", path.display())),
        }
    }

    fn look(&mut self, bytes: &[u8], place: &str) {
        for (text, half) in &self.halves {
            if half.find(bytes).is_some() {
                self.found.entry(text.clone()).or_default().insert(place.to_owned());
            }
        }
    }
}

/// Of all processes, those for which this holds.
pub(crate) fn processes(fits: impl Fn(u32) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| fits(*pid)).collect()
}

fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}
