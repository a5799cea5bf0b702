//! From a request to an attempt: the account is chosen, its slot taken or waited for, its address
//! looked up.

use std::sync::Arc;
use std::time::Instant;

use chrono::{TimeDelta, Utc};
use pingora::protocols::ALPN;
use pingora::protocols::TcpKeepalive;
use pingora::proxy::Session;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::{Error, ErrorType, Result};
use tollgate_filters::reply::{ErrorReply, errors};
use tollgate_filters::verdict::Verdict;

use super::attempt::Attempt;
use super::context::Context;
use super::exchange::Failure;
use super::relay::own_word;
use super::wait::{Waited, wait_for};
use crate::config::GatewayConfig;
use crate::domain::{Account, AccountId};
use crate::providers::openai;
use crate::scheduler::{self, NoAccount, Requirement};
use crate::state::{Lease, Slot, StateError, WaitError, Want};

/// Streams we open on one HTTP/2 connection to a provider; servers commonly allow 100 to 128.
const UPSTREAM_H2_STREAMS: usize = 100;
/// Idle upstream connections are dropped before the provider drops them: common servers keep them
/// for 60 s and more.
const UPSTREAM_IDLE: std::time::Duration = std::time::Duration::from_secs(50);

/// Beyond the longest of our own limits on waiting for an upstream.
const READ_NET: std::time::Duration = std::time::Duration::from_secs(60);
/// An upstream that takes nothing of a request for this long has failed.
const UPSTREAM_WRITE: std::time::Duration = std::time::Duration::from_secs(60);
/// Between signs of life on an upstream connection.
const UPSTREAM_PING: std::time::Duration = std::time::Duration::from_secs(20);

/// The etype of a request that no account can serve; the reply is in the context.
pub const UNSERVED: &str = "no_account";

/// Ends a request that no account will serve with this reply.
pub fn unserved(ctx: &mut Context, reply: ErrorReply) -> Box<Error> {
    ctx.last_word = Some(reply);
    Error::explain(ErrorType::Custom(UNSERVED), "").into_in()
}

/// The next attempt of this request.
pub async fn choose(session: &mut Session, ctx: &mut Context) -> Result<Attempt> {
    loop {
        let (account, lease) = choose_account(session, ctx).await?;
        // While this request waited in line the account may have failed others.
        let model = ctx.asked.as_ref().map_or("", |asked| &asked.model);
        if scheduler::is_out(&account, &ctx.rooms.state.conditions(), model, Utc::now()) {
            drop(lease);
            continue;
        }
        let snapshot = ctx.snapshot.clone();
        let Some(target) = snapshot.target(account.id) else {
            ctx.tries.excluded.push(account.id);
            continue;
        };
        let limit = ctx.config.gateway.connect_timeout;
        let resolved = tokio::time::timeout(limit, ctx.rooms.resolver.resolve(target)).await;
        let address = match resolved {
            Ok(Ok(address)) => address,
            failed => {
                let reason = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => format!("cannot resolve {} in time", target.host),
                };
                log::warn!("account {:?}: {reason}", account.name);
                drop(lease);
                super::failover::account_failed(
                    ctx,
                    &account,
                    Failure {
                        status: None,
                        verdict: Verdict::Failed,
                    },
                    "resolve",
                );
                if ctx.tries.switches >= ctx.config.gateway.max_account_switches {
                    return Err(unserved(ctx, errors::exhausted(None)));
                }
                ctx.tries.switches += 1;
                continue;
            }
        };
        let Some(asked) = &ctx.asked else {
            return Err(unserved(ctx, errors::internal_error()));
        };
        return Ok(Attempt {
            upstream_model: account.upstream_model(&asked.model).to_owned(),
            path: openai::responses_path(target, &asked.subpath),
            target: target.clone(),
            address,
            lease,
            started: Instant::now(),
            reused: false,
            sent: false,
            account,
        });
    }
}

/// An account with its slot held.
async fn choose_account(session: &mut Session, ctx: &mut Context) -> Result<(Arc<Account>, Lease)> {
    let rooms = ctx.rooms.clone();
    let snapshot = ctx.snapshot.clone();
    let now = Utc::now();
    let (Some(principal), Some(asked), Some(exchange)) =
        (&ctx.principal, &ctx.asked, ctx.exchange.clone())
    else {
        return Err(unserved(ctx, errors::internal_error()));
    };
    let group = principal.group.id;
    let sticky_key = asked.sticky_key;
    let requirement = Requirement {
        platform: principal.group.platform,
        model: &asked.model,
        excluded: &ctx.tries.excluded,
        now,
    };
    let conditions = rooms.state.conditions();
    // A response exists at one account only (Change 15): who goes on from it goes there or nowhere.
    let ttl = TimeDelta::from_std(ctx.config.scheduling.sticky_ttl).unwrap_or(TimeDelta::MAX);
    let required = match asked.previous_response {
        Some(key) => rooms
            .state
            .response_account(group, key, now)
            .await
            .unwrap_or_default(),
        None => None,
    };
    let mut candidates = match scheduler::eligible(
        snapshot.directory.accounts_of(group),
        &conditions,
        requirement,
    ) {
        Ok(candidates) => candidates,
        Err(none) => {
            let reply = no_account(ctx, none, now);
            return Err(unserved(ctx, reply));
        }
    };
    if let Some(id) = required {
        candidates.retain(|account| account.id == id);
        if candidates.is_empty() {
            let reply = no_account(ctx, NoAccount::NoneEligible, now);
            return Err(unserved(ctx, reply));
        }
    }
    exchange.lock().may_fail_over =
        candidates.len() > 1 && ctx.tries.switches < ctx.config.gateway.max_account_switches;

    // Sticky first: the account that has this conversation in its prompt cache.
    let bound = match sticky_key {
        Some(key) => rooms
            .state
            .sticky(group, key, ttl, now)
            .await
            .unwrap_or_default(),
        None => None,
    };
    let mut spilled = false;
    if let Some(id) = bound {
        match candidates.iter().find(|account| account.id == id) {
            Some(account) => {
                let want = scheduler::account_slot(account);
                let deadline =
                    wait_deadline(ctx).min(Instant::now() + ctx.config.concurrency.sticky_wait);
                if let Some(lease) = lease_one(session, ctx, want, deadline).await? {
                    return Ok(((*account).clone(), lease));
                }
                // Only full: the conversation stays bound, this request goes elsewhere.
                spilled = true;
            }
            // Excluded for this request only, or cooling down: a binding outlives the former.
            None if ctx.tries.excluded.contains(&id) => spilled = true,
            None => {
                if let Some(key) = sticky_key {
                    let _ = rooms.state.unbind(group, key, id).await;
                }
            }
        }
    }

    let ids: Vec<AccountId> = candidates.iter().map(|account| account.id).collect();
    let loads = rooms.state.loads(&ids).await.unwrap_or_default();
    let ranked = rooms.ranking.rank(&candidates, &loads);
    let mut lease = None;
    for account in &ranked {
        lease = match rooms
            .state
            .try_lease(scheduler::account_slot(account))
            .await
        {
            Ok(lease) => lease,
            Err(error) => return Err(state_gone(ctx, &error)),
        };
        if lease.is_some() {
            break;
        }
    }
    let lease = match lease {
        Some(lease) => lease,
        None => {
            let wants: Vec<Want> = ranked.iter().map(|a| scheduler::account_slot(a)).collect();
            let deadline = wait_deadline(ctx);
            match wait_for_account(session, ctx, &wants, deadline).await? {
                Some(lease) => lease,
                None => {
                    let reply = errors::account_slot_timeout();
                    return Err(unserved(ctx, reply));
                }
            }
        }
    };
    let account = ranked
        .into_iter()
        .find(|account| Slot::Account(account.id) == lease.slot())
        .cloned();
    let Some(account) = account else {
        return Err(unserved(ctx, errors::internal_error()));
    };
    if let Some(key) = sticky_key
        && !spilled
    {
        let _ = rooms.state.bind(group, key, account.id, ttl, now).await;
    }
    Ok((account, lease))
}

/// Until when this request may wait for accounts, over all its waits.
fn wait_deadline(ctx: &mut Context) -> Instant {
    let wait = ctx.config.concurrency.account_wait;
    *ctx.tries
        .wait_until
        .get_or_insert_with(|| Instant::now() + wait)
}

/// One slot, at once or after a wait; `None` when the time is over or the line is full.
async fn lease_one(
    session: &mut Session,
    ctx: &mut Context,
    want: Want,
    deadline: Instant,
) -> Result<Option<Lease>> {
    match ctx.rooms.state.try_lease(want).await {
        Ok(Some(lease)) => return Ok(Some(lease)),
        Ok(None) => {}
        Err(error) => return Err(state_gone(ctx, &error)),
    }
    match wait_in_line(session, ctx, &[want], deadline).await? {
        Ok(lease) => Ok(lease),
        Err(WaitError::LineFull) => Ok(None),
        Err(WaitError::State(error)) => Err(state_gone(ctx, &error)),
    }
}

/// The first slot of any account; `None` when the time is over.
async fn wait_for_account(
    session: &mut Session,
    ctx: &mut Context,
    wants: &[Want],
    deadline: Instant,
) -> Result<Option<Lease>> {
    match wait_in_line(session, ctx, wants, deadline).await? {
        Ok(lease) => Ok(lease),
        Err(WaitError::LineFull) => Err(unserved(ctx, errors::too_many_pending())),
        Err(WaitError::State(error)) => Err(state_gone(ctx, &error)),
    }
}

async fn wait_in_line(
    session: &mut Session,
    ctx: &mut Context,
    wants: &[Want],
    deadline: Instant,
) -> Result<std::result::Result<Option<Lease>, WaitError>> {
    let rooms = ctx.rooms.clone();
    let Some(exchange) = ctx.exchange.clone() else {
        return Err(unserved(ctx, errors::internal_error()));
    };
    let config = ctx.config.concurrency.clone();
    let ticket = ctx.ticket();
    let began = Instant::now();
    let waited = wait_for(
        session,
        &exchange,
        &ctx.id_header(),
        config.ping_interval,
        deadline,
        rooms
            .state
            .lease_any(wants, ticket, config.max_waiting_per_account),
    )
    .await;
    let (label, result) = match waited {
        Ok(Waited::Granted(Ok(lease))) => ("granted", Ok(Ok(Some(lease)))),
        Ok(Waited::Granted(Err(error))) => ("line_full", Ok(Err(error))),
        Ok(Waited::TimedOut) => ("timeout", Ok(Ok(None))),
        Err(error) => ("client_gone", Err(error)),
    };
    let metrics = &rooms.metrics;
    metrics.waits.with_label_values(&["account", label]).inc();
    metrics
        .wait_seconds
        .with_label_values(&["account"])
        .observe(began.elapsed().as_secs_f64());
    result
}

fn state_gone(ctx: &mut Context, error: &StateError) -> Box<Error> {
    log::error!("{error}");
    unserved(ctx, errors::internal_error())
}

/// Why there is no account: what the last one said, if one was tried, else that there is none.
fn no_account(ctx: &Context, none: NoAccount, now: chrono::DateTime<Utc>) -> ErrorReply {
    if let Some(last) = &ctx.tries.last {
        return own_word(last.status, &last.verdict);
    }
    match none {
        NoAccount::NoneEligible => errors::no_available_accounts(),
        NoAccount::AllCoolingDown { until, limited } => {
            let seconds = (until - now).num_seconds().max(1).unsigned_abs();
            let reply = if limited {
                // What the first request to meet the limit was told, the next is told as well.
                errors::exhausted(Some(429))
            } else {
                errors::no_available_accounts()
            };
            reply.with_retry_after(seconds)
        }
    }
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
        user_timeout: std::time::Duration::ZERO,
    });
    // The header is built anew for every attempt: nothing of the client's has to be taken out here,
    // and a client's odd `Connection` header is no reason to fail.
    peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
    peer
}
