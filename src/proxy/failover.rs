//! After a failed attempt: again, and where? Or what is the last word?

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorSource, ErrorType};
use tollgate_filters::reply::{ErrorReply, errors};
use tollgate_filters::verdict::Effect;

use super::attempt::Attempt;
use super::context::{AccountEffect, Context};
use super::exchange::{Failure, Reply, ending};
use super::next::{self, Next};
use super::relay::own_word;
use crate::domain::{Account, AttemptTrace};
use crate::scheduler::retry::{Failed, Tried, same_account};
use crate::scheduler::{Outcome, Pool};

/// A bounded label for an error of Pingora's.
pub fn label(error: &Error) -> &'static str {
    use ErrorType::*;
    match error.etype() {
        Custom(name) => name,
        ConnectTimedout | TLSHandshakeTimedout => "connect_timeout",
        ConnectRefused | ConnectNoRoute | ConnectError | BindError | SocketError
        | ConnectProxyFailure => "connect",
        TLSHandshakeFailure | InvalidCert | TLSWantX509Lookup | HandshakeError => "tls",
        ReadTimedout | WriteTimedout => "timeout",
        ConnectionClosed | ReadError | WriteError => "reset",
        H2Error | InvalidH2 | H2Downgrade | H1Error | InvalidHTTPHeader => "protocol",
        _ => "other",
    }
}

/// What ended an attempt.
enum End {
    /// The client left, or the time for reading on after it left is over.
    Client,
    /// The account failed.
    Account(Failure),
    /// Ours: nobody is to blame for it.
    Own,
}

fn classify(ctx: &Context, error: &Error) -> End {
    let failed = || End::Account(Failure::transport());
    if let Some(exchange) = &ctx.exchange
        && let Some(failure) = exchange.lock().failure.clone()
    {
        return End::Account(failure);
    }
    match error.etype() {
        // Said by our own watch over the client's session, which is why Pingora calls them
        // downstream errors.
        ErrorType::Custom(ending::HEADER_TIMEOUT | ending::STALLED) => failed(),
        ErrorType::Custom(ending::DRAIN_DEADLINE) => End::Client,
        _ => match error.esource() {
            ErrorSource::Downstream => End::Client,
            ErrorSource::Upstream => failed(),
            ErrorSource::Internal | ErrorSource::Unset => End::Own,
        },
    }
}

/// An attempt has ended with `error`; whether the request may go again.
pub fn attempt_failed(ctx: &mut Context, error: &Error) -> bool {
    let again = may_go_again(ctx, error);
    if let Some(exchange) = &ctx.exchange
        && let Some(settlement) = &mut exchange.lock().settlement
    {
        settlement.attempt_ended(&ctx.tries, ctx.cut, again);
    }
    again
}

fn may_go_again(ctx: &mut Context, error: &Error) -> bool {
    let end = classify(ctx, error);
    let Some(attempt) = ctx.attempt.take() else {
        return false;
    };
    // The last attempt stays known for the record; its slot does not stay held.
    ctx.tries.note(&attempt);
    let ended = EndedAttempt::of(&attempt);
    let (reused, target) = (attempt.reused, attempt.target.clone());
    let judged = attempt.judged.clone();
    let address = attempt.address.ip();
    // Held until the account's condition is set: whoever waits for the slot should not get it first.
    ctx.tries.leases.extend(attempt.lease);
    let Some(exchange) = ctx.exchange.clone() else {
        return false;
    };
    let (released, gone, header_seen) = {
        let exchange = exchange.lock();
        (
            matches!(exchange.reply, Reply::Released | Reply::Done),
            exchange.is_client_gone(),
            exchange.answer.header_at.is_some(),
        )
    };
    ctx.cut |= released;
    match end {
        End::Client => {
            exchange.lock().client_left(Instant::now());
            ctx.rooms.scheduler.health().said_nothing(ended.account.id);
            count_attempt(ctx, &ended, "client_gone", None);
            false
        }
        End::Own => {
            ctx.rooms.scheduler.health().said_nothing(ended.account.id);
            count_attempt(ctx, &ended, "internal", None);
            false
        }
        End::Account(failure) => {
            let reason = match error.etype() {
                ErrorType::Custom(ending::FAILED_ATTEMPT) => failure.reading.verdict.label(),
                _ => label(error),
            };
            let transport = failure.status.is_none();
            if reason.starts_with("connect") {
                ctx.rooms.resolver.connect_failed(&target, address);
            }
            // The provider closed an idle connection in the moment we used it: that is nobody's
            // failure, and nothing of this request was answered.
            let stale = transport
                && reused
                && !header_seen
                && matches!(reason, "reset" | "protocol")
                && same_account(
                    &ended.account.error_policy,
                    Failed::Stale,
                    Tried {
                        stale: ctx.tries.stale_connections,
                        ..Tried::default()
                    },
                )
                .is_some();
            if stale && !released && !gone {
                ctx.tries.stale_connections += 1;
                ctx.rooms.scheduler.health().said_nothing(ended.account.id);
                count_attempt(ctx, &ended, "stale_connection", None);
                exchange.lock().end_attempt();
                return true;
            }
            let told = exchange.lock().next.take();
            let next = match told {
                _ if released || gone => Next::End,
                Some(next) => next,
                None => next::after(&judged, &failure),
            };
            if !released && !gone {
                exchange.lock().forget_unless_begun();
            }
            let goes_on = !matches!(next, Next::End);
            go_on(ctx, &ended, next, failure, reason);
            if goes_on {
                exchange.lock().end_attempt();
            }
            goes_on
        }
    }
}

/// Notes what a failed attempt means for its account, and where the request goes next.
fn go_on(ctx: &mut Context, ended: &EndedAttempt, next: Next, mut failure: Failure, reason: &str) {
    let platform = ended.account.platform.as_str();
    let metrics = ctx.rooms.metrics.clone();
    match next {
        Next::End => account_failed(ctx, ended, failure, reason),
        Next::Elsewhere => {
            account_failed(ctx, ended, failure, reason);
            ctx.tries.go_elsewhere(ended.account.id);
            metrics
                .failovers
                .with_label_values(&[platform, reason])
                .inc();
        }
        Next::Here(why) => {
            if why == Failed::Passing {
                // It may pass: what it means for the account, the last answer says.
                failure.reading.effect = Effect::None;
            }
            account_failed(ctx, ended, failure, reason);
            match why {
                Failed::Passing => ctx.tries.wait_here(&ended.account, ended.started),
                _ => ctx.tries.retry_here(&ended.account),
            }
            metrics.retries.with_label_values(&[platform, reason]).inc();
        }
        Next::Mended(mended) => {
            request_failed(ctx, ended, failure, REPAIRED);
            // Nobody else gets the slot in between: the next try begins at once.
            ctx.tries.kept = ctx.tries.leases.pop();
            ctx.tries.at_once_here(&ended.account);
            ctx.asked = Some(mended.asked);
            let kind = mended.repair.label();
            metrics.repairs.with_label_values(&[kind]).inc();
        }
        Next::OtherGroup(group) => {
            request_failed(ctx, ended, failure, TOO_LONG);
            log::debug!(
                "request {} goes on in group {:?}: its prompt is too long",
                ctx.id,
                group.name
            );
            ctx.tries.to_group = Some(group);
            metrics
                .failovers
                .with_label_values(&[platform, TOO_LONG])
                .inc();
        }
    }
}

/// The result of an attempt after which the request was mended.
const REPAIRED: &str = "repaired";
/// The result of an attempt after which the request went on in another group.
pub const TOO_LONG: &str = "prompt_too_long";

/// How long to wait before an account that has been tried again `retries` times is so once more;
/// `None` = it is not.
pub fn retry_pause(account: &Account, retries: u32) -> Option<Duration> {
    let tried = Tried {
        on_account: retries,
        ..Tried::default()
    };
    same_account(&account.error_policy, Failed::RetryableHere, tried)
}

/// What stays of an attempt when it is over.
pub struct EndedAttempt {
    /// The account.
    pub account: Arc<Account>,
    /// Among which it was chosen.
    pub pool: Pool,
    /// When it began.
    pub started: Instant,
    /// The same by the clock on the wall.
    pub began: DateTime<Utc>,
}

impl EndedAttempt {
    /// Of an attempt that ends now.
    pub fn of(attempt: &Attempt) -> EndedAttempt {
        EndedAttempt {
            account: attempt.account.clone(),
            pool: attempt.pool.clone(),
            began: attempt.began,
            started: attempt.started,
        }
    }
}

/// Notes that an account failed this request, and what that means for others. What it means for the
/// account is set by the next hook that can wait.
pub fn account_failed(ctx: &mut Context, ended: &EndedAttempt, failure: Failure, reason: &str) {
    count_attempt(ctx, ended, reason, failure.status);
    ended
        .pool
        .report(ended.account.id, Outcome::Failed, Utc::now());
    let about = ("failed", ended.account.id);
    let level = ctx.rooms.noise.level(about, log::Level::Info);
    log::log!(
        target: "tollgate::failover", level,
        "request.id" = ctx.id.as_str(),
        "account" = ended.account.name.as_str(),
        "reason" = reason,
        "status" = failure.status.unwrap_or(0);
        "account failed"
    );
    if !failure.is_transport {
        // Whatever it answered, the way there works.
        let health = ctx.rooms.scheduler.health();
        health.succeeded(ended.account.id, ended.began);
    }
    if let Some(asked) = &ctx.asked {
        ctx.tries.effects.push(AccountEffect {
            account: ended.account.clone(),
            effect: failure.reading.effect.clone(),
            status: failure.status,
            model: asked.clone(),
            transport: failure.is_transport,
        });
    }
    ctx.tries.last = Some((ended.account.clone(), failure));
}

/// Notes that an account has refused this request for the request's own sake: it has done its work.
fn request_failed(ctx: &mut Context, ended: &EndedAttempt, failure: Failure, result: &str) {
    let health = ctx.rooms.scheduler.health();
    health.succeeded(ended.account.id, ended.began);
    count_attempt(ctx, ended, result, failure.status);
    ctx.tries.last = Some((ended.account.clone(), failure));
}

/// An attempt whose answer the client has got may still say something about its account: a final
/// refusal, or a stream that failed; else that it serves.
pub fn judge_answered(ctx: &mut Context) {
    let Some(exchange) = ctx.exchange.clone() else {
        return;
    };
    let failure = exchange.lock().failure.take();
    if let Some(failure) = failure {
        let Some(attempt) = ctx.attempt.take() else {
            return;
        };
        ctx.tries.note(&attempt);
        let reason = failure.reading.verdict.label();
        let ended = EndedAttempt::of(&attempt);
        // The client's own mistake, or a status that means nothing: the account has done its work.
        if failure.reading.effect == Effect::None && !failure.reading.verdict.fails_over() {
            request_failed(ctx, &ended, failure, reason);
        } else {
            account_failed(ctx, &ended, failure, reason);
        }
        return;
    }
    let (first_token, complete) = {
        let exchange = exchange.lock();
        (exchange.answer.first_token_at, exchange.answer.complete)
    };
    let Some(attempt) = &ctx.attempt else { return };
    let id = attempt.account.id;
    if !complete {
        ctx.rooms.scheduler.health().said_nothing(id);
        return;
    }
    let first_token = first_token.map(|at| at.saturating_duration_since(attempt.started));
    attempt
        .pool
        .report(id, Outcome::Served { first_token }, Utc::now());
    ctx.rooms.scheduler.health().succeeded(id, attempt.began);
    ctx.tries.served = Some(id);
    ctx.tries.served_since = attempt.began;
}

/// The result of an attempt whose answer the client got.
pub const ANSWERED: &str = "answered";

/// Counts an ended attempt, and puts it on the request's trail.
pub fn count_attempt(ctx: &mut Context, ended: &EndedAttempt, result: &str, status: Option<u16>) {
    ctx.rooms
        .metrics
        .attempts
        .with_label_values(&[ended.account.platform.as_str(), result])
        .inc();
    // A request that is served at once has no trail worth the memory.
    if result == ANSWERED && ctx.tries.trail.is_empty() {
        return;
    }
    ctx.tries.trail.push(AttemptTrace {
        account: ended.account.name.clone(),
        result: result.to_owned(),
        status,
        duration_ms: super::finish::millis(ended.started.elapsed()),
    });
}

/// The last word to the client when the request has failed.
pub fn last_word(ctx: &mut Context, error: &Error) -> ErrorReply {
    if let Some(reply) = ctx.last_word.take() {
        return reply;
    }
    let released = ctx
        .exchange
        .as_ref()
        .is_some_and(|exchange| exchange.lock().reply == Reply::Released);
    match error.etype() {
        ErrorType::Custom(ending::STALLED) if released => errors::stream_timeout(),
        _ if released => errors::stream_read_error(),
        _ => exhausted(ctx).unwrap_or_else(errors::upstream_failed),
    }
}

/// What the client is told when the last account that was tried has failed: by a rule of the
/// operator's, else in our words. `None` = none was tried.
pub fn exhausted(ctx: &Context) -> Option<ErrorReply> {
    let (account, failure) = ctx.tries.last.as_ref()?;
    let by_rule = ctx
        .exchange
        .as_ref()
        .and_then(|exchange| exchange.lock().by_rule(account, failure));
    let counts = ctx.asked.as_ref().is_some_and(|asked| asked.counts);
    Some(by_rule.unwrap_or_else(|| match counts {
        true => errors::count_failed(failure.status),
        false => own_word(failure),
    }))
}

/// The address of a Unix or IP socket as an IP, for logs and rules.
pub fn client_ip(address: Option<&SocketAddr>) -> Option<std::net::IpAddr> {
    address
        .and_then(SocketAddr::as_inet)
        .map(|inet| inet.ip().to_canonical())
}
