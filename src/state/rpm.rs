//! How often accounts were asked in the current minute (SPEC 6.4).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};

use super::dense::Dense;
use crate::domain::AccountId;

/// Bits of the count in a counter; above them stands the minute.
const COUNT_BITS: u32 = 32;
/// Minutes by which requests may come with clocks behind the one that began a minute. What was counted further ahead
/// was counted by a clock that has been set back since.
const BEHIND: u64 = 2;

/// A counter for each account that has been asked.
pub(super) struct Rpm {
    counters: Dense<AtomicU64>,
}

impl Rpm {
    pub(super) fn new() -> Rpm {
        Rpm {
            counters: Dense::new(),
        }
    }

    /// One request more.
    pub(super) fn count(&self, account: AccountId, now: DateTime<Utc>) {
        let minute = minute(now);
        let make = || Arc::new(AtomicU64::new(0));
        self.counters.with(account.0, make, |counter| {
            let next = |known: u64| match known >> COUNT_BITS {
                known_minute if (minute..=minute + BEHIND).contains(&known_minute) => {
                    Some(known.saturating_add(1))
                }
                _ => Some(minute << COUNT_BITS | 1),
            };
            // `next` never declines.
            let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        });
    }

    /// Requests in the minute of `now`.
    pub(super) fn of(&self, account: AccountId, now: DateTime<Utc>) -> u32 {
        let minute = minute(now);
        let count = self.counters.read(account.0, |counter| {
            let known = counter.load(Ordering::Relaxed);
            if known >> COUNT_BITS == minute {
                (known & u64::from(u32::MAX)) as u32
            } else {
                0
            }
        });
        count.unwrap_or(0)
    }
}

/// The minute of the clock, counted since 1970.
fn minute(now: DateTime<Utc>) -> u64 {
    now.timestamp().max(0).unsigned_abs() / 60
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_of_the_clock_is_counted() {
        let rpm = Rpm::new();
        let at = |second: i64| DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap();
        let (a, b) = (AccountId(1), AccountId(2));
        assert_eq!(rpm.of(a, at(0)), 0);
        for second in [0, 30, 59] {
            rpm.count(a, at(second));
        }
        rpm.count(b, at(1));
        assert_eq!((rpm.of(a, at(59)), rpm.of(b, at(0))), (3, 1));
        assert_eq!((rpm.of(a, at(60)), rpm.of(a, at(-1))), (0, 0));
        rpm.count(a, at(60));
        // A clock that is a little behind counts into the minute that has begun.
        rpm.count(a, at(59));
        assert_eq!(rpm.of(a, at(61)), 2);
    }

    #[test]
    fn a_clock_that_was_set_back_counts_in_its_own_minute() {
        let at = |minute: i64| DateTime::from_timestamp(1_800_000_000 + 60 * minute, 0).unwrap();
        let account = AccountId(1);
        // Counted by a clock so many minutes ahead; then twice in minute 0; what is known of either.
        for (ahead, known_ahead, known) in [
            (0, 3, 3),
            (1, 3, 0),
            (2, 3, 0),
            (3, 0, 2),
            (60, 0, 2),
            (60 * 24 * 365, 0, 2),
            // One that was set forward.
            (-1, 0, 2),
            (-60, 0, 2),
        ] {
            let rpm = Rpm::new();
            rpm.count(account, at(ahead));
            rpm.count(account, at(0));
            rpm.count(account, at(0));
            assert_eq!(
                (rpm.of(account, at(ahead)), rpm.of(account, at(0))),
                (known_ahead, known),
                "{ahead}"
            );
        }
    }
}
