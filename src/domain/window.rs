//! Spans of time in which cost is added up and limited: the 5-hour, daily and weekly windows of a key,
//! the daily, weekly and monthly ones of a subscription, an account's quotas by day and week.
//!
//! One implementation for what is decided in memory and what is written to the database: both fold the
//! same charges in the same order and come to the same sums.

use chrono::{DateTime, Days, NaiveDate, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

use super::Money;

/// How long a window lasts and where it begins (SPEC 4.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum WindowKind {
    /// Five hours from the first charge on.
    FiveHours,
    /// The local day of the first charge.
    Day,
    /// Seven local days, the first of which has the first charge.
    Week,
    /// Thirty local days, likewise.
    Month,
}

/// The windows of a key, in the order of `rate_limits`.
pub const KEY_WINDOWS: [WindowKind; 3] = [WindowKind::FiveHours, WindowKind::Day, WindowKind::Week];

/// The windows of a subscription: daily, weekly, monthly.
pub const SUBSCRIPTION_WINDOWS: [WindowKind; 3] =
    [WindowKind::Day, WindowKind::Week, WindowKind::Month];

impl WindowKind {
    /// The name in messages and in `rate_limits`.
    pub const fn as_str(self) -> &'static str {
        match self {
            WindowKind::FiveHours => "5h",
            WindowKind::Day => "1d",
            WindowKind::Week => "7d",
            WindowKind::Month => "30d",
        }
    }

    /// The window of that name, if there is one.
    pub fn parse(name: &str) -> Option<WindowKind> {
        use WindowKind::{Day, FiveHours, Month, Week};
        [FiveHours, Day, Week, Month]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }

    /// Local days it lasts; `None` for the one that is counted in hours.
    const fn days(self) -> Option<u64> {
        match self {
            WindowKind::FiveHours => None,
            WindowKind::Day => Some(1),
            WindowKind::Week => Some(7),
            WindowKind::Month => Some(30),
        }
    }

    /// Where a window begins whose first charge is at `at`.
    pub fn start(self, at: DateTime<Utc>, tz: Tz) -> DateTime<Utc> {
        match self.days() {
            None => at,
            Some(_) => midnight(at.with_timezone(&tz).date_naive(), tz).unwrap_or(at),
        }
    }

    /// Where a window ends that began at `start`: the first moment outside it. Days end at local
    /// midnight, also where daylight saving makes one longer or shorter.
    pub fn end(self, start: DateTime<Utc>, tz: Tz) -> DateTime<Utc> {
        let Some(days) = self.days() else {
            return start + TimeDelta::hours(5);
        };
        let first = start.with_timezone(&tz).date_naive();
        first
            .checked_add_days(Days::new(days))
            .and_then(|date| midnight(date, tz))
            .unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

/// The first moment of a local day.
pub fn midnight(date: NaiveDate, tz: Tz) -> Option<DateTime<Utc>> {
    local_hour(date, 0, tz)
}

/// When it is this hour (0 to 23) on a local day, for the first time. Where daylight saving skips it, that
/// is when the clocks go on.
pub(super) fn local_hour(date: NaiveDate, hour: u32, tz: Tz) -> Option<DateTime<Utc>> {
    let start = date.and_hms_opt(hour, 0, 0)?;
    // No gap is known to be longer than a day; clocks change by quarters of an hour.
    (0..96).find_map(|quarters| {
        let local = start.checked_add_signed(TimeDelta::minutes(15 * quarters))?;
        tz.from_local_datetime(&local)
            .earliest()
            .map(|moment| moment.with_timezone(&Utc))
    })
}

/// What one window has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Window {
    /// Where it began; `None` = nothing has been counted yet.
    pub start: Option<DateTime<Utc>>,
    /// The sum of the charges in it.
    pub used: Money,
}

impl Window {
    /// What is counted at `now`: nothing, once the window is over.
    pub fn used_at(&self, kind: WindowKind, now: DateTime<Utc>, tz: Tz) -> Money {
        match self.resets_at(kind, tz) {
            Some(end) if now < end => self.used,
            _ => Money::ZERO,
        }
    }

    /// When what is counted goes back to nothing; `None` before the first charge.
    pub fn resets_at(&self, kind: WindowKind, tz: Tz) -> Option<DateTime<Utc>> {
        self.start.map(|start| kind.end(start, tz))
    }

    /// Counts a charge made at `at`; a window that is over begins anew with it. A charge from before the
    /// window began (settled late) counts in it, too: never too little. A charge of nothing begins no
    /// window.
    pub fn add(&mut self, kind: WindowKind, charge: Money, at: DateTime<Utc>, tz: Tz) {
        if charge == Money::ZERO {
            return;
        }
        if self.resets_at(kind, tz).is_none_or(|end| at >= end) {
            self.start = Some(kind.start(at, tz));
            self.used = Money::ZERO;
        }
        self.used += charge;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn windows_begin_and_end_where_the_specification_says() {
        let berlin = chrono_tz::Europe::Berlin;
        #[rustfmt::skip]
        let rows = [
            // Kind, zone, first charge, begins, ends.
            (WindowKind::FiveHours, Tz::UTC, "2026-11-25T22:30:00Z", "2026-11-25T22:30:00Z", "2026-11-26T03:30:00Z"),
            (WindowKind::Day, Tz::UTC, "2026-11-25T22:30:00Z", "2026-11-25T00:00:00Z", "2026-11-26T00:00:00Z"),
            (WindowKind::Week, Tz::UTC, "2026-11-25T22:30:00Z", "2026-11-25T00:00:00Z", "2026-12-02T00:00:00Z"),
            (WindowKind::Month, Tz::UTC, "2026-11-25T22:30:00Z", "2026-11-25T00:00:00Z", "2026-12-25T00:00:00Z"),
            // 23:30 UTC is the next day in Berlin.
            (WindowKind::Day, berlin, "2026-11-25T23:30:00Z", "2026-11-25T23:00:00Z", "2026-11-26T23:00:00Z"),
            // Days of 25 and of 23 hours end at midnight all the same.
            (WindowKind::Day, berlin, "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
            (WindowKind::Day, berlin, "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
            // Midnight is skipped in Santiago on 2026-09-06.
            (WindowKind::Day, chrono_tz::America::Santiago, "2026-09-06T12:00:00Z", "2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"),
        ];
        for (kind, tz, first, begins, ends) in rows {
            let start = kind.start(at(first), tz);
            assert_eq!(start, at(begins), "{kind:?} {tz} {first}");
            assert_eq!(kind.end(start, tz), at(ends), "{kind:?} {tz} {first}");
        }
    }

    #[test]
    fn a_window_counts_until_its_end_and_not_beyond() {
        let (kind, tz) = (WindowKind::FiveHours, Tz::UTC);
        let mut window = Window::default();
        let first = at("2026-11-25T10:00:00Z");
        window.add(kind, Money(0), first - TimeDelta::hours(1), tz);
        assert_eq!(window, Window::default(), "nothing begins nothing");
        assert_eq!(window.used_at(kind, first, tz), Money(0));
        window.add(kind, Money(3), first, tz);
        window.add(kind, Money(4), first + TimeDelta::hours(4), tz);
        let end = first + TimeDelta::hours(5);
        assert_eq!(window.resets_at(kind, tz), Some(end));
        let moment = TimeDelta::milliseconds(1);
        assert_eq!(window.used_at(kind, end - moment, tz), Money(7));
        assert_eq!(window.used_at(kind, end, tz), Money(0));
        // Late, but the window still runs for it.
        window.add(kind, Money(1), first - moment, tz);
        assert_eq!(window.used, Money(8));
        window.add(kind, Money(2), end, tz);
        assert_eq!((window.start, window.used), (Some(end), Money(2)));
    }
}
