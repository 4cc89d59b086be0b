//! The `base` layer: the small operating system both kinds of VM share, with Node and the accounts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use super::apt::{Apt, PATH_RULES};
use super::command::{EPOCH, Runner};
use super::error::{ImageError, IoContext};
use super::recipe::{Account, Recipe};
use super::tree;

/// Days since 1970 at the fixed date, as the shadow file counts.
const EPOCH_DAYS: u64 = EPOCH / 86_400;
const SKELETON: [&str; 3] = [".bashrc", ".profile", ".bash_logout"];
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 polydev\n";
/// The agent answers names on this address.
const RESOLVER: &str = "nameserver 127.0.0.53\noptions timeout:5 attempts:2\n";

/// Fills `root`, which must not exist, with everything the layer holds.
pub(crate) fn make(
    runner: &Runner<'_>,
    recipe: &Recipe,
    apt: &Apt<'_>,
    node: &Path,
    root: &Path,
) -> Result<(), ImageError> {
    let layer = recipe.layer("base");
    runner.say(
        "base",
        format!(
            "bootstrapping {} with {} packages and what they need",
            recipe.os.suite,
            layer.packages.len()
        ),
    );
    let mut bootstrap = runner.fetcher("mmdebstrap");
    bootstrap.args(["--mode=root", "--variant=essential", "--format=directory", "--quiet"]);
    bootstrap
        .arg(format!("--architectures={}", recipe.os.architecture))
        .arg(format!("--include={}", layer.packages.join(",")));
    bootstrap.args([
        "--aptopt=APT::Install-Recommends \"false\"",
        "--aptopt=Acquire::Languages \"none\"",
        "--aptopt=Acquire::Retries \"3\"",
    ]);
    bootstrap.args(PATH_RULES.map(|rule| format!("--dpkgopt={rule}")));
    bootstrap.arg(&recipe.os.suite).arg(root).arg(&apt.sources);
    runner.run("base", "bootstrapping the operating system", &mut bootstrap)?;

    let target = root.join("usr/local/bin/node");
    fs::copy(node, &target).or_io("copy Node to", &target)?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).or_io("change the mode of", &target)?;
    for account in &recipe.account {
        add_account(root, account)?;
    }
    name_the_guest(root)?;
    forget_the_build(root)?;
    let freed = tree::strip(root, &layer.strip)?;
    runner.say("base", format!("stripped {} MiB", freed >> 20));
    tree::drop_set_id(root)
}

/// Adds an account with a locked password, its group of the same name and its home.
fn add_account(root: &Path, account: &Account) -> Result<(), ImageError> {
    let Account { name, uid, home } = account;
    append(&root.join("etc/passwd"), &format!("{name}:x:{uid}:{uid}::{home}:/bin/bash\n"))?;
    append(&root.join("etc/group"), &format!("{name}:x:{uid}:\n"))?;
    append(&root.join("etc/shadow"), &format!("{name}:!:{EPOCH_DAYS}:0:99999:7:::\n"))?;
    append(&root.join("etc/gshadow"), &format!("{name}:!::\n"))?;
    let dir = root.join(home.trim_start_matches('/'));
    fs::create_dir_all(&dir).or_io("create", &dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).or_io("change the mode of", &dir)?;
    chown(&dir, Some(*uid), Some(*uid)).or_io("change the owner of", &dir)?;
    for file in SKELETON {
        let (from, to) = (root.join("etc/skel").join(file), dir.join(file));
        if from.is_file() {
            fs::copy(&from, &to).or_io("copy", &to)?;
            chown(&to, Some(*uid), Some(*uid)).or_io("change the owner of", &to)?;
        }
    }
    Ok(())
}

fn append(path: &Path, line: &str) -> Result<(), ImageError> {
    use std::io::Write;
    let mut file = fs::File::options().append(true).open(path).or_io("open", path)?;
    file.write_all(line.as_bytes()).or_io("append to", path)
}

/// Replaces what mmdebstrap took over from the build machine.
fn name_the_guest(root: &Path) -> Result<(), ImageError> {
    tree::remove(&root.join("etc/resolv.conf"))?;
    tree::write(&root.join("etc/hostname"), 0o644, "polydev\n")?;
    tree::write(&root.join("etc/hosts"), 0o644, HOSTS)?;
    tree::write(&root.join("etc/resolv.conf"), 0o644, RESOLVER)?;
    tree::write(&root.join("etc/machine-id"), 0o444, "")
}

fn forget_the_build(root: &Path) -> Result<(), ImageError> {
    for file in [
        "etc/apt/sources.list",
        "etc/passwd-",
        "etc/group-",
        "etc/shadow-",
        "etc/gshadow-",
        "etc/subuid-",
        "etc/subgid-",
    ] {
        tree::remove(&root.join(file))?;
    }
    for dir in [
        "etc/apt/sources.list.d",
        "var/lib/apt/lists",
        "var/cache/apt",
        "var/cache/ldconfig",
        "var/log",
        "tmp",
        "run",
    ] {
        tree::empty(&root.join(dir))?;
    }
    forget_dpkg_leftovers(root)
}

/// Old copies of package state; they differ from build to build and serve nobody.
pub(crate) fn forget_dpkg_leftovers(root: &Path) -> Result<(), ImageError> {
    for file in [
        "var/lib/dpkg/status-old",
        "var/lib/dpkg/available-old",
        "var/lib/dpkg/diversions-old",
        "var/lib/dpkg/statoverride-old",
    ] {
        tree::remove(&root.join(file))?;
    }
    tree::empty(&root.join("var/lib/dpkg/updates"))?;
    for file in ["config.dat-old", "templates.dat-old", "passwords.dat-old"] {
        tree::remove(&root.join("var/cache/debconf").join(file))?;
    }
    Ok(())
}
