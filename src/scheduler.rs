//! The scheduler: which account serves this attempt.
//!
//! Pure decisions over a picture of the accounts and their load; `proxy` fetches the picture, takes
//! the slots and waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use tollgate_filters::verdict::Verdict;

use crate::domain::{Account, AccountId, AccountType, Platform};
use crate::state::{CoolDown, Load, Slot, Want};

/// A 429 without any word of when to come back (Change 11).
const LIMITED_WITHOUT_RESET: TimeDelta = TimeDelta::seconds(30);
/// A refused credential: an operator has to look, but it may also be a passing fault of theirs.
const BAD_CREDENTIAL: TimeDelta = TimeDelta::minutes(10);
/// 529: the provider asks everybody to stay away (SPEC 7.6).
const OVERLOADED: TimeDelta = TimeDelta::minutes(10);
/// 5xx and transport errors: long enough to try the others first, short enough not to matter.
const FAILED: TimeDelta = TimeDelta::seconds(5);
/// The label of [`Verdict::Failed`]: such a cool-down only puts the account behind the others.
const SOFT: &str = "failed";
/// The label of [`Verdict::Limited`].
const LIMITED: &str = "limited";
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

/// Why no account may serve a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoAccount {
    /// None of the group fits: none there, none enabled, none with the model, or all have failed.
    #[error("no account of the group can serve this request")]
    NoneEligible,
    /// Some fit, but all cool down until then.
    #[error("every account of the group cools down until {until}")]
    AllCoolingDown {
        /// The first end of a cool-down.
        until: DateTime<Utc>,
        /// Every one of them because its provider said 429.
        limited: bool,
    },
}

/// Accounts that may serve the request now, in the order given.
pub fn eligible<'a>(
    accounts: &'a [Arc<Account>],
    cool_downs: &HashMap<AccountId, CoolDown>,
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
        match cool_downs.get(&account.id) {
            Some(cool) if cool.reason == SOFT && is_cooling(account, cool, requirement.now) => {
                shaky.push(account);
            }
            Some(cool) if is_cooling(account, cool, requirement.now) => {
                soonest = Some(soonest.map_or(cool.until, |s| s.min(cool.until)));
                limited &= cool.reason == LIMITED;
            }
            _ => fit.push(account),
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

/// Whether a cool-down holds. `tollgate accounts resume` voids those that began before it.
fn is_cooling(account: &Account, cool: &CoolDown, now: DateTime<Utc>) -> bool {
    cool.until > now && account.resumed_at.is_none_or(|at| at <= cool.since)
}

/// Whether an account must not be used at `now`, whatever the others are like.
pub fn is_out(
    account: &Account,
    cool_downs: &HashMap<AccountId, CoolDown>,
    now: DateTime<Utc>,
) -> bool {
    cool_downs
        .get(&account.id)
        .is_some_and(|cool| cool.reason != SOFT && is_cooling(account, cool, now))
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
pub fn cool_down_for(verdict: &Verdict, now: DateTime<Utc>) -> Option<CoolDown> {
    let length = match verdict {
        Verdict::Fine | Verdict::ClientFault => return None,
        Verdict::BadCredential => BAD_CREDENTIAL,
        Verdict::Limited { retry_after } => match retry_after {
            Some(wait) => TimeDelta::from_std(*wait)
                .unwrap_or(LONGEST_COOL_DOWN)
                .min(LONGEST_COOL_DOWN),
            None => LIMITED_WITHOUT_RESET,
        },
        Verdict::Overloaded => OVERLOADED,
        Verdict::Failed => FAILED,
    };
    (length > TimeDelta::zero()).then(|| CoolDown {
        since: now,
        until: now + length,
        reason: verdict.label(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::{Credentials, ModelMapping, Multiplier};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn account(id: i64) -> Account {
        Account {
            id: AccountId(id),
            name: format!("a{id}"),
            enabled: true,
            platform: Platform::OpenAi,
            account_type: AccountType::ApiKey,
            credentials: Credentials::default(),
            groups: vec![],
            concurrency: 4,
            priority: 50,
            model_mapping: ModelMapping::default(),
            rate_multiplier: Multiplier::ONE,
            load_factor: None,
            schedulable: true,
            expires_at: None,
            proxy: None,
            extra: Default::default(),
            paused: false,
            resumed_at: None,
        }
    }

    fn requirement<'r>(excluded: &'r [AccountId]) -> Requirement<'r> {
        Requirement {
            platform: Platform::OpenAi,
            model: "gpt-5",
            excluded,
            now: now(),
        }
    }

    fn cooling(since: i64, until: i64) -> CoolDown {
        CoolDown {
            since: now() + TimeDelta::seconds(since),
            until: now() + TimeDelta::seconds(until),
            reason: "limited",
        }
    }

    #[test]
    fn every_reason_not_to_choose_an_account() {
        type Change = fn(&mut Account);
        let rows: [(&str, Change, bool); 10] = [
            ("all is well", |_| {}, true),
            ("disabled", |a| a.enabled = false, false),
            ("not schedulable", |a| a.schedulable = false, false),
            ("paused", |a| a.paused = true, false),
            ("expired now", |a| a.expires_at = Some(now()), false),
            (
                "expires later",
                |a| a.expires_at = Some(now() + TimeDelta::seconds(1)),
                true,
            ),
            (
                "other platform",
                |a| a.platform = Platform::Anthropic,
                false,
            ),
            ("other type", |a| a.account_type = AccountType::Oauth, false),
            ("other models", |a| a.model_mapping = mapping("o3"), false),
            ("this model", |a| a.model_mapping = mapping("gpt-*"), true),
        ];
        for (name, change, expected) in rows {
            let mut one = account(1);
            change(&mut one);
            let accounts = [Arc::new(one)];
            let found = eligible(&accounts, &HashMap::new(), requirement(&[]));
            assert_eq!(found.is_ok(), expected, "{name}");
        }
    }

    fn mapping(key: &str) -> ModelMapping {
        ModelMapping::new([(key.to_owned(), "m".to_owned())].into())
    }

    #[test]
    fn cool_downs_end_by_time_or_by_resume() {
        let mut resumed = account(2);
        resumed.resumed_at = Some(now() - TimeDelta::seconds(1));
        let accounts = [Arc::new(account(1)), Arc::new(resumed)];
        let cases = [
            // since, until of both; whether a1 and a2 are found
            ((-5, 5), [false, true]),
            ((-5, 0), [true, true]),
            // a2 was resumed before this one began
            ((0, 5), [false, false]),
        ];
        for ((since, until), expected) in cases {
            let cool_downs: HashMap<_, _> = [1, 2]
                .map(|id| (AccountId(id), cooling(since, until)))
                .into();
            let found = eligible(&accounts, &cool_downs, requirement(&[]));
            let ids: Vec<i64> = found.iter().flatten().map(|a| a.id.0).collect();
            assert_eq!(
                [1, 2].map(|id| ids.contains(&id)),
                expected,
                "{since} {until}"
            );
        }
        let all: HashMap<_, _> =
            [(AccountId(1), cooling(0, 9)), (AccountId(2), cooling(0, 7))].into();
        assert_eq!(
            eligible(&accounts, &all, requirement(&[])).err(),
            Some(NoAccount::AllCoolingDown {
                until: now() + TimeDelta::seconds(7),
                limited: true,
            })
        );
        let mut mixed = all.clone();
        mixed
            .entry(AccountId(2))
            .and_modify(|c| c.reason = "overloaded");
        assert!(matches!(
            eligible(&accounts, &mixed, requirement(&[])),
            Err(NoAccount::AllCoolingDown { limited: false, .. })
        ));
        let label = Verdict::Limited { retry_after: None }.label();
        assert_eq!((label, Verdict::Failed.label()), (LIMITED, SOFT));
        // One that only failed is better than none, and behind one that did not.
        let mut soft = all.clone();
        soft.entry(AccountId(1)).and_modify(|c| c.reason = SOFT);
        let found = |accounts: &[Arc<Account>], cool: &_| -> Vec<i64> {
            let found = eligible(accounts, cool, requirement(&[]));
            found.iter().flatten().map(|a| a.id.0).collect()
        };
        assert_eq!(found(&accounts, &soft), [1]);
        soft.remove(&AccountId(2));
        assert_eq!(found(&accounts, &soft), [2]);
    }

    #[test]
    fn tiers_are_strict_and_inside_a_tier_the_least_loaded_is_first() {
        let make = |id, priority, concurrency| {
            let mut a = account(id);
            a.priority = priority;
            a.concurrency = concurrency;
            Arc::new(a)
        };
        let accounts = [make(1, 1, 4), make(2, 1, 4), make(3, 0, 4), make(4, 1, 8)];
        let loads = [(2, 0), (1, 0), (4, 9), (3, 0)].map(|(held, waiting)| Load { held, waiting });
        let candidates: Vec<_> = accounts.iter().collect();
        let ranked = Ranking::default().rank(&candidates, &loads);
        let ids: Vec<_> = ranked.iter().map(|a| a.id.0).collect();
        assert_eq!(ids, [3, 2, 4, 1]);
    }

    #[test]
    fn equals_take_turns() {
        let accounts = [1, 2, 3].map(|id| Arc::new(account(id)));
        let candidates: Vec<_> = accounts.iter().collect();
        let ranking = Ranking::default();
        let firsts: std::collections::HashSet<_> = (0..3)
            .map(|_| ranking.rank(&candidates, &[Load::default(); 3])[0].id)
            .collect();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn what_a_verdict_costs_an_account() {
        let seconds = |verdict: Verdict| {
            cool_down_for(&verdict, now()).map(|c| (c.until - c.since).num_seconds())
        };
        let limited = |wait: Option<u64>| Verdict::Limited {
            retry_after: wait.map(Duration::from_secs),
        };
        for (verdict, expected) in [
            (Verdict::Fine, None),
            (Verdict::ClientFault, None),
            (limited(Some(17)), Some(17)),
            (limited(Some(0)), None),
            (limited(None), Some(30)),
            (limited(Some(u64::MAX)), Some(8 * 86_400)),
            (Verdict::BadCredential, Some(600)),
            (Verdict::Overloaded, Some(600)),
            (Verdict::Failed, Some(5)),
        ] {
            assert_eq!(seconds(verdict), expected, "{verdict:?}");
        }
    }

    proptest! {
        #[test]
        fn an_excluded_or_cooling_account_is_never_chosen(
            count in 1i64..12,
            excluded in proptest::collection::vec(0i64..12, 0..6),
            cool in proptest::collection::vec((0i64..12, -5i64..5), 0..6),
        ) {
            let accounts: Vec<_> = (0..count).map(|id| Arc::new(account(id))).collect();
            let excluded: Vec<_> = excluded.into_iter().map(AccountId).collect();
            let cool_downs: HashMap<_, _> = cool
                .into_iter()
                .map(|(id, until)| (AccountId(id), cooling(-10, until)))
                .collect();
            let found = eligible(&accounts, &cool_downs, requirement(&excluded));
            for account in found.iter().flatten() {
                prop_assert!(!excluded.contains(&account.id));
                prop_assert!(!is_out(account, &cool_downs, now()));
            }
            let ranked = Ranking::default().rank(&found.unwrap_or_default(), &[]);
            let unique: std::collections::HashSet<_> = ranked.iter().map(|a| a.id).collect();
            prop_assert_eq!(unique.len(), ranked.len());
        }
    }
}
