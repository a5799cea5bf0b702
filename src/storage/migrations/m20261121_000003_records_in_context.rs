//! Usage records as narrow rows: what repeats from record to record is kept once.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::prelude::*;

/// Creates `usage_contexts` and `usage_entries` and carries the old records over: expand and contract in
/// one, before the first release.
#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .get_connection()
            .execute_unprepared(include_str!("m20261121_000003_records_in_context.sql"))
            .await?;
        Ok(())
    }
}
