//! What an operator wants done about an account's upstream errors, as far as it differs from the
//! rules (SPEC 7.5). Plain data: built from an account's options.

use std::time::Duration;

use super::Effect;
use super::message::reason;

/// How an account's upstream errors are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorPolicy {
    /// The account is itself a pool of others: its errors change nothing about it (unless custom
    /// error codes are on), and 401, 403 and 429 are tried again on it first.
    pub pool_mode: bool,
    /// Tries again on the same account in pool mode, 0 to 10; see
    /// [`ErrorPolicy::DEFAULT_POOL_RETRIES`].
    pub pool_mode_retry_count: u32,
    /// When custom error codes are on: the only statuses that mean anything for the account. Any
    /// other is not failed over; the client's own mistakes reach it as they are, the rest as "Upstream
    /// gateway error".
    pub custom_error_codes: Option<Vec<u16>>,
    /// First match wins; evaluated before the rules.
    pub temp_unschedulable_rules: Vec<TempRule>,
}

impl ErrorPolicy {
    /// Of `pool_mode_retry_count`, where it is not given (SPEC 7.2).
    pub const DEFAULT_POOL_RETRIES: u32 = 3;

    /// The first rule for an answer with this status that says this, in lower case.
    pub(super) fn rule_for(&self, status: u16, said: impl FnOnce() -> String) -> Option<&TempRule> {
        let mut rules = self
            .temp_unschedulable_rules
            .iter()
            .filter(|rule| rule.error_code == status)
            .peekable();
        rules.peek()?;
        let said = said();
        rules.find(|rule| {
            let mut words = rule.keywords.iter().map(|word| word.to_lowercase());
            words.any(|word| !word.is_empty() && said.contains(&word))
        })
    }
}

/// Takes the account out for a while when its upstream says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TempRule {
    /// The upstream's status.
    pub error_code: u16,
    /// Any of these in the body, in lower case; compared without regard to case. Names that the request
    /// sent do not count, and of an answer that is the client's fault only the upstream's own words do.
    pub keywords: Vec<String>,
    /// For how long, minutes.
    pub duration_minutes: u32,
    /// For the operator, shown with the account; may be empty.
    pub description: String,
}

impl TempRule {
    /// What it does to the account: at least a minute, as one that does nothing would be no rule.
    pub(super) fn effect(&self) -> Effect {
        let minutes = u64::from(self.duration_minutes.max(1));
        let reason = match self.description.trim() {
            "" => format!("Rule for {}", self.error_code),
            description => reason(&format!("Rule for {}: {description}", self.error_code)),
        };
        Effect::TempUnschedulable {
            lasts: Duration::from_secs(minutes * 60),
            reason,
        }
    }
}
