//! The configured objects as the command line shows them: serialisable, with names in place of
//! ids, and without any secret.

mod paid;
mod queries;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

pub use paid::{ChannelView, SubscriptionView, WindowView};

use crate::domain::{
    AccountStatus, AccountType, ApiKeyStatus, ConditionKind, ModelMapping, Money, Multiplier,
    Platform, SubscriptionType,
};

/// A group as shown.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct GroupView {
    /// Unique name.
    pub name: String,
    /// Operator's intent.
    pub enabled: bool,
    /// Platform of its accounts.
    pub platform: Platform,
    /// `None` = `billing.default_rate_multiplier`.
    pub rate_multiplier: Option<Multiplier>,
    /// Balance or subscription.
    pub subscription_type: SubscriptionType,
    /// USD a day.
    pub daily_limit_usd: Option<Money>,
    /// USD a week.
    pub weekly_limit_usd: Option<Money>,
    /// USD a month.
    pub monthly_limit_usd: Option<Money>,
    /// Requests a minute per user, 0 = off.
    pub rpm_limit: u32,
    /// The other fields of the resource, as written.
    #[serde(flatten)]
    pub options: Map<String, Value>,
    /// Names of its accounts.
    pub accounts: Vec<String>,
    /// When it was first applied.
    pub created_at: DateTime<Utc>,
}

/// An account as shown: never its credential.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct AccountView {
    /// Unique name.
    pub name: String,
    /// Whether it may be chosen now, in one word.
    pub status: AccountStatus,
    /// When that ends by itself; `None` = it does not, or nothing is to end.
    pub until: Option<DateTime<Utc>>,
    /// What keeps it from being chosen now, or puts it behind the others.
    pub conditions: Vec<ConditionView>,
    /// What its provider last said about the session window of its subscription.
    pub session_window: Option<SessionWindowView>,
    /// Operator's intent.
    pub enabled: bool,
    /// Provider family.
    pub platform: Platform,
    /// Kind of credential.
    #[serde(rename = "type")]
    pub account_type: AccountType,
    /// Where requests go, without user name and password; `None` = the provider's own address.
    pub base_url: Option<String>,
    /// Whether there is any credential.
    pub credential_set: bool,
    /// Names of its groups.
    pub groups: Vec<String>,
    /// Requests at once, 0 = unlimited.
    pub concurrency: u32,
    /// Lower is chosen first.
    pub priority: i32,
    /// Models and their upstream names.
    pub model_mapping: ModelMapping,
    /// Account statistics only.
    pub rate_multiplier: Multiplier,
    /// `None` = its concurrency.
    pub load_factor: Option<u32>,
    /// The resource's `schedulable`.
    pub schedulable: bool,
    /// Taken out by `accounts pause`.
    pub paused: bool,
    /// When `accounts resume` was last said.
    pub resumed_at: Option<DateTime<Utc>>,
    /// Not chosen from then on.
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether its traffic goes through an egress proxy.
    pub proxy_set: bool,
    /// That proxy, without user name and password.
    pub proxy: Option<String>,
    /// Options, as written.
    pub extra: Map<String, Value>,
    /// When it was first applied.
    pub created_at: DateTime<Utc>,
}

/// One reason why an account is not chosen, as shown.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct ConditionView {
    /// Why.
    pub kind: ConditionKind,
    /// The one model it is about; `None` = every model.
    pub model: Option<String>,
    /// When it began.
    pub since: DateTime<Utc>,
    /// When it ends by itself; `None` = when `accounts resume` is said.
    pub until: Option<DateTime<Utc>>,
    /// The upstream's status that led to it, where there was one.
    pub status: Option<u16>,
    /// In words.
    pub reason: String,
}

/// The session window of an account, as shown.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct SessionWindowView {
    /// `allowed`, `allowed_warning` or `rejected`.
    pub status: &'static str,
    /// When it began; `None` = the provider has not said so.
    pub starts_at: Option<DateTime<Utc>>,
    /// When it ends, or has ended.
    pub ends_at: Option<DateTime<Utc>>,
    /// What of it is used.
    pub used_percent: Option<f64>,
    /// What of the week is used.
    pub week_used_percent: Option<f64>,
    /// When that was first said.
    pub seen_at: DateTime<Utc>,
}

/// An error passthrough rule as shown: the fields of the resource.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct RuleView {
    /// Unique name.
    pub name: String,
    /// Off = never matches.
    pub enabled: bool,
    /// Lowest first.
    pub priority: i32,
    /// Upstream statuses it is for.
    pub error_codes: Vec<u16>,
    /// Words of the upstream's body it is for.
    pub keywords: Vec<String>,
    /// `any` or `all`.
    pub match_mode: &'static str,
    /// Platforms it is for; empty = all.
    pub platforms: Vec<String>,
    /// The client gets the upstream's status.
    pub passthrough_code: bool,
    /// The client's status where not.
    pub response_code: Option<u16>,
    /// The client gets the upstream's message.
    pub passthrough_body: bool,
    /// The client's message where not.
    pub custom_message: Option<String>,
    /// Leaves such errors out of error metrics and the log.
    pub skip_monitoring: bool,
    /// For the operator.
    pub description: String,
    /// When it was first applied.
    pub created_at: DateTime<Utc>,
}

/// A user as shown.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct UserView {
    /// Unique name.
    pub name: String,
    /// `false` = the user's keys are refused.
    pub enabled: bool,
    /// The sum of the ledger entries.
    pub balance: Money,
    /// Held by running requests, as whoever asked for the view knows them.
    pub reserved: Money,
    /// `balance − reserved`.
    pub available: Money,
    /// Requests at once, 0 = unlimited.
    pub concurrency: u32,
    /// Requests a minute, 0 = off.
    pub rpm_limit: u32,
    /// Group name → multiplier in place of the group's own.
    pub group_multipliers: BTreeMap<String, Multiplier>,
    /// When it was first applied.
    pub created_at: DateTime<Utc>,
}

/// An API key as shown: only its hint.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct KeyView {
    /// Unique name.
    pub name: String,
    /// First characters of the key.
    pub hint: String,
    /// Owner's name.
    pub user: Option<String>,
    /// Group's name.
    pub group: Option<String>,
    /// What a request with it would meet now, as far as the key itself goes.
    pub status: ApiKeyStatus,
    /// USD for its whole life.
    pub quota: Option<Money>,
    /// USD used of it.
    pub quota_used: Money,
    /// USD per window.
    pub rate_limits: RateLimitsView,
    /// What has been used of them.
    pub windows: Vec<WindowView>,
    /// Refused from then on.
    pub expires_at: Option<DateTime<Utc>>,
    /// Plain IPs or CIDRs.
    pub ip_allow: Vec<String>,
    /// Plain IPs or CIDRs.
    pub ip_deny: Vec<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// Rate limits of a key, named as in the resources.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct RateLimitsView {
    /// USD in five hours.
    #[serde(rename = "5h")]
    pub five_hours: Option<Money>,
    /// USD in a day.
    #[serde(rename = "1d")]
    pub one_day: Option<Money>,
    /// USD in seven days.
    #[serde(rename = "7d")]
    pub seven_days: Option<Money>,
}
