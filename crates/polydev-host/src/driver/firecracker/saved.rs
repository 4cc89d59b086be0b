//! The memory of a VM while it sleeps, in the data directory: it outlives a reboot.
//!
//! ```text
//! held/<vm>/base     described: the VM sleeps. Otherwise a VM runs on it, or nobody knows what it is
//! held/<vm>/new      described: a capture that stands alone and has to become the base
//! held/<vm>/layer    described: a capture of what changed since the base, which has to be merged onto it
//! ```
//!
//! The base loses its description before a VM that was loaded from it runs, since from then on the disk is newer. A
//! capture is described before its VM is killed, and what has to be done with it then can be repeated: at no moment
//! does a manager's death lose the VM.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use polydev_core::ids::VmId;
use serde::{Deserialize, Serialize};

use crate::{
    driver::Places,
    failpoint,
    firecracker::SnapshotKind,
    record::write_durably,
    snapshot::{self, DEVICES, MEMORY, check, describe},
};

/// How the VMM names the directory.
pub(super) const ITEM: &str = "saved";
const BASE: &str = "base";
const NEW: &str = "new";
const LAYER: &str = "layer";
/// In a VM's run directory: since when every change to its memory is known.
const TRACKED: &str = "tracked";

/// Since when every change to a VM's memory is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tracked {
    /// From its boot on: what was not changed is zero.
    FromBoot,
    /// From its load on: the file it was loaded from, as it was then.
    FromBase { device: u64, inode: u64, size: u64, modified: (i64, i64) },
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Saved {
    dir: PathBuf,
}

/// VMs of which anything is kept.
pub(super) fn all(places: &Places) -> BTreeSet<VmId> {
    let held = places.held(VmId::from_uuid(uuid::Uuid::nil()));
    let entries = held.parent().and_then(|dir| fs::read_dir(dir).ok());
    entries.into_iter().flatten().flatten().filter_map(|it| it.file_name().to_str()?.parse().ok()).collect()
}

/// What a VM has to write for its state to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capture {
    pub(super) kind: SnapshotKind,
    name: &'static str,
}

impl Saved {
    /// A VM's memory.
    pub(super) fn of(places: &Places, id: VmId) -> Self {
        Self { dir: places.held(id) }
    }

    /// The directory, made unless it is there. Nobody but the host gets to what is in it, and a VMM to which it is shown:
    /// that passes through it by name and cannot list it.
    pub(super) fn make(&self) -> io::Result<PathBuf> {
        if let Some(all) = self.dir.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(all)?;
        }
        fs::create_dir_all(&self.dir)?;
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o711))?;
        Ok(self.dir.clone())
    }

    /// Whether the VM can go on from what is here.
    pub(super) fn is_whole(&self) -> bool {
        [BASE, NEW, LAYER].iter().any(|name| check(&self.dir.join(name)).is_ok())
    }

    /// Whether a capture is complete that has not become the base.
    pub(super) fn is_captured(&self) -> bool {
        [NEW, LAYER].iter().any(|name| check(&self.dir.join(name)).is_ok())
    }

    /// Whether the base is described, and why not.
    pub(super) fn base(&self) -> Result<(), String> {
        check(&self.dir.join(BASE)).map(drop)
    }

    /// How the VMM names the base.
    pub(super) fn base_item() -> String {
        format!("{ITEM}/{BASE}")
    }

    /// Makes ready for a capture. What the VMM is asked for first makes it forget which memory changed, so that is noted
    /// as not known from here on.
    pub(super) fn begin(&self, run_dir: &Path, uid: u32) -> io::Result<Capture> {
        self.discard_capture()?;
        let capture = match self.tracked(run_dir) {
            Some(Tracked::FromBoot) => Capture { kind: SnapshotKind::Diff, name: NEW },
            Some(Tracked::FromBase { .. }) => Capture { kind: SnapshotKind::Diff, name: LAYER },
            None => Capture { kind: SnapshotKind::Full, name: NEW },
        };
        forget_tracked(run_dir)?;
        self.open(capture, uid)?;
        Ok(capture)
    }

    /// Makes ready for a capture of everything, after one of changes failed.
    pub(super) fn begin_whole(&self, uid: u32) -> io::Result<Capture> {
        self.discard_capture()?;
        let capture = Capture { kind: SnapshotKind::Full, name: NEW };
        self.open(capture, uid)?;
        Ok(capture)
    }

    /// Puts a capture on stable storage and describes it: from here on the VM can be killed.
    pub(super) fn complete(&self, capture: Capture) -> io::Result<()> {
        let dir = self.dir.join(capture.name);
        crate::firecracker::jail::take_back(&dir, &[DEVICES, MEMORY])?;
        describe(&dir, None)
    }

    /// Makes a complete capture the base. Its VM must have ended. Repeating it is fine.
    pub(super) fn settle(&self) -> io::Result<()> {
        let (base, new, layer) = (self.dir.join(BASE), self.dir.join(NEW), self.dir.join(LAYER));
        if check(&new).is_ok() {
            snapshot::remove(&base)?;
            failpoint::reach("firecracker/base-removed");
            fs::rename(&new, &base)?;
            File::open(&self.dir)?.sync_all()?;
        } else if check(&layer).is_ok() {
            snapshot::forget(&base)?;
            failpoint::reach("firecracker/before-merge");
            snapshot::merge(&layer.join(MEMORY), &base.join(MEMORY))?;
            failpoint::reach("firecracker/merged");
            fs::copy(layer.join(DEVICES), base.join(DEVICES))?;
            describe(&base, None)?;
            failpoint::reach("firecracker/base-described");
        }
        self.discard_capture()
    }

    /// A VM that was loaded from the base is about to run: what is in the base is past from then on.
    pub(super) fn use_up(&self, run_dir: &Path) -> io::Result<()> {
        let file = fs::metadata(self.dir.join(BASE).join(MEMORY))?;
        write_durably(&run_dir.join(TRACKED), &serde_json::to_vec(&Tracked::from_base(&file))?)?;
        failpoint::reach("firecracker/tracked");
        snapshot::forget(&self.dir.join(BASE))
    }

    /// Removes captures, finished or not.
    pub(super) fn discard_capture(&self) -> io::Result<()> {
        [NEW, LAYER].iter().try_for_each(|name| remove(&self.dir.join(name)))
    }

    /// Removes all that is kept; none is fine.
    pub(super) fn discard(&self) -> io::Result<()> {
        for name in [BASE, NEW, LAYER] {
            remove(&self.dir.join(name))?;
        }
        snapshot::remove(&self.dir)
    }

    fn open(&self, capture: Capture, uid: u32) -> io::Result<()> {
        let dir = self.dir.join(capture.name);
        fs::create_dir(&dir)?;
        crate::firecracker::jail::hand_over(&dir, uid)
    }

    fn tracked(&self, run_dir: &Path) -> Option<Tracked> {
        let tracked: Tracked = serde_json::from_slice(&fs::read(run_dir.join(TRACKED)).ok()?).ok()?;
        match tracked {
            Tracked::FromBoot => Some(tracked),
            Tracked::FromBase { .. } => {
                let file = fs::metadata(self.dir.join(BASE).join(MEMORY)).ok()?;
                (Tracked::from_base(&file) == tracked).then_some(tracked)
            }
        }
    }
}

impl Capture {
    /// How the VMM names the directory it writes to.
    pub(super) fn item(self) -> String {
        format!("{ITEM}/{}", self.name)
    }
}

impl Tracked {
    fn from_base(file: &fs::Metadata) -> Self {
        Self::FromBase {
            device: file.dev(),
            inode: file.ino(),
            size: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }
}

/// A VM that tracks changes has booted: it writes down that all are known.
pub(super) fn track_from_boot(run_dir: &Path) -> io::Result<()> {
    write_durably(&run_dir.join(TRACKED), &serde_json::to_vec(&Tracked::FromBoot)?)
}

/// Nobody knows any more what changed.
pub(super) fn forget_tracked(run_dir: &Path) -> io::Result<()> {
    match fs::remove_file(run_dir.join(TRACKED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::open(run_dir)?.sync_all()
}

/// Removes a snapshot, its description first: half of one is never taken for whole.
fn remove(dir: &Path) -> io::Result<()> {
    if dir.exists() {
        snapshot::forget(dir)?;
    }
    snapshot::remove(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    struct Place {
        dir: tempfile::TempDir,
        saved: Saved,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let saved = Saved { dir: dir.path().join("held") };
        saved.make().unwrap();
        Place { dir, saved }
    }

    impl Place {
        /// What a VM does that is asked to write pages of its memory.
        fn write(&self, capture: Capture, devices: &str, pages: &[(u64, u8)]) {
            let dir = self.saved.dir.join(capture.name);
            fs::write(dir.join(DEVICES), devices).unwrap();
            let memory = File::create(dir.join(MEMORY)).unwrap();
            memory.set_len(16 * 4096).unwrap();
            for (page, byte) in pages {
                memory.write_all_at(&[*byte; 4096], page * 4096).unwrap();
            }
        }

        fn uid() -> u32 {
            rustix::process::geteuid().as_raw()
        }

        fn base_page(&self, page: usize) -> u8 {
            fs::read(self.saved.dir.join(BASE).join(MEMORY)).unwrap()[page * 4096]
        }

        /// Boots, sleeps and wakes.
        fn woken(&self) {
            track_from_boot(self.dir.path()).unwrap();
            let first = self.saved.begin(self.dir.path(), Self::uid()).unwrap();
            assert_eq!(first.kind, SnapshotKind::Diff);
            self.write(first, "one", &[(1, b'a'), (2, b'a')]);
            self.saved.complete(first).unwrap();
            self.saved.settle().unwrap();
            self.saved.use_up(self.dir.path()).unwrap();
        }
    }

    #[test]
    fn a_vm_sleeps_by_what_changed_and_its_base_is_of_no_use_while_it_runs() {
        let place = place();
        assert!(!place.saved.is_whole());
        place.woken();
        assert!(!place.saved.is_whole(), "the disk is newer");
        let second = place.saved.begin(place.dir.path(), Place::uid()).unwrap();
        assert_eq!((second.kind, second.name), (SnapshotKind::Diff, LAYER));
        place.write(second, "two", &[(2, b'b')]);
        assert!(!place.saved.is_whole(), "not complete");
        place.saved.complete(second).unwrap();
        assert!(place.saved.is_whole() && place.saved.is_captured() && place.saved.base().is_err());
        place.saved.settle().unwrap();
        place.saved.settle().unwrap();
        place.saved.base().unwrap();
        assert!(!place.saved.is_captured());
        assert_eq!((place.base_page(1), place.base_page(2)), (b'a', b'b'));
        assert_eq!(fs::read_to_string(place.saved.dir.join(BASE).join(DEVICES)).unwrap(), "two");
    }

    #[test]
    fn a_merge_that_was_cut_short_is_done_again_from_the_capture() {
        let place = place();
        place.woken();
        let second = place.saved.begin(place.dir.path(), Place::uid()).unwrap();
        place.write(second, "two", &[(2, b'b'), (3, b'b')]);
        place.saved.complete(second).unwrap();
        // Half of it, then the manager's death.
        let base = File::options().write(true).open(place.saved.dir.join(BASE).join(MEMORY)).unwrap();
        base.write_all_at(&[b'b'; 4096], 2 * 4096).unwrap();
        assert!(place.saved.is_whole());
        place.saved.settle().unwrap();
        place.saved.base().unwrap();
        assert_eq!([1, 2, 3].map(|page| place.base_page(page)), [b'a', b'b', b'b']);
    }

    #[test]
    fn after_a_capture_was_begun_only_a_whole_one_is_taken() {
        let place = place();
        place.woken();
        place.saved.begin(place.dir.path(), Place::uid()).unwrap();
        let again = place.saved.begin(place.dir.path(), Place::uid()).unwrap();
        assert_eq!((again.kind, again.name), (SnapshotKind::Full, NEW));
        place.write(again, "whole", &[(5, b'w')]);
        place.saved.complete(again).unwrap();
        place.saved.settle().unwrap();
        assert_eq!((place.base_page(1), place.base_page(5)), (0, b'w'));
    }

    #[test]
    fn changes_are_not_tracked_onto_a_base_that_is_another() {
        let place = place();
        place.woken();
        fs::write(place.saved.dir.join(BASE).join(MEMORY), "FAKE").unwrap();
        assert_eq!(place.saved.begin(place.dir.path(), Place::uid()).unwrap().kind, SnapshotKind::Full);
    }
}
