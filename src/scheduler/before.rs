//! What the request path used before [`super::Pool`]: to go once it has moved.
//!
//! Pure decisions over a picture of the accounts and their load; `proxy` fetches the picture, takes
//! the slots and waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use tollgate_filters::verdict::Verdict;

use super::NoAccount;
use crate::domain::{
    Account, AccountId, AccountType, Condition, ConditionKind, Conditions, Platform,
};
use crate::state::{Load, Slot, Want};

/// A 429 without any word of when to come back (Change 11).
const LIMITED_WITHOUT_RESET: TimeDelta = TimeDelta::seconds(30);
/// A refused credential: an operator has to look, but it may also be a passing fault of theirs.
const BAD_CREDENTIAL: TimeDelta = TimeDelta::minutes(10);
/// 529: the provider asks everybody to stay away (SPEC 7.6).
const OVERLOADED: TimeDelta = TimeDelta::minutes(10);
/// 5xx and transport errors: long enough to try the others first, short enough not to matter.
const FAILED: TimeDelta = TimeDelta::seconds(5);
/// The longest wait a provider can impose with `Retry-After`; beyond it the header is nonsense.
const LONGEST_COOL_DOWN: TimeDelta = TimeDelta::days(8);

/// What a request asks of an account.
#[derive(Clone, Copy, Debug)]
pub struct Requirement<'r> {
    /// Platform of the group.
    pub platform: Platform,
    /// The model, after channel mapping.
    pub model: &'r str,
    /// Accounts that already failed this request.
    pub excluded: &'r [AccountId],
    /// The time of the choice.
    pub now: DateTime<Utc>,
}

/// Accounts that may serve the request now, in the order given.
pub fn eligible<'a>(
    accounts: &'a [Arc<Account>],
    conditions: &Conditions,
    requirement: Requirement<'_>,
) -> Result<Vec<&'a Arc<Account>>, NoAccount> {
    let mut soonest: Option<DateTime<Utc>> = None;
    let mut limited = true;
    let mut fit = Vec::with_capacity(accounts.len());
    let mut shaky = Vec::new();
    for account in accounts {
        let serves = account.platform == requirement.platform
            && account.account_type == AccountType::ApiKey
            && account.is_available(requirement.now)
            && account.model_mapping.supports(requirement.model)
            && !requirement.excluded.contains(&account.id);
        if !serves {
            continue;
        }
        let holding = || {
            let all = conditions.of(account.id).iter();
            all.filter(|c| holds(account, c, requirement.now) && c.concerns(requirement.model))
        };
        if let Some(hard) = holding().find(|c| !c.kind.is_soft()) {
            if let Some(until) = hard.until {
                soonest = Some(soonest.map_or(until, |s| s.min(until)));
            }
            limited &= hard.kind == ConditionKind::RateLimited;
        } else if holding().next().is_some() {
            shaky.push(account);
        } else {
            fit.push(account);
        }
    }
    if fit.is_empty() {
        // A 5xx or a broken connection says little about the account: better this one than none, or
        // one request that no provider can answer would take the whole group out.
        fit = shaky;
    }
    match (fit.is_empty(), soonest) {
        (false, _) => Ok(fit),
        (true, Some(until)) => Err(NoAccount::AllCoolingDown { until, limited }),
        (true, None) => Err(NoAccount::NoneEligible),
    }
}

/// Whether a condition holds. `tollgate accounts resume` voids those that began before it.
fn holds(account: &Account, condition: &Condition, now: DateTime<Utc>) -> bool {
    condition.holds(now) && account.resumed_at.is_none_or(|at| at <= condition.since)
}

/// Whether an account must not be used at `now`, whatever the others are like.
pub fn is_out(account: &Account, conditions: &Conditions, model: &str, now: DateTime<Utc>) -> bool {
    conditions
        .of(account.id)
        .iter()
        .any(|c| !c.kind.is_soft() && c.concerns(model) && holds(account, c, now))
}

/// The slot a request needs at `account`.
pub fn account_slot(account: &Account) -> Want {
    Want {
        slot: Slot::Account(account.id),
        limit: account.concurrency,
    }
}

/// Orders candidates: strict priority tiers, inside a tier the least loaded first, equals in turn.
#[derive(Debug, Default)]
pub struct Ranking {
    turn: AtomicU64,
}

impl Ranking {
    /// Sorts `candidates` (with their loads, in the same order) from best to worst.
    pub fn rank<'a>(
        &self,
        candidates: &[&'a Arc<Account>],
        loads: &[Load],
    ) -> Vec<&'a Arc<Account>> {
        let count = candidates.len() as u64;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut order: Vec<(i32, u64, u64, &'a Arc<Account>)> = candidates
            .iter()
            .enumerate()
            .map(|(index, account)| {
                let load = loads.get(index).copied().unwrap_or_default();
                // Rotation spreads equally loaded accounts evenly.
                let place = (index as u64 + count - turn % count.max(1)) % count.max(1);
                (account.priority, load_rate(account, load), place, *account)
            })
            .collect();
        order.sort_by_key(|(priority, load, place, _)| (*priority, *load, *place));
        order.into_iter().map(|(.., account)| account).collect()
    }
}

/// Held and waiting requests in millionths of what the account should carry (`load_factor`, else
/// its concurrency). An unlimited account counts as one that carries a thousand.
fn load_rate(account: &Account, load: Load) -> u64 {
    let capacity = match (account.load_factor, account.concurrency) {
        (Some(factor), _) if factor > 0 => factor,
        (_, 0) => 1_000,
        (_, concurrency) => concurrency,
    };
    (u64::from(load.held) + u64::from(load.waiting)) * 1_000_000 / u64::from(capacity)
}

/// What a verdict on an attempt means for its account; `None` = nothing.
pub fn condition_for(verdict: &Verdict, now: DateTime<Utc>) -> Option<Condition> {
    let (kind, length) = match verdict {
        Verdict::Fine | Verdict::ClientFault | Verdict::Unlisted => return None,
        Verdict::BadCredential => (ConditionKind::TempUnschedulable, BAD_CREDENTIAL),
        Verdict::Limited { retry_after } => {
            let length = match retry_after {
                Some(wait) => TimeDelta::from_std(*wait)
                    .unwrap_or(LONGEST_COOL_DOWN)
                    .min(LONGEST_COOL_DOWN),
                None => LIMITED_WITHOUT_RESET,
            };
            (ConditionKind::RateLimited, length)
        }
        Verdict::Overloaded => (ConditionKind::Overloaded, OVERLOADED),
        Verdict::Failed => (ConditionKind::Failing, FAILED),
    };
    (length > TimeDelta::zero()).then(|| Condition {
        kind,
        model: None,
        since: now,
        until: Some(now + length),
        status: None,
        reason: verdict.label().to_owned(),
    })
}
