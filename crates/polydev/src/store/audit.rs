//! Who did what, for the operator. Never holds a secret.

use sqlx::Row;

use super::{Store, StoreError};

/// One line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When, milliseconds since the Unix epoch.
    pub at_unix_ms: i64,
    /// What was done.
    pub action: String,
    /// For whom.
    pub user: Option<String>,
    /// On what: an id.
    pub subject: Option<String>,
    /// More, in words.
    pub detail: Option<String>,
}

impl Store {
    /// Adds a line.
    pub async fn audit(
        &self,
        now_unix_ms: i64,
        action: &str,
        user: Option<&str>,
        subject: Option<&str>,
        detail: Option<&str>,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO audit_log (at_unix_ms, action, user_id, subject, detail) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(now_unix_ms)
        .bind(action)
        .bind(user)
        .bind(subject)
        .bind(detail)
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("add audit entry"))?;
        Ok(())
    }

    /// The newest lines, newest first.
    pub async fn audit_entries(&self, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let rows = sqlx::query(
            "SELECT at_unix_ms, action, user_id, subject, detail FROM audit_log ORDER BY id DESC LIMIT ?",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::of("read audit log"))?;
        let entries = rows.into_iter().map(|row| AuditEntry {
            at_unix_ms: row.get(0),
            action: row.get(1),
            user: row.get(2),
            subject: row.get(3),
            detail: row.get(4),
        });
        Ok(entries.collect())
    }
}
