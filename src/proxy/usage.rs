//! `GET /v1/usage`: what a key has used and what it and its user have left (SPEC 12.2).
//!
//! Limits and balances come from memory, as for every request; the statistics from the database, for a
//! bounded time and a few at once (`reports.rs`). Without them the answer is given all the same.

mod body;
pub mod reports;

use chrono::{DateTime, Days, NaiveDate, Utc};
use chrono_tz::Tz;

pub use body::body;

use super::Rooms;
use crate::auth::Principal;
use crate::domain::window::midnight;
use crate::domain::{KEY_WINDOWS, Money, SUBSCRIPTION_WINDOWS, Window, WindowKind};
use crate::storage::KeySpan;

/// Models are told of so many days before today when nothing else is asked for.
const DEFAULT_DAYS: u64 = 30;

/// Where a user and a key stand at one moment. Money that running requests hold is in none of these but
/// `reserved`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// The user's balance.
    pub balance: Money,
    /// Of that, held by running requests.
    pub reserved: Money,
    /// Spent with the key so far.
    pub key_spent: Money,
    /// The key's windows, in the order of [`KEY_WINDOWS`].
    pub key_windows: [WindowStanding; 3],
    /// The subscription's windows, in the order of [`SUBSCRIPTION_WINDOWS`].
    pub subscription_windows: [WindowStanding; 3],
}

/// Where a window stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WindowStanding {
    /// Spent in it.
    pub used: Money,
    /// Its start and its end, while it runs.
    pub span: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

impl WindowStanding {
    /// Where `window` stands at `now`.
    pub fn of(window: &Window, kind: WindowKind, now: DateTime<Utc>, tz: Tz) -> WindowStanding {
        WindowStanding {
            used: window.used_at(kind, now, tz),
            span: window
                .start
                .zip(window.resets_at(kind, tz))
                .filter(|(_, end)| now < *end),
        }
    }

    /// Where windows of these kinds stand at `now`.
    pub fn all(
        windows: &[Window; 3],
        kinds: [WindowKind; 3],
        now: DateTime<Utc>,
        tz: Tz,
    ) -> [WindowStanding; 3] {
        [0, 1, 2].map(|i| WindowStanding::of(&windows[i], kinds[i], now, tz))
    }
}

/// The answer, as JSON.
pub async fn answer(
    rooms: &Rooms,
    principal: &Principal,
    query: Option<&str>,
    tz: Tz,
    now: DateTime<Utc>,
) -> Vec<u8> {
    let statistics = rooms.reports.of(span(principal, query, tz, now)).await;
    body(
        &standing(rooms, principal, tz, now),
        &principal.key,
        &principal.group,
        principal.subscription.as_deref(),
        statistics.as_ref(),
        now,
    )
}

/// What memory knows.
fn standing(rooms: &Rooms, principal: &Principal, tz: Tz, now: DateTime<Utc>) -> Standing {
    let (user, key, group) = (&principal.user, &principal.key, &principal.group);
    let known = rooms.book.standing(user.id, key.id, group.id, now);
    Standing {
        balance: known.balance,
        reserved: known.reserved,
        key_spent: known.key_spent,
        key_windows: WindowStanding::all(&known.key_windows, KEY_WINDOWS, now, tz),
        subscription_windows: WindowStanding::all(
            &known.subscription_windows,
            SUBSCRIPTION_WINDOWS,
            now,
            tz,
        ),
    }
}

/// What is asked of the statistics: days of the server's time zone, `end_date` inclusive. What cannot be
/// read is passed over.
fn span(principal: &Principal, query: Option<&str>, tz: Tz, now: DateTime<Utc>) -> KeySpan {
    let today = now.with_timezone(&tz).date_naive();
    let start = |date| midnight(date, tz).unwrap_or(now);
    let from = date(query, "start_date").or(today.checked_sub_days(Days::new(DEFAULT_DAYS)));
    let to = date(query, "end_date").and_then(|date| date.checked_add_days(Days::new(1)));
    KeySpan {
        key: principal.key.id,
        user: principal.user.id,
        now,
        today: start(today),
        from: start(from.unwrap_or(today)),
        // The present is inside.
        to: to.map_or(now, start),
    }
}

/// A date in the query: `YYYY-MM-DD`, which no encoding changes.
fn date(query: Option<&str>, name: &str) -> Option<NaiveDate> {
    let value = query?
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))?;
    // Chrono would also read `2026-1-5` and years of five digits.
    let is_date = value.len() == 10 && value.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    is_date.then(|| NaiveDate::parse_from_str(value, "%Y-%m-%d").ok())?
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn dates_are_read_or_passed_over() {
        for (query, expected) in [
            (None, None),
            (Some(""), None),
            (Some("start_date=2026-11-05"), Some("2026-11-05")),
            (Some("x=1&start_date=2026-11-05&y"), Some("2026-11-05")),
            (Some("end_date=2026-11-05"), None),
            (Some("start_date=2026-1-5"), None),
            (Some("start_date=2026-02-30"), None),
            (Some("start_date=12026-11-5"), None),
            (Some("start_date="), None),
            (Some("start_date=%32026-11-05"), None),
        ] {
            let found = date(query, "start_date").map(|date| date.to_string());
            assert_eq!(found.as_deref(), expected, "{query:?}");
        }
    }

    #[test]
    fn days_are_those_of_the_time_zone_and_the_end_is_inclusive() {
        let principal = body::tests::principal();
        let berlin = chrono_tz::Europe::Berlin;
        // In Berlin the 26th has begun.
        let now = at("2026-11-25T23:30:00Z");
        let asked = |query| {
            let span = span(&principal, query, berlin, now);
            (span.today, span.from, span.to)
        };
        let today = at("2026-11-25T23:00:00Z");
        assert_eq!(asked(None), (today, at("2026-10-26T23:00:00Z"), now));
        assert_eq!(
            asked(Some("start_date=2026-11-01&end_date=2026-11-02")),
            (
                today,
                at("2026-10-31T23:00:00Z"),
                at("2026-11-02T23:00:00Z")
            )
        );
        assert_eq!(
            asked(Some("start_date=yesterday&end_date=9999-99-99")),
            asked(None)
        );
    }

    #[test]
    fn a_window_that_is_over_stands_at_nothing() {
        let start = at("2026-11-25T10:00:00Z");
        let window = Window {
            start: Some(start),
            used: Money(7),
        };
        let end = start + chrono::TimeDelta::hours(5);
        let stand = |now| WindowStanding::of(&window, WindowKind::FiveHours, now, Tz::UTC);
        assert_eq!(
            stand(start),
            WindowStanding {
                used: Money(7),
                span: Some((start, end))
            }
        );
        assert_eq!(stand(end), WindowStanding::default());
        assert_eq!(
            WindowStanding::of(&Window::default(), WindowKind::Day, start, Tz::UTC),
            WindowStanding::default()
        );
    }
}
