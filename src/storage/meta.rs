//! The `meta` table: the change counter, the check value of the secret and the database's own number.

use sea_orm::{ConnectionTrait, DbBackend, Statement};

use super::StorageError;
use super::seal::random_number;

const CHANGE_COUNTER: &str = "change_counter";
const SECRET_CHECK: &str = "secret_check";
/// As sixteen hexadecimal digits.
const DATABASE_ID: &str = "database_id";

/// The change counter: it grows with every change of configuration.
pub(super) async fn version<C: ConnectionTrait>(db: &C) -> Result<i64, StorageError> {
    let text = get(db, CHANGE_COUNTER).await?;
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| StorageError::Corrupt("meta: the change counter".to_owned()))
}

/// Counts one change. To be called in the transaction that makes it.
pub(super) async fn bump_version<C: ConnectionTrait>(db: &C) -> Result<(), StorageError> {
    let sql = "UPDATE meta SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT) WHERE key = ?";
    db.execute_raw(Statement::from_sql_and_values(
        DbBackend::Sqlite,
        sql,
        [CHANGE_COUNTER.into()],
    ))
    .await?;
    Ok(())
}

/// The check value of the secret this database was made with.
pub(super) async fn secret_check<C: ConnectionTrait>(
    db: &C,
) -> Result<Option<String>, StorageError> {
    get(db, SECRET_CHECK).await
}

/// Ties the database to a secret.
pub(super) async fn set_secret_check<C: ConnectionTrait>(
    db: &C,
    value: &str,
) -> Result<(), StorageError> {
    put(db, SECRET_CHECK, value).await
}

/// The database's own number, which is made where there is none yet.
pub(super) async fn database_id<C: ConnectionTrait>(db: &C) -> Result<u64, StorageError> {
    if let Some(text) = get(db, DATABASE_ID).await? {
        return u64::from_str_radix(&text, 16)
            .map_err(|_| StorageError::Corrupt(format!("meta: the database's number {text:?}")));
    }
    let id = random_number()?;
    put(db, DATABASE_ID, &format!("{id:016x}")).await?;
    Ok(id)
}

async fn put<C: ConnectionTrait>(db: &C, key: &str, value: &str) -> Result<(), StorageError> {
    let sql = "INSERT INTO meta (key, value) VALUES (?, ?)";
    db.execute_raw(Statement::from_sql_and_values(
        DbBackend::Sqlite,
        sql,
        [key.into(), value.into()],
    ))
    .await?;
    Ok(())
}

async fn get<C: ConnectionTrait>(db: &C, key: &str) -> Result<Option<String>, StorageError> {
    let sql = "SELECT value FROM meta WHERE key = ?";
    let row = db
        .query_one_raw(Statement::from_sql_and_values(
            DbBackend::Sqlite,
            sql,
            [key.into()],
        ))
        .await?;
    Ok(row.map(|row| row.try_get_by_index(0)).transpose()?)
}
