//! Opening: files and their modes, the secret, versions, several processes at once.

use std::os::unix::fs::PermissionsExt;

use sea_orm::ConnectionTrait;

use super::*;
use crate::storage::StorageError;

#[tokio::test]
async fn directory_and_files_are_the_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("nested/da%ta ?dir");
    let store = Store::open(&data, &secret()).await.unwrap();
    apply(&store, &resources()).await;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&data) & 0o777, 0o700);
    let mut files: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(&data).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()) & 0o777, 0o600, "{:?}", entry.path());
        files.push(entry.file_name().into_string().unwrap());
    }
    files.sort();
    assert_eq!(files, ["tollgate.db", "tollgate.db-shm", "tollgate.db-wal"]);

    store.close().await.unwrap();
    let file = data.join("tollgate.db");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    Store::open(&data, &secret()).await.unwrap();
    assert_eq!(mode(&file) & 0o777, 0o600, "a wide mode is narrowed");
}

#[tokio::test]
async fn the_pragmas_are_set() {
    let (_dir, store) = filled().await;
    let pools = &store.inner.pools;
    for (pool, pragma, value) in [
        (&pools.writer, "journal_mode", "wal"),
        (&pools.writer, "synchronous", "2"),
        (&pools.writer, "foreign_keys", "1"),
        (&pools.writer, "busy_timeout", "10000"),
        (&pools.reader, "query_only", "1"),
        (&pools.reader, "busy_timeout", "10000"),
    ] {
        let sql = format!("SELECT CAST({pragma} AS TEXT) FROM pragma_{pragma}");
        let sql = sql.replace("CAST(busy_timeout", "CAST(timeout");
        let row = pool
            .query_one_raw(crate::storage::rows::statement(sql, vec![]))
            .await;
        let text: String = row.unwrap().unwrap().try_get_by_index(0).unwrap();
        assert_eq!(text, value, "{pragma}");
    }
}

#[tokio::test]
async fn another_secret_is_refused_and_changes_nothing() {
    let (dir, store) = filled().await;
    let wrong = Store::open(dir.path(), &Secret::new("another")).await;
    assert!(matches!(wrong, Err(StorageError::WrongSecret(path)) if path.ends_with("tollgate.db")));
    let empty = Store::open(dir.path(), &Secret::new("")).await;
    assert!(matches!(empty, Err(StorageError::Invalid(_))));
    store.close().await.unwrap();
    let again = open(&dir).await;
    assert!(!again.is_empty().await.unwrap());
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    let (dir, store) = filled().await;
    let sql = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m2099_future', 0)";
    store
        .inner
        .pools
        .writer
        .execute_unprepared(sql)
        .await
        .unwrap();
    let error = Store::open(dir.path(), &secret()).await.unwrap_err();
    assert!(matches!(error, StorageError::Newer(ref version) if version == "m2099_future"));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tollgate.db"), [b'x'; 4096]).unwrap();
    let error = Store::open(dir.path(), &secret()).await.unwrap_err();
    assert!(matches!(error, StorageError::Db(_)), "{error}");
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Store::open(&file.join("data"), &secret())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("file/data"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_may_open_a_new_directory_at_once() {
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let stores = futures::future::join_all((0..8).map(|_| {
            let path = dir.path().to_owned();
            tokio::spawn(async move { Store::open(&path, &secret()).await })
        }))
        .await;
        for store in stores {
            assert_eq!(store.unwrap().unwrap().version().await.unwrap(), 0);
        }
    }
}

#[tokio::test]
async fn a_transaction_that_is_dropped_changes_nothing_and_frees_the_lock() {
    let (dir, store) = filled().await;
    let txn = store.begin_write().await.unwrap();
    crate::storage::meta::bump_version(&txn).await.unwrap();
    drop(txn);
    assert_eq!(store.version().await.unwrap(), 1);
    let other = open(&dir).await;
    other
        .credit("alice", Money(1), Posting::default())
        .await
        .unwrap();
    assert_eq!(store.version().await.unwrap(), 2);
}

/// Compiles only while the futures may be spawned on a multi-threaded runtime.
#[tokio::test]
async fn every_future_may_move_between_threads() {
    fn sendable<F: Future + Send>(future: F) -> F {
        future
    }
    let (dir, store) = filled().await;
    sendable(Store::open(dir.path(), &secret())).await.unwrap();
    sendable(store.apply(&resources(), ApplyOptions::default()))
        .await
        .unwrap();
    sendable(store.load_directory(Multiplier::ONE))
        .await
        .unwrap();
    sendable(store.settle(&[record("r-1", "1")], None, Tz::UTC))
        .await
        .unwrap();
    sendable(store.version()).await.unwrap();
    sendable(store.balances()).await.unwrap();
    sendable(store.key_spend()).await.unwrap();
    sendable(store.verify_ledger()).await.unwrap();
}

/// A journal is known by the number of the database it was written beside.
#[tokio::test]
async fn a_database_has_a_number_of_its_own_which_its_copies_keep() {
    let (dir, store) = filled().await;
    let id = store.database_id();
    assert_eq!(open(&dir).await.database_id(), id, "opened again");
    let (_other, other) = filled().await;
    assert_ne!(other.database_id(), id);

    let copy = tempfile::tempdir().unwrap();
    let into = copy.path().join("tollgate.db");
    let sql = format!("VACUUM INTO '{}'", into.display());
    let writer = &store.inner.pools.writer;
    writer.execute_unprepared(&sql).await.unwrap();
    assert_eq!(open(&copy).await.database_id(), id);

    // Of an earlier version.
    let sql = "DELETE FROM meta WHERE key = 'database_id'";
    writer.execute_unprepared(sql).await.unwrap();
    let made = open(&dir).await.database_id();
    assert_ne!(made, id);
    assert_eq!(open(&dir).await.database_id(), made);
}
