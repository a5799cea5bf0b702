//! The first schema.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::prelude::*;

/// Creates every table; the SQL file beside this one says what each column holds.
#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .get_connection()
            .execute_unprepared(include_str!("m20261121_000001_initial.sql"))
            .await?;
        Ok(())
    }
}
