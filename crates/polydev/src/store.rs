//! The database: one SQLite file in WAL mode. All SQL of the controller is in this module.
//!
//! Holds no plaintext of a credential, no token and no sign-in address.

pub mod audit;
pub mod cleanup;
pub mod credentials;
pub mod egress;
pub mod sessions;
pub mod users;
pub mod vms;

use std::{path::Path, time::Duration};

use sqlx::{
    Executor, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// Migrations in order; `PRAGMA user_version` counts those that ran.
const MIGRATIONS: [&str; 3] = [
    include_str!("../migrations/0001_tables.sql"),
    include_str!("../migrations/0002_egress.sql"),
    include_str!("../migrations/0003_hibernated_vms.sql"),
];
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTIONS_MAX: u32 = 4;
/// SQLite's primary result codes for "the disk is full" and for an I/O error.
const SQLITE_FULL: i32 = 13;
const SQLITE_IOERR: i32 = 10;

/// Why the database did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A statement failed.
    #[error("database: {op}: {source}")]
    Failed {
        /// What was tried.
        op: &'static str,
        /// Its answer.
        #[source]
        source: sqlx::Error,
    },
    /// The disk is full.
    #[error("database: no space left for {op}")]
    NoSpace {
        /// What was to be written.
        op: &'static str,
    },
    /// A stored value cannot be read.
    #[error("database holds a damaged {what}")]
    Damaged {
        /// Which.
        what: &'static str,
    },
    /// The file was written by a newer polydev.
    #[error("database has schema {found}, this polydev knows {known}")]
    TooNew {
        /// Of the file.
        found: i64,
        /// Of this program.
        known: usize,
    },
}

impl StoreError {
    fn of(op: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| match sqlite_code(&source) {
            Some(code) if code & 0xff == SQLITE_FULL => Self::NoSpace { op },
            // SQLITE_IOERR_WRITE and friends: ENOSPC of the WAL or its index shows as one of these.
            Some(code) if code & 0xff == SQLITE_IOERR && code != SQLITE_IOERR => match code >> 8 {
                3 | 4 | 19 => Self::NoSpace { op },
                _ => Self::Failed { op, source },
            },
            _ => Self::Failed { op, source },
        }
    }
}

fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// Handle to the database; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
}

impl Store {
    /// Opens the file, makes it when it is missing, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .connect_with(options)
            .await
            .map_err(StoreError::of("open"))?;
        let store = Self { pool };
        store.migrate().await?;
        Ok(store)
    }

    /// Writes everything out and closes the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Lets the file not become larger than it is: SQLite then answers as on a full disk. For tests of that fault.
    #[doc(hidden)]
    pub async fn forbid_growth(&self) -> Result<(), StoreError> {
        let fault = || StoreError::of("limit the file");
        let pages: i64 =
            sqlx::query_scalar("PRAGMA page_count").fetch_one(&self.pool).await.map_err(fault())?;
        // The limit belongs to a connection, so every connection of the pool is given it.
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut connection = self.pool.acquire().await.map_err(fault())?;
            let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
            sqlx::raw_sql(limit).execute(&mut *connection).await.map_err(fault())?;
            held.push(connection);
        }
        Ok(())
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let found: i64 = sqlx::query_scalar("PRAGMA user_version")
            .fetch_one(&self.pool)
            .await
            .map_err(StoreError::of("read schema version"))?;
        let done = usize::try_from(found).unwrap_or(usize::MAX);
        if done > MIGRATIONS.len() {
            return Err(StoreError::TooNew { found, known: MIGRATIONS.len() });
        }
        for (index, sql) in MIGRATIONS.into_iter().enumerate().skip(done) {
            let mut tx = self.pool.begin().await.map_err(StoreError::of("begin migration"))?;
            tx.execute(sqlx::raw_sql(sql)).await.map_err(StoreError::of("migrate"))?;
            let version = sqlx::AssertSqlSafe(format!("PRAGMA user_version = {}", index + 1));
            tx.execute(sqlx::raw_sql(version)).await.map_err(StoreError::of("write schema version"))?;
            tx.commit().await.map_err(StoreError::of("commit migration"))?;
        }
        Ok(())
    }
}

fn parse<T: std::str::FromStr>(text: &str, what: &'static str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Damaged { what })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) async fn temporary() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("polydev.db")).await.unwrap();
        (dir, store)
    }

    #[tokio::test]
    async fn opening_twice_keeps_what_was_stored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("polydev.db");
        let store = Store::open(&path).await.unwrap();
        store.audit(1, "test", None, None, Some("kept")).await.unwrap();
        store.close().await;
        let store = Store::open(&path).await.unwrap();
        assert_eq!(store.audit_entries(10).await.unwrap()[0].detail.as_deref(), Some("kept"));
    }

    #[tokio::test]
    async fn a_database_of_a_newer_polydev_is_refused() {
        let (dir, store) = temporary().await;
        sqlx::raw_sql("PRAGMA user_version = 99").execute(&store.pool).await.unwrap();
        store.close().await;
        let error = Store::open(&dir.path().join("polydev.db")).await.unwrap_err();
        assert!(matches!(error, StoreError::TooNew { found: 99, .. }), "{error}");
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_of_its_own() {
        let (_dir, store) = temporary().await;
        store.forbid_growth().await.unwrap();
        let long = "x".repeat(1 << 20);
        let error = store.audit(1, "test", None, None, Some(&long)).await.unwrap_err();
        assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    }
}
