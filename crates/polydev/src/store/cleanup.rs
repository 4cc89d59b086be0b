//! VMs that must go and have not gone yet. A task stays until the host has confirmed that nothing is left.

use polydev_core::ids::VmId;
use sqlx::Row;

use super::{Store, StoreError, parse};

/// A VM to be destroyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleanupTask {
    /// Which.
    pub vm: VmId,
    /// How often it was tried.
    pub attempts: i64,
    /// Why the last try failed.
    pub last_error: Option<String>,
}

impl Store {
    /// Asks for a VM's removal. Asking again changes nothing.
    pub async fn add_cleanup(&self, vm: VmId, now_unix_ms: i64) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO vm_cleanup_tasks (vm_id, created_unix_ms) VALUES (?, ?) ON CONFLICT (vm_id) DO NOTHING")
            .bind(vm.to_string())
            .bind(now_unix_ms)
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("add clean-up task"))?;
        Ok(())
    }

    /// Notes a failed try.
    pub async fn cleanup_failed(&self, vm: VmId, error: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE vm_cleanup_tasks SET attempts = attempts + 1, last_error = ? WHERE vm_id = ?")
            .bind(error)
            .bind(vm.to_string())
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("note failed clean-up"))?;
        Ok(())
    }

    /// The VM is gone.
    pub async fn cleanup_done(&self, vm: VmId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM vm_cleanup_tasks WHERE vm_id = ?")
            .bind(vm.to_string())
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("end clean-up task"))?;
        Ok(())
    }

    /// All that is still to be done, oldest first.
    pub async fn cleanup_tasks(&self) -> Result<Vec<CleanupTask>, StoreError> {
        let rows =
            sqlx::query("SELECT vm_id, attempts, last_error FROM vm_cleanup_tasks ORDER BY created_unix_ms")
                .fetch_all(&self.pool)
                .await
                .map_err(StoreError::of("read clean-up tasks"))?;
        rows.into_iter()
            .map(|row| {
                Ok(CleanupTask {
                    vm: parse(row.get::<&str, _>(0), "VM id")?,
                    attempts: row.get(1),
                    last_error: row.get(2),
                })
            })
            .collect()
    }
}
