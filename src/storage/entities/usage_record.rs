//! `usage_records`: one immutable row for every request that was sent upstream.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "usage_records")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub request_id: String,
    pub client_request_id: Option<String>,
    pub upstream_request_id: Option<String>,
    pub created_at: i64,
    pub user_id: i64,
    pub user_name: String,
    pub api_key_id: i64,
    pub api_key_name: String,
    pub group_id: i64,
    pub group_name: String,
    pub fallback_from_group: Option<String>,
    pub account_id: i64,
    pub account_name: String,
    pub platform: String,
    pub endpoint: String,
    pub upstream_endpoint: String,
    pub requested_model: String,
    pub model: String,
    pub upstream_model: String,
    pub model_mapping_chain: Option<String>,
    pub stream: bool,
    pub status: i64,
    pub outcome: String,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cache_creation_tokens: i64,
    #[sea_orm(column_name = "cache_creation_5m_tokens")]
    pub cache_creation_5m_tokens: i64,
    #[sea_orm(column_name = "cache_creation_1h_tokens")]
    pub cache_creation_1h_tokens: i64,
    pub cache_read_tokens: i64,
    pub image_output_tokens: i64,
    pub image_count: i64,
    pub cost_nanos: i64,
    pub charge_nanos: i64,
    pub rate_multiplier_millionths: i64,
    pub billing_type: String,
    pub service_tier: Option<String>,
    pub reasoning_effort: Option<String>,
    pub attempts: i64,
    pub account_switches: i64,
    pub duration_ms: i64,
    pub first_token_ms: Option<i64>,
    pub usage_source: String,
    pub client_disconnected: bool,
    pub ip: Option<String>,
    pub user_agent: Option<String>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
