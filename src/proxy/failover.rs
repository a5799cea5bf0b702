//! After a failed attempt: again, and where? Or what is the last word?

use chrono::Utc;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorSource, ErrorType};
use tollgate_filters::reply::{ErrorReply, errors};
use tollgate_filters::verdict::Verdict;

use super::context::Context;
use super::exchange::{Failure, Reply, ending};
use super::relay::own_word;
use crate::domain::Account;
use crate::scheduler;

/// Tries again on the same account after a kept-alive connection turned out to be dead. The pool
/// may hold more than one such connection.
const STALE_RETRIES: u32 = 2;

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
    let failed = |verdict| {
        End::Account(Failure {
            status: None,
            verdict,
        })
    };
    if let Some(exchange) = &ctx.exchange
        && let Some(failure) = exchange.lock().failure.clone()
    {
        return End::Account(failure);
    }
    match error.etype() {
        // Said by our own watch over the client's session, which is why Pingora calls them
        // downstream errors.
        ErrorType::Custom(ending::HEADER_TIMEOUT | ending::STALLED) => failed(Verdict::Failed),
        ErrorType::Custom(ending::DRAIN_DEADLINE) => End::Client,
        _ => match error.esource() {
            ErrorSource::Downstream => End::Client,
            ErrorSource::Upstream => failed(Verdict::Failed),
            ErrorSource::Internal | ErrorSource::Unset => End::Own,
        },
    }
}

/// An attempt has ended with `error`; whether the request may go again.
pub fn attempt_failed(ctx: &mut Context, error: &Error) -> bool {
    let end = classify(ctx, error);
    let Some(attempt) = ctx.attempt.take() else {
        return false;
    };
    // The last attempt stays known for the record; its slot does not stay held.
    ctx.tries.note(&attempt);
    let account = attempt.account.clone();
    let (reused, target) = (attempt.reused, attempt.target.clone());
    let address = attempt.address.ip();
    // Held until the account's cool-down is set: whoever waits for the slot should not get it first.
    ctx.tries.leases.push(attempt.lease);
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
            exchange.lock().client_left(std::time::Instant::now());
            count_attempt(ctx, &account, "client_gone");
            false
        }
        End::Own => {
            count_attempt(ctx, &account, "internal");
            false
        }
        End::Account(failure) => {
            let reason = match error.etype() {
                ErrorType::Custom(ending::FAILED_ATTEMPT) => failure.verdict.label(),
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
                && ctx.tries.stale_connections < STALE_RETRIES;
            if stale && !released && !gone {
                ctx.tries.stale_connections += 1;
                count_attempt(ctx, &account, "stale_connection");
                exchange.lock().end_attempt();
                return true;
            }
            let may_fail_over = exchange.lock().may_fail_over;
            account_failed(ctx, &account, failure, reason);
            if released || gone || !may_fail_over {
                return false;
            }
            exchange.lock().end_attempt();
            ctx.tries.switches += 1;
            ctx.rooms
                .metrics
                .failovers
                .with_label_values(&[account.platform.as_str(), reason])
                .inc();
            true
        }
    }
}

/// Notes that `account` failed this request, and what that means for others.
pub fn account_failed(ctx: &mut Context, account: &Account, failure: Failure, reason: &str) {
    count_attempt(ctx, account, reason);
    if let Some(condition) = scheduler::condition_for(&failure.verdict, Utc::now()) {
        log::info!(
            target: "tollgate::failover",
            "request.id" = ctx.id.as_str(),
            "account" = account.name.as_str(),
            "reason" = reason,
            "status" = failure.status.unwrap_or(0),
            "condition" = condition.kind.as_str(),
            "until" = condition.until.map_or_else(String::new, |until| until.to_rfc3339());
            "account failed"
        );
        ctx.tries.conditions.push((account.id, condition));
    }
    ctx.tries.excluded.push(account.id);
    ctx.tries.last = Some(failure);
}

/// An attempt whose answer the client has got may still say something about its account: a final
/// refusal, or a stream that failed.
pub fn judge_answered(ctx: &mut Context) {
    let failure = ctx
        .exchange
        .as_ref()
        .and_then(|exchange| exchange.lock().failure.take());
    let Some(failure) = failure else { return };
    let Some(attempt) = ctx.attempt.take() else {
        return;
    };
    ctx.tries.note(&attempt);
    let reason = failure.verdict.label();
    account_failed(ctx, &attempt.account, failure, reason);
}

/// Counts an ended attempt.
pub fn count_attempt(ctx: &Context, account: &Account, result: &str) {
    ctx.rooms
        .metrics
        .attempts
        .with_label_values(&[account.platform.as_str(), result])
        .inc();
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
        _ => match &ctx.tries.last {
            Some(failure) => own_word(failure.status, &failure.verdict),
            None => errors::upstream_failed(),
        },
    }
}

/// The address of a Unix or IP socket as an IP, for logs and rules.
pub fn client_ip(address: Option<&SocketAddr>) -> Option<std::net::IpAddr> {
    address
        .and_then(SocketAddr::as_inet)
        .map(|inet| inet.ip().to_canonical())
}
