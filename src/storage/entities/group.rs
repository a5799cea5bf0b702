//! `groups`: groups of accounts.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "groups")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub name: String,
    pub enabled: bool,
    pub platform: String,
    pub rate_multiplier_millionths: Option<i64>,
    pub subscription_type: String,
    pub daily_limit_nanos: Option<i64>,
    pub weekly_limit_nanos: Option<i64>,
    pub monthly_limit_nanos: Option<i64>,
    pub rpm_limit: i64,
    pub options: String,
    pub created_at: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
