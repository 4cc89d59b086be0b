//! Runs the few external programs the host needs: with a deadline, an empty environment and captured output.

use std::{ffi::OsStr, io, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::error::HostError;

/// Where programs are looked up.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most characters of a program's complaint that go into an error.
const COMPLAINT_MAX: usize = 600;

/// A command with nothing inherited.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    // The group keeps a terminal's Ctrl-C away from work that has to be finished.
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C").stdin(Stdio::null()).process_group(0);
    command
}

/// Runs a short command to its end and returns its standard output. `op` says what for.
pub(crate) async fn run(mut command: Command, op: &str, limit: Duration) -> Result<String, HostError> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = match timeout(limit, command.output()).await {
        Ok(output) => output.map_err(HostError::os(op))?,
        Err(_) => {
            let late =
                io::Error::new(io::ErrorKind::TimedOut, format!("no end within {} s", limit.as_secs()));
            return Err(HostError::Os { op: op.to_owned(), source: late });
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    if complaint.contains("No space left on device") {
        return Err(HostError::NoSpace { what: op.to_owned(), room: None });
    }
    let complaint: String = complaint.trim().chars().take(COMPLAINT_MAX).collect();
    Err(HostError::Os {
        op: op.to_owned(),
        source: io::Error::other(format!("{}: {complaint}", output.status)),
    })
}
