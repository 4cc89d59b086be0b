//! Building: web page, guest programs, the binary, the golden image.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    repo,
    run::{cargo, command, prepare, step},
    setup,
};

const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";
/// Largest agent: it sits in the memory of every VM.
pub(crate) const AGENT_MAX_BYTES: u64 = 2_500_000;

/// Largest desktop program: the same, and it brings a video encoder.
const DESKTOP_MAX_BYTES: u64 = 4_000_000;

/// How the binary is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Shares its artifacts with the tests.
    Dev,
    /// For use and for measuring.
    Release,
}

/// The static guest programs.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) agent: PathBuf,
    pub(crate) desktop: PathBuf,
}

/// Builds the web page that the binary carries.
pub(crate) fn web() -> Result<()> {
    setup::npm_modules("web")?;
    step("build the web page", || setup::npm_build("web"))
}

/// Builds the guest programs, static and small, unless `XTASK_GUEST_DIR` names a directory that has them.
pub(crate) fn guest() -> Result<Guest> {
    if let Some(dir) = std::env::var_os("XTASK_GUEST_DIR").map(PathBuf::from) {
        return Ok(Guest { agent: dir.join("polydev-agent"), desktop: dir.join("polydev-desktop") });
    }
    step("build the guest programs", || {
        let mut build = cargo();
        build.args(["build", "--profile", "guest", "--target", GUEST_TARGET]);
        build.args(["-p", "polydev-agent", "-p", "polydev-desktop"]);
        // A directory of its own: other flags would make cargo build everything anew each time.
        build.arg("--target-dir").arg(guest_dir());
        prepare(build.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static"))?;
        let dir = guest_dir().join(GUEST_TARGET).join("guest");
        let place = guest_dir();
        let guest = Guest { agent: place.join("polydev-agent"), desktop: place.join("polydev-desktop") };
        for program in [&guest.agent, &guest.desktop] {
            let built = dir.join(program.file_name().expect("made from a name above"));
            check_static(&built)?;
            put_beside(&built, program)?;
        }
        for (name, program, most) in
            [("agent", &guest.agent, AGENT_MAX_BYTES), ("desktop", &guest.desktop, DESKTOP_MAX_BYTES)]
        {
            let size = fs::metadata(program).with_context(|| format!("measure {name}"))?.len();
            if size > most {
                bail!("{name} has {size} bytes, {most} are allowed");
            }
            eprintln!("{name}: {size} bytes");
        }
        Ok(guest)
    })
}

/// Runs the chaos suite: this program once more, built with the host in it, which nothing else here needs.
#[cfg(not(feature = "chaos"))]
pub(crate) fn with_chaos(arguments: &[String]) -> Result<()> {
    let mut chaos = cargo();
    chaos
        .args(["run", "--quiet", "--package", "xtask", "--features", "chaos", "--", "chaos"])
        .args(arguments);
    chaos.current_dir(std::env::current_dir().context("look up the working directory")?);
    crate::run::run(&mut chaos)
}

/// Where the guest programs are built, and where they then lie.
pub(crate) fn guest_dir() -> PathBuf {
    repo::target_dir().join("guest")
}

/// Replaces by rename: a running VM may have the old one bind-mounted.
fn put_beside(built: &Path, place: &Path) -> Result<()> {
    let text = || format!("copy {} to {}", built.display(), place.display());
    if fs::read(place).ok() == fs::read(built).ok() {
        return Ok(());
    }
    let new = place.with_extension("new");
    fs::copy(built, &new).with_context(text)?;
    fs::rename(&new, place).with_context(text)
}

/// An ELF without an interpreter needs nothing of the guest it runs in.
fn check_static(program: &Path) -> Result<()> {
    const PT_INTERP: u32 = 3;
    let elf = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let number = |at: usize, len: usize| {
        let bytes =
            elf.get(at..at + len).with_context(|| format!("{} is no ELF program", program.display()))?;
        Ok::<_, anyhow::Error>(bytes.iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for entry in 0..count {
        if number(table + entry * size, 4)? == PT_INTERP as usize {
            bail!("{} is not static", program.display());
        }
    }
    Ok(())
}

/// Builds `polydev`, unless `XTASK_BINARY` names one that is to be used as it is.
pub(crate) fn controller(profile: Profile) -> Result<PathBuf> {
    if let Some(built) = std::env::var_os("XTASK_BINARY") {
        return Ok(built.into());
    }
    step("build polydev", || {
        let mut build = cargo();
        build.args(["build", "-p", "polydev"]);
        let dir = match profile {
            Profile::Dev => "debug",
            Profile::Release => {
                build.arg("--release");
                "release"
            }
        };
        prepare(&mut build)?;
        Ok(repo::target_dir().join(dir).join("polydev"))
    })
}

/// Builds `polydev` as the chaos suite kills it, unless `XTASK_CHAOS_BINARY` names one. It lies where nobody takes it for
/// the one without failpoints.
#[cfg(feature = "chaos")]
pub(crate) fn controller_with_failpoints() -> Result<PathBuf> {
    if let Some(built) = std::env::var_os("XTASK_CHAOS_BINARY") {
        return Ok(built.into());
    }
    step("build polydev with failpoints", || {
        if !repo::root().join("web/dist").exists() {
            web()?;
        }
        prepare(cargo().args(["build", "-p", "polydev", "--features", "chaos"]))?;
        let place = repo::target_dir().join("chaos");
        fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
        let (built, place) = (repo::target_dir().join("debug/polydev"), place.join("polydev"));
        // Two names of one file: a rename would leave both.
        let _ = fs::remove_file(&place);
        let moved = fs::rename(&built, &place);
        moved.with_context(|| format!("move {} to {}", built.display(), place.display()))?;
        Ok(place)
    })
}

/// Builds the golden image unless it is in the cache already.
pub(crate) fn image(profile: Profile) -> Result<()> {
    let guest = guest()?;
    let polydev = controller(profile)?;
    image_with(&polydev, &guest)
}

/// The same with programs that were built before. The builder itself knows what is up to date.
pub(crate) fn image_with(polydev: &Path, guest: &Guest) -> Result<()> {
    step("golden image", || {
        let mut build = command(polydev);
        build.args(["image", "build"]);
        build.env("POLYDEV_IMAGE_DIR", repo::image_dir());
        prepare(build.env("POLYDEV_AGENT_PATH", &guest.agent).env("POLYDEV_DESKTOP_PATH", &guest.desktop))?;
        let mut clean_up = command(polydev);
        clean_up.args(["image", "gc"]);
        prepare(clean_up.env("POLYDEV_IMAGE_DIR", repo::image_dir()))
    })
}
