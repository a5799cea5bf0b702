//! What accounts have cost lately, at list price, to be held against `window_cost_limit` (SPEC 6.4): counted where a
//! request is settled, or taken up after a crash, and loaded at the start from what the database has.
//!
//! By minutes, over the longest span that a session window can lie in: the window's beginning is known from the
//! provider's answers and may be learnt later than the cost. Of all accounts of Anthropic's, with and without a limit: one
//! that gets its first limit is not to begin at nothing.

use std::collections::VecDeque;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use parking_lot::Mutex;

use crate::domain::account::seen_window::{SeenWindow, Span};
use crate::domain::{AccountId, Money, Platform, UsageRecord};
use crate::state::dense::Dense;

/// What is kept: a session window of five hours, and an hour in which clocks may differ.
pub const KEPT: TimeDelta = TimeDelta::hours(6);

/// The latest cost of all accounts: some 9 KB for each that is in use without a pause.
pub struct WindowCosts {
    accounts: Dense<Mutex<Costs>>,
}

/// The cost of one account.
#[derive(Debug, Default)]
struct Costs {
    /// Minute and cost, oldest first; minutes without any are left out.
    minutes: VecDeque<(i64, Money)>,
    /// From which minute on was asked last, and what it came to.
    asked: Option<(i64, Money)>,
}

impl WindowCosts {
    /// As the database has it: what accounts have cost, by minutes since 1970 UTC.
    pub fn loaded(costs: Vec<(AccountId, i64, Money)>) -> WindowCosts {
        let loaded = WindowCosts {
            accounts: Dense::new(),
        };
        for (account, minute, cost) in costs {
            loaded.with(account, |costs| costs.add(minute, cost));
        }
        loaded
    }

    /// Counts a request that has been settled.
    pub fn count(&self, record: &UsageRecord) {
        if record.platform == Platform::Anthropic && record.cost.is_positive() {
            let minute = minute_of(record.settled_at());
            self.with(record.account_id, |costs| costs.add(minute, record.cost));
        }
    }

    /// What `account` has cost from the minute of `start` on.
    pub fn since(&self, account: AccountId, start: DateTime<Utc>) -> Money {
        let look = |costs: &std::sync::Arc<Mutex<Costs>>| costs.lock().since(minute_of(start));
        self.accounts.read(account.0, look).unwrap_or(Money::ZERO)
    }

    fn with(&self, account: AccountId, change: impl FnOnce(&mut Costs)) {
        self.accounts.with(account.0, Default::default, |costs| {
            change(&mut costs.lock())
        });
    }
}

/// What an account's cost is counted in at `now`: the session window that runs, else the hour of the clock.
pub fn counted_in(window: Option<SeenWindow>, now: DateTime<Utc>) -> Span {
    let hour = || {
        let start = now.duration_trunc(TimeDelta::hours(1)).unwrap_or(now);
        Span {
            start,
            end: start + TimeDelta::hours(1),
        }
    };
    window
        .and_then(|window| window.running(now))
        .unwrap_or_else(hour)
}

impl Costs {
    fn add(&mut self, minute: i64, cost: Money) {
        if let Some((from, sum)) = &mut self.asked
            && minute >= *from
        {
            *sum = sum.saturating_add(cost);
        }
        // Mostly the last one, or behind it.
        let place = self.minutes.partition_point(|(at, _)| *at < minute);
        match self.minutes.get_mut(place) {
            Some((at, sum)) if *at == minute => *sum = sum.saturating_add(cost),
            _ => self.minutes.insert(place, (minute, cost)),
        }
        let last = self.minutes.back().map_or(minute, |(at, _)| *at);
        let first = last - KEPT.num_minutes();
        while self.minutes.front().is_some_and(|(at, _)| *at < first) {
            self.minutes.pop_front();
        }
    }

    fn since(&mut self, from: i64) -> Money {
        if let Some((known, sum)) = self.asked
            && known == from
        {
            return sum;
        }
        let begun = self.minutes.partition_point(|(at, _)| *at < from);
        let costs = self.minutes.range(begun..).map(|(_, cost)| *cost);
        let sum = costs.fold(Money::ZERO, Money::saturating_add);
        self.asked = Some((from, sum));
        sum
    }
}

fn minute_of(time: DateTime<Utc>) -> i64 {
    time.timestamp().div_euclid(60)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tollgate_filters::verdict::SessionStatus;

    use super::*;

    const ONE: AccountId = AccountId(1);
    const TWO: AccountId = AccountId(2);

    /// A full hour, and seconds after it.
    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn record(account: AccountId, cost: i64, second: i64) -> UsageRecord {
        UsageRecord {
            platform: Platform::Anthropic,
            account_id: account,
            created_at: at(second - 30),
            duration_ms: 30_000,
            cost: Money(cost),
            ..UsageRecord::blank("")
        }
    }

    #[test]
    fn what_was_settled_since_the_beginning_counts() {
        let costs = WindowCosts::loaded(vec![
            (ONE, minute_of(at(-60)), Money(1)),
            (TWO, minute_of(at(0)), Money(1_000)),
        ]);
        for (cost, second) in [(10, -1), (100, 0), (1_000, 59), (10_000, 60)] {
            costs.count(&record(ONE, cost, second));
        }
        let other = UsageRecord {
            platform: Platform::OpenAi,
            ..record(ONE, 7, 0)
        };
        costs.count(&other);
        for (start, sum) in [
            (-60, 11_111),
            (-1, 11_111),
            (0, 11_100),
            (59, 11_100),
            (60, 10_000),
            (120, 0),
        ] {
            assert_eq!(costs.since(ONE, at(start)), Money(sum), "{start}");
            assert_eq!(costs.since(ONE, at(start)), Money(sum), "once more");
        }
        assert_eq!(costs.since(TWO, at(0)), Money(1_000));
        assert_eq!(costs.since(AccountId(3), at(0)), Money::ZERO);
    }

    #[test]
    fn the_window_that_runs_else_the_hour() {
        let span = |start, end| Span {
            start: at(start),
            end: at(end),
        };
        let window = |start, end| SeenWindow {
            status: SessionStatus::Allowed,
            span: Some(span(start, end)),
            used: None,
            week_used: None,
            seen_at: at(0),
        };
        let unknown = SeenWindow {
            span: None,
            ..window(0, 1)
        };
        for (window, now, expected) in [
            (None, 0, span(0, 3600)),
            (None, 3599, span(0, 3600)),
            (None, 3600, span(3600, 7200)),
            (Some(unknown), 1, span(0, 3600)),
            (Some(window(-600, 17_400)), 17_399, span(-600, 17_400)),
            (Some(window(-600, 17_400)), 17_400, span(14_400, 18_000)),
        ] {
            assert_eq!(counted_in(window, at(now)), expected, "{window:?} at {now}");
        }
    }

    proptest! {
        /// As if everything were kept and added up each time; and no more is kept than can be asked for.
        #[test]
        fn sums_are_those_of_all_records(
            records in proptest::collection::vec((0..2_i64, 1..100_i64, -3_600..40_000_i64), 1..200),
            starts in proptest::collection::vec(0..5_i64, 200),
        ) {
            let costs = WindowCosts::loaded(Vec::new());
            let mut all: Vec<(i64, i64, i64)> = Vec::new();
            let mut clock = 0;
            for ((account, cost, ahead), hours) in records.into_iter().zip(starts) {
                // Time passes; requests end a little out of order.
                clock += ahead.max(0) / 20;
                let second = clock + ahead.min(0) / 60;
                costs.count(&record(AccountId(account), cost, second));
                all.push((account, cost, minute_of(at(second))));
                let start = at(clock - hours * 3_600);
                let of_account = all.iter().filter(|(a, _, _)| *a == account);
                let sum: i64 = of_account.filter(|(.., m)| *m >= minute_of(start)).map(|(_, c, _)| c).sum();
                prop_assert_eq!(costs.since(AccountId(account), start), Money(sum));
                let kept = costs.accounts.read(account, |c| c.lock().minutes.len()).unwrap();
                prop_assert!(kept as i64 <= KEPT.num_minutes() + 1);
            }
        }
    }
}
