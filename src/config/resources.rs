//! Resources as checked: what `tollgate apply` hands to the store. References between resources
//! are still names here; the store resolves them.

mod group_rules;
mod platforms;
mod references;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use tollgate_filters::passthrough::Rule;

pub use group_rules::{AccountFacts, Findings, GroupFacts, Others};
pub(crate) use references::unused_subscription;
pub use references::{Kind, Reference};

use crate::domain::price::PriceMap;
use crate::domain::{
    AccountType, BillingModelSource, ChannelPrice, Credentials, ModelMapping, Money, Multiplier,
    Platform, Secret, SubscriptionStatus, SubscriptionType,
};

/// Everything the resource files name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// `groups:`
    pub groups: Vec<GroupResource>,
    /// `accounts:`
    pub accounts: Vec<AccountResource>,
    /// `users:`
    pub users: Vec<UserResource>,
    /// `api_keys:`
    pub api_keys: Vec<ApiKeyResource>,
    /// `subscriptions:`
    pub subscriptions: Vec<SubscriptionResource>,
    /// `channels:`
    pub channels: Vec<ChannelResource>,
    /// `error_passthrough_rules:`
    pub error_passthrough_rules: Vec<Rule>,
    /// `prices:`; overrides of the price map.
    pub prices: PriceMap,
}

/// One entry of `groups:`.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupResource {
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
    pub daily_limit: Option<Money>,
    /// USD a week.
    pub weekly_limit: Option<Money>,
    /// USD a month.
    pub monthly_limit: Option<Money>,
    /// Requests a minute per user, 0 = off.
    pub rpm_limit: u32,
    /// The other documented fields, as written.
    pub options: serde_json::Map<String, serde_json::Value>,
}

/// One entry of `accounts:`.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountResource {
    /// Unique name.
    pub name: String,
    /// Operator's intent.
    pub enabled: bool,
    /// Provider family.
    pub platform: Platform,
    /// Kind of credential (`type:`).
    pub account_type: AccountType,
    /// The credential.
    pub credentials: Credentials,
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
    /// May be chosen.
    pub schedulable: bool,
    /// Not chosen from then on.
    pub expires_at: Option<DateTime<Utc>>,
    /// Egress proxy URL.
    pub proxy: Option<Secret>,
    /// Options, as written.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// One entry of `users:`.
#[derive(Clone, Debug, PartialEq)]
pub struct UserResource {
    /// Unique name.
    pub name: String,
    /// `false` = the user's keys are refused.
    pub enabled: bool,
    /// Opening balance; only used when the user is created.
    pub balance: Option<Money>,
    /// Requests at once, 0 = unlimited.
    pub concurrency: u32,
    /// Requests a minute, 0 = off.
    pub rpm_limit: u32,
    /// Group name → multiplier in place of the group's own.
    pub group_multipliers: BTreeMap<String, Multiplier>,
}

/// One entry of `api_keys:`.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiKeyResource {
    /// Unique name.
    pub name: String,
    /// `false` = refused.
    pub enabled: bool,
    /// The key itself; `None` = generated when the key is created.
    pub key: Option<Secret>,
    /// Owner's name.
    pub user: String,
    /// Group's name; a key without one is refused at use.
    pub group: Option<String>,
    /// USD for its whole life.
    pub quota: Option<Money>,
    /// USD per 5 h, 1 d, 7 d.
    pub rate_limits: [Option<Money>; 3],
    /// Refused from then on.
    pub expires_at: Option<DateTime<Utc>>,
    /// Plain IPs or CIDRs, as written.
    pub ip_allow: Vec<String>,
    /// Plain IPs or CIDRs, as written.
    pub ip_deny: Vec<String>,
}

/// One entry of `subscriptions:`.
#[derive(Clone, Debug, PartialEq)]
pub struct SubscriptionResource {
    /// Name of the user who has it.
    pub user: String,
    /// Name of the group it is to; one for each pair.
    pub group: String,
    /// `false` = refused, whatever its status.
    pub enabled: bool,
    /// Usable from then on; `None` = from when it is first applied.
    pub starts_at: Option<DateTime<Utc>>,
    /// Not usable from then on.
    pub expires_at: DateTime<Utc>,
    /// The operator's word.
    pub status: SubscriptionStatus,
}

impl SubscriptionResource {
    /// The name it is listed under.
    pub fn name(&self) -> String {
        format!("{}/{}", self.user, self.group)
    }
}

/// One entry of `channels:`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelResource {
    /// Unique name.
    pub name: String,
    /// `false` = its groups are as without it.
    pub enabled: bool,
    /// Names of its groups; a group has at most one channel.
    pub groups: Vec<String>,
    /// By platform, keys in lower case.
    pub model_mapping: BTreeMap<Platform, ModelMapping>,
    /// Only models with a price of the channel's own may be used.
    pub restrict_models: bool,
    /// Which name is billed.
    pub billing_model_source: BillingModelSource,
    /// In the order written.
    pub prices: Vec<ChannelPrice>,
}
