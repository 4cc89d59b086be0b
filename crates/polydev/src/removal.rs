//! Removes a user and everything that is kept for them. Told twice, it does the rest of what the first time left.

use std::time::Duration;

use polydev_core::ids::UserId;
use polydev_host::HostError;
use tokio::time::timeout;

use crate::{
    app::App,
    cleaner::CleanError,
    session::Command,
    store::{StoreError, vms::VmRole},
    workspaces::WorkspaceError,
};

/// How long a sign-in that is called off may take to end.
const CLOSING_LIMIT: Duration = Duration::from_secs(60);

/// Why a user is still there.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// A sign-in or a VM of theirs is not over.
    #[error("a sign-in or a machine of the user is not over yet")]
    Busy,
    /// The CLI VM.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// A VM.
    #[error(transparent)]
    Clean(#[from] CleanError),
    /// The disk.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl App {
    /// Calls the user's sign-ins off and removes CLI VM, disk, credentials, egress policy and proxy port; the audit
    /// log keeps that it was done. `false` when nothing was known of the user.
    ///
    /// The database is told last: whatever fails before, the user is still listed and can be removed again.
    pub async fn remove_user(&self, user: &UserId) -> Result<bool, RemoveError> {
        if !self.store.has_user(user).await? {
            return Ok(false);
        }
        timeout(CLOSING_LIMIT, self.end_sign_ins(user)).await.map_err(|_| RemoveError::Busy)?;
        for vm in self.store.live_vms().await?.into_iter().filter(|vm| vm.user == *user) {
            if vm.role == VmRole::Cli {
                self.workspaces.destroy(user, vm.id).await?;
            }
            // Whatever the owner has done of it already; this says for sure that it is gone.
            self.cleaner.destroy(vm.id).await?;
        }
        for id in self.machines.kept_failed().await? {
            if self.store.vm(id).await?.is_some_and(|vm| vm.user == *user) {
                self.machines.forget_failed(id).await?;
            }
        }
        self.machines.remove_user_disk(user).await?;
        if !self.store.remove_user(user, self.clock.now_db()).await? {
            return Err(RemoveError::Busy);
        }
        self.egress.close_port(user).await;
        tracing::info!(%user, "user removed");
        Ok(true)
    }

    async fn end_sign_ins(&self, user: &UserId) {
        for id in self.sessions.of_user(user) {
            let Some(mut watch) = self.sessions.watch(id) else { continue };
            // One that has come too far to be called off ends by itself.
            let _ = self.sessions.command(id, Command::Cancel).await;
            while watch.changed().await.is_ok() {}
        }
    }
}
