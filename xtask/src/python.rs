//! The Python with which a second implementation of WebRTC runs in the end-to-end tests.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::{
    repo,
    run::{command, prepare, step},
};

/// Pinned packages of the program.
const REQUIREMENTS: &str = "e2e/aiortc/requirements.txt";

/// Makes the environment once for each list of packages, and gives its interpreter.
pub(crate) fn interpreter() -> Result<PathBuf> {
    let wanted = repo::root().join(REQUIREMENTS);
    let list = fs::read(&wanted).with_context(|| format!("read {REQUIREMENTS}"))?;
    let dir = repo::cache_dir().join("python");
    let (python, stamp) = (dir.join("bin/python"), dir.join("requirements.txt"));
    if fs::read(&stamp).is_ok_and(|installed| installed == list) {
        return Ok(python);
    }
    step("install Python packages of the end-to-end tests", || {
        prepare(command("python3").args(["-m", "venv", "--clear"]).arg(&dir))?;
        let mut pip = command(&python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary",
            ":all:",
        ]);
        prepare(pip.arg("--requirement").arg(&wanted))?;
        fs::write(&stamp, &list).context("note the installed packages")
    })?;
    Ok(python)
}
