//! `error_passthrough_rules`: what of upstream errors reaches clients.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "error_passthrough_rules")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub name: String,
    pub enabled: bool,
    pub priority: i64,
    pub error_codes: String,
    pub keywords: String,
    pub match_mode: String,
    pub platforms: String,
    pub passthrough_code: bool,
    pub response_code: Option<i64>,
    pub passthrough_body: bool,
    pub custom_message: Option<String>,
    pub skip_monitoring: bool,
    pub description: String,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
