//! When accounts were last given a message of a user's (SPEC 9.7): the next one keeps its distance.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};

use super::dense::Dense;
use crate::domain::AccountId;

/// Before any message there was.
const NEVER: i64 = i64::MIN;

/// A moment for each account that has been given a message, in microseconds since 1970.
pub(super) struct Messages {
    last: Dense<AtomicI64>,
}

impl Messages {
    pub(super) fn new() -> Messages {
        Messages { last: Dense::new() }
    }

    /// Lets a message go and notes it, if `gap` has passed since the last one went or ended; else says how long that
    /// still takes.
    pub(super) fn go(
        &self,
        account: AccountId,
        gap: TimeDelta,
        now: DateTime<Utc>,
    ) -> Option<TimeDelta> {
        let now = now.timestamp_micros();
        let gap = gap.num_microseconds().unwrap_or(i64::MAX).max(0);
        let gone = self.with(account, |last| {
            last.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| {
                let passed = now.saturating_sub(last);
                // What lies further ahead than any wait was noted by a clock that has been set back since.
                (passed >= gap || passed < -gap).then_some(now)
            })
        });
        gone.err().map(|last| {
            let passed = now.saturating_sub(last);
            TimeDelta::microseconds(gap.saturating_sub(passed))
        })
    }

    /// A message has been accepted, or will not be any more.
    pub(super) fn ended(&self, account: AccountId, now: DateTime<Utc>) {
        let now = now.timestamp_micros();
        self.with(account, |last| last.fetch_max(now, Ordering::AcqRel));
    }

    fn with<R>(&self, account: AccountId, look: impl FnOnce(&AtomicI64) -> R) -> R {
        let make = || Arc::new(AtomicI64::new(NEVER));
        self.last.with(account.0, make, |last| look(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: AccountId = AccountId(1);
    const B: AccountId = AccountId(2);

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_800_000_000_000 + ms).unwrap()
    }

    fn ms(ms: i64) -> TimeDelta {
        TimeDelta::milliseconds(ms)
    }

    #[test]
    fn messages_keep_their_distance_from_where_the_last_one_went_and_from_its_end() {
        let messages = Messages::new();
        let go = |account, gap, now| messages.go(account, ms(gap), at(now));
        assert_eq!(go(A, 200, 0), None, "the first one");
        assert_eq!(go(A, 200, 0), Some(ms(200)));
        assert_eq!(go(A, 200, 199), Some(ms(1)));
        assert_eq!(go(B, 200, 0), None, "another account");
        messages.ended(A, at(150));
        assert_eq!(go(A, 200, 200), Some(ms(150)));
        assert_eq!(go(A, 500, 349), Some(ms(301)), "as long as it asks for");
        assert_eq!(go(A, 200, 350), None);
        assert_eq!(go(A, 200, 350), Some(ms(200)), "one at a time");
        // An end that is told late does not bring the last one back.
        messages.ended(A, at(340));
        assert_eq!(go(A, 200, 549), Some(ms(1)));
        assert_eq!(go(A, 0, 350), None, "no distance");
    }

    #[test]
    fn a_clock_that_was_set_back_holds_nobody_up() {
        let messages = Messages::new();
        let go = |now| messages.go(A, ms(200), at(now));
        messages.ended(A, at(1_000_000));
        // Threads that looked at the clock in another order than they come here.
        assert_eq!(go(999_950), Some(ms(250)));
        assert_eq!(go(0), None);
        assert_eq!(go(100), Some(ms(100)));
    }
}
