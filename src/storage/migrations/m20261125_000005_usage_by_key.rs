//! Sums of usage by key, quarter of an hour and model.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::prelude::*;

/// Creates `usage_by_key` and fills it from the records there are: expand.
#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .get_connection()
            .execute_unprepared(include_str!("m20261125_000005_usage_by_key.sql"))
            .await?;
        Ok(())
    }
}
