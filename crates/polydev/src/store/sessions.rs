//! Sign-ins: who, what, how it stands. The snapshot is the object the API shows; it holds no secret.

use polydev_core::ids::{ProviderId, SessionId, UserId};
use sqlx::{Row, sqlite::SqliteRow};

use super::{Store, StoreError, parse};

/// A session's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its id.
    pub id: SessionId,
    /// Whose.
    pub user: UserId,
    /// For which tool.
    pub provider: ProviderId,
    /// Public state, in the API's word.
    pub state: String,
    /// Nothing will change any more.
    pub ended: bool,
    /// The API's object as JSON.
    pub snapshot: String,
    /// Key by which the caller makes a repeated start find this session.
    pub idempotency_key: Option<String>,
    /// When it was asked for.
    pub created_unix_ms: i64,
    /// When it ended.
    pub ended_unix_ms: Option<i64>,
}

const COLUMNS: &str =
    "id, user_id, provider, state, final, snapshot, idempotency_key, created_unix_ms, ended_unix_ms";

impl Store {
    /// Writes a session, new or changed. An ended session is never changed.
    pub async fn put_session(&self, session: &SessionRecord) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO auth_sessions
                 (id, user_id, provider, state, final, snapshot, idempotency_key, created_unix_ms, ended_unix_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET
                 state = excluded.state, final = excluded.final, snapshot = excluded.snapshot,
                 ended_unix_ms = excluded.ended_unix_ms
             WHERE auth_sessions.final = 0",
        )
        .bind(session.id.to_string())
        .bind(session.user.as_str())
        .bind(session.provider.as_str())
        .bind(&session.state)
        .bind(session.ended)
        .bind(&session.snapshot)
        .bind(&session.idempotency_key)
        .bind(session.created_unix_ms)
        .bind(session.ended_unix_ms)
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("store session"))?;
        Ok(())
    }

    /// A session.
    pub async fn session(&self, id: SessionId) -> Result<Option<SessionRecord>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM auth_sessions WHERE id = ?"));
        let row = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(StoreError::of("read session"))?;
        row.as_ref().map(record).transpose()
    }

    /// The session that an earlier start with this key made.
    pub async fn session_by_key(
        &self,
        user: &UserId,
        provider: &ProviderId,
        key: &str,
    ) -> Result<Option<SessionRecord>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM auth_sessions WHERE user_id = ? AND provider = ? AND idempotency_key = ?"
        ));
        let row = sqlx::query(sql)
            .bind(user.as_str())
            .bind(provider.as_str())
            .bind(key)
            .fetch_optional(&self.pool)
            .await
            .map_err(StoreError::of("read session by key"))?;
        row.as_ref().map(record).transpose()
    }

    /// Ends a session that nobody can drive any more.
    pub async fn give_session_up(&self, id: SessionId, now_unix_ms: i64) -> Result<(), StoreError> {
        sqlx::query("UPDATE auth_sessions SET state = 'failed', final = 1, ended_unix_ms = ? WHERE id = ?")
            .bind(now_unix_ms)
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("give session up"))?;
        Ok(())
    }

    /// Sessions that have not ended.
    pub async fn open_sessions(&self) -> Result<Vec<SessionRecord>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM auth_sessions WHERE final = 0"));
        let rows =
            sqlx::query(sql).fetch_all(&self.pool).await.map_err(StoreError::of("list open sessions"))?;
        rows.iter().map(record).collect()
    }
}

fn record(row: &SqliteRow) -> Result<SessionRecord, StoreError> {
    Ok(SessionRecord {
        id: parse(row.get(0), "session id")?,
        user: parse(row.get(1), "user id")?,
        provider: parse(row.get(2), "provider id")?,
        state: row.get(3),
        ended: row.get(4),
        snapshot: row.get(5),
        idempotency_key: row.get(6),
        created_unix_ms: row.get(7),
        ended_unix_ms: row.get(8),
    })
}
