//! People, by the name their caller gives them.

use polydev_core::ids::UserId;
use sqlx::Row;

use super::{Store, StoreError, parse};

/// A user and what is kept for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRecord {
    /// Who.
    pub id: UserId,
    /// When they were first heard of.
    pub created_unix_ms: i64,
    /// The egress policy's word, when one was decided.
    pub policy: Option<String>,
    /// Their proxy port.
    pub proxy_port: Option<u16>,
    /// Stored credentials.
    pub credentials: i64,
    /// VMs that are not gone.
    pub vms: i64,
}

impl Store {
    /// Makes sure that the user is known.
    pub async fn ensure_user(&self, user: &UserId, now_unix_ms: i64) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO users (id, created_unix_ms) VALUES (?, ?) ON CONFLICT (id) DO NOTHING")
            .bind(user.as_str())
            .bind(now_unix_ms)
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("add user"))?;
        Ok(())
    }

    /// Whether anything is known of the user.
    pub async fn has_user(&self, user: &UserId) -> Result<bool, StoreError> {
        let found = sqlx::query("SELECT 1 FROM users WHERE id = ?").bind(user.as_str());
        let found = found.fetch_optional(&self.pool).await.map_err(StoreError::of("read user"))?;
        Ok(found.is_some())
    }

    /// All users, by id.
    pub async fn users(&self) -> Result<Vec<UserRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT users.id, users.created_unix_ms, egress_policies.policy, proxy_ports.port,
                 (SELECT count(*) FROM credentials WHERE credentials.user_id = users.id),
                 (SELECT count(*) FROM vms WHERE vms.user_id = users.id AND vms.state <> 'destroyed')
             FROM users
             LEFT JOIN egress_policies ON egress_policies.user_id = users.id
             LEFT JOIN proxy_ports ON proxy_ports.user_id = users.id
             ORDER BY users.id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::of("list users"))?;
        let record = |row: &sqlx::sqlite::SqliteRow| {
            Ok(UserRecord {
                id: parse(row.get(0), "user id")?,
                created_unix_ms: row.get(1),
                policy: row.get(2),
                proxy_port: row.get(3),
                credentials: row.get(4),
                vms: row.get(5),
            })
        };
        rows.iter().map(record).collect()
    }

    /// Forgets a user and all that is kept for them but the audit log, where it is noted; the proxy port rests from
    /// now on. Refused (`false`) while a sign-in or a VM of theirs is not over.
    pub async fn remove_user(&self, user: &UserId, now_unix_ms: i64) -> Result<bool, StoreError> {
        let fault = || StoreError::of("remove user");
        // Takes the write lock at once: what is looked at below cannot change before the end.
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(fault())?;
        let busy: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM auth_sessions WHERE user_id = ?1 AND final = 0)
                 OR EXISTS (SELECT 1 FROM vms WHERE user_id = ?1 AND state <> 'destroyed')",
        )
        .bind(user.as_str())
        .fetch_one(&mut *tx)
        .await
        .map_err(fault())?;
        if busy {
            return Ok(false);
        }
        sqlx::query("UPDATE proxy_ports SET user_id = NULL, released_unix_ms = ?2 WHERE user_id = ?1")
            .bind(user.as_str())
            .bind(now_unix_ms)
            .execute(&mut *tx)
            .await
            .map_err(fault())?;
        for sql in [
            "DELETE FROM egress_policies WHERE user_id = ?",
            "DELETE FROM credentials WHERE user_id = ?",
            "DELETE FROM auth_sessions WHERE user_id = ?",
            "DELETE FROM vms WHERE user_id = ?",
            "DELETE FROM users WHERE id = ?",
        ] {
            sqlx::query(sql).bind(user.as_str()).execute(&mut *tx).await.map_err(fault())?;
        }
        sqlx::query("INSERT INTO audit_log (at_unix_ms, action, user_id) VALUES (?, 'user.removed', ?)")
            .bind(now_unix_ms)
            .bind(user.as_str())
            .execute(&mut *tx)
            .await
            .map_err(fault())?;
        tx.commit().await.map_err(fault())?;
        Ok(true)
    }
}
