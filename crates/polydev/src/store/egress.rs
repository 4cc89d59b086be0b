//! How users' traffic leaves, and which proxy port is whose. Upstreams are sealed, tokens are hashed.

use polydev_core::ids::UserId;
use sqlx::{Row, sqlite::SqliteRow};

use super::{Store, StoreError, parse};

/// Bytes of a SHA-256.
const HASH_LEN: usize = 32;

/// What is decided about a user's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserPolicy {
    /// Nothing leaves.
    Deny,
    /// To public addresses, through this machine's own connection.
    Direct,
    /// Through the user's upstream proxy.
    Upstream,
}

impl UserPolicy {
    /// The word used in the database and the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Direct => "direct",
            Self::Upstream => "upstream",
        }
    }

    /// The policy of that word.
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::Deny, Self::Direct, Self::Upstream].into_iter().find(|policy| policy.word() == word)
    }
}

/// A user's policy as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressRecord {
    /// Whose.
    pub user: UserId,
    /// What is decided.
    pub policy: UserPolicy,
    /// Counts up from 1.
    pub version: u32,
    /// The upstream proxy in the vault's stored form; there is one when the policy says so.
    pub upstream: Option<Vec<u8>>,
    /// SHA-256 of what opens the user's proxy port.
    pub proxy_token_hash: [u8; HASH_LEN],
    /// When it was decided.
    pub updated_unix_ms: i64,
}

const COLUMNS: &str = "user_id, policy, version, upstream, proxy_token_hash, updated_unix_ms";

impl Store {
    /// Stores a policy. Refused (`false`) unless it is the first one or follows the one that is stored.
    pub async fn put_egress(&self, record: &EgressRecord) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "INSERT INTO egress_policies (user_id, policy, version, upstream, proxy_token_hash, updated_unix_ms)
             VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT (user_id) DO UPDATE SET
                 policy = excluded.policy, version = excluded.version, upstream = excluded.upstream,
                 proxy_token_hash = excluded.proxy_token_hash, updated_unix_ms = excluded.updated_unix_ms
             WHERE egress_policies.version + 1 = excluded.version",
        )
        .bind(record.user.as_str())
        .bind(record.policy.word())
        .bind(record.version)
        .bind(&record.upstream)
        .bind(&record.proxy_token_hash[..])
        .bind(record.updated_unix_ms)
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("store egress policy"))?;
        Ok(done.rows_affected() == 1)
    }

    /// Replaces the sealed upstream of exactly this version (the master key was changed). `false` when it moved on.
    pub async fn reseal_upstream(
        &self,
        user: &UserId,
        version: u32,
        sealed: &[u8],
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE egress_policies SET upstream = ? WHERE user_id = ? AND version = ? AND policy = 'upstream'";
        let done = sqlx::query(sql)
            .bind(sealed)
            .bind(user.as_str())
            .bind(version)
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("reseal upstream"))?;
        Ok(done.rows_affected() == 1)
    }

    /// A user's policy, when one was decided.
    pub async fn egress(&self, user: &UserId) -> Result<Option<EgressRecord>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM egress_policies WHERE user_id = ?"));
        let row = sqlx::query(sql)
            .bind(user.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(StoreError::of("read egress policy"))?;
        row.as_ref().map(record).transpose()
    }

    /// All policies, by user.
    pub async fn egress_policies(&self) -> Result<Vec<EgressRecord>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM egress_policies ORDER BY user_id"));
        let rows =
            sqlx::query(sql).fetch_all(&self.pool).await.map_err(StoreError::of("list egress policies"))?;
        rows.iter().map(record).collect()
    }

    /// Takes a policy back; the user's port stays the user's. `false` when there was none.
    pub async fn delete_egress(&self, user: &UserId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM egress_policies WHERE user_id = ?")
            .bind(user.as_str())
            .execute(&self.pool)
            .await
            .map_err(StoreError::of("delete egress policy"))?;
        Ok(done.rows_affected() == 1)
    }

    /// A user's proxy port.
    pub async fn proxy_port(&self, user: &UserId) -> Result<Option<u16>, StoreError> {
        sqlx::query_scalar("SELECT port FROM proxy_ports WHERE user_id = ?")
            .bind(user.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(StoreError::of("read proxy port"))
    }

    /// Ports that no user may be given now: those of users, and those released after `rested_since`.
    pub async fn taken_ports(&self, rested_since_unix_ms: i64) -> Result<Vec<u16>, StoreError> {
        sqlx::query_scalar("SELECT port FROM proxy_ports WHERE user_id IS NOT NULL OR released_unix_ms > ?")
            .bind(rested_since_unix_ms)
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::of("list proxy ports"))
    }

    /// Ports that were another user's once, the one that rests longest first.
    pub async fn released_ports(&self) -> Result<Vec<u16>, StoreError> {
        sqlx::query_scalar(
            "SELECT port FROM proxy_ports WHERE released_unix_ms IS NOT NULL ORDER BY released_unix_ms, port",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::of("list released proxy ports"))
    }

    /// Makes a port the user's for good. `false` when somebody has it, or the user has one.
    pub async fn take_port(&self, user: &UserId, port: u16) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "INSERT INTO proxy_ports (port, user_id) SELECT ?1, ?2
             WHERE NOT EXISTS (SELECT 1 FROM proxy_ports WHERE user_id = ?2)
             ON CONFLICT (port) DO UPDATE SET user_id = excluded.user_id, released_unix_ms = NULL
             WHERE proxy_ports.user_id IS NULL",
        )
        .bind(port)
        .bind(user.as_str())
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("take proxy port"))?;
        Ok(done.rows_affected() == 1)
    }
}

fn record(row: &SqliteRow) -> Result<EgressRecord, StoreError> {
    let hash: Vec<u8> = row.get(4);
    Ok(EgressRecord {
        user: parse(row.get(0), "user id")?,
        policy: UserPolicy::of_word(row.get(1)).ok_or(StoreError::Damaged { what: "egress policy" })?,
        version: row.get(2),
        upstream: row.get(3),
        proxy_token_hash: hash.try_into().map_err(|_| StoreError::Damaged { what: "proxy token" })?,
        updated_unix_ms: row.get(5),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::temporary;

    fn record(version: u32, policy: UserPolicy, upstream: Option<&[u8]>) -> EgressRecord {
        EgressRecord {
            user: "alice".parse().unwrap(),
            policy,
            version,
            upstream: upstream.map(<[u8]>::to_vec),
            proxy_token_hash: [7; HASH_LEN],
            updated_unix_ms: i64::from(version),
        }
    }

    #[tokio::test]
    async fn a_policy_is_replaced_only_by_the_one_that_follows_it() {
        let (_dir, store) = temporary().await;
        let user = "alice".parse().unwrap();
        store.ensure_user(&user, 1).await.unwrap();
        let first = record(1, UserPolicy::Upstream, Some(b"sealed"));
        assert!(store.put_egress(&first).await.unwrap());
        assert!(!store.put_egress(&record(3, UserPolicy::Deny, None)).await.unwrap());
        assert_eq!(store.egress(&user).await.unwrap(), Some(first));
        assert!(store.put_egress(&record(2, UserPolicy::Deny, None)).await.unwrap());
        assert_eq!(store.egress_policies().await.unwrap(), [record(2, UserPolicy::Deny, None)]);
        assert!(store.delete_egress(&user).await.unwrap());
        assert!(!store.delete_egress(&user).await.unwrap());
    }

    #[tokio::test]
    async fn a_port_has_one_user_and_a_user_one_port() {
        let (_dir, store) = temporary().await;
        let (alice, bob) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        for user in [&alice, &bob] {
            store.ensure_user(user, 1).await.unwrap();
        }
        assert!(store.take_port(&alice, 10_000).await.unwrap());
        assert!(!store.take_port(&bob, 10_000).await.unwrap());
        assert!(!store.take_port(&alice, 10_001).await.unwrap());
        assert!(store.take_port(&bob, 10_001).await.unwrap());
        assert_eq!(store.proxy_port(&alice).await.unwrap(), Some(10_000));
        assert!(store.remove_user(&alice, 50).await.unwrap());
        assert_eq!(store.taken_ports(49).await.unwrap(), [10_000, 10_001]);
        assert_eq!(store.taken_ports(50).await.unwrap(), [10_001]);
        assert_eq!(store.released_ports().await.unwrap(), [10_000]);
    }
}
