//! Debian packages: finds the archive, resolves and downloads with the build machine's apt against a foreign root, unpacks without network.
//!
//! No configuration of the build machine but its source addresses is used, and no maintainer script sees a network.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::Runner;
use super::error::{ImageError, IoContext};
use super::mount::Mounted;
use super::recipe::{Mirror, Os};
use super::{glob, tree};

/// Directory of a guest that is always there, unused by packages, and serves as the place of downloaded packages.
const PACKAGE_PLACE: &str = "mnt";
/// What maintainer scripts would ask before they start a service: no.
const POLICY: &str = "usr/sbin/policy-rc.d";
/// Documentation and translations that no layer carries; copyright files stay.
pub(crate) const PATH_RULES: [&str; 5] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// apt, configured for one archive and one cache.
pub(crate) struct Apt<'a> {
    runner: &'a Runner<'a>,
    config: PathBuf,
    archives: PathBuf,
    /// The archive as a deb822 file, for mmdebstrap.
    pub(crate) sources: PathBuf,
    nothing_installed: PathBuf,
}

impl<'a> Apt<'a> {
    /// Writes the configuration and brings the package lists up to date.
    pub(crate) fn prepare(
        runner: &'a Runner<'a>,
        os: &Os,
        operator_mirrors: &[String],
        cache: &Path,
    ) -> Result<Self, ImageError> {
        let dir = runner.work.join("apt");
        let (lists, archives) = (cache.join("apt/lists"), cache.join("apt/archives"));
        for path in [
            &dir.join("etc/apt.conf.d"),
            &dir.join("etc/preferences.d"),
            &dir.join("sources.d"),
            &dir.join("state"),
            &lists.join("partial"),
            &archives.join("partial"),
        ] {
            fs::create_dir_all(path).or_io("create", path)?;
        }
        if !os.keyring.is_file() {
            return Err(ImageError::Mirror(format!(
                "the keyring {} is not on this machine",
                os.keyring.display()
            )));
        }
        let sources = dir.join("sources.d/archive.sources");
        tree::write(&sources, 0o644, archive_sources(runner, os, operator_mirrors)?)?;
        let nothing_installed = dir.join("nothing-installed");
        tree::write(&nothing_installed, 0o644, "")?;
        let config = dir.join("apt.conf");
        let set = |key: &str, path: &Path| format!("{key} \"{}\";\n", path.display());
        let text = [
            set("Dir::Etc", &dir.join("etc")),
            set("Dir::Etc::SourceParts", &dir.join("sources.d")),
            "Dir::Etc::SourceList \"/dev/null\";\nDir::Log \"/dev/null\";\n".to_owned(),
            set("Dir::State", &dir.join("state")),
            set("Dir::State::Lists", &lists),
            set("Dir::State::Status", &nothing_installed),
            "Dir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\n".to_owned(),
            set("Dir::Cache::archives", &archives),
            format!("APT::Architecture \"{0}\";\nAPT::Architectures {{ \"{0}\"; }};\n", os.architecture),
            "APT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\nAPT::Keep-Downloaded-Packages \"true\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\n".to_owned(),
        ];
        tree::write(&config, 0o644, text.concat())?;
        let apt = Self { runner, config, archives, sources, nothing_installed };
        runner.say("packages", "reading package lists");
        runner.run("packages", "apt-get update", apt.command("apt-get", None).arg("update"))?;
        Ok(apt)
    }

    /// Package to version of what installing `packages` into a system with dpkg state `status` would bring, without what `omit` matches.
    pub(crate) fn resolve(
        &self,
        part: &str,
        status: Option<&Path>,
        packages: &[String],
        omit: &[String],
    ) -> Result<BTreeMap<String, String>, ImageError> {
        let mut simulate = self.command("apt-get", status);
        let text = self.runner.output(
            part,
            "resolving packages",
            simulate.args(["-s", "-y", "install"]).args(packages),
        )?;
        let omitted = |name: &str| omit.iter().any(|pattern| glob::matches(pattern, name));
        Ok(text.lines().filter_map(installation).filter(|(name, _)| !omitted(name)).collect())
    }

    /// Downloads exactly these packages; returns the names of their files among the archives.
    fn download(&self, part: &str, packages: &BTreeMap<String, String>) -> Result<Vec<String>, ImageError> {
        let wanted: Vec<_> = packages.iter().map(|(name, version)| format!("{name}={version}")).collect();
        let mut listing = self.command("apt-get", None);
        let uris = self.runner.output(
            part,
            "locating packages",
            listing.args(["download", "--print-uris"]).args(&wanted),
        )?;
        let mut download = self.command("apt-get", None);
        let what = format!("downloading {} package(s)", wanted.len());
        self.runner.run(part, &what, download.current_dir(&self.archives).arg("download").args(&wanted))?;
        let files = uris.lines().filter(|line| line.starts_with('\''));
        Ok(files.filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect())
    }

    /// Installs into `root`, a mounted overlay, with dpkg running inside it without network.
    ///
    /// Dependencies on what the recipe omits are ignored; the check of the image finds what should not have been left out.
    pub(crate) fn install(
        &self,
        part: &str,
        root: &Path,
        packages: &BTreeMap<String, String>,
        omitted: &[String],
    ) -> Result<(), ImageError> {
        let files = self.download(part, packages)?;
        self.runner.say(part, format!("installing {} packages", files.len()));
        let _place = Mounted::bind(&self.archives, &root.join(PACKAGE_PLACE))?;
        let policy = root.join(POLICY);
        tree::write(&policy, 0o755, "#!/bin/sh\nexit 101\n")?;
        let mut dpkg = self.runner.offline("unshare");
        dpkg.args(["--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--root"])
            .arg(root);
        dpkg.args(["dpkg", "--install", "--force-unsafe-io"])
            .args(PATH_RULES.map(|rule| format!("--{rule}")));
        if !omitted.is_empty() {
            dpkg.arg(format!("--ignore-depends={}", omitted.join(",")));
        }
        dpkg.args(files.iter().map(|file| format!("/{PACKAGE_PLACE}/{file}")));
        dpkg.env("HOME", "/root")
            .env("TMPDIR", "/tmp")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("DEBCONF_NONINTERACTIVE_SEEN", "true");
        let done = self.runner.run(part, "installing packages", &mut dpkg);
        tree::remove(&policy)?;
        done
    }

    /// One package's file as the archive offers it now, downloaded without its dependencies, and the package's version.
    pub(crate) fn fetch(&self, part: &str, package: &str) -> Result<(PathBuf, String), ImageError> {
        let offered = self.resolve(part, None, &[package.to_owned()], &[])?;
        let version = offered.get(package).cloned().unwrap_or_default();
        let files = self.download(part, &BTreeMap::from([(package.to_owned(), version.clone())]))?;
        let [file] = &files[..] else {
            return Err(ImageError::Mirror(format!("the archive has no package {package}")));
        };
        Ok((self.archives.join(file), version))
    }

    /// Unpacks the files of a package without running anything of it.
    pub(crate) fn unpack(&self, part: &str, package: &Path, into: &Path) -> Result<(), ImageError> {
        let what = format!("unpacking {}", package.file_name().unwrap_or_default().to_string_lossy());
        self.runner.run(part, &what, self.runner.offline("dpkg-deb").arg("-x").arg(package).arg(into))
    }

    fn command(&self, program: &str, status: Option<&Path>) -> Command {
        let mut command = self.runner.fetcher(program);
        command
            .env("APT_CONFIG", &self.config)
            .arg("-o")
            .arg(format!("Dir::State::Status={}", status.unwrap_or(&self.nothing_installed).display()));
        command.arg("-o").arg("Debug::NoLocking=true");
        command
    }
}

/// `Inst name (version archive [arch])`, or with `[old version]` before the bracket.
fn installation(line: &str) -> Option<(String, String)> {
    let rest = line.strip_prefix("Inst ")?;
    let name = rest.split(' ').next()?;
    let version = rest.split_once('(')?.1.split(' ').next()?;
    Some((name.to_owned(), version.to_owned()))
}

/// The archive of a recipe in deb822 form.
fn archive_sources(runner: &Runner<'_>, os: &Os, operator_mirrors: &[String]) -> Result<String, ImageError> {
    let mut pockets: Vec<(String, String)> = Vec::new();
    if operator_mirrors.is_empty() && os.mirror == Mirror::System {
        let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
        let mut list = runner.fetcher("apt-get");
        let text = runner.output(
            "packages",
            "reading apt sources",
            list.args(["indextargets", "--no-release-info", "--format", format, "Created-By: Packages"]),
        )?;
        for line in text.lines() {
            if let [address, pocket, component] = line.split(' ').collect::<Vec<_>>()[..]
                && os.pockets.iter().any(|p| p == pocket)
                && os.components.iter().any(|c| c == component)
                && !pockets.iter().any(|(_, known)| known == pocket)
            {
                pockets.push((address.to_owned(), pocket.to_owned()));
            }
        }
    } else {
        // The first address serves the pockets, a second one those for security updates.
        for pocket in &os.pockets {
            let address = if pocket.ends_with("-security") {
                operator_mirrors.last()
            } else {
                operator_mirrors.first()
            };
            let address = address.ok_or_else(|| {
                ImageError::Mirror(format!(
                    "suite {} takes its archive from the operator; give its address",
                    os.suite
                ))
            })?;
            pockets.push((address.clone(), pocket.clone()));
        }
    }
    if let Some(missing) = os.pockets.iter().find(|pocket| !pockets.iter().any(|(_, known)| known == *pocket))
    {
        return Err(ImageError::Mirror(format!(
            "this machine's apt sources do not have {missing}; give the archive's address instead"
        )));
    }
    let stanza = |(address, pocket): &(String, String)| {
        format!(
            "Types: deb\nURIs: {address}\nSuites: {pocket}\nComponents: {}\nSigned-By: {}\n",
            os.components.join(" "),
            os.keyring.display()
        )
    };
    Ok(pockets.iter().map(stanza).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_installations_give_name_and_new_version() {
        let line = "Inst git [1:2.30] (1:2.39.5-0 Debian:12/stable [amd64])";
        assert_eq!(installation(line), Some(("git".to_owned(), "1:2.39.5-0".to_owned())));
        assert_eq!(installation("Conf git (1:2.39.5-0 x)"), None);
    }
}
