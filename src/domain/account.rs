//! Accounts: one provider credential each, that requests are sent through.

use chrono::{DateTime, Utc};
use tollgate_filters::verdict::ErrorPolicy;

use super::{AccountId, GroupId, ModelMapping, Multiplier, Platform, Secret};

/// What kind of credential an account holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountType {
    /// A provider API key.
    ApiKey,
    /// OAuth tokens.
    Oauth,
    /// A long-lived setup token.
    SetupToken,
    /// A relay (antigravity).
    Upstream,
}

impl AccountType {
    /// The name used in resources.
    pub const fn as_str(self) -> &'static str {
        match self {
            AccountType::ApiKey => "api_key",
            AccountType::Oauth => "oauth",
            AccountType::SetupToken => "setup_token",
            AccountType::Upstream => "upstream",
        }
    }
}

/// An account's credential: secrets, base URL and identifiers only.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Credentials {
    /// The provider key of an `api_key` account.
    pub api_key: Secret,
    /// Where requests go; `None` = the provider's own address.
    pub base_url: Option<String>,
    /// Everything else as written (tokens, project ids …). Secret as a whole: never printed.
    pub other: std::collections::BTreeMap<String, Secret>,
}

/// An account as the request path sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Account {
    /// Row id.
    pub id: AccountId,
    /// Unique name.
    pub name: String,
    /// Operator's intent in the resources.
    pub enabled: bool,
    /// Provider family.
    pub platform: Platform,
    /// Kind of credential.
    pub account_type: AccountType,
    /// The credential.
    pub credentials: Credentials,
    /// Groups whose requests it may serve.
    pub groups: Vec<GroupId>,
    /// Requests at once, 0 = unlimited.
    pub concurrency: u32,
    /// Lower is chosen first.
    pub priority: i32,
    /// Models it takes and what they are called upstream.
    pub model_mapping: ModelMapping,
    /// Account statistics only; not what users pay.
    pub rate_multiplier: Multiplier,
    /// Weight of its load; `None` = its concurrency.
    pub load_factor: Option<u32>,
    /// The resource's `schedulable`.
    pub schedulable: bool,
    /// Not chosen from this moment on.
    pub expires_at: Option<DateTime<Utc>>,
    /// Egress proxy URL (may hold a password).
    pub proxy: Option<Secret>,
    /// How its upstream errors are taken; read from `extra`.
    pub error_policy: ErrorPolicy,
    /// Options named as in the specification.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// Taken out by `tollgate accounts pause`.
    pub paused: bool,
    /// When `tollgate accounts resume` was last said: cool-downs begun before are void.
    pub resumed_at: Option<DateTime<Utc>>,
}

impl Account {
    /// Whether the operator lets it be chosen at `now`, cool-downs aside.
    pub fn is_available(&self, now: DateTime<Utc>) -> bool {
        self.enabled
            && self.schedulable
            && !self.paused
            && self.expires_at.is_none_or(|end| end > now)
    }

    /// The name `model` has at this account.
    pub fn upstream_model<'a>(&'a self, model: &'a str) -> &'a str {
        self.model_mapping.lookup(model).unwrap_or(model)
    }
}
