//! `accounts`: accounts: one provider credential each.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "accounts")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub name: String,
    pub enabled: bool,
    pub platform: String,
    pub account_type: String,
    pub credentials_sealed: Vec<u8>,
    pub concurrency: i64,
    pub priority: i64,
    pub model_mapping: String,
    pub rate_multiplier_millionths: i64,
    pub load_factor: Option<i64>,
    pub schedulable: bool,
    pub expires_at: Option<i64>,
    pub proxy_sealed: Option<Vec<u8>>,
    pub extra: String,
    pub paused: bool,
    pub resumed_at: Option<i64>,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
