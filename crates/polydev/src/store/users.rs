//! People, by the name their caller gives them.

use polydev_core::ids::UserId;

use super::{Store, StoreError};

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
}
