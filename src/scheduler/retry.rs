//! Whether a failed attempt is made again on the same account (SPEC 7.2): pool mode, and kept-alive
//! connections that turned out to be dead.

use std::time::Duration;

use tollgate_filters::verdict::ErrorPolicy;

/// Between attempts on one account in pool mode.
const PAUSE: Duration = Duration::from_millis(500);
/// Tries again after a stale connection: the pool may hold more than one of them.
const STALE_RETRIES: u32 = 2;
/// Upper bound of `pool_mode_retry_count`.
const MOST_RETRIES: u32 = 10;

/// How an attempt failed, as far as staying matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failed {
    /// The provider had closed an idle connection in the moment it was used: nobody's failure.
    Stale,
    /// The verdict says that the same account may do better (`retry_same`).
    RetryableHere,
    /// Anything else.
    Elsewhere,
}

/// What has been tried in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tried {
    /// Attempts made again after a stale connection, in the whole request.
    pub stale: u32,
    /// Attempts made again on this account for [`Failed::RetryableHere`].
    pub on_account: u32,
}

/// How long to wait before trying the same account again; `None` = do not.
pub fn same_account(policy: &ErrorPolicy, failed: Failed, tried: Tried) -> Option<Duration> {
    match failed {
        Failed::Stale => (tried.stale < STALE_RETRIES).then_some(Duration::ZERO),
        Failed::RetryableHere if policy.pool_mode => {
            let most = policy.pool_mode_retry_count.min(MOST_RETRIES);
            (tried.on_account < most).then_some(PAUSE)
        }
        Failed::RetryableHere | Failed::Elsewhere => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_same_account_is_tried_again() {
        let pause = Some(PAUSE);
        let now = Some(Duration::ZERO);
        use Failed::*;
        #[rustfmt::skip]
        let rows = [
            // pool mode, count, how it failed, stale so far, on the account so far, wait
            (false, 3, Stale, 0, 0, now),
            (false, 3, Stale, 1, 9, now),
            (false, 3, Stale, 2, 0, None),
            (true, 0, Stale, 1, 0, now),
            (true, 3, RetryableHere, 0, 0, pause),
            (true, 3, RetryableHere, 9, 2, pause),
            (true, 3, RetryableHere, 0, 3, None),
            (true, 0, RetryableHere, 0, 0, None),
            (true, 99, RetryableHere, 0, 9, pause),
            (true, 99, RetryableHere, 0, 10, None),
            (false, 3, RetryableHere, 0, 0, None),
            (true, 3, Elsewhere, 0, 0, None),
        ];
        for row in rows {
            let (pool_mode, pool_mode_retry_count, failed, stale, on_account, expected) = row;
            let policy = ErrorPolicy {
                pool_mode,
                pool_mode_retry_count,
                ..ErrorPolicy::default()
            };
            let tried = Tried { stale, on_account };
            assert_eq!(same_account(&policy, failed, tried), expected, "{row:?}");
        }
    }
}
