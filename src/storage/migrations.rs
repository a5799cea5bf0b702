//! The schema's history, oldest first. `migrations/README.md` says how to add a step.

use sea_orm::{ConnectionTrait, DatabaseTransaction, Statement};
use sea_orm_migration::prelude::*;

use super::StorageError;

mod m20261121_000001_initial;
mod m20261121_000002_conditions_and_rules;
mod m20261121_000003_records_in_context;
mod m20261125_000004_money;
mod m20261125_000005_usage_by_key;
mod m20261128_000006_session_windows;
mod m20261128_000007_response_batches;

struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261121_000001_initial::Migration),
            Box::new(m20261121_000002_conditions_and_rules::Migration),
            Box::new(m20261121_000003_records_in_context::Migration),
            Box::new(m20261125_000004_money::Migration),
            Box::new(m20261125_000005_usage_by_key::Migration),
            Box::new(m20261128_000006_session_windows::Migration),
            Box::new(m20261128_000007_response_batches::Migration),
        ]
    }
}

/// Brings the schema up to date inside `txn`, so that of two processes that start together one
/// migrates and the other finds the work done. Refuses a database that a newer version of the
/// program has migrated further.
pub(super) async fn run(txn: &DatabaseTransaction) -> Result<(), StorageError> {
    let known: Vec<String> = Migrator::migrations()
        .iter()
        .map(|m| m.name().to_owned())
        .collect();
    if let Some(version) = applied(txn).await?.into_iter().find(|v| !known.contains(v)) {
        return Err(StorageError::Newer(version));
    }
    Migrator::up(txn, None).await?;
    Ok(())
}

async fn applied(txn: &DatabaseTransaction) -> Result<Vec<String>, StorageError> {
    let backend = txn.get_database_backend();
    let exists = "SELECT name FROM sqlite_master WHERE name = 'seaql_migrations'";
    if txn
        .query_one_raw(Statement::from_string(backend, exists))
        .await?
        .is_none()
    {
        return Ok(Vec::new());
    }
    let versions = "SELECT version FROM seaql_migrations ORDER BY version";
    txn.query_all_raw(Statement::from_string(backend, versions))
        .await?
        .iter()
        .map(|row| row.try_get_by_index(0).map_err(StorageError::from))
        .collect()
}
