//! What may be used through an account, in all, a day and a week, at the account's own multiplier: how
//! an operator keeps to what a provider's contract allows. Users pay nothing of this.
//!
//! The same [`AccountUsage::add`] counts in memory and in the database, so that both come to the same.

use std::fmt;

use chrono::{DateTime, Datelike, Days, TimeDelta, Utc, Weekday};
use chrono_tz::Tz;

use crate::domain::window::local_hour;
use crate::domain::{Money, Window};

/// The limits of an account, and when its days and weeks begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccountQuota {
    /// USD over its whole life.
    pub total: Option<Money>,
    /// USD a day.
    pub daily: Option<Money>,
    /// USD a week.
    pub weekly: Option<Money>,
    /// How long a day lasts.
    pub day: Reset,
    /// How long a week lasts.
    pub week: Reset,
    /// Whose clock [`Reset::Daily`] and [`Reset::Weekly`] go by.
    pub tz: Tz,
}

impl Default for AccountQuota {
    fn default() -> AccountQuota {
        AccountQuota {
            total: None,
            daily: None,
            weekly: None,
            day: Reset::AfterDay,
            week: Reset::AfterWeek,
            tz: Tz::UTC,
        }
    }
}

/// When what was used goes back to nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reset {
    /// 24 hours after the first request that cost something.
    AfterDay,
    /// Seven times 24 hours after it.
    AfterWeek,
    /// Every day at this hour.
    Daily {
        /// 0 to 23.
        hour: u32,
    },
    /// Every week on this day at this hour.
    Weekly {
        /// The day.
        day: Weekday,
        /// 0 to 23.
        hour: u32,
    },
}

impl Reset {
    /// Where a window begins whose first cost is at `at`.
    pub fn start(self, at: DateTime<Utc>, tz: Tz) -> DateTime<Utc> {
        let (hour, days, back) = match self {
            Reset::AfterDay | Reset::AfterWeek => return at,
            Reset::Daily { hour } => (hour, 1, 0),
            Reset::Weekly { day, hour } => {
                let today = at.with_timezone(&tz).weekday();
                (hour, 7, today.days_since(day).into())
            }
        };
        let date = at.with_timezone(&tz).date_naive();
        let starts = |back: u64| {
            let date = date.checked_sub_days(Days::new(back))?;
            local_hour(date, hour, tz)
        };
        // Today's hour may still be to come; then it is the one before.
        [back, back + days]
            .into_iter()
            .filter_map(starts)
            .find(|start| *start <= at)
            .unwrap_or(at)
    }

    /// Where a window ends that began at `start`: the first moment outside it. A window that began by
    /// another rule (the operator has changed it since) ends where this rule has its next end.
    pub fn end(self, start: DateTime<Utc>, tz: Tz) -> DateTime<Utc> {
        let (hour, days) = match self {
            Reset::AfterDay => return start + TimeDelta::days(1),
            Reset::AfterWeek => return start + TimeDelta::days(7),
            Reset::Daily { hour } => (hour, 1),
            Reset::Weekly { hour, .. } => (hour, 7),
        };
        let began = self.start(start, tz).with_timezone(&tz).date_naive();
        let end = began.checked_add_days(Days::new(days));
        end.and_then(|date| local_hour(date, hour, tz))
            .unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

/// One of the limits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum QuotaKind {
    /// Over the account's whole life.
    Total,
    /// A day.
    Daily,
    /// A week.
    Weekly,
}

impl QuotaKind {
    /// The word in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            QuotaKind::Total => "total",
            QuotaKind::Daily => "daily",
            QuotaKind::Weekly => "weekly",
        }
    }
}

/// A quota that is used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exhausted {
    /// Which; of several the one that lasts longest.
    pub which: QuotaKind,
    /// The limit.
    pub limit: Money,
    /// What has been used, not less than the limit.
    pub used: Money,
    /// When it begins anew; `None` = when an operator raises it or resumes the account.
    pub until: Option<DateTime<Utc>>,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exhausted {
            which, limit, used, ..
        } = self;
        write!(
            f,
            "{} quota of {limit} USD is used up ({used} USD)",
            which.as_str()
        )
    }
}

/// What has been used through an account, whoever paid.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AccountUsage {
    /// Ever since the account exists, or since it was resumed with its total quota used up.
    pub total: Money,
    /// In its day.
    pub day: Window,
    /// In its week.
    pub week: Window,
}

impl AccountUsage {
    /// Counts what a request cost that ended at `at`. What costs nothing begins no window.
    pub fn add(&mut self, quota: &AccountQuota, cost: Money, at: DateTime<Utc>) {
        if !cost.is_positive() {
            return;
        }
        self.total += cost;
        for (window, reset) in [(&mut self.day, quota.day), (&mut self.week, quota.week)] {
            let over = |start| at >= reset.end(start, quota.tz);
            if window.start.is_none_or(over) {
                window.start = Some(reset.start(at, quota.tz));
                window.used = Money::ZERO;
            }
            window.used += cost;
        }
    }

    /// Whether one of the limits is reached at `now`, and until when.
    pub fn exhausted(&self, quota: &AccountQuota, now: DateTime<Utc>) -> Option<Exhausted> {
        let used_up = |which, limit: Option<Money>, used, until| {
            let limit = limit.filter(|limit| used >= *limit)?;
            Some(Exhausted {
                which,
                limit,
                used,
                until,
            })
        };
        let in_window = |which, limit: Option<Money>, window: &Window, reset: Reset| {
            // First what is cheap: the end of a window takes the calendar.
            let limit = limit.filter(|limit| window.used >= *limit);
            limit?;
            let until = reset.end(window.start?, quota.tz);
            (now < until).then(|| used_up(which, limit, window.used, Some(until)))?
        };
        used_up(QuotaKind::Total, quota.total, self.total, None).or_else(|| {
            let day = in_window(QuotaKind::Daily, quota.daily, &self.day, quota.day);
            let week = in_window(QuotaKind::Weekly, quota.weekly, &self.week, quota.week);
            day.into_iter().chain(week).max_by_key(|e| e.until)
        })
    }

    /// `accounts resume`: what is used up begins anew, so that the account has that quota once more.
    pub fn begin_anew(&mut self, quota: &AccountQuota, now: DateTime<Utc>) {
        while let Some(exhausted) = self.exhausted(quota, now) {
            match exhausted.which {
                QuotaKind::Total => self.total = Money::ZERO,
                QuotaKind::Daily => self.day = Window::default(),
                QuotaKind::Weekly => self.week = Window::default(),
            }
            // A limit that nothing can stay below would be met again for ever.
            if !exhausted.limit.is_positive() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    const BERLIN: Tz = chrono_tz::Europe::Berlin;

    #[test]
    fn windows_reset_where_the_operator_says() {
        let day = |hour| Reset::Daily { hour };
        let week = |day, hour| Reset::Weekly { day, hour };
        use Weekday::{Mon, Sun, Wed};
        // 2026-11-25 is a Wednesday.
        #[rustfmt::skip]
        let rows = [
            // Reset, zone, first cost, begins, ends.
            (Reset::AfterDay, Tz::UTC, "2026-11-25T22:30:00Z", "2026-11-25T22:30:00Z", "2026-11-26T22:30:00Z"),
            (Reset::AfterWeek, BERLIN, "2026-11-25T22:30:00Z", "2026-11-25T22:30:00Z", "2026-12-02T22:30:00Z"),
            (day(0), Tz::UTC, "2026-11-25T22:30:00Z", "2026-11-25T00:00:00Z", "2026-11-26T00:00:00Z"),
            (day(9), Tz::UTC, "2026-11-25T08:59:59Z", "2026-11-24T09:00:00Z", "2026-11-25T09:00:00Z"),
            (day(9), Tz::UTC, "2026-11-25T09:00:00Z", "2026-11-25T09:00:00Z", "2026-11-26T09:00:00Z"),
            (day(9), BERLIN, "2026-11-25T08:30:00Z", "2026-11-25T08:00:00Z", "2026-11-26T08:00:00Z"),
            // 23:30 UTC is the next day in Berlin.
            (day(0), BERLIN, "2026-11-25T23:30:00Z", "2026-11-25T23:00:00Z", "2026-11-26T23:00:00Z"),
            // Two o'clock is skipped on 2026-03-29 and comes twice on 2026-10-25.
            (day(2), BERLIN, "2026-03-28T12:00:00Z", "2026-03-28T01:00:00Z", "2026-03-29T01:00:00Z"),
            (day(2), BERLIN, "2026-03-29T00:30:00Z", "2026-03-28T01:00:00Z", "2026-03-29T01:00:00Z"),
            (day(2), BERLIN, "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z", "2026-10-26T01:00:00Z"),
            (week(Mon, 0), Tz::UTC, "2026-11-25T22:30:00Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"),
            (week(Wed, 23), Tz::UTC, "2026-11-25T22:30:00Z", "2026-11-18T23:00:00Z", "2026-11-25T23:00:00Z"),
            (week(Wed, 22), Tz::UTC, "2026-11-25T22:30:00Z", "2026-11-25T22:00:00Z", "2026-12-02T22:00:00Z"),
            (week(Sun, 3), BERLIN, "2026-11-22T01:59:59Z", "2026-11-15T02:00:00Z", "2026-11-22T02:00:00Z"),
            (week(Sun, 3), BERLIN, "2026-10-20T12:00:00Z", "2026-10-18T01:00:00Z", "2026-10-25T02:00:00Z"),
        ];
        for (reset, tz, first, begins, ends) in rows {
            let start = reset.start(at(first), tz);
            assert_eq!(start, at(begins), "{reset:?} {tz} {first}");
            assert_eq!(reset.end(start, tz), at(ends), "{reset:?} {tz} {first}");
            // From anywhere inside, too: the rule may have been changed while a window ran.
            if !matches!(reset, Reset::AfterDay | Reset::AfterWeek) {
                assert_eq!(reset.end(at(first), tz), at(ends), "{reset:?} {first}");
            }
        }
    }

    fn quota() -> AccountQuota {
        AccountQuota {
            total: Some(Money(100)),
            daily: Some(Money(10)),
            weekly: Some(Money(30)),
            day: Reset::Daily { hour: 0 },
            ..AccountQuota::default()
        }
    }

    #[test]
    fn what_lasts_longest_is_told() {
        let quota = quota();
        let mut usage = AccountUsage::default();
        let on = |day: u32| at(&format!("2026-11-{day:02}T12:00:00Z"));
        let mut add = |cost, day| {
            usage.add(&quota, Money(cost), on(day));
            let exhausted = usage.exhausted(&quota, on(day));
            exhausted.map(|e| (e.which, e.used.0, e.until))
        };
        let midnight = |day: u32| Some(at(&format!("2026-11-{day:02}T00:00:00Z")));
        assert_eq!(add(0, 1), None);
        assert_eq!(add(9, 2), None);
        assert_eq!(add(1, 2), Some((QuotaKind::Daily, 10, midnight(3))));
        assert_eq!(add(9, 3), None);
        // The day is used up as well, but the week takes longer.
        let week = Some((QuotaKind::Weekly, 31, Some(on(9))));
        assert_eq!(add(12, 4), week);
        assert_eq!(add(0, 5), week, "a day later still");
        assert_eq!(add(9, 9), None);
        assert_eq!(add(60, 10), Some((QuotaKind::Total, 100, None)));
        assert_eq!(usage.exhausted(&AccountQuota::default(), on(10)), None);
        let said = usage.exhausted(&quota, on(10)).unwrap().to_string();
        assert_eq!(
            said,
            "total quota of 0.0000001 USD is used up (0.0000001 USD)"
        );
    }

    #[test]
    fn who_is_resumed_has_once_more_what_was_used_up() {
        let quota = quota();
        let now = at("2026-11-25T12:00:00Z");
        for (costs, left) in [
            // Daily, weekly and total afterwards.
            (vec![9], [9, 9, 9]),
            (vec![12], [0, 12, 12]),
            (vec![30], [0, 0, 30]),
            (vec![50, 50], [0, 0, 0]),
        ] {
            let mut usage = AccountUsage::default();
            for cost in &costs {
                usage.add(&quota, Money(*cost), now);
            }
            usage.begin_anew(&quota, now);
            let now_used = [usage.day.used, usage.week.used, usage.total];
            assert_eq!(now_used, left.map(Money), "{costs:?}");
            assert_eq!(usage.exhausted(&quota, now), None);
        }
        let nothing = AccountQuota {
            total: Some(Money(0)),
            ..quota
        };
        let mut usage = AccountUsage::default();
        usage.begin_anew(&nothing, now);
        assert!(usage.exhausted(&nothing, now).is_some());
    }
}
