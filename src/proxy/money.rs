//! Whether a request can be paid for, and what is held for it while it runs: asked before its body is
//! read (what is used up is told at once), and again, with what it may cost, when the user's slot is held.

use std::time::Instant;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use pingora::proxy::Session;
use tollgate_filters::reply::{ErrorReply, errors};

use super::context::{Asked, Context};
use super::exchange::Exchange;
use super::wait::{Waited, wait_for};
use crate::auth::Principal;
use crate::billing::book::{Ask, Count, Denied, Hold, Limit, Limits, Payer, Pays, Refusal};
use crate::billing::bound::{Bound, Demand};
use crate::billing::quote::Quote;
use crate::config::{BillingConfig, BillingMode, Reservation, StrictOutput};
use crate::domain::{
    AccountId, ApiKey, Directory, GroupId, Money, SubscriptionType, UserId, WindowKind,
};

/// The shortest answer that is worth asking for, and the least that OpenAI's `max_output_tokens` takes.
/// <https://platform.openai.com/docs/api-reference/responses/create>
const LEAST_OUTPUT_TOKENS: u64 = 16;

/// What is set aside for a request.
pub struct Granted {
    /// Given back when dropped.
    pub hold: Hold,
    /// The output limit it has to be sent with, where that is below what it asked for.
    pub output_limit: Option<u64>,
}

/// Why nothing is set aside.
pub enum NotGranted {
    /// The client is told this.
    Refused(ErrorReply),
    /// It has left.
    Gone(Box<pingora::Error>),
}

/// The question of a request of `principal`, whatever it costs.
fn ask(principal: &Principal, billing: &BillingConfig) -> Ask {
    let (key, user, group) = (&principal.key, &principal.user, &principal.group);
    Ask {
        payer: Payer {
            user: user.id,
            key: key.id,
            group: group.id,
            pays: match group.subscription_type {
                SubscriptionType::Standard => Pays::Balance,
                SubscriptionType::Subscription => Pays::Subscription,
            },
        },
        limits: Limits {
            quota: key.quota,
            key_windows: key.rate_limits,
            subscription: [group.daily_limit, group.weekly_limit, group.monthly_limit],
            user_rpm: user.rpm_limit,
            group_rpm: group.rpm_limit,
        },
        want: Money::ZERO,
        least: Money::ZERO,
        mode: billing.reservation,
        take_what_is_free: false,
        count_request: Count::No,
    }
}

/// Whether anything is used up that a request of `principal` would need. What is only held is no
/// matter here.
pub fn check(ctx: &Context, principal: &Principal) -> Result<(), ErrorReply> {
    let billing = &ctx.config.billing;
    if billing.mode == BillingMode::Simple {
        return Ok(());
    }
    let question = Ask {
        mode: Reservation::None,
        count_request: Count::Yes,
        ..ask(principal, billing)
    };
    match ctx.rooms.book.check(&question, ctx.arrived) {
        Err(Denied::Refused(refusal)) => Err(reply(&refusal, Money::ZERO, ctx.arrived)),
        Ok(_) | Err(Denied::Held(_)) => Ok(()),
    }
}

/// What the client is told that authentication turned away because this limit of its key or user is used
/// up: the same as it would be later.
pub fn used_up(ctx: &Context, key: &ApiKey, limit: Limit) -> ErrorReply {
    let (user, group) = (
        key.user.unwrap_or(UserId(0)),
        key.group.unwrap_or(GroupId(0)),
    );
    let known = ctx.rooms.book.standing(user, key.id, group, ctx.arrived);
    let (amount, left, held) = match limit {
        Limit::Quota => {
            let quota = key.quota.unwrap_or_default();
            (key.quota, quota - known.key_spent, Money::ZERO)
        }
        _ => (None, known.balance, known.reserved),
    };
    let refusal = Refusal {
        limit,
        amount,
        left,
        held,
        resets_at: None,
    };
    reply(&refusal, Money::ZERO, ctx.arrived)
}

/// What the request may cost at most, on whichever account of its group that is not among `kept_out`. Where only an
/// estimate is reserved, accounts are not looked at one by one unless their prices differ: how long an answer of
/// theirs can be does not matter then.
pub fn bound(
    directory: &Directory,
    billing: &BillingConfig,
    kept_out: &[AccountId],
    principal: &Principal,
    quote: &Quote,
    asked: &Asked,
    now: DateTime<Utc>,
) -> Bound {
    let strict = billing.reservation == Reservation::Strict;
    let accounts = match strict || quote.depends_on_account() {
        true => directory.accounts_of(principal.group.id),
        false => &[],
    };
    let names = accounts
        .iter()
        .filter(|account| account.is_available(now))
        .filter(|account| !kept_out.contains(&account.id))
        .map(|account| account.upstream_model(&asked.model));
    // What a provider may add to the prompt is most often a small part of what it could: an estimate that
    // counted a whole context for every tool would leave small balances with one request at a time.
    let demand = Demand {
        hosted: asked.demand.hosted && strict,
        ..asked.demand
    };
    quote.bound(names, &demand, asked.tier(), principal.multiplier)
}

/// The question of a request of `principal` that may cost `bound`. It does not count as one more of the minute.
fn ask_for(principal: &Principal, billing: &BillingConfig, bound: &Bound) -> Ask {
    let (want, least) = amounts(billing, bound);
    Ask {
        want,
        least,
        ..ask(principal, billing)
    }
}

/// Sets aside what the request may cost. Money that other requests of the user hold is waited for.
pub async fn reserve(
    session: &mut Session,
    ctx: &Context,
    exchange: &Mutex<Exchange>,
    principal: &Principal,
    bound: &Bound,
) -> Result<Granted, NotGranted> {
    let question = Ask {
        count_request: Count::Yes,
        ..ask_for(principal, &ctx.config.billing, bound)
    };
    granted(session, ctx, exchange, question, bound).await
}

/// The same for a request that goes on elsewhere, at another price: `hold` is what it held so far. Its user's minute has
/// counted it where it came in; that of the other group does now. Its own money is never in its way; where that is not enough it goes back, so
/// that two requests cannot wait for each other's.
pub async fn reserve_anew(
    session: &mut Session,
    ctx: &Context,
    exchange: &Mutex<Exchange>,
    hold: Option<Hold>,
    principal: &Principal,
    bound: &Bound,
) -> Result<Granted, NotGranted> {
    let billing = &ctx.config.billing;
    let question = Ask {
        count_request: Count::InGroup,
        ..ask_for(principal, billing, bound)
    };
    if let Some(hold) = hold {
        match hold.replace(&question, Utc::now()) {
            Ok(hold) => {
                waited(ctx, Instant::now(), "granted");
                return Ok(of_hold(ctx, bound, hold));
            }
            Err(denied) => drop(denied),
        }
    }
    granted(session, ctx, exchange, question, bound).await
}

/// Replaces what is held for a request that now may cost `bound`, at once or not at all. At least `least_output` tokens
/// of an answer must be payable.
///
/// # Errors
/// The hold as it was: it cannot be paid for now.
pub fn raise(
    billing: &BillingConfig,
    principal: &Principal,
    bound: &Bound,
    least_output: u64,
    hold: Hold,
) -> Result<(Hold, Option<u64>), Box<Hold>> {
    let question = ask_for(principal, billing, bound);
    let question = Ask {
        least: match question.mode {
            Reservation::Strict => {
                let output = bound.output_tokens.min(least_output);
                question.least.max(bound.total(output))
            }
            Reservation::Available | Reservation::None => question.least,
        },
        // There is no waiting here.
        take_what_is_free: true,
        ..question
    };
    match hold.replace(&question, Utc::now()) {
        Ok(hold) => {
            let output_limit = lowered(billing, bound, hold.amount());
            Ok((hold, output_limit))
        }
        Err(denied) => Err(Box::new(denied.0)),
    }
}

fn of_hold(ctx: &Context, bound: &Bound, hold: Hold) -> Granted {
    let output_limit = lowered(&ctx.config.billing, bound, hold.amount());
    if output_limit.is_some() {
        ctx.rooms.metrics.outputs_lowered.inc();
    }
    Granted { hold, output_limit }
}

async fn granted(
    session: &mut Session,
    ctx: &Context,
    exchange: &Mutex<Exchange>,
    mut question: Ask,
    bound: &Bound,
) -> Result<Granted, NotGranted> {
    let billing = &ctx.config.billing;
    let deadline = Instant::now() + billing.wait;
    let began = Instant::now();
    loop {
        let changed = ctx.rooms.book.changed(question.payer.user);
        let now = Utc::now();
        let (refusal, held) = match ctx.rooms.book.reserve(&question, now) {
            Ok(hold) => {
                waited(ctx, began, "granted");
                return Ok(of_hold(ctx, bound, hold));
            }
            Err(Denied::Refused(refusal)) => (refusal, false),
            Err(Denied::Held(refusal)) => (refusal, true),
        };
        if !held || question.take_what_is_free {
            let reply = match held {
                true => errors::money_held().with_detail(&standing(&refusal, question.least)),
                false => reply(&refusal, question.least, now),
            };
            waited(ctx, began, if held { "timeout" } else { "refused" });
            return Err(NotGranted::Refused(reply));
        }
        let ping = ctx.config.concurrency.ping_interval;
        match wait_for(session, exchange, ping, deadline, changed).await {
            Ok(Waited::Granted(())) => {}
            // Once more: what is free now is better than nothing, where it is enough for an answer.
            Ok(Waited::TimedOut) => question.take_what_is_free = true,
            Err(error) => {
                waited(ctx, began, "client_gone");
                return Err(NotGranted::Gone(error));
            }
        }
    }
}

/// Counts a wait for held money, if there was one.
fn waited(ctx: &Context, began: Instant, end: &str) {
    let metrics = &ctx.rooms.metrics;
    metrics.reservations.with_label_values(&[end]).inc();
    metrics
        .reserve_seconds
        .observe(began.elapsed().as_secs_f64());
}

/// What is wanted for a request, and the least that will do.
fn amounts(billing: &BillingConfig, bound: &Bound) -> (Money, Money) {
    let limit = bound.output_tokens;
    match (billing.reservation, billing.strict_output) {
        (Reservation::None, _) => (Money::ZERO, Money::ZERO),
        (Reservation::Available, _) => {
            let want = bound.total(limit.min(billing.reserve_output_tokens));
            (want, Money::ZERO)
        }
        (Reservation::Strict, StrictOutput::Lower) if bound.depends_on_output() => {
            let least = bound.total(limit.min(least_output(bound)));
            (bound.most(), least)
        }
        (Reservation::Strict, _) => (bound.most(), bound.most()),
    }
}

/// The fewest tokens that an answer is worth asking for: something has to follow the thinking.
fn least_output(bound: &Bound) -> u64 {
    LEAST_OUTPUT_TOKENS.max(bound.thinking_tokens.saturating_add(1))
}

/// The output limit of a request for which so much is held.
fn lowered(billing: &BillingConfig, bound: &Bound, held: Money) -> Option<u64> {
    if billing.reservation != Reservation::Strict || held >= bound.most() {
        return None;
    }
    let affordable = bound.affordable(held).unwrap_or(least_output(bound));
    Some(affordable.min(bound.output_tokens))
}

/// What the client is told about a limit in its way: which, how much is left, when there is more.
fn reply(refusal: &Refusal, least: Money, now: DateTime<Utc>) -> ErrorReply {
    let error = match refusal.limit {
        Limit::Balance if refusal.left.is_positive() => errors::unaffordable(),
        Limit::Balance => errors::insufficient_balance(),
        Limit::Quota => errors::quota_exhausted(),
        Limit::KeyWindow(_) => errors::key_window_exceeded(),
        Limit::Subscription(_) => errors::usage_limit_exceeded(),
        Limit::UserRpm | Limit::GroupRpm => errors::requests_per_minute(),
    };
    let error = error.with_detail(&standing(refusal, least));
    match refusal.resets_at {
        // A part of a second is a second: sooner would be too soon.
        Some(at) => {
            let millis = (at - now).num_milliseconds().max(0).unsigned_abs();
            error.with_retry_after(millis.div_ceil(1000).max(1))
        }
        None => error,
    }
}

/// A limit and how it stands, in words.
fn standing(refusal: &Refusal, least: Money) -> String {
    let name = match refusal.limit {
        Limit::Balance => "balance",
        Limit::Quota => "quota of the API key",
        Limit::KeyWindow(WindowKind::FiveHours) => "5h limit of the API key",
        Limit::KeyWindow(WindowKind::Day) => "1d limit of the API key",
        Limit::KeyWindow(_) => "7d limit of the API key",
        Limit::Subscription(WindowKind::Day) => "daily limit of the subscription",
        Limit::Subscription(WindowKind::Week) => "weekly limit of the subscription",
        Limit::Subscription(_) => "monthly limit of the subscription",
        Limit::UserRpm => "requests per minute of the user",
        Limit::GroupRpm => "requests per minute in the group",
    };
    let mut text = match refusal.amount {
        Some(amount) => format!("{name}: {amount} USD"),
        None => name.to_owned(),
    };
    if !matches!(refusal.limit, Limit::UserRpm | Limit::GroupRpm) {
        text.push_str(&format!("; left: {} USD", refusal.left));
        if refusal.held > Money::ZERO {
            text.push_str(&format!(
                ", of which running requests hold {} USD",
                refusal.held
            ));
        }
        if least > refusal.left && refusal.left.is_positive() {
            text.push_str(&format!("; needed: at least {least} USD"));
        }
    }
    if let Some(at) = refusal.resets_at {
        text.push_str(&format!("; resets at {}", at.format("%Y-%m-%dT%H:%M:%SZ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_which_limit_what_is_left_and_when_it_resets() {
        let now: DateTime<Utc> = "2026-11-25T10:00:00Z".parse().unwrap();
        let refusal = |limit, amount, left| Refusal {
            limit,
            amount,
            left: Money(left),
            held: Money(250_000_000),
            resets_at: None,
        };
        let balance = reply(&refusal(Limit::Balance, None, 0), Money(5), now);
        assert_eq!(
            (balance.status, balance.code),
            (403, Some("INSUFFICIENT_BALANCE"))
        );
        assert!(
            balance
                .message
                .ends_with("(balance; left: 0 USD, of which running requests hold 0.25 USD)")
        );
        let window = Refusal {
            resets_at: Some("2026-11-25T10:00:01.001Z".parse().unwrap()),
            ..refusal(
                Limit::KeyWindow(WindowKind::FiveHours),
                Some(Money::from_usd(5)),
                1_000_000,
            )
        };
        let window = reply(&window, Money(2_000_000), now);
        assert_eq!((window.status, window.retry_after_s), (429, Some(2)));
        assert!(
            window.message.ends_with(
                "(5h limit of the API key: 5 USD; left: 0.001 USD, of which running requests hold \
                 0.25 USD; needed: at least 0.002 USD; resets at 2026-11-25T10:00:01Z)"
            ),
            "{}",
            window.message
        );
    }
}
