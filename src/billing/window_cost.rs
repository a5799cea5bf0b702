//! What accounts have cost lately, at list price, to be held against `window_cost_limit` (SPEC 6.4): counted where a
//! request is settled, or taken up after a crash, and loaded at the start from what the database has.
//!
//! By minutes, over the longest span that a session window can lie in: the window's beginning is known from the
//! provider's answers and may be learnt later than the cost. Of all accounts of Anthropic's, with and without a limit: one
//! that gets its first limit is not to begin at nothing.
//!
//! Clocks may be set back. What was counted by one that ran ahead would stand in every window until its minute has come,
//! and what was counted before it must not make room for it: such costs are those of the present minute.

use std::collections::VecDeque;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use parking_lot::Mutex;

use crate::domain::account::seen_window::{SeenWindow, Span};
use crate::domain::{AccountId, Money, Platform, UsageRecord};
use crate::state::dense::Dense;

/// What is kept: a session window of five hours, and an hour in which clocks may differ.
pub const KEPT: TimeDelta = TimeDelta::hours(6);

/// Minutes by which a cost may be ahead of the clock that looks at it.
const AHEAD: i64 = 2;

/// The latest cost of all accounts: at most some 9 KB for each.
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
    /// As the database has it at `now`: what accounts have cost, by minutes since 1970 UTC. When that was which is
    /// dated ahead of now, nobody knows any more: it is left out, or each start would count it anew.
    pub fn loaded(costs: Vec<(AccountId, i64, Money)>, now: DateTime<Utc>) -> WindowCosts {
        let loaded = WindowCosts {
            accounts: Dense::new(),
        };
        let now = minute_of(now);
        for (account, minute, cost) in costs {
            if minute <= now + AHEAD {
                loaded.with(account, |costs| costs.add(minute, cost, now));
            }
        }
        loaded
    }

    /// Counts a request that has been settled, `now` or before.
    pub fn count(&self, record: &UsageRecord, now: DateTime<Utc>) {
        if record.platform == Platform::Anthropic && record.cost.is_positive() {
            let (minute, now) = (minute_of(record.settled_at()), minute_of(now));
            self.with(record.account_id, |costs| {
                costs.add(minute, record.cost, now);
            });
        }
    }

    /// What `account` has cost from the minute of `start` until `now`.
    pub fn since(&self, account: AccountId, start: DateTime<Utc>, now: DateTime<Utc>) -> Money {
        let look = |costs: &std::sync::Arc<Mutex<Costs>>| {
            costs.lock().since(minute_of(start), minute_of(now))
        };
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
    fn add(&mut self, minute: i64, cost: Money, now: i64) {
        self.bring_back(now);
        let minute = if minute > now + AHEAD { now } else { minute };
        if let Some((from, sum)) = &mut self.asked
            && minute >= *from
        {
            *sum = sum.saturating_add(cost);
        }
        self.insert(minute, cost);
        // By their number, not by their time: a clock that jumps ahead and back takes nothing away.
        while self.minutes.len() as i64 > KEPT.num_minutes() + 1 {
            self.minutes.pop_front();
        }
    }

    fn insert(&mut self, minute: i64, cost: Money) {
        // Mostly the last one, or behind it.
        let place = self.minutes.partition_point(|(at, _)| *at < minute);
        match self.minutes.get_mut(place) {
            Some((at, sum)) if *at == minute => *sum = sum.saturating_add(cost),
            _ => self.minutes.insert(place, (minute, cost)),
        }
    }

    /// Takes what a clock that has been set back counted ahead of now for what has just been spent.
    fn bring_back(&mut self, now: i64) {
        let latest = now + AHEAD;
        if self.minutes.back().is_none_or(|(at, _)| *at <= latest) {
            return;
        }
        let place = self.minutes.partition_point(|(at, _)| *at <= latest);
        let ahead = self.minutes.split_off(place);
        let costs = ahead.iter().map(|(_, cost)| *cost);
        self.insert(now, costs.fold(Money::ZERO, Money::saturating_add));
        self.asked = None;
    }

    fn since(&mut self, from: i64, now: i64) -> Money {
        self.bring_back(now);
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
        let now = at(60);
        let before = vec![
            (ONE, minute_of(at(-60)), Money(1)),
            (TWO, minute_of(at(0)), Money(1_000)),
        ];
        let costs = WindowCosts::loaded(before, now);
        for (cost, second) in [(10, -1), (100, 0), (1_000, 59), (10_000, 60)] {
            costs.count(&record(ONE, cost, second), now);
        }
        let other = UsageRecord {
            platform: Platform::OpenAi,
            ..record(ONE, 7, 0)
        };
        costs.count(&other, now);
        for (start, sum) in [
            (-60, 11_111),
            (-1, 11_111),
            (0, 11_100),
            (59, 11_100),
            (60, 10_000),
            (120, 0),
        ] {
            assert_eq!(costs.since(ONE, at(start), now), Money(sum), "{start}");
            assert_eq!(costs.since(ONE, at(start), now), Money(sum), "once more");
        }
        assert_eq!(costs.since(TWO, at(0), now), Money(1_000));
        assert_eq!(costs.since(AccountId(3), at(0), now), Money::ZERO);
    }

    /// Five hours of use, a cost in each minute, the last in minute 0.
    fn five_hours() -> WindowCosts {
        let costs = WindowCosts::loaded(Vec::new(), at(0));
        for minute in -299..=0 {
            costs.count(&record(ONE, 1, minute * 60), at(minute * 60));
        }
        costs
    }

    #[test]
    fn a_cost_that_is_dated_ahead_is_one_of_now() {
        // Minutes that a record is ahead; what is counted from minute 0 and from minute 1 on.
        for (ahead, since_now, after) in [
            (0, 101, 0),
            (1, 101, 100),
            (2, 101, 100),
            (3, 101, 0),
            (360, 101, 0),
            (361, 101, 0),
            (60 * 24 * 365, 101, 0),
        ] {
            let costs = five_hours();
            costs.count(&record(ONE, 100, ahead * 60), at(0));
            let since = |minute: i64| costs.since(ONE, at(minute * 60), at(0));
            assert_eq!(
                (since(0), since(1), since(-299)),
                (Money(since_now), Money(after), Money(400)),
                "{ahead}"
            );
            // It goes with its minute; those after it are kept.
            for minute in 1..=10 {
                costs.count(&record(ONE, 1, minute * 60), at(minute * 60));
            }
            let since = |minute: i64| costs.since(ONE, at(minute * 60), at(600));
            assert_eq!((since(3), since(-299)), (Money(8), Money(410)), "{ahead}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_has_taken_nothing_away() {
        for ahead in [4, 60, 361, 60 * 24 * 365] {
            // The clock jumps ahead: its cost is counted, and asked for, where it stands.
            let costs = five_hours();
            let there = at(ahead * 60);
            costs.count(&record(ONE, 100, ahead * 60), there);
            costs.count(&record(ONE, 100, (ahead + 1) * 60), at((ahead + 1) * 60));
            let since_there = costs.since(ONE, there, at((ahead + 1) * 60));
            assert_eq!(since_there, Money(200), "{ahead}");
            // And back, whether it is asked next or counts.
            for counts in [false, true] {
                let more = if counts { 1 } else { 0 };
                if counts {
                    costs.count(&record(ONE, 1, 60), at(60));
                }
                assert_eq!(
                    costs.since(ONE, at(-299 * 60), at(60)),
                    Money(500 + more),
                    "{ahead}"
                );
                assert_eq!(costs.since(ONE, there, at(60)), Money::ZERO, "{ahead}");
            }
            // An hour later they are an hour old.
            assert_eq!(costs.since(ONE, at(120), at(3_600)), Money::ZERO, "{ahead}");
            assert_eq!(costs.since(ONE, at(60), at(3_600)), Money(201), "{ahead}");

            // What is next may also be counted.
            let costs = five_hours();
            costs.count(&record(ONE, 100, ahead * 60), there);
            costs.count(&record(ONE, 1, 0), at(0));
            assert_eq!(
                costs.since(ONE, at(-299 * 60), at(0)),
                Money(401),
                "{ahead}"
            );
        }
    }

    #[test]
    fn what_the_database_dates_ahead_is_left_out() {
        for (ahead, sum) in [(0, 7), (2, 7), (3, 0), (60 * 24 * 365, 0)] {
            let costs = vec![(ONE, minute_of(at(ahead * 60)), Money(7))];
            let costs = WindowCosts::loaded(costs, at(0));
            assert_eq!(costs.since(ONE, at(0), at(0)), Money(sum), "{ahead}");
        }
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
            let costs = WindowCosts::loaded(Vec::new(), at(0));
            let mut all: Vec<(i64, i64, i64)> = Vec::new();
            let mut clock = 0;
            for ((account, cost, ahead), hours) in records.into_iter().zip(starts) {
                // Time passes; requests end a little out of order.
                clock += ahead.max(0) / 20;
                let second = clock + ahead.min(0) / 60;
                costs.count(&record(AccountId(account), cost, second), at(clock));
                all.push((account, cost, minute_of(at(second))));
                let start = at(clock - hours * 3_600);
                let of_account = all.iter().filter(|(a, _, _)| *a == account);
                let sum: i64 = of_account.filter(|(.., m)| *m >= minute_of(start)).map(|(_, c, _)| c).sum();
                prop_assert_eq!(costs.since(AccountId(account), start, at(clock)), Money(sum));
                let kept = costs.accounts.read(account, |c| c.lock().minutes.len()).unwrap();
                prop_assert!(kept as i64 <= KEPT.num_minutes() + 1);
            }
        }
    }
}
