//! What live state keeps beyond a restart, and error passthrough rules.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::prelude::*;

/// Adds four tables; the SQL file beside this one says what each column holds.
#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .get_connection()
            .execute_unprepared(include_str!("m20261121_000002_conditions_and_rules.sql"))
            .await?;
        Ok(())
    }
}
