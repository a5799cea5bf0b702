//! Groups: a set of accounts with limits and a multiplier.

pub mod rules;

pub use rules::GroupRules;

use super::{GroupId, Money, Multiplier, Platform};

/// How requests of a group are paid for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubscriptionType {
    /// From the user's balance.
    #[default]
    Standard,
    /// From a subscription of the user to this group.
    Subscription,
}

/// A group as the request path sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// Row id.
    pub id: GroupId,
    /// Unique name.
    pub name: String,
    /// Operator's intent.
    pub enabled: bool,
    /// Platform of its accounts.
    pub platform: Platform,
    /// What users of the group pay relative to list price.
    pub rate_multiplier: Multiplier,
    /// Balance or subscription.
    pub subscription_type: SubscriptionType,
    /// USD a day, where subscriptions are limited.
    pub daily_limit: Option<Money>,
    /// USD a week.
    pub weekly_limit: Option<Money>,
    /// USD a month.
    pub monthly_limit: Option<Money>,
    /// Requests a minute per user, 0 = off.
    pub rpm_limit: u32,
    /// The remaining fields of the resource as written (claude_code_only, fallbacks, model
    /// routing, image prices …), for the rooms that will read them.
    pub options: serde_json::Map<String, serde_json::Value>,
}
