//! Sealed credentials: one record per user and provider, replaced by a new version at each sign-in.

use polydev_core::ids::{CredentialId, ProviderId, UserId};
use sqlx::{Row, sqlite::SqliteRow};

use super::{Store, StoreError, parse};

/// What may be told about a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialMeta {
    /// Its id; stays the same when a new version replaces it.
    pub id: CredentialId,
    /// Whose.
    pub user: UserId,
    /// Of which tool.
    pub provider: ProviderId,
    /// Counts up from 1.
    pub version: u32,
    /// Paths of the files in it, relative to the home directory.
    pub files: Vec<String>,
    /// When the first version was stored.
    pub created_unix_ms: i64,
    /// When this version was stored.
    pub updated_unix_ms: i64,
}

/// A credential with its sealed bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedCredential {
    /// What may be told.
    pub meta: CredentialMeta,
    /// The vault's stored form.
    pub sealed: Vec<u8>,
}

const COLUMNS: &str = "id, user_id, provider, version, files, created_unix_ms, updated_unix_ms, sealed";

impl Store {
    /// Stores a version. Refused (`false`) unless it is the first one or follows the one that is stored.
    pub async fn put_credential(&self, credential: &SealedCredential) -> Result<bool, StoreError> {
        let meta = &credential.meta;
        let done = sqlx::query(
            "INSERT INTO credentials (id, user_id, provider, version, sealed, files, created_unix_ms, updated_unix_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (user_id, provider) DO UPDATE SET
                 version = excluded.version, sealed = excluded.sealed, files = excluded.files,
                 updated_unix_ms = excluded.updated_unix_ms
             WHERE credentials.id = excluded.id AND credentials.version + 1 = excluded.version",
        )
        .bind(meta.id.to_string())
        .bind(meta.user.as_str())
        .bind(meta.provider.as_str())
        .bind(meta.version)
        .bind(&credential.sealed)
        .bind(serde_json::to_string(&meta.files).expect("a list of texts is JSON"))
        .bind(meta.created_unix_ms)
        .bind(meta.updated_unix_ms)
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("store credential"))?;
        Ok(done.rows_affected() == 1)
    }

    /// Replaces the sealed bytes of exactly this version (the master key was changed). `false` when it moved on.
    pub async fn reseal_credential(
        &self,
        id: CredentialId,
        version: u32,
        sealed: &[u8],
    ) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE credentials SET sealed = ? WHERE id = ? AND version = ?")
            .bind(sealed)
            .bind(id.to_string())
            .bind(version)
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("reseal credential"))?;
        Ok(done.rows_affected() == 1)
    }

    /// The stored credential of a user for a provider.
    pub async fn credential(
        &self,
        user: &UserId,
        provider: &ProviderId,
    ) -> Result<Option<SealedCredential>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM credentials WHERE user_id = ? AND provider = ?"
        ));
        let row = sqlx::query(sql)
            .bind(user.as_str())
            .bind(provider.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(StoreError::of("read credential"))?;
        row.as_ref().map(record).transpose()
    }

    /// Credentials of one user, or of all.
    pub async fn credentials(&self, user: Option<&UserId>) -> Result<Vec<SealedCredential>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM credentials WHERE ?1 IS NULL OR user_id = ?1 ORDER BY user_id, provider"
        ));
        let rows = sqlx::query(sql)
            .bind(user.map(UserId::as_str))
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::of("list credentials"))?;
        rows.iter().map(record).collect()
    }

    /// The files of exactly this version are in the user's CLI VM.
    pub async fn credential_delivered(&self, id: CredentialId, version: u32) -> Result<(), StoreError> {
        sqlx::query("UPDATE credentials SET delivered_version = ?2 WHERE id = ?1 AND delivered_version < ?2")
            .bind(id.to_string())
            .bind(version)
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("note delivered credential"))?;
        Ok(())
    }

    /// Credentials of a user that never reached their CLI VM in the version that is stored.
    pub async fn undelivered_credentials(&self, user: &UserId) -> Result<Vec<SealedCredential>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM credentials WHERE user_id = ? AND delivered_version < version ORDER BY provider"
        ));
        let rows = sqlx::query(sql)
            .bind(user.as_str())
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::of("list undelivered credentials"))?;
        rows.iter().map(record).collect()
    }

    /// Removes a credential. `false` when there is none.
    pub async fn delete_credential(&self, id: CredentialId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM credentials WHERE id = ?")
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("delete credential"))?;
        Ok(done.rows_affected() == 1)
    }
}

fn record(row: &SqliteRow) -> Result<SealedCredential, StoreError> {
    Ok(SealedCredential {
        meta: CredentialMeta {
            id: parse(row.get(0), "credential id")?,
            user: parse(row.get(1), "user id")?,
            provider: parse(row.get(2), "provider id")?,
            version: row.get(3),
            files: serde_json::from_str(row.get(4)).map_err(|_| StoreError::Damaged { what: "file list" })?,
            created_unix_ms: row.get(5),
            updated_unix_ms: row.get(6),
        },
        sealed: row.get(7),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::temporary;

    fn credential(version: u32, sealed: &[u8]) -> SealedCredential {
        SealedCredential {
            meta: CredentialMeta {
                id: "6a1fd5a5-0a8e-4b5e-9a53-1f0a7a8a3f6e".parse().unwrap(),
                user: "alice".parse().unwrap(),
                provider: "codex".parse().unwrap(),
                version,
                files: vec![".codex/auth.json".to_owned()],
                created_unix_ms: 1,
                updated_unix_ms: i64::from(version),
            },
            sealed: sealed.to_vec(),
        }
    }

    #[tokio::test]
    async fn a_new_version_replaces_the_old_one_and_only_in_order() {
        let (_dir, store) = temporary().await;
        let user = "alice".parse().unwrap();
        store.ensure_user(&user, 1).await.unwrap();
        assert!(store.put_credential(&credential(1, b"one")).await.unwrap());
        assert!(store.put_credential(&credential(2, b"two")).await.unwrap());
        assert!(!store.put_credential(&credential(2, b"again")).await.unwrap());
        assert!(!store.put_credential(&credential(4, b"skipped")).await.unwrap());
        let stored = store.credential(&user, &"codex".parse().unwrap()).await.unwrap().unwrap();
        assert_eq!(stored, credential(2, b"two"));
        store.credential_delivered(stored.meta.id, 1).await.unwrap();
        assert_eq!(store.undelivered_credentials(&user).await.unwrap().len(), 1);
        store.credential_delivered(stored.meta.id, 2).await.unwrap();
        assert!(store.undelivered_credentials(&user).await.unwrap().is_empty());
        assert!(store.delete_credential(stored.meta.id).await.unwrap());
        assert!(store.credentials(None).await.unwrap().is_empty());
    }
}
