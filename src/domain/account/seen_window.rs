//! What an account's provider last said about the window of five hours that its subscription counts in (SPEC 7.9).

use std::time::SystemTime;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use tollgate_filters::verdict::{SessionStatus, SessionWindow};

use crate::domain::{Condition, ConditionKind};

/// A part of a whole in thousandths. What is used of a window may be somewhat more than all of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Permille(pub u16);

impl Permille {
    /// Of a part as providers say it, where 1 is the whole. Rounded; what is beyond the type is its largest.
    fn of(part: f64) -> Permille {
        Permille((part * 1000.0).round().clamp(0.0, f64::from(u16::MAX)) as u16)
    }

    /// In percent, for people.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 10.0
    }
}

/// From when to when a window runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Its first moment.
    pub start: DateTime<Utc>,
    /// The first moment after it.
    pub end: DateTime<Utc>,
}

impl Span {
    /// Whether `now` is in it.
    pub fn holds(&self, now: DateTime<Utc>) -> bool {
        self.start <= now && now < self.end
    }
}

/// The window as last heard of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeenWindow {
    /// Whether requests are let in.
    pub status: SessionStatus,
    /// From when to when, where it was told.
    pub span: Option<Span>,
    /// What of it is used.
    pub used: Option<Permille>,
    /// What of the week is used.
    pub week_used: Option<Permille>,
    /// When that was said; where it is said again and again, the first time.
    pub seen_at: DateTime<Utc>,
}

impl SeenWindow {
    /// From what an answer says, at `seen_at`.
    pub fn new(
        window: &SessionWindow,
        week_used: Option<f64>,
        seen_at: DateTime<Utc>,
    ) -> SeenWindow {
        SeenWindow {
            status: window.status,
            span: window.span.and_then(|(start, end)| {
                Some(Span {
                    start: whole_second(start)?,
                    end: whole_second(end)?,
                })
            }),
            used: window.used.map(Permille::of),
            week_used: week_used.map(Permille::of),
            seen_at,
        }
    }

    /// This, with what it leaves unsaid and `before` has said of a window that still runs.
    pub fn after(mut self, before: &SeenWindow) -> SeenWindow {
        let still_runs = before.span.is_some_and(|span| span.holds(self.seen_at));
        if still_runs && (self.span.is_none() || self.span == before.span) {
            self.span = before.span;
            self.used = self.used.or(before.used);
        }
        self.week_used = self.week_used.or(before.week_used);
        self
    }

    /// Whether both say that requests are, or are not, let in to the same window. How much of it is used aside, which
    /// changes with every request.
    pub fn is_as(&self, other: &SeenWindow) -> bool {
        self.status == other.status && self.span == other.span
    }

    /// Whether there is nothing new in this.
    pub fn adds_nothing_to(&self, other: &SeenWindow) -> bool {
        self.is_as(other) && self.used == other.used && self.week_used == other.week_used
    }

    /// The window that runs at `now`.
    pub fn running(&self, now: DateTime<Utc>) -> Option<Span> {
        self.span.filter(|span| span.holds(now))
    }

    /// Whether it ends a rate limit of the account's: requests are let in, and one of `standing` was there before
    /// the attempt that heard of this began at `began`. One that is younger is better known than this answer, which
    /// may have been on its way when the limit was met.
    pub fn lifts(&self, standing: &[Condition], began: DateTime<Utc>) -> bool {
        let lets_in = self.status != SessionStatus::Rejected;
        let older = |c: &Condition| {
            c.kind == ConditionKind::RateLimited && c.since < began && c.holds(self.seen_at)
        };
        lets_in && standing.iter().any(older)
    }
}

/// Providers tell whole seconds; what the way here has made of one is a little beside it.
fn whole_second(time: SystemTime) -> Option<DateTime<Utc>> {
    DateTime::<Utc>::from(time)
        .duration_round(TimeDelta::seconds(1))
        .ok()
}

/// A status by its stored name.
pub fn session_status(name: &str) -> Option<SessionStatus> {
    use SessionStatus::{Allowed, AllowedWarning, Rejected};
    let all = [Allowed, AllowedWarning, Rejected];
    all.into_iter().find(|status| status.as_str() == name)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    const HOURS: i64 = 3600;

    fn span(end: i64) -> Span {
        Span {
            start: at(end - 5 * HOURS),
            end: at(end),
        }
    }

    fn seen(status: SessionStatus, end: Option<i64>, used: Option<u16>, second: i64) -> SeenWindow {
        SeenWindow {
            status,
            span: end.map(span),
            used: used.map(Permille),
            week_used: None,
            seen_at: at(second),
        }
    }

    use SessionStatus::{Allowed, AllowedWarning, Rejected};

    #[test]
    fn an_answer_is_taken_to_whole_seconds_and_thousandths() {
        let beside = |time: DateTime<Utc>| SystemTime::from(time) + Duration::from_nanos(180);
        let window = SessionWindow {
            status: AllowedWarning,
            span: Some((beside(at(-18_000)), beside(at(0)))),
            used: Some(0.4216),
        };
        let got = SeenWindow::new(&window, Some(1.05), at(-7));
        let want = SeenWindow {
            week_used: Some(Permille(1050)),
            ..seen(AllowedWarning, Some(0), Some(422), -7)
        };
        assert_eq!(got, want);
        assert_eq!(got.used.unwrap().percent(), 42.2);
        assert_eq!(Permille::of(1e9), Permille(u16::MAX));
        for status in [Allowed, AllowedWarning, Rejected] {
            assert_eq!(session_status(status.as_str()), Some(status));
        }
        assert_eq!(session_status("gone"), None);
    }

    #[test]
    fn what_is_left_unsaid_stays_as_long_as_the_window() {
        let before = SeenWindow {
            week_used: Some(Permille(7)),
            ..seen(Allowed, Some(100), Some(5), 0)
        };
        let week = |seen: SeenWindow| SeenWindow {
            week_used: Some(Permille(7)),
            ..seen
        };
        for (new, merged) in [
            (
                seen(Rejected, None, None, 99),
                seen(Rejected, Some(100), Some(5), 99),
            ),
            (
                seen(Allowed, Some(100), None, 99),
                seen(Allowed, Some(100), Some(5), 99),
            ),
            (
                seen(Allowed, Some(100), Some(6), 99),
                seen(Allowed, Some(100), Some(6), 99),
            ),
            // Another window, or that one is over.
            (
                seen(Allowed, Some(200), None, 99),
                seen(Allowed, Some(200), None, 99),
            ),
            (
                seen(Allowed, None, None, 100),
                seen(Allowed, None, None, 100),
            ),
        ] {
            assert_eq!(new.after(&before), week(merged), "{new:?}");
        }
    }

    #[test]
    fn what_is_new_and_what_runs() {
        let known = seen(Allowed, Some(100), Some(5), 0);
        for (other, is_as, nothing) in [
            (seen(Allowed, Some(100), Some(5), 50), true, true),
            (seen(Allowed, Some(100), Some(6), 50), true, false),
            (seen(Rejected, Some(100), Some(5), 50), false, false),
            (seen(Allowed, Some(101), Some(5), 50), false, false),
            (seen(Allowed, None, Some(5), 50), false, false),
        ] {
            assert_eq!(other.is_as(&known), is_as, "{other:?}");
            assert_eq!(other.adds_nothing_to(&known), nothing, "{other:?}");
        }
        let first = 100 - 5 * HOURS;
        for (second, runs) in [(first - 1, false), (first, true), (99, true), (100, false)] {
            assert_eq!(known.running(at(second)).is_some(), runs, "{second}");
        }
    }

    #[test]
    fn an_answer_that_lets_in_ends_a_limit_from_before_its_attempt() {
        let limited = |kind, since| Condition {
            kind,
            model: None,
            since: at(since),
            until: Some(at(99)),
            status: Some(429),
            reason: String::new(),
        };
        use ConditionKind::{Overloaded, RateLimited};
        #[rustfmt::skip]
        let rows = [
            (Allowed, vec![limited(RateLimited, 9)], true),
            (AllowedWarning, vec![limited(RateLimited, 9)], true),
            (Rejected, vec![limited(RateLimited, 9)], false),
            (Allowed, vec![limited(RateLimited, 10)], false),
            (Allowed, vec![limited(RateLimited, 11)], false),
            (Allowed, vec![limited(Overloaded, 9)], false),
            (Allowed, vec![limited(Overloaded, 9), limited(RateLimited, 8)], true),
            (Allowed, vec![Condition { until: Some(at(20)), ..limited(RateLimited, 9) }], false),
            (Allowed, vec![], false),
        ];
        for (status, standing, lifts) in rows {
            let window = seen(status, None, None, 20);
            assert_eq!(
                window.lifts(&standing, at(10)),
                lifts,
                "{status:?} {standing:?}"
            );
        }
    }
}
