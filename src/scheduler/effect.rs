//! What an upstream's answer leaves at its account, and what a quota that is used up does: from
//! [`Effect`]s and [`Exhausted`] to [`Condition`]s.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tollgate_filters::verdict::{Effect, LONGEST_REASON, LONGEST_REST, LimitScope, Strike};

use crate::domain::account::quota::Exhausted;
use crate::domain::{Condition, ConditionKind};

/// How long a 5xx puts an account behind the others: long enough to try those first, short enough not
/// to matter.
const FAILING: TimeDelta = TimeDelta::seconds(5);

/// Where an effect comes from.
#[derive(Clone, Copy, Debug)]
pub struct Cause<'c> {
    /// The upstream's status, where there was one.
    pub status: Option<u16>,
    /// The model of the request, after channel mapping.
    pub model: &'c str,
    /// Strikes of the account within the window of [`struck`], this one included.
    pub strikes: u32,
    /// When it happened.
    pub now: DateTime<Utc>,
}

/// Whether an effect is counted as a strike (with `LiveState::strike`), and within which window.
pub fn struck(effect: &Effect) -> Option<TimeDelta> {
    match effect {
        Effect::Strike(strike) => Some(bounded(strike.window)),
        _ => None,
    }
}

/// The condition that `effect` leaves; `None` = nothing. Transport errors are not for here but for
/// [`super::Health::transport_failed`], which counts them.
pub fn condition_of(effect: Effect, cause: Cause<'_>) -> Option<Condition> {
    let now = cause.now;
    let for_a_while = |kind, lasts: Duration, reason: String| {
        let lasts = bounded(lasts);
        (lasts > TimeDelta::zero()).then(|| condition(kind, Some(now + lasts), reason, cause))
    };
    match effect {
        Effect::None => None,
        Effect::Failing => {
            let until = Some(now + FAILING);
            let reason = "failed".to_owned();
            Some(condition(ConditionKind::Failing, until, reason, cause))
        }
        Effect::RateLimited {
            lasts,
            source,
            scope,
        } => {
            let reason = format!("limited, end by {}", source.as_str());
            let limited = for_a_while(ConditionKind::RateLimited, lasts, reason);
            limited.map(|condition| Condition {
                model: match scope {
                    LimitScope::Account => None,
                    LimitScope::Model => Some(cause.model.to_owned()),
                },
                ..condition
            })
        }
        Effect::Overloaded { lasts } => {
            for_a_while(ConditionKind::Overloaded, lasts, "overloaded".to_owned())
        }
        Effect::TempUnschedulable { lasts, reason } => {
            for_a_while(ConditionKind::TempUnschedulable, lasts, reason)
        }
        Effect::Error { message } => Some(condition(ConditionKind::Error, None, message, cause)),
        Effect::Strike(strike) => condition_of(escalated(strike, cause.strikes), cause),
    }
}

/// The condition of an account whose quota is used up.
pub fn quota_exhausted(exhausted: &Exhausted, now: DateTime<Utc>) -> Condition {
    Condition {
        kind: ConditionKind::QuotaExhausted,
        model: None,
        since: now,
        until: exhausted.until,
        status: None,
        reason: exhausted.to_string(),
    }
}

/// What has to happen to an account's conditions, the first before the second.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct QuotaChange {
    /// Its [`ConditionKind::QuotaExhausted`] is lifted.
    pub lift: bool,
    /// This one is set.
    pub set: Option<Condition>,
}

/// From the conditions that stand to what is used up now: after a start, and when an operator may have
/// changed the account's limits or resumed it.
pub fn quota_change(
    standing: &[Condition],
    exhausted: Option<&Exhausted>,
    now: DateTime<Utc>,
) -> QuotaChange {
    let of_quota = |c: &&Condition| c.kind == ConditionKind::QuotaExhausted && c.holds(now);
    let standing = standing.iter().find(of_quota);
    let wanted = exhausted.map(|exhausted| quota_exhausted(exhausted, now));
    match (standing, wanted) {
        // The reason may name an older sum; when it ends is what counts.
        (Some(standing), Some(wanted)) if standing.until == wanted.until => QuotaChange::default(),
        (standing, wanted) => QuotaChange {
            lift: standing.is_some(),
            set: wanted,
        },
    }
}

/// A strike is never counted less than once, and never comes to another.
fn escalated(strike: Strike, strikes: u32) -> Effect {
    match strike.effect(strikes.max(1)) {
        Effect::Strike(strike) => Effect::Error {
            message: strike.message,
        },
        effect => effect,
    }
}

fn condition(
    kind: ConditionKind,
    until: Option<DateTime<Utc>>,
    mut reason: String,
    cause: Cause<'_>,
) -> Condition {
    if let Some((end, _)) = reason.char_indices().nth(LONGEST_REASON) {
        reason.truncate(end);
    }
    Condition {
        kind,
        model: None,
        since: cause.now,
        until,
        status: cause.status,
        reason,
    }
}

fn bounded(lasts: Duration) -> TimeDelta {
    TimeDelta::from_std(lasts.min(LONGEST_REST)).unwrap_or(TimeDelta::MAX)
}

#[cfg(test)]
mod tests {
    use tollgate_filters::verdict::LimitSource;

    use super::*;
    use crate::domain::Money;
    use crate::domain::account::quota::QuotaKind;

    fn cause(strikes: u32) -> Cause<'static> {
        Cause {
            status: Some(429),
            model: "gpt-5",
            strikes,
            now: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
        }
    }

    #[test]
    fn every_effect() {
        let seconds = Duration::from_secs;
        let limited = |lasts, scope| Effect::RateLimited {
            lasts,
            source: LimitSource::Body,
            scope,
        };
        let temp = |lasts| Effect::TempUnschedulable {
            lasts,
            reason: "why".to_owned(),
        };
        let strike = || {
            Effect::Strike(Strike {
                window: seconds(180 * 60),
                limit: 3,
                lasts: seconds(600),
                message: "403".to_owned(),
            })
        };
        let error = Effect::Error {
            message: "gone".to_owned(),
        };
        use ConditionKind::*;
        let eight_days = 8 * 24 * 3600;
        #[rustfmt::skip]
        let rows = [
            // effect, strikes, kind, seconds (-1 = no end), of the model only, reason
            (Effect::Failing, 0, Failing, 5, false, "failed"),
            (limited(seconds(1), LimitScope::Account), 0, RateLimited, 1, false, "limited, end by body"),
            (limited(seconds(60), LimitScope::Model), 0, RateLimited, 60, true, "limited, end by body"),
            (limited(seconds(eight_days as u64), LimitScope::Account), 0, RateLimited, eight_days, false, "limited, end by body"),
            (limited(seconds(eight_days as u64 + 1), LimitScope::Account), 0, RateLimited, eight_days, false, "limited, end by body"),
            (limited(Duration::MAX, LimitScope::Account), 0, RateLimited, eight_days, false, "limited, end by body"),
            (Effect::Overloaded { lasts: seconds(600) }, 0, Overloaded, 600, false, "overloaded"),
            (temp(seconds(120)), 0, TempUnschedulable, 120, false, "why"),
            (error, 0, Error, -1, false, "gone"),
            (strike(), 0, TempUnschedulable, 600, false, "403"),
            (strike(), 1, TempUnschedulable, 600, false, "403"),
            (strike(), 2, TempUnschedulable, 600, false, "403"),
            (strike(), 3, Error, -1, false, "403"),
            (strike(), 4, Error, -1, false, "403"),
        ];
        for (effect, strikes, kind, lasts, of_model, reason) in rows {
            let cause = cause(strikes);
            let expected = Condition {
                kind,
                model: of_model.then(|| "gpt-5".to_owned()),
                since: cause.now,
                until: (lasts >= 0).then(|| cause.now + TimeDelta::seconds(lasts)),
                status: Some(429),
                reason: reason.to_owned(),
            };
            let said = format!("{effect:?} strike {strikes}");
            assert_eq!(condition_of(effect, cause), Some(expected), "{said}");
        }
        assert_eq!(condition_of(Effect::None, cause(0)), None);
        assert_eq!(condition_of(temp(Duration::ZERO), cause(0)), None);
        assert_eq!(struck(&strike()), Some(TimeDelta::minutes(180)));
        assert_eq!(struck(&Effect::Failing), None);
    }

    #[test]
    fn a_quota_that_is_used_up_keeps_its_account_out_until_it_is_not() {
        let now = cause(0).now;
        let exhausted = |seconds: Option<i64>| Exhausted {
            which: QuotaKind::Daily,
            limit: Money::from_usd(10),
            used: Money::from_usd(12),
            until: seconds.map(|s| now + TimeDelta::seconds(s)),
        };
        let of = |seconds| quota_exhausted(&exhausted(seconds), now);
        let wanted = Condition {
            kind: ConditionKind::QuotaExhausted,
            model: None,
            since: now,
            until: Some(now + TimeDelta::seconds(9)),
            status: None,
            reason: "daily quota of 10 USD is used up (12 USD)".to_owned(),
        };
        assert_eq!(of(Some(9)), wanted);
        let other = Condition {
            kind: ConditionKind::RateLimited,
            ..of(None)
        };
        let (nothing, lift) = (QuotaChange::default(), true);
        let set = |seconds| Some(of(Some(seconds)));
        #[rustfmt::skip]
        let rows = [
            // What stands, until when something is used up, what is to be done.
            (vec![other.clone()], None, nothing.clone()),
            (vec![other.clone()], Some(Some(9)), QuotaChange { lift: false, set: set(9) }),
            (vec![other.clone(), of(Some(9))], Some(Some(9)), nothing.clone()),
            (vec![of(Some(9))], Some(Some(5)), QuotaChange { lift, set: set(5) }),
            (vec![of(None)], Some(Some(5)), QuotaChange { lift, set: set(5) }),
            (vec![of(None)], Some(None), nothing.clone()),
            (vec![of(None)], None, QuotaChange { lift, set: None }),
            // What has ended is nobody's business.
            (vec![of(Some(0))], None, nothing),
            (vec![of(Some(0))], Some(Some(5)), QuotaChange { lift: false, set: set(5) }),
        ];
        for (standing, used_up, wanted) in rows {
            let used_up = used_up.map(exhausted);
            let change = quota_change(&standing, used_up.as_ref(), now);
            assert_eq!(change, wanted, "{standing:?} {used_up:?}");
        }
    }

    #[test]
    fn a_reason_is_cut_at_a_character() {
        for (length, kept) in [
            (LONGEST_REASON, LONGEST_REASON),
            (LONGEST_REASON + 1, LONGEST_REASON),
        ] {
            let message = "é".repeat(length);
            let condition = condition_of(Effect::Error { message }, cause(0)).unwrap();
            assert_eq!(condition.reason, "é".repeat(kept));
        }
    }
}
