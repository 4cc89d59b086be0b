//! Writes `newc` archives, the format of an initramfs (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Inode numbers are counted and times fixed, so the same input gives the same bytes.

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
    pub(crate) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, &[]);
    }

    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, FILE | mode, content);
    }

    pub(crate) fn link(&mut self, name: &str, to: &str) {
        self.entry(name, LINK | 0o777, to.as_bytes());
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).expect("files of an initramfs are far below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("path names are short");
        let epoch = u32::try_from(EPOCH).expect("the fixed date fits 32 bits");
        self.bytes.extend_from_slice(b"070701");
        for field in [self.inode, mode, 0, 0, links, epoch, size, 0, 0, 0, 0, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
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
