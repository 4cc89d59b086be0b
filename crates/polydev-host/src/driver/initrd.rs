//! The initramfs: the image's kernel modules and this host's guest programs, one cpio archive after the other.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{driver::container::Programs, error::HostError, image::cpio::Archive, record::write_durably};

/// Initramfs files kept; older ones are those of earlier builds.
const KEPT: usize = 4;

/// The initramfs for these programs, made unless it is in `cache`. Its name tells its content.
pub(super) fn make(modules: &Path, programs: &Programs, cache: &Path) -> Result<PathBuf, HostError> {
    let build = || -> io::Result<PathBuf> {
        let mut archive = Archive::behind(fs::read(modules)?);
        archive.file("init", 0o755, &fs::read(&programs.agent)?);
        if programs.desktop.exists() {
            archive.file("polydev-desktop", 0o755, &fs::read(&programs.desktop)?);
        }
        if let Some(overlay) = &programs.overlay {
            archive.tree(b"overlay", overlay)?;
        }
        let bytes = archive.finish();
        let digest = Sha256::digest(&bytes);
        let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let path = cache.join(format!("initrd-{name}.cpio"));
        if fs::metadata(&path).is_ok_and(|file| file.len() == bytes.len() as u64) {
            return Ok(path);
        }
        fs::create_dir_all(cache)?;
        write_durably(&path, &bytes)?;
        forget_old(cache)?;
        Ok(path)
    };
    build().map_err(HostError::os("make the initramfs"))
}

fn forget_old(cache: &Path) -> io::Result<()> {
    let mut all = Vec::new();
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().as_bytes().starts_with(b"initrd-") {
            all.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    all.sort();
    let surplus = all.len().saturating_sub(KEPT);
    // A VM reads its initramfs once, at start.
    all.into_iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        os::unix::fs::PermissionsExt,
        process::{Command, Stdio},
    };

    #[test]
    fn cpio_reads_back_what_was_packed_and_the_same_input_gives_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("over/etc")).unwrap();
        fs::write(path("over/etc/ca.pem"), "FAKE authority").unwrap();
        std::os::unix::fs::symlink("ca.pem", path("over/etc/link")).unwrap();
        fs::write(path("agent"), "agent!").unwrap();
        let empty = Archive::default().finish();
        fs::write(path("modules.cpio"), empty).unwrap();
        let programs =
            Programs { agent: path("agent"), desktop: path("absent"), overlay: Some(path("over")) };
        let made = make(&path("modules.cpio"), &programs, &path("cache")).unwrap();
        assert_eq!(made, make(&path("modules.cpio"), &programs, &path("cache")).unwrap());

        // The tool reads one archive; the second begins where the first, empty one ends.
        let all = fs::read(&made).unwrap();
        let first = fs::metadata(path("modules.cpio")).unwrap().len() as usize;
        fs::write(path("second"), &all[first.next_multiple_of(4)..]).unwrap();
        fs::create_dir(path("out")).unwrap();
        let unpacked = Command::new("cpio")
            .args(["--extract", "--quiet", "--make-directories"])
            .current_dir(path("out"))
            .stdin(Stdio::from(fs::File::open(path("second")).unwrap()))
            .status()
            .unwrap();
        assert!(unpacked.success());
        assert_eq!(fs::read_to_string(path("out/init")).unwrap(), "agent!");
        assert_eq!(fs::metadata(path("out/init")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_to_string(path("out/overlay/etc/link")).unwrap(), "FAKE authority");
    }
}
