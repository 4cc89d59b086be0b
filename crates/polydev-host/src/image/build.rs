//! The build from recipe to `current`.
//!
//! ```text
//! lists ─┬─ base ── desktop ─┐
//!        ├─ tools ───────────┼─ image.json ── current
//!        └─ kernel ──────────┘
//! ```
//! Each box has a content address; a box that is there already is not made again. Unfinished work is in `.work` and `layers/.new-*` and removed at the next start.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::address::{LayerInputs, address};
use super::apt::Apt;
use super::command::{Cancel, ProgressFn, Runner, require};
use super::error::{ImageError, IoContext};
use super::kernel::KernelPackage;
use super::lease::{Image, open};
use super::manifest::{ImageManifest, KernelEntry, LayerEntry, SCHEMA, hash_file, write_json};
use super::mount::{Mounted, in_private_namespace, remove_scratch};
use super::recipe::{Recipe, locked_packages};
use super::{base, desktop, erofs, kernel, node, store, tools, tree};

/// What the builder needs from the build machine, and the Debian packages with it.
const PROGRAMS: [(&str, &str); 9] = [
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.erofs", "erofs-utils"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("npm", "npm"),
    ("zstd", "zstd"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("tar", "tar"),
];

/// What to build and where.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The recipe's file.
    pub recipe: PathBuf,
    /// Directory of images.
    pub image_dir: PathBuf,
    /// Downloads that may be used again; `<image_dir>/../build-cache` unless said.
    pub cache_dir: PathBuf,
    /// Addresses of the package archive (and, second, of its security updates) in place of the machine's own sources.
    pub mirrors: Vec<String>,
}

impl BuildOptions {
    /// Options with the cache beside the images and the machine's own package sources.
    pub fn new(recipe: impl Into<PathBuf>, image_dir: impl Into<PathBuf>) -> Self {
        let image_dir = image_dir.into();
        let cache_dir = image_dir.parent().unwrap_or(Path::new("/")).join("build-cache");
        Self { recipe: recipe.into(), image_dir, cache_dir, mirrors: Vec::new() }
    }
}

/// Builds an image, or finds that it exists, and makes it the current one. Blocks for minutes; needs root and one builder at a time.
pub fn build(
    options: &BuildOptions,
    cancel: &Cancel,
    progress: &ProgressFn<'_>,
) -> Result<Image, ImageError> {
    let recipe = Recipe::load(&options.recipe)?;
    if let Some(reason) = &recipe.not_buildable {
        return Err(ImageError::NotBuildable { recipe: recipe.name, reason: reason.clone() });
    }
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::NotRoot);
    }
    require(&PROGRAMS)?;
    let _lock = store::BuildLock::take(&options.image_dir)?;
    let image_dir = options.image_dir.canonicalize().or_io("find", &options.image_dir)?;
    let work = image_dir.join(".work");
    remove_scratch(&work)?;
    remove_unfinished(&image_dir.join("layers"))?;
    store::require_space(&image_dir, recipe.build_space_mib)?;
    for dir in [&work, &options.cache_dir] {
        fs::create_dir_all(dir).or_io("create", dir)?;
    }
    let cache = options.cache_dir.canonicalize().or_io("find", &options.cache_dir)?;
    let runner = Runner::new(cancel, progress, work.clone(), image_dir.join("build.log"));
    tree::write(&image_dir.join("build.log"), 0o644, "")?;
    let job = Job { recipe: &recipe, image_dir: &image_dir, cache: &cache, runner: &runner };
    let outcome = in_private_namespace(|| {
        let made = job.make(&options.mirrors);
        made.and_then(|id| remove_scratch(&work).map(|()| id)).inspect_err(|_| {
            if let Err(error) = remove_scratch(&work) {
                tracing::warn!(%error, "unfinished work stays until the next build");
            }
        })
    });
    let id = outcome?;
    store::make_current(&image_dir, &id)?;
    runner.say("image", format!("{id} is current"));
    open(&image_dir, &id)
}

struct Job<'a> {
    recipe: &'a Recipe,
    image_dir: &'a Path,
    cache: &'a Path,
    runner: &'a Runner<'a>,
}

impl Job<'_> {
    fn make(&self, mirrors: &[String]) -> Result<String, ImageError> {
        let Self { recipe, runner, .. } = *self;
        let apt = Apt::prepare(runner, &recipe.os, mirrors, self.cache)?;
        let node = node::fetch(runner, &recipe.node, self.cache)?;
        let kernel = kernel::resolve(recipe, &apt)?;
        let (lower, upper) = std::thread::scope(|scope| {
            let tools = scope.spawn(|| self.tools(&apt, &node).inspect_err(|_| runner.give_up()));
            let lower = self
                .base(&apt, &node)
                .and_then(|(address, base)| Ok((base, self.desktop(&apt, &address)?)))
                .inspect_err(|_| runner.give_up());
            (lower, tools.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        // When one half fails the other is stopped; the failure, not the stop, is what to report.
        let ((base, desktop), tools) = match (lower, upper) {
            (Ok(lower), Ok(upper)) => (lower, upper),
            (Err(ImageError::Cancelled), Err(error)) | (Err(error), _) | (_, Err(error)) => {
                return Err(error);
            }
        };
        self.finish(&apt, &kernel, vec![base, desktop, tools])
    }

    fn base(&self, apt: &Apt<'_>, node: &Path) -> Result<(String, LayerEntry), ImageError> {
        let recipe = self.recipe;
        let wanted: Vec<_> = std::iter::once("?essential".to_owned())
            .chain(recipe.layer("base").packages.iter().cloned())
            .collect();
        let packages = apt.resolve("base", None, &wanted, &[])?;
        let hashes = BTreeMap::from([("node", recipe.node.integrity.clone())]);
        let address = address(
            "layer",
            &LayerInputs {
                name: "base",
                recipe: (recipe.layer("base"), &recipe.account, &recipe.os),
                below: None,
                packages: &packages,
                hashes,
            },
        );
        if let Some(done) = self.reuse("base", &address) {
            return Ok((address, done));
        }
        let root = self.runner.work.join("base");
        base::make(self.runner, recipe, apt, node, &root)?;
        let mut packages = tree::installed_packages(&root)?;
        packages.insert(recipe.node.package.clone(), recipe.node.version.clone());
        let entry = erofs::pack(self.runner, self.image_dir, "base", &address, &root, packages)?;
        tree::remove(&root)?;
        Ok((address, entry))
    }

    fn desktop(&self, apt: &Apt<'_>, base: &str) -> Result<LayerEntry, ImageError> {
        let layer = self.recipe.layer("desktop");
        let dir = self.runner.work.join("desktop");
        let lower = dir.join("base");
        let _base =
            Mounted::erofs(self.runner, &erofs::place(self.image_dir, base).join("layer.erofs"), &lower)?;
        let status = lower.join("var/lib/dpkg/status");
        let packages = apt.resolve("desktop", Some(&status), &layer.packages, &layer.omit)?;
        let whole = apt.resolve("desktop", Some(&status), &layer.packages, &[])?;
        let omitted: Vec<_> = whole.into_keys().filter(|name| !packages.contains_key(name)).collect();
        let address = address(
            "layer",
            &LayerInputs {
                name: "desktop",
                recipe: layer,
                below: Some(base),
                packages: &packages,
                hashes: BTreeMap::new(),
            },
        );
        if let Some(done) = self.reuse("desktop", &address) {
            return Ok(done);
        }
        desktop::make(self.runner, self.recipe, apt, &packages, &omitted, &lower, &dir)?;
        erofs::pack(self.runner, self.image_dir, "desktop", &address, &dir.join("up"), packages)
    }

    fn tools(&self, apt: &Apt<'_>, node: &Path) -> Result<LayerEntry, ImageError> {
        let recipe = self.recipe;
        let layer = recipe.layer("tools");
        let mut debs = Vec::new();
        let mut packages = BTreeMap::new();
        for package in &layer.packages {
            let (file, version) = apt.fetch("tools", package)?;
            debs.push(file);
            packages.insert(package.clone(), version);
        }
        let lock = recipe.lock_path();
        let hashes = BTreeMap::from([
            ("lock", hash_file(&lock)?),
            ("package", hash_file(&lock.with_file_name("package.json"))?),
            ("node", recipe.node.integrity.clone()),
        ]);
        let address = address(
            "layer",
            &LayerInputs {
                name: "tools",
                recipe: (layer, &recipe.tool),
                below: None,
                packages: &packages,
                hashes,
            },
        );
        if let Some(done) = self.reuse("tools", &address) {
            return Ok(done);
        }
        let root = self.runner.work.join("tools");
        tools::make(self.runner, recipe, apt, &debs, node, self.cache, &root)?;
        let locked = locked_packages(&lock).map_err(|reason| ImageError::Manifest { path: lock, reason })?;
        packages.extend(locked.into_iter().map(|(name, version)| (format!("npm:{name}"), version)));
        erofs::pack(self.runner, self.image_dir, "tools", &address, &root, packages)
    }

    fn reuse(&self, name: &str, address: &str) -> Option<LayerEntry> {
        let done = erofs::finished(self.image_dir, address)?;
        self.runner.say(name, format!("unchanged, using layer {address}"));
        Some(done)
    }

    fn finish(
        &self,
        apt: &Apt<'_>,
        kernel: &KernelPackage,
        layers: Vec<LayerEntry>,
    ) -> Result<String, ImageError> {
        let Self { recipe, image_dir, runner, .. } = *self;
        let places: Vec<_> = layers.iter().map(|layer| &layer.path).collect();
        let id = format!(
            "{}-{}",
            recipe.name,
            &address("image", &(&recipe.name, places, kernel, &recipe.kernel, &recipe.check, &recipe.verify))
                [..16]
        );
        if open(image_dir, &id).is_ok() {
            runner.say("image", "nothing changed");
            return Ok(id);
        }
        let fresh = runner.work.join("image");
        let version = kernel::make(runner, recipe, apt, kernel, &fresh)?;
        let mut sha256 = BTreeMap::new();
        for (name, file) in [("bzimage", "kernel/bzImage"), ("vmlinux", "kernel/vmlinux")] {
            sha256.insert(name.to_owned(), hash_file(&fresh.join(file))?);
        }
        let mut versions = BTreeMap::from([
            ("node".to_owned(), recipe.node.version.clone()),
            ("kernel".to_owned(), kernel.version.clone()),
        ]);
        versions.extend(recipe.tool.iter().map(|tool| (tool.id.clone(), tool.version.clone())));
        for name in recipe.layer.values().flat_map(|layer| &layer.packages) {
            if let Some(found) = layers.iter().find_map(|layer| layer.packages.get(name)) {
                versions.insert(name.clone(), found.clone());
            }
        }
        let manifest = ImageManifest {
            schema: SCHEMA,
            id: id.clone(),
            recipe: recipe.name.clone(),
            suite: recipe.os.suite.clone(),
            created_unix: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            layers: layers
                .into_iter()
                .map(|layer| LayerEntry { packages: BTreeMap::new(), ..layer })
                .collect(),
            kernel: KernelEntry {
                version,
                bzimage: "kernel/bzImage".into(),
                vmlinux: "kernel/vmlinux".into(),
                sha256,
            },
            modules_cpio: "modules.cpio".into(),
            versions,
        };
        // Kept with the image, so that a check needs no recipe beside it.
        let text = toml::to_string(recipe)
            .map_err(|e| ImageError::Manifest { path: fresh.clone(), reason: e.to_string() })?;
        tree::write(&fresh.join("recipe.toml"), 0o644, text)?;
        write_json(&fresh.join("image.json"), &manifest)?;
        let done = image_dir.join(&id);
        tree::remove(&done)?;
        fs::rename(&fresh, &done).or_io("move into place", &done)?;
        Ok(id)
    }
}

fn remove_unfinished(layers: &Path) -> Result<(), ImageError> {
    for entry in fs::read_dir(layers).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b".new-") {
            tree::remove(&entry.path())?;
        }
    }
    Ok(())
}
