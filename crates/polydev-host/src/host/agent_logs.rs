//! The agent keeps its log in the guest's memory; a copy of it outside outlives a VM that is killed.

use std::{fs, io, path::Path, sync::PoisonError, time::Duration};

use polydev_core::wire::{Reply, Request};
use tokio::{task::JoinSet, time::timeout};

use super::{Inner, LogKind, VmKind};

/// Most bytes of an agent's log that are kept.
pub(super) const BYTES_MAX: u32 = 512 << 10;
/// How long an agent may keep the others waiting.
const COPY_LIMIT: Duration = Duration::from_secs(2);
/// A workspace idles for days and is not to be woken too often: it is asked in one of so many rounds.
const CLI_ROUNDS: u64 = 15;

impl Inner {
    /// Copies the logs of all agents that are connected, unless something else is being done with their VM.
    pub(super) async fn copy_agent_logs(&self, round: u64) {
        let mut copies = JoinSet::new();
        let cells: Vec<_> = {
            let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
            cells.iter().map(|(id, cell)| (*id, cell.clone())).collect()
        };
        for (id, cell) in cells {
            let is_cli =
                self.records.read(id).is_some_and(|record| matches!(record.kind, VmKind::Cli { .. }));
            if is_cli && !round.is_multiple_of(CLI_ROUNDS) {
                continue;
            }
            // Held to the end, so that no late copy replaces the one made when the VM is destroyed.
            let Ok(agent) = cell.try_lock_owned() else { continue };
            let path = self.places.vm(id).join(LogKind::Agent.file_name());
            copies.spawn(async move {
                let Some(client) = agent.as_ref() else { return };
                let asked = client.request(Request::ReadLog { max_bytes: BYTES_MAX });
                // A guest that is gone, slow or confused keeps the copy it has.
                if let Ok(Ok(Reply::Log { text })) = timeout(COPY_LIMIT, asked).await
                    && let Err(error) = replace(&path, &text)
                {
                    tracing::warn!(vm.id = %id, %error, "agent log cannot be kept");
                }
            });
        }
        while copies.join_next().await.is_some() {}
    }
}

/// Replaces the copy as a whole: its readers never see half of it.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("log.new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}
