//! `api_keys`: API keys that we issued, as keyed hashes.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_keys")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub name: String,
    pub enabled: bool,
    pub key_hash: Vec<u8>,
    pub hint: String,
    pub user_id: Option<i64>,
    pub group_id: Option<i64>,
    pub quota_nanos: Option<i64>,
    pub quota_used_nanos: i64,
    #[sea_orm(column_name = "rate_limit_5h_nanos")]
    pub rate_limit_5h_nanos: Option<i64>,
    #[sea_orm(column_name = "rate_limit_1d_nanos")]
    pub rate_limit_1d_nanos: Option<i64>,
    #[sea_orm(column_name = "rate_limit_7d_nanos")]
    pub rate_limit_7d_nanos: Option<i64>,
    pub expires_at: Option<i64>,
    pub ip_allow: String,
    pub ip_deny: String,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
