//! Checks a built image: files, libraries, programs, accounts, and (if asked) a boot of its kernel and layers in QEMU.
//!
//! Every fault names the file or program. Nothing is repaired, and programs of the image run without network, as their account, on a throw-away upper layer.

pub(crate) mod boot;
mod libraries;
mod traces;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use polydev_core::guest::CLI_USER;

use super::command::{Cancel, ProgressFn, Runner, require};
use super::error::{ImageError, IoContext};
use super::lease::Image;
use super::manifest::hash_file;
use super::mount::{Mounted, in_private_namespace, remove_scratch};
use super::recipe::{Check, Recipe};
use super::tree;

/// Time that one program of a check may take.
const CHECK_LIMIT: Duration = Duration::from_secs(90);

/// What to check besides the files.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// Boot the image as well.
    pub boot: Option<BootCheck>,
}

/// How to boot the image for a check.
#[derive(Debug, Clone)]
pub struct BootCheck {
    /// The QEMU program.
    pub qemu: PathBuf,
    /// Time the boot may take; emulation without hardware support is slow.
    pub limit: Duration,
}

impl Default for BootCheck {
    fn default() -> Self {
        Self { qemu: PathBuf::from("qemu-system-x86_64"), limit: Duration::from_secs(300) }
    }
}

/// Result of a check.
#[derive(Debug, Default, Clone)]
pub struct VerifyReport {
    /// What was found in order, one line each.
    pub passed: Vec<String>,
    /// What is wrong, each line beginning with the file or program.
    pub faults: Vec<String>,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_ok(&self) -> bool {
        self.faults.is_empty()
    }

    fn add(&mut self, what: impl Into<String>, faults: Vec<String>) {
        if faults.is_empty() {
            self.passed.push(what.into());
        }
        self.faults.extend(faults);
    }
}

/// Checks an image. Blocks for about a minute, longer with a boot; needs root. Faults of the image are in the report, not errors.
pub fn verify(
    image: &Image,
    options: &VerifyOptions,
    cancel: &Cancel,
    progress: &ProgressFn<'_>,
) -> Result<VerifyReport, ImageError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::NotRoot);
    }
    require(&[("unshare", "util-linux"), ("mount", "mount")])?;
    if options.boot.is_some() {
        require(&[("dash", "dash"), ("kmod", "kmod"), ("chroot", "coreutils")])?;
    }
    let recipe = read_recipe(image)?;
    let scratch = tempfile::Builder::new()
        .prefix("polydev-check-")
        .tempdir()
        .or_io("create a directory in", &std::env::temp_dir())?;
    let work = scratch.path().join("work");
    fs::create_dir_all(&work).or_io("create", &work)?;
    let runner = Runner::new(cancel, progress, work.clone(), scratch.path().join("log"));
    in_private_namespace(|| {
        let report = Verification { image, recipe: &recipe, runner: &runner }.run(options);
        remove_scratch(&work)?;
        report
    })
}

/// The recipe as the builder left it beside `image.json`.
fn read_recipe(image: &Image) -> Result<Recipe, ImageError> {
    let path = image.dir().join("recipe.toml");
    let bad = |reason: String| ImageError::Manifest { path: path.clone(), reason };
    toml::from_str(&fs::read_to_string(&path).map_err(|e| bad(e.to_string()))?)
        .map_err(|e| bad(e.to_string()))
}

struct Verification<'a> {
    image: &'a Image,
    recipe: &'a Recipe,
    runner: &'a Runner<'a>,
}

impl Verification<'_> {
    fn run(&self, options: &VerifyOptions) -> Result<VerifyReport, ImageError> {
        let Self { image, recipe, runner } = *self;
        let mut report = VerifyReport::default();
        runner.say("check", "hashes of kernel and layers");
        report.add("kernel and layers have their recorded hashes", self.hashes()?);
        report
            .add(format!("base and desktop are within {} MiB compressed", recipe.size_goal_mib), self.size());

        let mut mounts = Vec::new();
        let mut places: Vec<PathBuf> = Vec::new();
        for layer in &image.manifest().layers {
            let at = runner.work.join("layers").join(&layer.name);
            mounts.push(Mounted::erofs(runner, &image.dir().join(&layer.path), &at)?);
            if layer.name != "base" {
                report.add(
                    format!("layer {} hides nothing below it", layer.name),
                    tree::require_additive(&at).err().map(|e| e.to_string()).into_iter().collect(),
                );
            }
            places.insert(0, at);
        }
        // A browser VM stacks all layers; a CLI VM goes without the desktop and must not need any of it.
        let lower: Vec<&Path> = places.iter().map(PathBuf::as_path).collect();
        let browser = self.stack("browser", &lower, &mut mounts)?;
        let without_desktop: Vec<_> =
            lower.iter().copied().filter(|place| !place.ends_with("desktop")).collect();
        let cli = self.stack("cli", &without_desktop, &mut mounts)?;

        for (kind, root) in [("browser", &browser), ("CLI", &cli)] {
            runner.say("check", format!("libraries of every program of a {kind} VM"));
            let (count, faults) = libraries::unresolved(root, &recipe.verify.ignore_elf)?;
            let faults = faults.into_iter().map(|fault| format!("{fault} (in a {kind} VM)")).collect();
            report.add(format!("a {kind} VM has all libraries of its {count} ELF files"), faults);
        }
        runner.say("check", "privileges and traces of the build machine");
        report.add(
            "nothing runs set-user-id, nothing of the build machine is inside",
            traces::find(&browser, image.dir())?,
        );
        report.add("accounts are as the recipe says", self.accounts(&browser)?);
        for check in &recipe.check {
            let root = if check.user == CLI_USER.name { &cli } else { &browser };
            report
                .add(format!("{} runs as {}", check.argv.join(" "), check.user), self.program(root, check)?);
        }
        if let Some(boot) = &options.boot {
            report.add(
                "the kernel loads its modules and mounts the layers",
                boot::faults(runner, image, boot)?,
            );
        }
        while let Some(mount) = mounts.pop() {
            drop(mount);
        }
        Ok(report)
    }

    /// Stacks layers (topmost first) under a throw-away upper layer.
    fn stack(&self, name: &str, lower: &[&Path], mounts: &mut Vec<Mounted>) -> Result<PathBuf, ImageError> {
        let (scratch, root) =
            (self.runner.work.join(name).join("upper"), self.runner.work.join(name).join("root"));
        mounts.push(Mounted::tmpfs(&scratch)?);
        mounts.push(Mounted::overlay(lower, Some(&scratch), &root)?);
        Ok(root)
    }

    fn hashes(&self) -> Result<Vec<String>, ImageError> {
        let manifest = self.image.manifest();
        let kernel = &manifest.kernel;
        let mut wanted: Vec<(PathBuf, Option<&String>)> = manifest
            .layers
            .iter()
            .map(|layer| (self.image.dir().join(&layer.path), Some(&layer.sha256)))
            .collect();
        wanted.push((self.image.bzimage(), kernel.sha256.get("bzimage")));
        wanted.push((self.image.vmlinux(), kernel.sha256.get("vmlinux")));
        let mut faults = Vec::new();
        for (file, hash) in wanted {
            self.runner.check()?;
            let found = hash_file(&file)?;
            if hash != Some(&found) {
                faults.push(format!("{}: hash {found} is not the recorded one", file.display()));
            }
        }
        Ok(faults)
    }

    fn size(&self) -> Vec<String> {
        let layers = &self.image.manifest().layers;
        let bytes: u64 =
            layers.iter().filter(|layer| layer.name != "tools").map(|layer| layer.compressed_bytes).sum();
        let (found, goal) = (bytes.div_ceil(1 << 20), self.recipe.size_goal_mib);
        if found > goal {
            vec![format!("base and desktop: {found} MiB compressed, the recipe allows {goal}")]
        } else {
            Vec::new()
        }
    }

    fn accounts(&self, root: &Path) -> Result<Vec<String>, ImageError> {
        let path = root.join("etc/passwd");
        let passwd = fs::read_to_string(&path).or_io("read", &path)?;
        let mut faults = Vec::new();
        for account in &self.recipe.account {
            let line =
                format!("{}:x:{uid}:{uid}::{}:/bin/bash", account.name, account.home, uid = account.uid);
            if !passwd.lines().any(|have| have == line) {
                faults.push(format!("/etc/passwd: has no line {line:?}"));
            }
            let home = root.join(account.home.trim_start_matches('/'));
            let owner = home.metadata().map(|meta| {
                (
                    std::os::unix::fs::MetadataExt::uid(&meta),
                    std::os::unix::fs::MetadataExt::mode(&meta) & 0o777,
                )
            });
            if !matches!(owner, Ok((uid, 0o700)) if uid == account.uid) {
                faults.push(format!("{}: must belong to {} with mode 0700", account.home, account.name));
            }
        }
        Ok(faults)
    }

    /// Runs one program in namespaces without network, as its account.
    fn program(&self, root: &Path, check: &Check) -> Result<Vec<String>, ImageError> {
        let shown = check.argv.join(" ");
        let Some(account) = self.recipe.account.iter().find(|account| account.name == check.user) else {
            return Ok(vec![format!("{shown}: account {} is not in the recipe", check.user)]);
        };
        self.runner.say("check", &*shown);
        let mut command = self.runner.offline("unshare");
        command
            .args(["--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--root"])
            .arg(root);
        command.args([
            "--setgid",
            &account.uid.to_string(),
            "--setuid",
            &account.uid.to_string(),
            "--wd",
            &account.home,
        ]);
        command
            .args([
                "/usr/bin/env",
                "-i",
                &format!("HOME={}", account.home),
                &format!("PATH={}", polydev_core::guest::PATH),
                "LANG=C.UTF-8",
            ])
            .args(&check.argv);
        let (succeeded, output) = self.runner.attempt("check", &shown, CHECK_LIMIT, &mut command)?;
        if succeeded && output.contains(&check.expect) {
            return Ok(Vec::new());
        }
        let why = if succeeded { format!("does not print {:?}", check.expect) } else { "fails".to_owned() };
        let tail: Vec<_> = output.lines().rev().take(5).collect();
        Ok(vec![format!(
            "{shown}: {why}; last output: {}",
            tail.into_iter().rev().collect::<Vec<_>>().join(" | ")
        )])
    }
}
