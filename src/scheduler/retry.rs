//! Whether a failed attempt is made again on the same account (SPEC 7.2, 7.4): pool mode, refusals that may pass, and
//! kept-alive connections that turned out to be dead.

use std::time::Duration;

use tollgate_filters::verdict::{CredentialKind, Effect, ErrorPolicy, Reading, Verdict};

/// Between attempts on one account in pool mode.
const PAUSE: Duration = Duration::from_millis(500);
/// Tries again after a stale connection: the pool may hold more than one of them.
const STALE_RETRIES: u32 = 2;
/// Upper bound of `pool_mode_retry_count`.
const MOST_RETRIES: u32 = 10;

/// Before the first try again after a refusal that may pass; each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(300);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Attempts on an account whose refusals may pass, the first included.
const MOST_PASSING: u32 = 5;
/// No such try begins later than this after the first.
const PASSING_BUDGET: Duration = Duration::from_secs(10);

/// How an attempt failed, as far as staying matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failed {
    /// The provider had closed an idle connection in the moment it was used: nobody's failure.
    Stale,
    /// The verdict says that the same account may do better (`retry_same`).
    RetryableHere,
    /// What refused it may have passed in a moment ([`may_pass`]).
    Passing,
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
    /// Attempts made again on this account for [`Failed::Passing`].
    pub passing: u32,
    /// Time since the first attempt that failed like that.
    pub passing_for: Duration,
}

/// Whether what an account of Anthropic's answered may be another thing in a moment: a token's 403 that speaks
/// against the account, and a status that the account's custom error codes do not list. `status` is that of an answer; a
/// stream that has begun and failed has been let in.
pub fn may_pass(credential: CredentialKind, status: Option<u16>, reading: &Reading) -> bool {
    match credential {
        CredentialKind::OAuth => status == Some(403) && reading.effect != Effect::None,
        CredentialKind::ApiKey => reading.verdict == Verdict::Unlisted,
    }
}

/// How long to wait before trying the same account again; `None` = do not.
pub fn same_account(policy: &ErrorPolicy, failed: Failed, tried: Tried) -> Option<Duration> {
    match failed {
        Failed::Stale => (tried.stale < STALE_RETRIES).then_some(Duration::ZERO),
        Failed::RetryableHere if policy.pool_mode => {
            let most = policy.pool_mode_retry_count.min(MOST_RETRIES);
            (tried.on_account < most).then_some(PAUSE)
        }
        Failed::Passing => passing(tried),
        Failed::RetryableHere | Failed::Elsewhere => None,
    }
}

fn passing(tried: Tried) -> Option<Duration> {
    let doubled = FIRST_PAUSE.saturating_mul(1 << tried.passing.min(16));
    let pause = doubled.min(LONGEST_PAUSE);
    let in_time = tried.passing_for.saturating_add(pause) <= PASSING_BUDGET;
    (tried.passing + 1 < MOST_PASSING && in_time).then_some(pause)
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
            let tried = Tried {
                stale,
                on_account,
                ..Tried::default()
            };
            assert_eq!(same_account(&policy, failed, tried), expected, "{row:?}");
        }
    }

    #[test]
    fn refusals_that_may_pass_are_waited_out_within_bounds() {
        #[rustfmt::skip]
        let rows = [
            // tried again so far, milliseconds since the first, pause
            (0, 0, Some(300)),
            (1, 300, Some(600)),
            (2, 900, Some(1200)),
            (3, 2100, Some(2400)),
            (4, 4500, None),
            (0, 9700, Some(300)),
            (0, 9701, None),
            (3, 7600, Some(2400)),
            (3, 7601, None),
            (u32::MAX - 1, 0, None),
        ];
        for (passing, ms, expected) in rows {
            let tried = Tried {
                passing,
                passing_for: Duration::from_millis(ms),
                ..Tried::default()
            };
            for pool_mode in [false, true] {
                let policy = ErrorPolicy {
                    pool_mode,
                    ..ErrorPolicy::default()
                };
                let pause = same_account(&policy, Failed::Passing, tried);
                let expected = expected.map(Duration::from_millis);
                assert_eq!(pause, expected, "{passing} {ms}");
            }
        }
    }

    #[test]
    fn what_may_pass() {
        use CredentialKind::{ApiKey, OAuth};
        use Verdict::{BadCredential, ClientFault, Failed, Unlisted};
        let failing = || Effect::Failing;
        let error = || Effect::Error {
            message: String::new(),
        };
        #[rustfmt::skip]
        let rows = [
            (OAuth, Some(403), BadCredential, error(), true),
            (OAuth, Some(403), BadCredential, failing(), true),
            // It speaks of the model, not of the account.
            (OAuth, Some(403), BadCredential, Effect::None, false),
            // Within a stream that had begun.
            (OAuth, None, BadCredential, failing(), false),
            (OAuth, Some(401), BadCredential, error(), false),
            (OAuth, Some(500), Failed, failing(), false),
            (ApiKey, Some(403), BadCredential, error(), false),
            (ApiKey, Some(503), Unlisted, Effect::None, true),
            (ApiKey, Some(400), ClientFault, Effect::None, false),
            (ApiKey, Some(500), Failed, failing(), false),
        ];
        for (credential, status, verdict, effect, expected) in rows {
            let reading = Reading {
                verdict,
                effect,
                retry_same: false,
            };
            let passes = may_pass(credential, status, &reading);
            assert_eq!(passes, expected, "{credential:?} {status:?} {reading:?}");
        }
    }
}
