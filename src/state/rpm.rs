//! How often accounts were asked in the current minute (SPEC 6.4).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};

use super::dense::Dense;
use crate::domain::AccountId;

/// Bits of the count in a counter; above them stands the minute.
const COUNT_BITS: u32 = 32;

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
                known_minute if known_minute >= minute => Some(known.saturating_add(1)),
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
}
