//! The declarative recipe of an image. Parsing and checking need no root and no network, and report every fault at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use polydev_core::guest::{BROWSER_USER, CLI_USER};
use serde::{Deserialize, Serialize};

use super::error::ImageError;
use super::{LAYERS, glob};

/// A recipe as it stands in `images/*.toml`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of this format.
    pub schema: u32,
    /// Name of the recipe, also the first part of image ids.
    pub name: String,
    /// Why this recipe is data only; absent in one that builds.
    #[serde(default)]
    pub not_buildable: Option<String>,
    /// Free space asked for before a build starts.
    pub build_space_mib: u64,
    /// Largest compressed size of base and desktop together.
    pub size_goal_mib: u64,
    /// The distribution.
    pub os: Os,
    /// Kernel package and modules.
    pub kernel: Kernel,
    /// The Node binary.
    pub node: Node,
    /// Accounts that every image has.
    pub account: Vec<Account>,
    /// What each layer is made of.
    pub layer: BTreeMap<String, Layer>,
    /// CLIs from npm.
    pub tool: Vec<Tool>,
    /// Programs that must run in the finished image.
    pub check: Vec<Check>,
    /// Exceptions of the check.
    #[serde(default)]
    pub verify: Exceptions,
    /// Directory of the recipe, from which `npm_lock` is found.
    #[serde(skip)]
    pub directory: PathBuf,
}

/// Distribution and where its packages come from.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Os {
    /// `debian` or `ubuntu`.
    pub distribution: String,
    /// Code name of the release.
    pub suite: String,
    /// Parts of the archive to take packages from.
    pub pockets: Vec<String>,
    /// Components of the archive.
    pub components: Vec<String>,
    /// Debian architecture.
    pub architecture: String,
    /// Where the archive is.
    pub mirror: Mirror,
    /// Keyring on the build machine that signs the archive.
    pub keyring: PathBuf,
}

/// Where an archive's address comes from; a recipe never holds the address itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mirror {
    /// The build machine's own apt sources.
    System,
    /// An address the operator gives.
    Operator,
}

/// Kernel part of a recipe.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Package (a metapackage) that brings the kernel.
    pub package: String,
    /// Modules that the guest needs, without their dependencies.
    pub modules: Vec<String>,
}

/// The pinned Node binary.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// npm package with `bin/node`.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// Subresource integrity of the package's tarball.
    pub integrity: String,
}

/// An account of the guest.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Login name, also the group's name.
    pub name: String,
    /// User id, also the group id.
    pub uid: u32,
    /// Home directory.
    pub home: String,
}

/// What one layer is made of.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Debian packages, without their dependencies.
    pub packages: Vec<String>,
    /// Patterns of packages that dependencies would bring and the layer goes without.
    #[serde(default)]
    pub omit: Vec<String>,
    /// Patterns of paths to remove from the layer once it is complete.
    #[serde(default)]
    pub strip: Vec<String>,
    /// Lock file of the npm packages, relative to the recipe.
    #[serde(default)]
    pub npm_lock: Option<PathBuf>,
}

/// A CLI from npm.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Provider id.
    pub id: String,
    /// npm package.
    pub npm: String,
    /// Exact version.
    pub version: String,
    /// Name in `/usr/local/bin` to path below `node_modules`.
    pub links: BTreeMap<String, String>,
}

/// A program that must run in the finished image.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The command.
    pub argv: Vec<String>,
    /// Text that its output must hold.
    pub expect: String,
    /// Account that runs it; `dev` unless said.
    #[serde(default = "default_user")]
    pub user: String,
}

/// Files that the check leaves alone.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Exceptions {
    /// Patterns of ELF files whose libraries are not looked up.
    #[serde(default)]
    pub ignore_elf: Vec<String>,
}

fn default_user() -> String {
    CLI_USER.name.to_owned()
}

impl Recipe {
    /// Reads and checks a recipe and its npm lock file.
    pub fn load(path: &Path) -> Result<Self, ImageError> {
        let fail = |faults| ImageError::Recipe { path: path.to_owned(), faults };
        let text = std::fs::read_to_string(path).map_err(|e| fail(vec![format!("cannot be read: {e}")]))?;
        let mut recipe: Self = toml::from_str(&text).map_err(|e| fail(vec![e.to_string()]))?;
        recipe.directory = path.parent().unwrap_or(Path::new(".")).to_owned();
        let mut faults = recipe.faults();
        faults.extend(recipe.lock_faults());
        if faults.is_empty() { Ok(recipe) } else { Err(fail(faults)) }
    }

    /// The recipe of a layer; all of [`LAYERS`] are there once [`Recipe::load`] has succeeded.
    pub fn layer(&self, name: &str) -> &Layer {
        self.layer.get(name).expect("a loaded recipe has every layer")
    }

    /// Path of the npm lock file.
    pub(crate) fn lock_path(&self) -> PathBuf {
        self.directory.join(self.layer("tools").npm_lock.as_deref().unwrap_or(Path::new("package-lock.json")))
    }

    /// Everything wrong with the recipe's own text.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut need = |ok: bool, fault: String| {
            if !ok {
                faults.push(fault);
            }
        };
        need(self.schema == 1, format!("schema {} is not known, 1 is", self.schema));
        need(is_name(&self.name), format!("name {:?} may hold a-z, 0-9, `.` and `-` only", self.name));
        need(!self.os.pockets.is_empty(), "os.pockets is empty".to_owned());
        need(!self.os.components.is_empty(), "os.components is empty".to_owned());
        need(
            self.os.pockets.contains(&self.os.suite),
            format!("os.pockets does not hold the suite {:?}", self.os.suite),
        );
        need(self.os.keyring.is_absolute(), "os.keyring must be an absolute path".to_owned());
        need(
            self.os.architecture == "amd64",
            format!("os.architecture {:?} has no golden image, only amd64", self.os.architecture),
        );
        for word in self.os.pockets.iter().chain(&self.os.components) {
            need(is_name(word), format!("os: {word:?} is not a pocket or component"));
        }
        need(
            is_name(&self.kernel.package),
            format!("kernel.package {:?} is not a package name", self.kernel.package),
        );
        need(
            !self.kernel.modules.is_empty(),
            "kernel.modules is empty: the guest could not find its disks".to_owned(),
        );
        need(
            is_exact_version(&self.node.version),
            format!("node.version {:?} is not an exact version", self.node.version),
        );
        need(self.node.integrity.starts_with("sha512-"), "node.integrity must be a sha512- value".to_owned());
        for wanted in [CLI_USER, BROWSER_USER] {
            let there = self
                .account
                .iter()
                .any(|a| (a.name.as_str(), a.uid, a.home.as_str()) == (wanted.name, wanted.uid, wanted.home));
            need(
                there,
                format!(
                    "account {} with uid {} and home {} is missing",
                    wanted.name, wanted.uid, wanted.home
                ),
            );
        }
        for name in LAYERS {
            need(self.layer.contains_key(name), format!("layer.{name} is missing"));
        }
        for (name, layer) in &self.layer {
            need(
                LAYERS.contains(&name.as_str()),
                format!("layer.{name} is not one of {}", LAYERS.join(", ")),
            );
            for package in &layer.packages {
                need(is_name(package), format!("layer.{name}: {package:?} is not a package name"));
            }
            need(
                layer.omit.is_empty() || name == "desktop",
                format!("layer.{name}: only the desktop can omit packages"),
            );
            for rule in &layer.strip {
                need(
                    glob::is_safe(rule),
                    format!(
                        "layer.{name}: strip rule {rule:?} must be absolute, below a directory, without `..`"
                    ),
                );
            }
            need(
                layer.npm_lock.is_some() == (name == "tools"),
                format!("layer.{name}: npm_lock belongs to tools and nowhere else"),
            );
        }
        let mut commands = BTreeSet::new();
        for tool in &self.tool {
            let id = &tool.id;
            need(
                is_exact_version(&tool.version),
                format!(
                    "tool {id}: version {:?} is not exact, and npm would pick another one silently",
                    tool.version
                ),
            );
            need(!tool.links.is_empty(), format!("tool {id} has no links, so nobody could run it"));
            for (command, to) in &tool.links {
                need(is_name(command), format!("tool {id}: {command:?} is not a command name"));
                need(commands.insert(command), format!("command {command} is linked twice"));
                need(
                    !to.starts_with('/') && !to.split('/').any(|part| part == ".."),
                    format!("tool {id}: link {to:?} must stay below node_modules"),
                );
            }
        }
        for check in &self.check {
            need(!check.argv.is_empty(), "a check has an empty argv".to_owned());
            need(
                !check.expect.is_empty(),
                format!("check {:?} expects nothing, so it could not fail", check.argv),
            );
            need(
                self.account.iter().any(|a| a.name == check.user),
                format!("check {:?} runs as unknown account {:?}", check.argv, check.user),
            );
        }
        for command in commands {
            need(
                self.check.iter().any(|c| c.argv.first() == Some(command)),
                format!("command {command} has no check"),
            );
        }
        faults
    }

    /// Everything in which the npm lock file and the recipe disagree.
    fn lock_faults(&self) -> Vec<String> {
        if self.layer.get("tools").is_none_or(|layer| layer.npm_lock.is_none()) {
            return Vec::new();
        }
        let path = self.lock_path();
        let packages = match locked_packages(&path) {
            Ok(packages) => packages,
            Err(reason) => return vec![format!("npm lock {}: {reason}", path.display())],
        };
        let mut faults = Vec::new();
        for tool in &self.tool {
            match packages.get(&tool.npm) {
                Some(locked) if *locked == tool.version => {}
                Some(locked) => faults.push(format!(
                    "tool {}: the recipe says {}, the npm lock {locked}",
                    tool.id, tool.version
                )),
                None => faults.push(format!("tool {}: {} is not in the npm lock", tool.id, tool.npm)),
            }
        }
        faults
    }
}

/// Package name to version, of all packages in an npm lock file of version 3. A lock that names where packages lie is refused.
pub(crate) fn locked_packages(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let lock: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let entries = lock.get("packages").and_then(|p| p.as_object()).ok_or("has no `packages`")?;
    let mut packages = BTreeMap::new();
    for (place, entry) in entries.iter().filter(|(place, _)| !place.is_empty()) {
        if entry.get("resolved").is_some() {
            return Err(format!(
                "{place} names a registry; write the lock with omit-lockfile-registry-resolved"
            ));
        }
        let name = place.strip_prefix("node_modules/").unwrap_or(place);
        if let Some(version) = entry.get("version").and_then(|v| v.as_str()) {
            packages.insert(name.to_owned(), version.to_owned());
        }
    }
    Ok(packages)
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['-', '.'])
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-._".contains(&b))
}

fn is_exact_version(text: &str) -> bool {
    let core = text.split_once('-').map_or(text, |(core, _)| core);
    core.split('.').count() == 3
        && core.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}
