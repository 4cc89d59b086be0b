//! Writes `newc` archives, the format of an initramfs (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Inode numbers are counted and times fixed, so the same input gives the same bytes.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
};

use super::command::EPOCH;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive under construction.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// An archive behind another: the kernel unpacks them in order. One may begin at any multiple of four.
    pub(crate) fn behind(other: Vec<u8>) -> Self {
        let mut archive = Self { bytes: other, inode: 0 };
        archive.pad();
        archive
    }

    pub(crate) fn directory(&mut self, name: &str) {
        self.entry(name.as_bytes(), DIRECTORY | 0o755, &[]);
    }

    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name.as_bytes(), FILE | mode, content);
    }

    pub(crate) fn link(&mut self, name: &str, to: &str) {
        self.entry(name.as_bytes(), LINK | 0o777, to.as_bytes());
    }

    /// A directory, file or link of this machine and all that is in it, by name in order; other kinds are left out.
    pub(crate) fn tree(&mut self, name: &[u8], path: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        let permissions = metadata.permissions().mode() & 0o7777;
        if metadata.is_symlink() {
            self.entry(name, LINK | 0o777, fs::read_link(path)?.as_os_str().as_bytes());
        } else if metadata.is_dir() {
            self.entry(name, DIRECTORY | permissions, &[]);
            let mut children: Vec<_> = fs::read_dir(path)?.collect::<io::Result<_>>()?;
            children.sort_by_key(fs::DirEntry::file_name);
            for child in children {
                self.tree(&[name, b"/", child.file_name().as_bytes()].concat(), &child.path())?;
            }
        } else if metadata.is_file() {
            self.entry(name, FILE | permissions, &fs::read(path)?);
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry(b"TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &[u8], mode: u32, content: &[u8]) {
        self.inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).expect("files of an initramfs are far below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("path names are short");
        let epoch = u32::try_from(EPOCH).expect("the fixed date fits 32 bits");
        self.bytes.extend_from_slice(b"070701");
        for field in [self.inode, mode, 0, 0, links, epoch, size, 0, 0, 0, 0, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::default();
        archive.directory("modules");
        archive.file("modules/order", 0o644, b"a.ko\n");
        archive.link("bin", "usr/bin");
        let Ok(mut child) = Command::new("cpio")
            .args(["-i", "--quiet"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn()
        else {
            eprintln!("skipped: no cpio program on this machine");
            return;
        };
        child.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(std::fs::read(dir.path().join("modules/order")).unwrap(), b"a.ko\n");
        assert_eq!(std::fs::read_link(dir.path().join("bin")).unwrap().to_str(), Some("usr/bin"));
    }
}
