//! What the accounts have cost, in memory, against the quotas that their operators gave them. Tells the
//! moment a quota is used up; what follows from that is the scheduler's.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;

use crate::domain::account::quota::{AccountQuota, AccountUsage, Exhausted};
use crate::domain::{Account, AccountId, Directory, UsageRecord};
use crate::state::dense::Dense;

/// The usage of all accounts, those without a quota included: they may get one.
pub struct AccountQuotas {
    accounts: Dense<Mutex<Counted>>,
}

#[derive(Debug, Default)]
struct Counted {
    usage: AccountUsage,
    /// The last `accounts resume` that is reflected in `usage`.
    resumed_at: Option<DateTime<Utc>>,
}

impl AccountQuotas {
    /// As the database has it, in which every `accounts resume` that `directory` knows of is reflected.
    pub fn loaded(usage: Vec<(AccountId, AccountUsage)>, directory: &Directory) -> AccountQuotas {
        let quotas = AccountQuotas {
            accounts: Dense::new(),
        };
        for account in directory.accounts() {
            quotas.with(account.id, |counted| {
                counted.resumed_at = account.resumed_at;
            });
        }
        for (account, usage) in usage {
            quotas.with(account, |counted| counted.usage = usage);
        }
        quotas
    }

    /// Counts what a settled request cost its account. `Some` when that used up a quota and so keeps the
    /// account out for longer than it already was; not again for requests that end after that.
    pub fn count(&self, record: &UsageRecord, quota: &AccountQuota) -> Option<Exhausted> {
        let at = record.settled_at();
        self.with(record.account_id, |counted| {
            let before = counted.usage.exhausted(quota, at);
            counted.usage.add(quota, record.account_cost(), at);
            let after = counted.usage.exhausted(quota, at)?;
            let news = before.is_none_or(|before| before.until != after.until);
            news.then_some(after)
        })
    }

    /// What of `account` is used up at `now`, as its options and the last `accounts resume` have it:
    /// at the start, and whenever the operator may have changed something.
    pub fn exhausted(&self, account: &Account, now: DateTime<Utc>) -> Option<Exhausted> {
        self.with(account.id, |counted| {
            if account.resumed_at > counted.resumed_at {
                counted.resumed_at = account.resumed_at;
                counted.usage.begin_anew(&account.quota, now);
            }
            counted.usage.exhausted(&account.quota, now)
        })
    }

    /// What has been used through an account; a window may be over.
    pub fn usage(&self, account: AccountId) -> AccountUsage {
        self.with(account, |counted| counted.usage)
    }

    fn with<R>(&self, account: AccountId, look: impl FnOnce(&mut Counted) -> R) -> R {
        self.accounts
            .with(account.0, Arc::default, |counted| look(&mut counted.lock()))
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;
    use tollgate_filters::verdict::ErrorPolicy;

    use super::*;
    use crate::domain::account::quota::{QuotaKind, Reset};
    use crate::domain::{
        AccountType, BillingType, Credentials, ModelMapping, Money, Multiplier, Objects, Platform,
    };

    const ONE: AccountId = AccountId(1);

    fn at(hours: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_057_600 + hours * 3600, 0).unwrap()
    }

    fn account(quota: AccountQuota, resumed_at: Option<DateTime<Utc>>) -> Account {
        Account {
            id: ONE,
            name: "one".to_owned(),
            enabled: true,
            platform: Platform::OpenAi,
            account_type: AccountType::ApiKey,
            credentials: Credentials::default(),
            groups: Vec::new(),
            concurrency: 0,
            priority: 1,
            model_mapping: ModelMapping::default(),
            rate_multiplier: Multiplier::ONE,
            load_factor: None,
            schedulable: true,
            expires_at: None,
            proxy: None,
            error_policy: ErrorPolicy::default(),
            quota,
            soft_limits: Default::default(),
            habits: Default::default(),
            extra: serde_json::Map::new(),
            paused: false,
            resumed_at,
        }
    }

    /// A request that cost the account half of what it cost at list price.
    fn record(account_cost: i64, ended: DateTime<Utc>) -> UsageRecord {
        UsageRecord {
            created_at: ended,
            account_id: ONE,
            cost: Money(account_cost * 2),
            charge: Money(7),
            account_rate_multiplier: Multiplier(500_000),
            billing_type: BillingType::None,
            ..UsageRecord::blank("")
        }
    }

    fn limits(total: i64, daily: i64) -> AccountQuota {
        AccountQuota {
            total: Some(Money(total)),
            daily: Some(Money(daily)),
            day: Reset::Daily { hour: 0 },
            ..AccountQuota::default()
        }
    }

    fn empty() -> AccountQuotas {
        AccountQuotas::loaded(Vec::new(), &Directory::new(Objects::default()))
    }

    #[test]
    fn the_moment_is_told_once() {
        let (quotas, quota) = (empty(), limits(30, 10));
        let count = |cost, hour| {
            let exhausted = quotas.count(&record(cost, at(hour)), &quota);
            exhausted.map(|e| (e.which, e.used.0, e.until))
        };
        assert_eq!(count(9, 1), None);
        let daily = Some((QuotaKind::Daily, 10, Some(at(24))));
        assert_eq!(count(1, 2), daily);
        assert_eq!(count(5, 3), None, "it was under way");
        assert_eq!(count(9, 25), None, "another day");
        let total = Some((QuotaKind::Total, 30, None));
        assert_eq!(count(6, 26), total, "the day is used up as well");
        assert_eq!(count(6, 27), None);
        assert_eq!(count(6, 99), None, "and stays so");
        assert_eq!(quotas.usage(ONE).total, Money(42));
    }

    #[test]
    fn limits_that_were_changed_count_at_once() {
        let quotas = empty();
        let exhausted = |quota| {
            let exhausted = quotas.exhausted(&account(quota, None), at(2));
            exhausted.map(|e| e.which)
        };
        quotas.count(&record(15, at(1)), &AccountQuota::default());
        assert_eq!(exhausted(AccountQuota::default()), None);
        assert_eq!(exhausted(limits(100, 15)), Some(QuotaKind::Daily));
        assert_eq!(exhausted(limits(15, 15)), Some(QuotaKind::Total));
        assert_eq!(exhausted(limits(16, 16)), None);
    }

    #[test]
    fn an_account_that_is_resumed_begins_anew_once() {
        let quotas = empty();
        let quota = limits(30, 10);
        quotas.count(&record(30, at(1)), &quota);
        let which = |quotas: &AccountQuotas, resumed: Option<i64>, now| {
            let account = account(quota.clone(), resumed.map(at));
            quotas.exhausted(&account, at(now)).map(|e| e.which)
        };
        assert_eq!(which(&quotas, None, 2), Some(QuotaKind::Total));
        assert_eq!(which(&quotas, Some(3), 3), None);
        let again = quotas.count(&record(10, at(4)), &quota);
        assert_eq!(again.map(|e| e.which), Some(QuotaKind::Daily));
        assert_eq!(which(&quotas, Some(3), 5), Some(QuotaKind::Daily));
        assert_eq!(which(&quotas, Some(6), 6), None);
        // After a restart, what the database has is as of the last resume.
        let usage = AccountUsage {
            total: Money(30),
            ..AccountUsage::default()
        };
        let directory = Directory::new(Objects {
            accounts: vec![account(quota.clone(), Some(at(6)))],
            ..Objects::default()
        });
        let loaded = AccountQuotas::loaded(vec![(ONE, usage)], &directory);
        assert_eq!(which(&loaded, Some(6), 7), Some(QuotaKind::Total));
        assert_eq!(which(&loaded, Some(8), 8), None);
    }

    proptest! {
        /// As it stands at its account: from when it is told until its end, nobody uses the account; and
        /// it is told whenever there is something to tell.
        #[test]
        fn what_is_told_is_what_stands(
            costs in proptest::collection::vec((0..8_i64, 0..9_i64), 1..80),
            daily in 1..20_i64,
            weekly in 1..60_i64,
        ) {
            let quota = AccountQuota { weekly: Some(Money(weekly)), ..limits(300, daily) };
            let (quotas, mut now) = (empty(), at(0));
            let mut standing: Option<Exhausted> = None;
            for (cost, hours) in costs {
                now += TimeDelta::hours(hours);
                standing = standing.filter(|e| e.until.is_none_or(|until| now < until));
                if let Some(told) = quotas.count(&record(cost, now), &quota) {
                    let longer = |e: Exhausted| e.until.is_some() && told.until.is_none_or(|u| Some(u) > e.until);
                    prop_assert!(standing.is_none_or(longer), "{standing:?} then {told:?}");
                    standing = Some(told);
                }
                let exhausted = quotas.exhausted(&account(quota.clone(), None), now);
                prop_assert_eq!(exhausted.map(|e| e.until), standing.map(|e| e.until));
            }
        }
    }
}
