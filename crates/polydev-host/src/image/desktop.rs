//! The `desktop` layer: X server, window manager, Chromium and fonts, as a difference to `base`.

use std::collections::BTreeMap;
use std::path::Path;

use super::apt::Apt;
use super::base::forget_dpkg_leftovers;
use super::command::Runner;
use super::error::ImageError;
use super::mount::Mounted;
use super::recipe::Recipe;
use super::tree;

/// Installs on top of the mounted base and leaves the difference in `<dir>/up`.
pub(crate) fn make(
    runner: &Runner<'_>,
    recipe: &Recipe,
    apt: &Apt<'_>,
    packages: &BTreeMap<String, String>,
    omitted: &[String],
    base: &Path,
    dir: &Path,
) -> Result<(), ImageError> {
    let layer = recipe.layer("desktop");
    let (root, upper) = (dir.join("root"), dir.join("up"));
    {
        let _union = Mounted::overlay(&[base], Some(dir), &root)?;
        apt.install("desktop", &root, packages, omitted)?;
    }
    // Removed in the difference itself: through the overlay this would leave whiteouts.
    for file in ["etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "var/lib/dbus/machine-id"] {
        tree::remove(&upper.join(file))?;
    }
    for place in ["var/log", "var/cache/fontconfig", "var/cache/ldconfig", "tmp", "run"] {
        tree::empty(&upper.join(place))?;
    }
    forget_dpkg_leftovers(&upper)?;
    let freed = tree::strip(&upper, &layer.strip)?;
    runner.say("desktop", format!("stripped {} MiB", freed >> 20));
    tree::drop_set_id(&upper)?;
    refresh_caches(runner, base, dir)?;
    tree::drop_overlay_notes(&upper, base)?;
    tree::require_additive(&upper)
}

/// Rebuilds the linker's and the fonts' caches after stripping. fontconfig trusts its cache only while directories keep their dates, so these are set first.
fn refresh_caches(runner: &Runner<'_>, base: &Path, dir: &Path) -> Result<(), ImageError> {
    tree::date_directories(&dir.join("up/usr/share/fonts"))?;
    let root = dir.join("root");
    let _union = Mounted::overlay(&[base], Some(dir), &root)?;
    for argv in [&["ldconfig", "-X"][..], &["fc-cache", "--force", "--system-only"][..]] {
        let mut command = runner.offline("unshare");
        command
            .args(["--net", "--pid", "--fork", "--mount-proc", "--root"])
            .arg(&root)
            .args(argv)
            .env("HOME", "/root")
            .env("TMPDIR", "/tmp");
        runner.run("desktop", argv[0], &mut command)?;
    }
    tree::empty(&dir.join("up/var/cache/ldconfig"))
}
