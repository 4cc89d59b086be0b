//! Running programs with their output in the open, and saying what is going on.

use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::repo;

/// A program in the repository's root.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(repo::root()).stdin(Stdio::null());
    command
}

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs to the end; an exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// The same for what only prepares: its output goes to standard error, where all progress goes.
pub(crate) fn prepare(command: &mut Command) -> Result<()> {
    run(command.stdout(std::io::stderr()))
}

/// Runs to the end and takes its standard output.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let Output { status, stdout, .. } =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    String::from_utf8(stdout).with_context(|| format!("read the output of {}", shown(command)))
}

/// Whether a program is in `PATH` and answers with exit status 0.
pub(crate) fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = command(program);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs something under a heading and says how long it took.
pub(crate) fn step<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("\n==> {title}");
    let started = Instant::now();
    let result = work().with_context(|| title.to_owned());
    let verdict = if result.is_ok() { "done" } else { "FAILED" };
    eprintln!("<== {title}: {verdict} in {}", seconds(started.elapsed()));
    result
}

/// `1 min 5 s`.
pub(crate) fn seconds(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..60 => format!("{secs}.{} s", time.subsec_millis() / 100),
        secs => format!("{} min {} s", secs / 60, secs % 60),
    }
}

/// Puts a directory first in `PATH` of everything started from here on.
pub(crate) fn prefer(dir: &Path, command: &mut Command) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let joined = std::env::join_paths([dir.to_path_buf()].into_iter().chain(std::env::split_paths(&path)));
    if let Ok(joined) = joined {
        command.env("PATH", joined);
    }
}

fn shown(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
