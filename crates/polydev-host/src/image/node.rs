//! The pinned Node binary, and npm run by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha512};

use super::command::Runner;
use super::error::{ImageError, IoContext};
use super::recipe::Node;
use super::tree;

/// Fetches the Node binary the recipe pins, once; returns its path in the cache.
pub(crate) fn fetch(runner: &Runner<'_>, node: &Node, cache: &Path) -> Result<PathBuf, ImageError> {
    let name = format!("{}-{}", node.package, node.version);
    let (dir, archive) = (cache.join("node").join(&name), cache.join("node").join(format!("{name}.tgz")));
    if !archive.is_file() {
        runner.say("node", format!("fetching {} {}", node.package, node.version));
        let into = runner.work.join("node");
        fs::create_dir_all(&into).or_io("create", &into)?;
        let mut pack = npm_environment(runner.fetcher("npm"), runner, cache);
        pack.args(["pack", "--silent", "--pack-destination"])
            .arg(&into)
            .arg(format!("{}@{}", node.package, node.version));
        runner.run("node", "fetching Node", pack.current_dir(&into))?;
        let fetched = into.join(format!("{name}.tgz"));
        fs::create_dir_all(cache.join("node")).or_io("create", cache)?;
        fs::copy(&fetched, &archive).or_io("copy", &archive)?;
    }
    let bytes = fs::read(&archive).or_io("read", &archive)?;
    let found = format!("sha512-{}", STANDARD.encode(Sha512::digest(&bytes)));
    if found != node.integrity {
        tree::remove(&archive)?;
        return Err(ImageError::Integrity { what: name, expected: node.integrity.clone(), found });
    }
    tree::remove(&dir)?;
    fs::create_dir_all(&dir).or_io("create", &dir)?;
    let mut unpack = runner.offline("tar");
    unpack.arg("-xzf").arg(&archive).arg("-C").arg(&dir).args([
        "--no-same-owner",
        "--strip-components=1",
        "package/bin/node",
    ]);
    runner.run("node", "unpacking Node", &mut unpack)?;
    let program = dir.join("bin/node");
    let said =
        runner.output("node", "asking Node for its version", runner.offline(&program).arg("--version"))?;
    if said.trim() != format!("v{}", node.version) {
        return Err(ImageError::Integrity {
            what: "node --version".to_owned(),
            expected: node.version.clone(),
            found: said,
        });
    }
    Ok(program)
}

/// npm of the build machine, executed by the pinned Node: npm picks package versions by the Node that runs it.
pub(crate) fn npm(runner: &Runner<'_>, node: &Path, cache: &Path) -> Result<Command, ImageError> {
    let found = runner.output(
        "tools",
        "locating npm",
        runner.offline("sh").args(["-c", "readlink -f \"$(command -v npm)\""]),
    )?;
    let mut command = npm_environment(runner.fetcher(node), runner, cache);
    command.arg(found.trim());
    Ok(command)
}

fn npm_environment(mut command: Command, runner: &Runner<'_>, cache: &Path) -> Command {
    command
        .env("npm_config_cache", cache.join("npm"))
        .env("npm_config_update_notifier", "false")
        .env("npm_config_audit", "false")
        .env("npm_config_fund", "false");
    // The operator's own npm settings say where the registry is; nothing else of them reaches the image.
    let settings =
        std::env::var_os("HOME").map(|home| Path::new(&home).join(".npmrc")).filter(|path| path.is_file());
    command.env("npm_config_userconfig", settings.unwrap_or_else(|| runner.work.join("npmrc")));
    command
}
