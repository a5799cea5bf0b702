//! Bindings of responses in batches.

use sea_orm::{ConnectionTrait, DatabaseBackend, Statement};
use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::prelude::{DbErr, DeriveMigrationName, MigrationTrait, SchemaManager};

use crate::storage::responses::pack;

/// Creates `response_batches`, moves the bindings there, and drops the table they were in: no version has
/// been released.
#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        connection
            .execute_unprepared(include_str!("m20261128_000007_response_batches.sql"))
            .await?;
        let rows = connection
            .query_all_raw(Statement::from_string(
                DatabaseBackend::Sqlite,
                "SELECT group_id, key, account_id, used_at FROM response_bindings ORDER BY used_at",
            ))
            .await?;
        for rows in rows.chunks(1000) {
            let mut content = Vec::new();
            let mut newest = i64::MIN;
            for row in rows {
                let key: Vec<u8> = row.try_get_by_index(1)?;
                let key = <[u8; 16]>::try_from(key)
                    .map_err(|_| DbErr::Custom("a response's key has not 16 bytes".to_owned()))?;
                let used_at = row.try_get_by_index(3)?;
                let (group, account) = (row.try_get_by_index(0)?, row.try_get_by_index(2)?);
                pack(&mut content, group, key, account, used_at);
                newest = newest.max(used_at);
            }
            let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
            connection
                .execute_raw(Statement::from_sql_and_values(
                    DatabaseBackend::Sqlite,
                    "INSERT INTO response_batches (bindings, newest, content) VALUES (?, ?, ?)",
                    [count.into(), newest.into(), content.into()],
                ))
                .await?;
        }
        connection
            .execute_unprepared("DROP TABLE response_bindings")
            .await?;
        Ok(())
    }
}
