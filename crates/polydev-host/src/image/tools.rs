//! The `tools` layer: the CLIs. Nothing of a package runs while it is made, and it hides nothing of the layers below.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::apt::Apt;
use super::command::Runner;
use super::error::{ImageError, IoContext};
use super::recipe::Recipe;
use super::{node, tree};

/// Directory of the npm packages in the guest.
const PLACE: &str = "opt/polydev/tools";
/// Below these a file of this layer would hide state of the desktop or base layer.
const NOT_OURS: [&str; 5] = ["etc/ld.so.cache", "etc/passwd", "etc/group", "var/lib/dpkg", "var/cache"];

/// Fills `root` with the npm packages of the lock file, the unpacked Debian packages and links in `/usr/local/bin`.
pub(crate) fn make(
    runner: &Runner<'_>,
    recipe: &Recipe,
    apt: &Apt<'_>,
    debs: &[PathBuf],
    node: &Path,
    cache: &Path,
    root: &Path,
) -> Result<(), ImageError> {
    let place = root.join(PLACE);
    fs::create_dir_all(&place).or_io("create", &place)?;
    let lock = recipe.lock_path();
    for (from, name) in [(lock.with_file_name("package.json"), "package.json"), (lock, "package-lock.json")] {
        let to = place.join(name);
        fs::copy(&from, &to).or_io("copy", &from)?;
    }
    runner.say("tools", format!("installing {} CLIs from npm", recipe.tool.len()));
    let mut install = node::npm(runner, node, cache)?;
    // Install scripts stay off: what they would do (link a program, check a download) the recipe's links and the check of the image do.
    install.args(["ci", "--ignore-scripts", "--omit=dev", "--no-bin-links=false", "--prefer-offline"]);
    runner.run("tools", "npm ci", install.current_dir(&place))?;
    for deb in debs {
        apt.unpack("tools", deb, root)?;
    }
    let commands = root.join("usr/local/bin");
    fs::create_dir_all(&commands).or_io("create", &commands)?;
    for tool in &recipe.tool {
        for (command, to) in &tool.links {
            let target = format!("{PLACE}/node_modules/{to}");
            if !root.join(&target).exists() {
                return Err(ImageError::Tree {
                    path: root.join(target),
                    rule: "a tool's link must point at a file of its npm package",
                });
            }
            let link = commands.join(command);
            symlink(format!("/{target}"), &link).or_io("create", &link)?;
        }
    }
    runner.run("tools", "changing owners", runner.offline("chown").args(["-hR", "0:0"]).arg(root))?;
    let freed = tree::strip(root, &recipe.layer("tools").strip)?;
    runner.say("tools", format!("stripped {} MiB", freed >> 20));
    tree::drop_set_id(root)?;
    for path in NOT_OURS {
        if root.join(path).exists() {
            return Err(ImageError::Tree {
                path: root.join(path),
                rule: "the tools layer must not hide state of the layers below it",
            });
        }
    }
    Ok(())
}
