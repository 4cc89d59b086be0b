//! Templates: a saved browser VM that any number of clones start from.
//!
//! ```text
//! <dir>/<key>/manifest.json   what it was made from, and the state's checksum
//! <dir>/<key>/ram             guest memory, sparse; clones map it privately
//! <dir>/<key>/state           device state without the memory (QEMU's `x-ignore-shared`)
//! ```
//!
//! A template appears whole, by a rename, and never changes. Whatever of it does not fit is an error on which the
//! caller makes a new one. The caller runs QEMU; this module only talks to it.

mod files;
mod stream;

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::qmp::{Qmp, QmpError};
pub use files::{TemplateSpec, Templates};
use files::{Manifest, RAM};

/// Pause between questions how far QEMU is.
const POLL_PAUSE: Duration = Duration::from_millis(3);
/// How long a simple command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// Socket in the VM's run directory through which the device state passes.
const STATE_SOCKET: &str = "state.sock";

/// Why there is no template, or none that works. All but [`TemplateError::Missing`] deserve a line in the log; after
/// any of them a VM can still be started cold.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// None was made for this.
    #[error("no template for this image and machine")]
    Missing,
    /// It is there and must not be used.
    #[error("template {dir} is unusable: {what}")]
    Invalid {
        /// Its directory.
        dir: PathBuf,
        /// Which part, and how.
        what: String,
    },
    /// Another process is making one.
    #[error("a template is being made already")]
    Busy,
    /// QEMU failed.
    #[error("{step}: {source}")]
    Qmp {
        /// What was under way.
        step: &'static str,
        /// Why.
        #[source]
        source: QmpError,
    },
    /// QEMU answered, and it did not work.
    #[error("{step}: {detail}")]
    Failed {
        /// What was under way.
        step: &'static str,
        /// QEMU's words.
        detail: String,
    },
    /// The operating system refused.
    #[error("{op}: {source}")]
    Os {
        /// What was tried.
        op: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

impl TemplateError {
    fn os(op: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { op: op.into(), source }
    }

    fn qmp(step: &'static str) -> impl FnOnce(QmpError) -> Self {
        move |source| Self::Qmp { step, source }
    }
}

/// A template in the making. Dropping it removes what there is of it.
#[derive(Debug)]
pub struct Draft {
    files: files::DraftFiles,
}

/// A template that can be restored.
#[derive(Debug, Clone)]
pub struct Template {
    dir: PathBuf,
    manifest: Manifest,
    state: std::sync::Arc<[u8]>,
}

impl Draft {
    /// What QEMU's command line needs besides what every VM has.
    pub fn arguments(&self) -> Vec<OsString> {
        memory_arguments(&self.files.ram(), self.files.memory_mib(), true)
    }

    /// Saves the VM behind `qmp` and ends its QEMU. The agent must have quiesced and nobody be connected to it.
    ///
    /// `run_dir` is the VM's run directory and QEMU's working directory. On error the VM may be stopped: end it.
    pub async fn finish(self, qmp: &mut Qmp, run_dir: &Path, limit: Duration) -> Result<Template, TemplateError> {
        let deadline = Instant::now() + limit;
        let step = "save the template";
        execute(qmp, step, "stop", Value::Null).await?;
        ignore_shared_memory(qmp, step).await?;
        let listener = stream::listen(&run_dir.join(STATE_SOCKET))?;
        execute(qmp, step, "migrate", json!({ "uri": format!("unix:{STATE_SOCKET}") })).await?;
        let state = stream::receive(listener, deadline).await?;
        loop {
            let progress = execute(qmp, step, "query-migrate", Value::Null).await?;
            match progress["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") | None => {
                    return Err(TemplateError::Failed { step, detail: progress.to_string() });
                }
                Some(_) if Instant::now() >= deadline => {
                    return Err(TemplateError::Failed { step, detail: format!("not done in time: {progress}") });
                }
                Some(_) => sleep(POLL_PAUSE).await,
            }
        }
        // Its answer may be lost, since QEMU ends. The VM is stopped: its memory file changes no more.
        let _ = qmp.execute("quit", Value::Null, COMMAND_LIMIT).await;
        let files = self.files;
        tokio::task::spawn_blocking(move || files.commit(&state))
            .await
            .map_err(|error| TemplateError::Failed { step, detail: error.to_string() })?
    }
}

impl Template {
    /// What QEMU's command line needs besides what every VM has. It must otherwise be the one the template was made with.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut all = memory_arguments(&self.dir.join(RAM), self.manifest.spec.memory_mib, false);
        all.extend(["-incoming".into(), "defer".into()]);
        all
    }

    /// Loads the state into a QEMU that was started with [`Template::arguments`] in `run_dir`, and lets it run.
    ///
    /// After an error QEMU is of no use any more, or gone: end it and start the VM cold.
    pub async fn restore(&self, qmp: &mut Qmp, run_dir: &Path, limit: Duration) -> Result<(), TemplateError> {
        let deadline = Instant::now() + limit;
        let step = "restore the template";
        ignore_shared_memory(qmp, step).await?;
        execute(qmp, step, "migrate-incoming", json!({ "uri": format!("unix:{STATE_SOCKET}") })).await?;
        stream::send(&run_dir.join(STATE_SOCKET), &self.state, deadline).await?;
        loop {
            let status = execute(qmp, step, "query-status", Value::Null).await?;
            match status["status"].as_str() {
                // The VM was stopped when it was saved.
                Some("paused") => break,
                Some("inmigrate") if Instant::now() < deadline => sleep(POLL_PAUSE).await,
                _ => return Err(TemplateError::Failed { step, detail: format!("QEMU is {status}") }),
            }
        }
        execute(qmp, step, "cont", Value::Null).await?;
        Ok(())
    }
}

async fn execute(
    qmp: &mut Qmp,
    step: &'static str,
    command: &'static str,
    arguments: Value,
) -> Result<Value, TemplateError> {
    qmp.execute(command, arguments, COMMAND_LIMIT).await.map_err(TemplateError::qmp(step))
}

/// Leaves memory that is shared with a file out of the state. Both sides must say so.
async fn ignore_shared_memory(qmp: &mut Qmp, step: &'static str) -> Result<(), TemplateError> {
    let capability = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
    execute(qmp, step, "migrate-set-capabilities", capability).await.map(drop)
}

/// Guest memory in a file. A later `-machine` adds to an earlier one.
fn memory_arguments(ram: &Path, memory_mib: u32, share: bool) -> Vec<OsString> {
    let object = json!({
        "qom-type": "memory-backend-file", "id": "ram", "mem-path": ram.to_string_lossy(),
        "size": u64::from(memory_mib) << 20, "share": share,
    });
    ["-object".into(), object.to_string().into(), "-machine".into(), "memory-backend=ram".into()].into()
}
