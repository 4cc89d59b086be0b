//! Templates on disk: made under another name, synced, renamed, checked when found.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Draft, Template, TemplateError};
use crate::record::write_durably;

/// Version of the format.
const SCHEMA: u32 = 1;
const MANIFEST: &str = "manifest.json";
pub(super) const RAM: &str = "ram";
const STATE: &str = "state";
const LOCK: &str = "lock";
const DRAFT_PREFIX: &str = "draft-";
/// Templates kept; older ones are those of earlier images or guest programs.
const KEPT: usize = 2;

/// What a template is good for: only a VM that agrees in all of this can be restored from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateSpec {
    /// Golden image.
    pub image: String,
    /// What `qemu-system-x86_64 --version` says.
    pub qemu: String,
    /// Processor of the host, when the guest sees it (KVM); empty when it is emulated.
    pub host_cpu: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Checksum of QEMU's arguments without those of this module. They name kernel, layers and initramfs by content.
    pub arguments_sha256: String,
}

impl TemplateSpec {
    /// The spec for a VM whose QEMU gets `arguments`.
    pub fn new(
        image: &str,
        qemu: &str,
        host_cpu: &str,
        (vcpus, memory_mib): (u8, u32),
        arguments: &[OsString],
    ) -> Self {
        let mut digest = Sha256::new();
        for argument in arguments {
            digest.update((argument.len() as u64).to_le_bytes());
            digest.update(argument.as_bytes());
        }
        Self {
            image: image.to_owned(),
            qemu: qemu.trim().to_owned(),
            host_cpu: host_cpu.to_owned(),
            vcpus,
            memory_mib,
            arguments_sha256: hex(&digest.finalize()),
        }
    }

    fn key(&self) -> String {
        let mut key = hex(&Sha256::digest(serde_json::to_vec(self).expect("a spec is always JSON")));
        key.truncate(32);
        key
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    schema: u32,
    pub(super) spec: TemplateSpec,
    ram_bytes: u64,
    state_sha256: String,
    created_unix: u64,
}

/// The directory of templates.
#[derive(Debug, Clone)]
pub struct Templates {
    dir: PathBuf,
}

impl Templates {
    /// Opens the directory, making it if needed.
    pub fn open(dir: PathBuf) -> Result<Self, TemplateError> {
        make_private(&dir).map_err(TemplateError::os(format!("make {}", dir.display())))?;
        let dir = fs::canonicalize(&dir).map_err(TemplateError::os(format!("open {}", dir.display())))?;
        Ok(Self { dir })
    }

    /// The template for a spec, checked. Reads the device state, not the memory. Blocks for some milliseconds.
    pub fn find(&self, spec: &TemplateSpec) -> Result<Template, TemplateError> {
        load(&self.dir.join(spec.key()), spec)
    }

    /// Begins a template. At one time one is made, and what dead processes left unfinished is removed.
    pub fn begin(&self, spec: &TemplateSpec) -> Result<Draft, TemplateError> {
        let make = || -> io::Result<Option<DraftFiles>> {
            let lock = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(self.dir.join(LOCK))?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                locked => locked?,
            }
            for (name, path) in entries(&self.dir)? {
                if name.starts_with(DRAFT_PREFIX) {
                    fs::remove_dir_all(path)?;
                }
            }
            let dir = self.dir.join(format!("{DRAFT_PREFIX}{}", uuid::Uuid::new_v4().simple()));
            let files = DraftFiles { templates: self.dir.clone(), dir, spec: spec.clone(), _lock: lock };
            make_private(&files.dir)?;
            let ram = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(files.ram())?;
            ram.set_len(ram_bytes(spec))?;
            Ok(Some(files))
        };
        let op = format!("begin a template in {}", self.dir.display());
        make().map_err(TemplateError::os(op))?.map(|files| Draft { files }).ok_or(TemplateError::Busy)
    }
}

/// The unfinished directory; goes with this value.
#[derive(Debug)]
pub(super) struct DraftFiles {
    templates: PathBuf,
    dir: PathBuf,
    spec: TemplateSpec,
    _lock: File,
}

impl DraftFiles {
    pub(super) fn ram(&self) -> PathBuf {
        self.dir.join(RAM)
    }

    pub(super) fn memory_mib(&self) -> u32 {
        self.spec.memory_mib
    }

    /// Makes it a template that survives a power failure. Blocks while the memory file is written to the disk.
    pub(super) fn commit(self, state: &[u8]) -> Result<Template, TemplateError> {
        let target = self.templates.join(self.spec.key());
        let write = || -> io::Result<()> {
            let ram = File::open(self.ram())?;
            ram.set_permissions(fs::Permissions::from_mode(0o400))?;
            ram.sync_all()?;
            write_durably(&self.dir.join(STATE), state)?;
            fs::set_permissions(self.dir.join(STATE), fs::Permissions::from_mode(0o400))?;
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let manifest = Manifest {
                schema: SCHEMA,
                spec: self.spec.clone(),
                ram_bytes: ram.metadata()?.len(),
                state_sha256: hex(&Sha256::digest(state)),
                created_unix: now.as_secs(),
            };
            write_durably(&self.dir.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)?;
            if target.exists() {
                // One that was found unusable. VMs restored from it keep their mapping.
                fs::remove_dir_all(&target)?;
            }
            fs::rename(&self.dir, &target)?;
            File::open(&self.templates)?.sync_all()?;
            forget_old(&self.templates, &target)
        };
        write().map_err(TemplateError::os(format!("write template {}", target.display())))?;
        load(&target, &self.spec)
    }
}

impl Drop for DraftFiles {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %self.dir.display(), %error, "unfinished template cannot be removed");
            }
            _ => {}
        }
    }
}

fn load(dir: &Path, spec: &TemplateSpec) -> Result<Template, TemplateError> {
    let invalid = |what: String| TemplateError::Invalid { dir: dir.to_path_buf(), what };
    let bytes = match fs::read(dir.join(MANIFEST)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => return Err(TemplateError::Missing),
        bytes => bytes.map_err(|error| invalid(format!("{MANIFEST}: {error}")))?,
    };
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|error| invalid(format!("{MANIFEST}: {error}")))?;
    if manifest.schema != SCHEMA {
        return Err(invalid(format!("schema {}, this program reads {SCHEMA}", manifest.schema)));
    }
    if manifest.spec != *spec {
        return Err(invalid("it was made for something else".to_owned()));
    }
    let ram = fs::symlink_metadata(dir.join(RAM)).map_err(|error| invalid(format!("{RAM}: {error}")))?;
    if !ram.is_file() || ram.nlink() != 1 || ram.len() != manifest.ram_bytes || ram.len() != ram_bytes(spec) {
        return Err(invalid(format!("{RAM} has {} bytes and {} links", ram.len(), ram.nlink())));
    }
    // A writer may have changed it since: the state would not fit the memory any more.
    if ram.mode() & 0o222 != 0 {
        return Err(invalid(format!("{RAM} is writable")));
    }
    let state = fs::read(dir.join(STATE)).map_err(|error| invalid(format!("{STATE}: {error}")))?;
    if hex(&Sha256::digest(&state)) != manifest.state_sha256 {
        return Err(invalid(format!("{STATE} does not have its checksum")));
    }
    Ok(Template { dir: dir.to_path_buf(), manifest, state: state.into() })
}

fn forget_old(templates: &Path, newest: &Path) -> io::Result<()> {
    let mut others = Vec::new();
    for (name, path) in entries(templates)? {
        if path != newest && name != LOCK {
            others.push((fs::metadata(&path)?.modified()?, path));
        }
    }
    others.sort();
    let surplus = (others.len() + 1).saturating_sub(KEPT);
    others.into_iter().take(surplus).try_for_each(|(_, path)| fs::remove_dir_all(path))
}

fn entries(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let name_and_path = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
    };
    fs::read_dir(dir)?.map(name_and_path).collect()
}

fn make_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn ram_bytes(spec: &TemplateSpec) -> u64 {
    u64::from(spec.memory_mib) << 20
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(memory_mib: u32) -> TemplateSpec {
        TemplateSpec::new("image", "QEMU 7.2\n", "", (2, memory_mib), &["-m".into(), format!("{memory_mib}M").into()])
    }

    fn make(templates: &Templates, spec: &TemplateSpec) -> Template {
        let draft = templates.begin(spec).unwrap();
        fs::OpenOptions::new().write(true).open(draft.files.ram()).unwrap();
        draft.files.commit(b"device state").unwrap()
    }

    #[test]
    fn a_finished_template_is_found_again_by_the_same_spec_only() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::open(dir.path().join("templates")).unwrap();
        assert!(matches!(templates.find(&spec(64)), Err(TemplateError::Missing)));
        make(&templates, &spec(64));
        assert_eq!(templates.find(&spec(64)).unwrap().state.as_ref(), b"device state");
        assert!(matches!(templates.find(&spec(128)), Err(TemplateError::Missing)));
        let ram = fs::metadata(templates.dir.join(spec(64).key()).join(RAM)).unwrap();
        assert_eq!((ram.len(), ram.mode() & 0o777), (64 << 20, 0o400));
        assert!(ram.blocks() * 512 < 1 << 20, "the memory file is sparse");
    }

    #[test]
    fn a_template_with_any_part_damaged_is_refused_and_can_be_made_again() {
        type Damage = fn(&Path);
        let damages: [(&str, Damage); 5] = [
            ("a cut memory file", |dir| {
                fs::OpenOptions::new().write(true).open(dir.join(RAM)).unwrap().set_len(1 << 20).unwrap();
            }),
            ("a writable memory file", |dir| {
                fs::set_permissions(dir.join(RAM), fs::Permissions::from_mode(0o600)).unwrap();
            }),
            ("a changed state", |dir| {
                fs::remove_file(dir.join(STATE)).unwrap();
                fs::write(dir.join(STATE), "device stat?").unwrap();
            }),
            ("half a manifest", |dir| fs::write(dir.join(MANIFEST), "{\"schema\":1").unwrap()),
            ("no manifest", |dir| fs::remove_file(dir.join(MANIFEST)).unwrap()),
        ];
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::open(dir.path().join("templates")).unwrap();
        for (what, damage) in damages {
            make(&templates, &spec(64));
            damage(&templates.dir.join(spec(64).key()));
            let found = templates.find(&spec(64));
            assert!(matches!(found, Err(TemplateError::Invalid { .. })), "{what}: {found:?}");
        }
        make(&templates, &spec(64));
        templates.find(&spec(64)).unwrap();
    }

    #[test]
    fn one_template_is_made_at_a_time_and_an_abandoned_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::open(dir.path().join("templates")).unwrap();
        let draft = templates.begin(&spec(64)).unwrap();
        assert!(matches!(templates.begin(&spec(64)), Err(TemplateError::Busy)));
        drop(draft);
        let left_by_a_killed_process = templates.dir.join("draft-dead");
        fs::create_dir(&left_by_a_killed_process).unwrap();
        drop(templates.begin(&spec(64)).unwrap());
        let names: Vec<String> = entries(&templates.dir).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [LOCK]);
    }

    #[test]
    fn the_newest_templates_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::open(dir.path().join("templates")).unwrap();
        for memory_mib in [64, 65, 66] {
            make(&templates, &spec(memory_mib));
        }
        let found = |memory_mib| templates.find(&spec(memory_mib)).is_ok();
        assert!(!found(64) && found(65) && found(66));
    }

    #[test]
    fn arguments_that_run_together_differ() {
        let of = |arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
            TemplateSpec::new("i", "q", "", (1, 1), &arguments).key()
        };
        assert_ne!(of(&["-a", "b"]), of(&["-ab"]));
    }
}
