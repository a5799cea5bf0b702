//! From a request to an attempt: the account is chosen, its slot taken or waited for, its turn where it takes
//! messages one after another, its address looked up.

use std::time::{Duration, Instant};

use chrono::Utc;
use pingora::protocols::ALPN;
use pingora::protocols::TcpKeepalive;
use pingora::proxy::Session;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::{Error, ErrorType, Result};
use tollgate_filters::reply::{ErrorReply, errors};

use super::attempt::{Attempt, betas};
use super::choice::choose_account;
use super::conditions::set;
use super::context::{Asked, Context};
use super::egress::UNRESOLVED;
use super::exchange::{Failure, Judged};
use super::failover::{EndedAttempt, account_failed, exhausted, retry_pause};
use super::intercepts;
use super::message_queue::{Queued, queue};
use super::regroup::enter;
use super::wait::wait_for;
use crate::config::{GatewayConfig, InnerRetries};
use crate::domain::{Account, Platform};
use crate::providers::target::Target;
use crate::providers::{anthropic, antigravity, openai};

/// Streams we open on one HTTP/2 connection to a provider; servers commonly allow 100 to 128.
const UPSTREAM_H2_STREAMS: usize = 100;
/// Idle upstream connections are dropped before the provider drops them: common servers keep them
/// for 60 s and more.
const UPSTREAM_IDLE: Duration = Duration::from_secs(50);

/// Beyond the longest of our own limits on waiting for an upstream.
const READ_NET: Duration = Duration::from_secs(60);
/// An upstream that takes nothing of a request for this long has failed.
const UPSTREAM_WRITE: Duration = Duration::from_secs(60);
/// Between signs of life on an upstream connection.
const UPSTREAM_PING: Duration = Duration::from_secs(20);

/// The etype of a request that no account can serve; the reply is in the context.
pub const UNSERVED: &str = "no_account";

/// Ends a request that no account will serve with this reply.
pub fn unserved(ctx: &mut Context, reply: ErrorReply) -> Box<Error> {
    ctx.last_word = Some(reply);
    Error::explain(ErrorType::Custom(UNSERVED), "").into_in()
}

/// The next attempt of this request.
pub async fn choose(session: &mut Session, ctx: &mut Context) -> Result<Attempt> {
    pause(session, ctx).await?;
    enter(session, ctx).await?;
    loop {
        let mut choice = choose_account(session, ctx).await?;
        intercepts::not_for(ctx, &choice)?;
        let betas = match betas(session.req_header(), ctx, &choice.account) {
            Ok(betas) => betas,
            // No other account is asked: what the operator does not allow is a mistake of the client's.
            Err(blocked) => {
                ctx.rooms.scheduler.health().said_nothing(choice.account.id);
                return Err(unserved(ctx, errors::invalid(blocked.message)));
            }
        };
        let turn = match queue(session, ctx, &mut choice).await? {
            Queued::Go(turn) => turn,
            Queued::Elsewhere => {
                ctx.tries.again = None;
                continue;
            }
        };
        let started = Instant::now();
        let ended = EndedAttempt {
            account: choice.account.clone(),
            pool: choice.pool.clone(),
            started,
            began: Utc::now(),
        };
        let snapshot = ctx.snapshot.clone();
        let Some(target) = snapshot.target(choice.account.id) else {
            ctx.rooms.scheduler.health().said_nothing(choice.account.id);
            ctx.tries.excluded.push(choice.account.id);
            continue;
        };
        let limit = ctx.config.gateway.connect_timeout;
        let resolved = match snapshot.egress(choice.account.id) {
            // Its name goes to the proxy as it is.
            Some(_) => Ok(Ok(UNRESOLVED)),
            None => tokio::time::timeout(limit, ctx.rooms.resolver.resolve(target)).await,
        };
        let address = match resolved {
            Ok(Ok(address)) => address,
            failed => {
                let reason = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => format!("cannot resolve {} in time", target.host),
                };
                log::warn!("account {:?}: {reason}", choice.account.name);
                ctx.tries.leases.extend(choice.lease);
                account_failed(ctx, &ended, Failure::transport(), "resolve");
                set(ctx).await;
                if ctx.tries.switches >= ctx.config.gateway.max_account_switches {
                    let reply = exhausted(ctx).unwrap_or_else(errors::upstream_failed);
                    return Err(unserved(ctx, reply));
                }
                ctx.tries.go_elsewhere(choice.account.id);
                continue;
            }
        };
        let Some(asked) = ctx.asked.clone() else {
            return Err(unserved(ctx, errors::internal_error()));
        };
        let account = choice.account;
        let retries = ctx.tries.retries_of(account.id);
        return Ok(Attempt {
            upstream_model: account.upstream_model(&asked.model).to_owned(),
            path: path(&account, target, &asked),
            target: target.clone(),
            betas,
            address,
            lease: choice.lease,
            turn,
            pool: choice.pool,
            judged: Judged {
                may_fail_over: choice.has_others
                    && ctx.tries.switches < ctx.config.gateway.max_account_switches,
                may_retry: !asked.counts && retry_pause(&account, retries).is_some(),
                inner_retries: inner_retries(ctx, &account, &asked),
                account: account.clone(),
                asked,
            },
            started,
            began: Utc::now(),
            reused: false,
            sent: false,
            account,
        });
    }
}

/// Whether, and when, this account may be asked again because its refusal may pass.
fn inner_retries(ctx: &Context, account: &Account, asked: &Asked) -> InnerRetries {
    let is_left = account.platform == Platform::Anthropic
        && !asked.counts
        && ctx.tries.passing_pause(account).is_some();
    match is_left {
        true => ctx.config.gateway.inner_retries,
        false => InnerRetries::Off,
    }
}

/// Where at its upstream the request goes.
fn path(account: &Account, target: &Target, asked: &Asked) -> String {
    match account.platform {
        Platform::Anthropic if asked.counts => {
            anthropic::messages_path(target, anthropic::COUNT_TOKENS)
        }
        Platform::Anthropic => anthropic::messages_path(target, ""),
        Platform::Antigravity => antigravity::messages_path(target),
        Platform::OpenAi | Platform::Gemini => openai::responses_path(target, &asked.subpath),
    }
}

/// Before another try on the same account. The client may leave meanwhile.
async fn pause(session: &mut Session, ctx: &mut Context) -> Result<()> {
    let pause = ctx
        .tries
        .again
        .as_mut()
        .and_then(|again| again.pause.take());
    let (Some(pause), Some(exchange)) = (pause, ctx.exchange.clone()) else {
        return Ok(());
    };
    let deadline = Instant::now() + pause;
    let interval = ctx.config.concurrency.ping_interval;
    let never = std::future::pending::<()>();
    wait_for(session, &exchange, interval, deadline, never)
        .await
        .map(drop)
}

/// The connectable address of an attempt.
pub fn peer(attempt: &Attempt, config: &GatewayConfig) -> HttpPeer {
    let target = &attempt.target;
    let mut peer = HttpPeer::new(attempt.address, target.tls, target.host.clone());
    // Accounts never share a connection: a provider must not be able to tie them together.
    peer.group_key = attempt.account.id.0.unsigned_abs();
    peer.options.alpn = if target.tls { ALPN::H2H1 } else { ALPN::H1 };
    peer.options.max_h2_streams = UPSTREAM_H2_STREAMS;
    peer.options.connection_timeout = Some(config.connect_timeout);
    peer.options.total_connection_timeout = Some(config.connect_timeout);
    peer.options.idle_timeout = Some(UPSTREAM_IDLE);
    // One read time-out cannot serve both the header and the body: the exchange watches those. This
    // one is the net beneath, for moments in which Pingora does not ask the exchange (an upload that
    // nobody takes any more).
    peer.options.read_timeout =
        Some(config.response_header_timeout.max(config.stall_timeout) + READ_NET);
    peer.options.write_timeout = Some(config.stall_timeout.min(UPSTREAM_WRITE));
    // A connection whose other end is gone without a word must not be used for ever.
    peer.options.h2_ping_interval = Some(UPSTREAM_PING);
    peer.options.tcp_keepalive = Some(TcpKeepalive {
        idle: UPSTREAM_PING,
        interval: UPSTREAM_PING,
        count: 3,
        user_timeout: Duration::ZERO,
    });
    // The header is built anew for every attempt: nothing of the client's has to be taken out here,
    // and a client's odd `Connection` header is no reason to fail.
    peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
    peer
}
