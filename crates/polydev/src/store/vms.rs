//! VMs the controller asked for. A row is written before the host is asked, so that no VM is ever unknown.

use polydev_core::ids::{SessionId, Slot, UserId, VmId};
use sqlx::{Row, sqlite::SqliteRow};

use super::{Store, StoreError, parse};

/// What a VM is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmRole {
    /// One sign-in.
    Browser,
    /// A user's workspace.
    Cli,
}

/// What is known of a VM's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    /// Asked for.
    Creating,
    /// Its agent has answered.
    Running,
    /// It sleeps.
    Hibernated,
    /// It could not be started, or it ended by itself.
    Failed,
    /// It is gone.
    Destroyed,
}

/// A VM's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRecord {
    /// Its id.
    pub id: VmId,
    /// What it is for.
    pub role: VmRole,
    /// Whose.
    pub user: UserId,
    /// The sign-in that a browser VM belongs to.
    pub session: Option<SessionId>,
    /// Its place, once known.
    pub slot: Option<Slot>,
    /// Where it is in its life.
    pub state: VmState,
    /// When it was asked for.
    pub created_unix_ms: i64,
    /// When it was gone.
    pub destroyed_unix_ms: Option<i64>,
}

impl VmRole {
    /// The word used in the database and the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Browser => "browser",
            Self::Cli => "cli",
        }
    }
}

impl VmState {
    /// The word used in the database and the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Hibernated => "hibernated",
            Self::Failed => "failed",
            Self::Destroyed => "destroyed",
        }
    }
}

const COLUMNS: &str = "id, kind, user_id, session_id, slot, state, created_unix_ms, destroyed_unix_ms";

impl Store {
    /// Notes a VM that is about to be asked for.
    pub async fn add_vm(&self, vm: &VmRecord) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO vms (id, kind, user_id, session_id, slot, state, created_unix_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(vm.id.to_string())
        .bind(vm.role.word())
        .bind(vm.user.as_str())
        .bind(vm.session.map(|id| id.to_string()))
        .bind(vm.slot.map(Slot::index))
        .bind(vm.state.word())
        .bind(vm.created_unix_ms)
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("add VM"))?;
        Ok(())
    }

    /// The VM's agent has answered.
    pub async fn vm_running(&self, id: VmId, slot: Slot) -> Result<(), StoreError> {
        sqlx::query("UPDATE vms SET state = 'running', slot = ? WHERE id = ?")
            .bind(slot.index())
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("note running VM"))?;
        Ok(())
    }

    /// The VM sleeps.
    pub async fn vm_hibernated(&self, id: VmId) -> Result<(), StoreError> {
        sqlx::query("UPDATE vms SET state = 'hibernated' WHERE id = ? AND state = 'running'")
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("note hibernated VM"))?;
        Ok(())
    }

    /// The VM failed and is to be removed; it stops counting as its user's.
    pub async fn vm_failed(&self, id: VmId) -> Result<(), StoreError> {
        sqlx::query("UPDATE vms SET state = 'failed' WHERE id = ? AND state <> 'destroyed'")
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("note failed VM"))?;
        Ok(())
    }

    /// The VM is gone.
    pub async fn vm_destroyed(&self, id: VmId, now_unix_ms: i64) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE vms SET state = 'destroyed', destroyed_unix_ms = ? WHERE id = ? AND state <> 'destroyed'",
        )
        .bind(now_unix_ms)
        .bind(id.to_string())
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("note destroyed VM"))?;
        Ok(())
    }

    /// A VM, gone or not.
    pub async fn vm(&self, id: VmId) -> Result<Option<VmRecord>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM vms WHERE id = ?"));
        let row = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(StoreError::of("read VM"))?;
        row.as_ref().map(record).transpose()
    }

    /// VMs that are not gone, oldest first.
    pub async fn live_vms(&self) -> Result<Vec<VmRecord>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM vms WHERE state <> 'destroyed' ORDER BY created_unix_ms, id"
        ));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await.map_err(StoreError::of("list VMs"))?;
        rows.iter().map(record).collect()
    }
}

fn record(row: &SqliteRow) -> Result<VmRecord, StoreError> {
    let session: Option<&str> = row.get(3);
    let slot: Option<u8> = row.get(4);
    Ok(VmRecord {
        id: parse(row.get(0), "VM id")?,
        role: match row.get(1) {
            "browser" => VmRole::Browser,
            "cli" => VmRole::Cli,
            _ => return Err(StoreError::Damaged { what: "VM kind" }),
        },
        user: parse(row.get(2), "user id")?,
        session: session.map(|text| parse(text, "session id")).transpose()?,
        slot: slot.and_then(Slot::new),
        state: match row.get(5) {
            "creating" => VmState::Creating,
            "running" => VmState::Running,
            "hibernated" => VmState::Hibernated,
            "failed" => VmState::Failed,
            "destroyed" => VmState::Destroyed,
            _ => return Err(StoreError::Damaged { what: "VM state" }),
        },
        created_unix_ms: row.get(6),
        destroyed_unix_ms: row.get(7),
    })
}
