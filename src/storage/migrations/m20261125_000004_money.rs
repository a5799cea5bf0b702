//! Subscriptions, channels, windows, the journal's watermark, and commands that may be repeated.

use sea_orm_migration::async_trait::async_trait;
use sea_orm_migration::prelude::*;

/// Adds seven tables and two columns of the ledger: expand only. The SQL file beside this one says
/// what each column holds.
#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .get_connection()
            .execute_unprepared(include_str!("m20261125_000004_money.sql"))
            .await?;
        Ok(())
    }
}
