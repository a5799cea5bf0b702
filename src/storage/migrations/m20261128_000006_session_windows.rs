//! The accounts' session windows, kept beyond a restart.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::prelude::*;

/// Creates `account_session_windows`: expand.
#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .get_connection()
            .execute_unprepared(include_str!("m20261128_000006_session_windows.sql"))
            .await?;
        Ok(())
    }
}
