//! What keeps an account from being chosen for a while, or until an operator looks: a reason with a
//! beginning and mostly an end. "Cool-down" is the everyday word for one with an end.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::AccountId;

/// Why. One condition of each kind (and model) stands at an account.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditionKind {
    /// The provider said that it has used up what it may use for now (429).
    RateLimited,
    /// The provider asks everybody to stay away (529).
    Overloaded,
    /// Taken out for a while: by an operator's rule, or because a refusal may pass.
    TempUnschedulable,
    /// Refused for good: out until `tollgate accounts resume`.
    Error,
    /// One of the quotas that its operator gave it is used up (`quota_limit` and its kin).
    QuotaExhausted,
    /// Failed lately (5xx, transport): chosen only when no other account is left.
    Failing,
}

impl ConditionKind {
    /// All of them.
    pub const ALL: [ConditionKind; 6] = [
        ConditionKind::RateLimited,
        ConditionKind::Overloaded,
        ConditionKind::TempUnschedulable,
        ConditionKind::Error,
        ConditionKind::QuotaExhausted,
        ConditionKind::Failing,
    ];

    /// The name in views, logs, metrics and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            ConditionKind::RateLimited => "rate_limited",
            ConditionKind::Overloaded => "overloaded",
            ConditionKind::TempUnschedulable => "temp_unschedulable",
            ConditionKind::Error => "error",
            ConditionKind::QuotaExhausted => "quota_exhausted",
            ConditionKind::Failing => "failing",
        }
    }

    /// By its name.
    pub fn parse(name: &str) -> Option<ConditionKind> {
        ConditionKind::ALL.into_iter().find(|k| k.as_str() == name)
    }

    /// Whether it only puts the account behind the others.
    pub const fn is_soft(self) -> bool {
        matches!(self, ConditionKind::Failing)
    }
}

/// One condition of an account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    /// Why.
    pub kind: ConditionKind,
    /// The one model (as the client's request names it after channel mapping) that it is about;
    /// `None` = every model.
    pub model: Option<String>,
    /// When it began.
    pub since: DateTime<Utc>,
    /// When it ends by itself; `None` = when an operator says so.
    pub until: Option<DateTime<Utc>>,
    /// The upstream's status that led to it, where there was one.
    pub status: Option<u16>,
    /// In words for the operator; bounded, without secrets.
    pub reason: String,
}

impl Condition {
    /// Whether it holds at `now`.
    pub fn holds(&self, now: DateTime<Utc>) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    /// Whether it is about requests for `model`.
    pub fn concerns(&self, model: &str) -> bool {
        self.model.as_deref().is_none_or(|m| m == model)
    }

    /// Whether it stands in the same place as `other`: an account has one of each.
    pub fn same_place(&self, other: &Condition) -> bool {
        self.kind == other.kind && self.model == other.model
    }

    /// Whether it ends later than `other`.
    pub fn outlasts(&self, other: &Condition) -> bool {
        match (self.until, other.until) {
            (None, Some(_)) => true,
            (Some(a), Some(b)) => a > b,
            (_, None) => false,
        }
    }
}

/// The conditions of all accounts at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Conditions(pub HashMap<AccountId, Vec<Condition>>);

impl Conditions {
    /// Those of one account, ended ones perhaps included.
    pub fn of(&self, account: AccountId) -> &[Condition] {
        if self.0.is_empty() {
            return &[];
        }
        self.0.get(&account).map_or(&[], Vec::as_slice)
    }
}
