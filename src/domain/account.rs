//! Accounts: one provider credential each, that requests are sent through.

pub mod options;
pub mod quota;
pub mod seen_window;
pub mod soft_limits;

use chrono::{DateTime, Utc};
use quota::AccountQuota;
use soft_limits::SoftLimits;
use tollgate_filters::edits::anthropic::dated_model;
use tollgate_filters::verdict::ErrorPolicy;

use super::{AccountId, Condition, ConditionKind, GroupId, ModelMapping};
use super::{Multiplier, Platform, Secret};

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

impl Credentials {
    /// The token of an `oauth` or `setup_token` account, if there is one.
    pub fn access_token(&self) -> Option<&str> {
        let token = self.other.get("access_token")?.expose();
        (!token.is_empty()).then_some(token)
    }
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
    /// How its upstream errors are taken: [`options::error_policy`] of `extra`.
    pub error_policy: ErrorPolicy,
    /// What may be used through it: [`options::account_quota`] of `extra`.
    pub quota: AccountQuota,
    /// What keeps new work from it without its being at fault.
    pub soft_limits: SoftLimits,
    /// How requests are treated that it serves.
    pub habits: Habits,
    /// Options named as in the specification.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// Taken out by `tollgate accounts pause`.
    pub paused: bool,
    /// When `tollgate accounts resume` was last said: cool-downs begun before are void.
    pub resumed_at: Option<DateTime<Utc>>,
}

/// How requests are treated that an account serves: options of `extra`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Habits {
    /// Requests that a program makes for itself (warm-up, titles, probes) are answered here.
    pub intercepts: bool,
    /// An account of Antigravity that also serves the groups of Anthropic's and Gemini's platforms it is in.
    pub mixed_scheduling: bool,
    /// Whether messages of users are sent one after another; `None` = as the configuration says.
    pub message_queue: Option<MessageQueueMode>,
}

/// How messages of users follow each other at one account (SPEC 9.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MessageQueueMode {
    /// As they come.
    #[default]
    Off,
    /// One after another, the next some time after the last was accepted.
    Serialize,
    /// As they come, each after the time that serialized ones would leave between them.
    Throttle,
}

impl MessageQueueMode {
    /// All of them.
    pub const ALL: [MessageQueueMode; 3] = [
        MessageQueueMode::Off,
        MessageQueueMode::Serialize,
        MessageQueueMode::Throttle,
    ];
    /// Their names, in the same order.
    pub const NAMES: [&str; 3] = ["off", "serialize", "throttle"];

    /// The name in options and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            MessageQueueMode::Off => MessageQueueMode::NAMES[0],
            MessageQueueMode::Serialize => MessageQueueMode::NAMES[1],
            MessageQueueMode::Throttle => MessageQueueMode::NAMES[2],
        }
    }
}

impl Account {
    /// Whether the operator lets it be chosen at `now`, cool-downs aside.
    pub fn is_available(&self, now: DateTime<Utc>) -> bool {
        self.enabled
            && self.schedulable
            && !self.paused
            && self.expires_at.is_none_or(|end| end > now)
    }

    /// Whether it proves itself to Anthropic with a token, as the accounts of subscriptions do: these have windows
    /// of five hours, and only for these are there soft limits.
    pub fn is_subscription(&self) -> bool {
        is_subscription(self.platform, self.account_type)
    }

    /// The soft limits that count for it, if there are any.
    pub fn gates(&self) -> Option<&SoftLimits> {
        let limited = self.is_subscription() && self.soft_limits.is_limited();
        limited.then_some(&self.soft_limits)
    }

    /// Whether it holds what accounts of its type prove themselves with.
    pub fn has_credential(&self) -> bool {
        match self.account_type {
            AccountType::ApiKey | AccountType::Upstream => {
                !self.credentials.api_key.expose().is_empty()
            }
            AccountType::Oauth | AccountType::SetupToken => {
                self.credentials.access_token().is_some()
            }
        }
    }

    /// Whether it serves groups of `platform` that it is in: of its own platform; with
    /// [`Habits::mixed_scheduling`] an account of Antigravity those of the dialects it speaks as well.
    pub fn serves_groups_of(&self, platform: Platform) -> bool {
        let mixes = self.platform == Platform::Antigravity
            && self.habits.mixed_scheduling
            && matches!(platform, Platform::Anthropic | Platform::Gemini);
        self.platform == platform || mixes
    }

    /// The name `model` has at this account: by its mapping; then, where it is one of Anthropic's that is used
    /// with a token, the dated name, as such tokens do not go with every short one.
    pub fn upstream_model<'a>(&'a self, model: &'a str) -> &'a str {
        let name = self.model_mapping.lookup(model).unwrap_or(model);
        match (self.platform, self.account_type) {
            (Platform::Anthropic, AccountType::Oauth | AccountType::SetupToken) => {
                dated_model(name).unwrap_or(name)
            }
            _ => name,
        }
    }
}

/// See [`Account::is_subscription`].
pub fn is_subscription(platform: Platform, account_type: AccountType) -> bool {
    let by_token = matches!(account_type, AccountType::Oauth | AccountType::SetupToken);
    platform == Platform::Anthropic && by_token
}

/// Whether an account may be chosen, in one word: the first of these that is so. Only what concerns
/// every model counts; a condition about one model leaves the account as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountStatus {
    /// The resource says `enabled: false`, or a pruning `apply` did.
    Disabled,
    /// Taken out by `accounts pause`.
    Paused,
    /// The resource says `schedulable: false`.
    Unschedulable,
    /// Past its `expires_at`.
    Expired,
    /// Refused for good: [`ConditionKind::Error`].
    Error,
    /// [`ConditionKind::RateLimited`], and that ends last.
    RateLimited,
    /// [`ConditionKind::Overloaded`], and that ends last.
    Overloaded,
    /// [`ConditionKind::TempUnschedulable`], and that ends last.
    TempUnschedulable,
    /// [`ConditionKind::QuotaExhausted`], and that ends last.
    QuotaExhausted,
    /// Behind the others: [`ConditionKind::Failing`].
    Failing,
    /// None of these.
    Active,
}

/// What an account's status is made of, besides its conditions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intent {
    /// [`Account::enabled`].
    pub enabled: bool,
    /// [`Account::paused`].
    pub paused: bool,
    /// [`Account::schedulable`].
    pub schedulable: bool,
    /// [`Account::expires_at`].
    pub expires_at: Option<DateTime<Utc>>,
}

impl AccountStatus {
    /// The status at `now`, and when it ends by itself.
    pub fn of(
        intent: Intent,
        conditions: &[Condition],
        now: DateTime<Utc>,
    ) -> (AccountStatus, Option<DateTime<Utc>>) {
        if !intent.enabled {
            return (AccountStatus::Disabled, None);
        }
        if intent.paused {
            return (AccountStatus::Paused, None);
        }
        if !intent.schedulable {
            return (AccountStatus::Unschedulable, None);
        }
        if intent.expires_at.is_some_and(|end| end <= now) {
            return (AccountStatus::Expired, None);
        }
        let standing = conditions
            .iter()
            .filter(|c| c.model.is_none() && c.holds(now));
        // Errors before the rest, soft ones last; among equals the one that keeps it out longest.
        let worst = standing.reduce(|worst, c| match rank(c.kind).cmp(&rank(worst.kind)) {
            std::cmp::Ordering::Less => c,
            std::cmp::Ordering::Equal if c.outlasts(worst) => c,
            _ => worst,
        });
        match worst {
            None => (AccountStatus::Active, None),
            Some(condition) => (condition.kind.into(), condition.until),
        }
    }
}

fn rank(kind: ConditionKind) -> u8 {
    match kind {
        ConditionKind::Error => 0,
        ConditionKind::RateLimited
        | ConditionKind::Overloaded
        | ConditionKind::TempUnschedulable
        | ConditionKind::QuotaExhausted => 1,
        ConditionKind::Failing => 2,
    }
}

impl From<ConditionKind> for AccountStatus {
    fn from(kind: ConditionKind) -> AccountStatus {
        match kind {
            ConditionKind::RateLimited => AccountStatus::RateLimited,
            ConditionKind::Overloaded => AccountStatus::Overloaded,
            ConditionKind::TempUnschedulable => AccountStatus::TempUnschedulable,
            ConditionKind::Error => AccountStatus::Error,
            ConditionKind::QuotaExhausted => AccountStatus::QuotaExhausted,
            ConditionKind::Failing => AccountStatus::Failing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn condition(kind: ConditionKind, until: Option<i64>) -> Condition {
        Condition {
            kind,
            model: None,
            since: at(0),
            until: until.map(at),
            status: None,
            reason: String::new(),
        }
    }

    #[test]
    fn the_status_is_the_worst_that_holds() {
        use AccountStatus as S;
        use ConditionKind as K;
        let fine = Intent {
            enabled: true,
            paused: false,
            schedulable: true,
            expires_at: Some(at(11)),
        };
        let limited = condition(K::RateLimited, Some(20));
        let of_a_model = Condition {
            model: Some("gpt-5".to_owned()),
            ..condition(K::Error, None)
        };
        for (intent, conditions, want) in [
            (fine, vec![], (S::Active, None)),
            (fine, vec![of_a_model.clone()], (S::Active, None)),
            // Of several the one that ends last, a soft one only when it is alone.
            (
                fine,
                vec![limited.clone(), condition(K::Overloaded, Some(19))],
                (S::RateLimited, Some(at(20))),
            ),
            (
                fine,
                vec![condition(K::Overloaded, Some(21)), limited.clone()],
                (S::Overloaded, Some(at(21))),
            ),
            (
                fine,
                vec![limited.clone(), condition(K::QuotaExhausted, None)],
                (S::QuotaExhausted, None),
            ),
            (
                fine,
                vec![condition(K::Failing, Some(99)), limited.clone()],
                (S::RateLimited, Some(at(20))),
            ),
            (
                fine,
                vec![condition(K::Failing, Some(99))],
                (S::Failing, Some(at(99))),
            ),
            (
                fine,
                vec![condition(K::TempUnschedulable, Some(11)), of_a_model],
                (S::TempUnschedulable, Some(at(11))),
            ),
            (
                fine,
                vec![limited.clone(), condition(K::Error, None)],
                (S::Error, None),
            ),
            (
                fine,
                vec![condition(K::Error, Some(12)), limited.clone()],
                (S::Error, Some(at(12))),
            ),
            // At its end it is over.
            (
                fine,
                vec![condition(K::RateLimited, Some(10))],
                (S::Active, None),
            ),
            // What the operator says comes first.
            (
                Intent {
                    expires_at: Some(at(10)),
                    ..fine
                },
                vec![limited.clone()],
                (S::Expired, None),
            ),
            (
                Intent {
                    schedulable: false,
                    expires_at: Some(at(10)),
                    ..fine
                },
                vec![],
                (S::Unschedulable, None),
            ),
            (
                Intent {
                    schedulable: false,
                    paused: true,
                    ..fine
                },
                vec![],
                (S::Paused, None),
            ),
            (
                Intent {
                    enabled: false,
                    paused: true,
                    ..fine
                },
                vec![limited],
                (S::Disabled, None),
            ),
        ] {
            assert_eq!(
                AccountStatus::of(intent, &conditions, at(10)),
                want,
                "{conditions:?}"
            );
        }
    }
}
