//! From a data directory to two connection pools on a migrated database.
//!
//! One connection writes, a few read: SQLite has one writer anyway, and a queue in this process is
//! fairer than its busy loop. Other processes (the command line beside a running server) are waited
//! for by the busy time-out. Every write transaction is `BEGIN IMMEDIATE`: a transaction that
//! began as a reader could not be made a writer once another process has written.

use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sea_orm::sqlx::Connection;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DatabaseTransaction, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};

use super::{StorageError, meta, migrations, seal};
use crate::domain::Secret;

/// The database's name in the data directory.
const FILE: &str = "tollgate.db";
/// How long a statement waits for another process's write transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Between tries to switch a new file to WAL, for which SQLite does not wait by itself.
const WAL_RETRY: Duration = Duration::from_millis(20);
/// Pages in the write-ahead log before they are brought into the database, 16 MiB: a page that every batch
/// changes is then brought there once for many of them.
const CHECKPOINT_PAGES: &str = "4000";
/// Reading connections: four for what keys have used (as many as `proxy/usage/reports.rs` reads at
/// once), which leaves others for the directory and the rest.
const READERS: u32 = 6;

/// The pools of one database.
pub(super) struct Pools {
    /// The database's own number.
    pub(super) id: u64,
    pub(super) writer: DatabaseConnection,
    pub(super) reader: DatabaseConnection,
}

/// Creates what is missing (directory 0700, file 0600), migrates, and checks the secret.
pub(super) async fn open(data_dir: &Path, secret: &Secret) -> Result<Pools, StorageError> {
    if secret.is_empty() {
        return Err(StorageError::Invalid(vec![
            "security.secret: must not be empty".to_owned(),
        ]));
    }
    let path = prepare(data_dir)?;
    let writer = connect_writer(&path).await?;
    let txn = begin_write(&writer).await?;
    migrations::run(&txn).await?;
    match meta::secret_check(&txn).await? {
        None => meta::set_secret_check(&txn, &seal::check_value(secret)).await?,
        Some(stored) if stored == seal::check_value(secret) => {}
        Some(_) => return Err(StorageError::WrongSecret(path)),
    }
    let id = meta::database_id(&txn).await?;
    txn.commit().await?;
    let reader = connect(&path, READERS, |options| options.pragma("query_only", "ON")).await?;
    Ok(Pools { id, writer, reader })
}

/// A transaction that holds the write lock from its first moment.
pub(super) async fn begin_write(
    writer: &DatabaseConnection,
) -> Result<DatabaseTransaction, StorageError> {
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    Ok(writer.begin_with_options(options).await?)
}

/// The file is created here, not by SQLite, so that it is never readable by others, not even for a
/// moment; its `-wal` and `-shm` take over its mode. An existing file is never opened by us:
/// closing it again would drop SQLite's own locks on it.
fn prepare(data_dir: &Path) -> Result<PathBuf, StorageError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| StorageError::Io { path, source }
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .map_err(io(data_dir))?;
    let path = data_dir.join(FILE);
    let created = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    match created {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let mode = std::fs::metadata(&path).map_err(io(&path))?.permissions();
            if mode.mode() & 0o077 != 0 {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
                    .map_err(io(&path))?;
            }
        }
        Err(error) => return Err(io(&path)(error)),
    }
    Ok(path)
}

/// The busy time-out does not cover the switch of a new file to WAL, so that is tried again here.
async fn connect_writer(path: &Path) -> Result<DatabaseConnection, StorageError> {
    let started = Instant::now();
    loop {
        let connected = connect(path, 1, |options| {
            options
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        })
        .await;
        match connected {
            Err(StorageError::Locked) if started.elapsed() < BUSY_TIMEOUT => {
                tokio::time::sleep(WAL_RETRY).await;
            }
            connected => return connected,
        }
    }
}

async fn connect(
    path: &Path,
    connections: u32,
    tune: fn(SqliteConnectOptions) -> SqliteConnectOptions,
) -> Result<DatabaseConnection, StorageError> {
    let path = path.to_owned();
    // The URL only says SQLite; the path is set below, since it may hold any character.
    let mut options = ConnectOptions::new("sqlite://tollgate.db");
    options
        .max_connections(connections)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .sqlx_logging(false) // statements carry hashes and sealed values
        // With its disk full or failing SQLite ends a transaction by itself. The roll-back that follows
        // then fails, and the connection counts as inside that transaction for good: none can begin on
        // it any more. Such a one is closed, and another is opened in its place.
        .map_sqlx_sqlite_before_acquire(|connection, _| {
            Box::pin(std::future::ready(Ok(!connection.is_in_transaction())))
        })
        .map_sqlx_sqlite_opts(move |options| {
            tune(
                options
                    .filename(&path)
                    .create_if_missing(false)
                    .foreign_keys(true)
                    .busy_timeout(BUSY_TIMEOUT),
            )
        });
    Ok(Database::connect(options).await?)
}
