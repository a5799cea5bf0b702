//! From a request's header to a request that may go upstream: routed, authenticated, read, checked,
//! admitted.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use chrono::{SecondsFormat, Utc};
use http::header;
use parking_lot::Mutex;
use pingora::Result;
use pingora::proxy::Session;
use tollgate_filters::reply::{ErrorReply, errors};
use tollgate_filters::route::{Endpoint, RouteError};
use tollgate_filters::{credential, headers, route};

use super::asked::{self, Operation};
use super::context::Context;
use super::exchange::{Exchange, Limits};
use super::money::{self, NotGranted};
use super::read::{self, ReadError};
use super::second::SecondChances;
use super::settlement::Settlement;
use super::wait::{Line, Lined, Wait, in_line, wait_for};
use super::{answer, failover, intercepts, models, usage};
use crate::auth::{self, AskFunds, AuthError, Funds, Principal, Purpose};
use crate::billing::book::Limit;
use crate::billing::journal::{Room, UNAPPLIED_LIMIT};
use crate::config::BillingMode;
use crate::domain::{ApiKey, Platform, User};
use crate::limits;

/// Kept of a client's User-Agent and X-Request-Id.
const HEADER_TEXT_LIMIT: usize = 256;

/// A client's idle HTTP/1 connection is closed after this many seconds (SPEC 13.3).
const IDLE_CONNECTION_S: u64 = 120;

/// What becomes of a request.
pub enum Intake {
    /// It has been answered.
    Answered,
    /// It is answered with this.
    Refused(ErrorReply),
    /// It goes upstream.
    Forward(Arc<Mutex<Exchange>>),
}

/// A "no", or an error that ends the connection.
enum No {
    Reply(ErrorReply),
    Gone(Box<pingora::Error>),
}

impl From<ErrorReply> for No {
    fn from(reply: ErrorReply) -> No {
        No::Reply(reply)
    }
}

/// Takes a request in.
pub async fn take_in(session: &mut Session, ctx: &mut Context) -> Result<Intake> {
    match stages(session, ctx).await {
        Ok(intake) => Ok(intake),
        Err(No::Reply(reply)) => Ok(Intake::Refused(reply)),
        Err(No::Gone(error)) => {
            ctx.client_left = true;
            Err(error)
        }
    }
}

async fn stages(session: &mut Session, ctx: &mut Context) -> std::result::Result<Intake, No> {
    settle_connection(session, ctx)?;
    let route = find_route(session, ctx)?;
    let endpoint = route.endpoint;
    let operation = Operation {
        endpoint: route.path,
        subpath: route.subpath.to_owned(),
        counts: endpoint == Endpoint::CountTokens,
    };
    if endpoint == Endpoint::ResponsesSocket {
        return Err(errors::websocket_not_supported().into());
    }
    let purpose = match endpoint {
        Endpoint::Usage => Purpose::Usage,
        _ => Purpose::Inference,
    };
    let principal = authenticate(session, ctx, purpose)?;
    ctx.principal = Some(principal.clone());
    if endpoint == Endpoint::Models {
        let body = models::answer(&ctx.snapshot, &principal, ctx.dialect, &operation.subpath)?;
        return write_json(session, ctx, body).await;
    }
    if endpoint == Endpoint::Usage {
        let query = session.req_header().uri.query();
        let tz = ctx.config.timezone;
        let body = usage::answer(&ctx.rooms, &principal, query, tz, ctx.arrived).await;
        return write_json(session, ctx, body).await;
    }
    on_its_platform(endpoint, principal.group.platform)?;
    let rules = ctx.snapshot.directory.rules(principal.group.id);
    match endpoint {
        // Which group serves it, and so who pays, is known when its body has said who asks: `serving.rs`.
        Endpoint::Messages | Endpoint::CountTokens if rules.claude_code_only => {}
        _ if rules.claude_code_only => return Err(errors::only_claude_code_here().into()),
        _ => money::check(ctx, &principal)?,
    }
    if operation.counts {
        // Nothing of it is billed, and it takes no slot (SPEC 12.3).
        let (exchange, _) = read_request(session, ctx, endpoint, operation, &principal).await?;
        ctx.exchange = Some(exchange.clone());
        ctx.moments.ready = Some(Instant::now());
        return Ok(Intake::Forward(exchange));
    }
    let room = room(ctx)?;
    let (exchange, principal) = read_request(session, ctx, endpoint, operation, &principal).await?;
    ctx.exchange = Some(exchange.clone());
    ctx.moments.ready = Some(Instant::now());
    admit(session, ctx, &exchange, &principal).await?;
    if intercepts::answered(session, ctx, &exchange)
        .await
        .map_err(No::Gone)?
    {
        return Ok(Intake::Answered);
    }
    fund(session, ctx, &exchange, &principal, room).await?;
    Ok(Intake::Forward(exchange))
}

/// Each API is served by the accounts of its own platform.
fn on_its_platform(endpoint: Endpoint, platform: Platform) -> std::result::Result<(), ErrorReply> {
    match (endpoint, platform) {
        (Endpoint::Messages | Endpoint::CountTokens, Platform::Anthropic) => Ok(()),
        (Endpoint::CountTokens, _) => Err(errors::counting_not_supported()),
        (Endpoint::Responses, Platform::OpenAi) => Ok(()),
        _ => Err(errors::platform_not_supported()),
    }
}

/// Limits of this connection; must be set before the session is wrapped.
fn settle_connection(session: &mut Session, ctx: &mut Context) -> std::result::Result<(), No> {
    let rooms = ctx.rooms.clone();
    let stall_timeout = ctx.config.gateway.stall_timeout;
    let peer = failover::client_ip(session.client_addr());
    let head = session.req_header();
    ctx.client_request_id = bounded_text(head.headers.get("x-request-id"));
    ctx.user_agent = bounded_text(head.headers.get(header::USER_AGENT));
    ctx.ip = peer.map(|peer| {
        let trusted = &ctx.config.server.trusted_proxies;
        headers::client_ip(peer, &head.headers, |ip: IpAddr| {
            trusted.iter().any(|net| net.contains(&ip))
        })
    });
    let framing = session
        .as_downstream()
        .as_http1()
        .map(|h1| headers::framing(&h1.get_headers_raw_bytes()));
    let downstream = session.as_downstream_mut();
    // A reader that stops would hold its slots for ever.
    downstream.set_write_timeout(Some(stall_timeout));
    if downstream.get_keepalive().is_some() {
        downstream.set_keepalive(Some(IDLE_CONNECTION_S));
    }
    // What a client sends behind its request is the next one (RFC 9112, 9.3.2), and no reason to
    // give up this one.
    downstream.set_pipelining_enabled(true);
    if rooms.draining.load(Ordering::Relaxed) {
        downstream.set_keepalive(None);
    }
    if let Some(Err(error)) = framing {
        // What follows on this connection could be anything.
        downstream.set_keepalive(None);
        // Not routed, but answered as its client reads answers.
        ctx.dialect = route::dialect(session.req_header().uri.path());
        return Err(errors::ambiguous_framing(error).into());
    }
    Ok(())
}

fn bounded_text(value: Option<&http::HeaderValue>) -> Option<String> {
    let text = value?.to_str().ok()?;
    (!text.is_empty()).then(|| text.chars().take(HEADER_TEXT_LIMIT).collect())
}

fn find_route<'s>(
    session: &'s Session,
    ctx: &mut Context,
) -> std::result::Result<route::Route<'s>, No> {
    let head = session.req_header();
    let path = head.uri.path();
    let spoken = |dialect| route::shared_dialect(path, dialect, &head.headers);
    match route::route(&head.method, path) {
        Ok(route) => {
            ctx.dialect = spoken(route.dialect);
            ctx.endpoint = route.endpoint.as_str();
            Ok(route)
        }
        Err(error) => {
            match &error {
                RouteError::NotFound { dialect } => ctx.dialect = spoken(*dialect),
                RouteError::MethodNotAllowed { dialect, allow } => {
                    ctx.dialect = spoken(*dialect);
                    ctx.allow = Some(allow);
                }
            }
            Err(errors::route(&error).into())
        }
    }
}

fn authenticate(
    session: &Session,
    ctx: &mut Context,
    purpose: Purpose,
) -> std::result::Result<Principal, No> {
    let rooms = ctx.rooms.clone();
    let head = session.req_header();
    let key =
        credential::client_key(&head.headers, head.uri.query()).map_err(errors::credential)?;
    let hash = rooms.hasher.hash(key);
    let ip = ctx.ip.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let funds = |key: &ApiKey, user: &User| Funds {
        balance: rooms.book.balance(user.id),
        key_spent: rooms.book.key_spent(key.id),
    };
    let standard = ctx.config.billing.mode == BillingMode::Standard;
    auth::authenticate(
        &ctx.snapshot.directory,
        &hash,
        ip,
        ctx.arrived,
        standard.then_some(&funds as &AskFunds<'_>),
        purpose,
    )
    .map_err(|error| {
        ctx.refused_key = ctx.snapshot.directory.key(&hash).cloned();
        match (error, ctx.refused_key.as_deref()) {
            (AuthError::QuotaExhausted, Some(key)) => money::used_up(ctx, key, Limit::Quota),
            (AuthError::BalanceExhausted, Some(key)) => money::used_up(ctx, key, Limit::Balance),
            _ => reply_to(error),
        }
        .into()
    })
}

/// The guide from an authentication error to its reply (SPEC 1.3).
pub(super) fn reply_to(error: AuthError) -> ErrorReply {
    match error {
        AuthError::UnknownKey => errors::invalid_api_key(),
        AuthError::KeyDisabled => errors::api_key_disabled(),
        AuthError::AddressDenied => errors::access_denied(),
        AuthError::UserMissing => errors::user_not_found(),
        AuthError::UserInactive => errors::user_inactive(),
        AuthError::GroupMissing => errors::no_group(),
        AuthError::SubscriptionMissing => errors::subscription_not_found(),
        AuthError::SubscriptionNotBegun { begins } => {
            errors::subscription_not_begun(&begins.to_rfc3339_opts(SecondsFormat::Secs, true))
        }
        AuthError::SubscriptionInvalid => errors::subscription_invalid(),
        AuthError::QuotaExhausted => errors::quota_exhausted(),
        AuthError::KeyExpired => errors::api_key_expired(),
        AuthError::BalanceExhausted => errors::insufficient_balance(),
        AuthError::OnlyClaudeCode => errors::only_claude_code(),
    }
}

/// Room in the journal for what will be told of this request: one that could not be recorded is refused.
fn room(ctx: &Context) -> std::result::Result<Room, No> {
    let rooms = &ctx.rooms;
    let why = match rooms.journal.admit() {
        _ if rooms.journal.is_full() => {
            "too many usage records wait to be written to the database".to_owned()
        }
        Ok(room) => return Ok(room),
        Err(full) => full.to_string(),
    };
    let level = rooms.noise.level("records_unwritable", log::Level::Error);
    log::log!(level, "new requests are refused: {why}");
    Err(errors::records_unwritable().into())
}

async fn write_json(
    session: &mut Session,
    ctx: &mut Context,
    body: Vec<u8>,
) -> std::result::Result<Intake, No> {
    let head = answer::whole_head("application/json", body.len(), &ctx.addressee());
    let head = head.map_err(No::Gone)?;
    ctx.early_status = 200;
    answer::write_early(session, head, body.into())
        .await
        .map_err(No::Gone)?;
    Ok(Intake::Answered)
}

/// The request, read and understood, and its principal in the group that serves it.
async fn read_request(
    session: &mut Session,
    ctx: &mut Context,
    endpoint: Endpoint,
    operation: Operation,
    principal: &Principal,
) -> std::result::Result<(Arc<Mutex<Exchange>>, Principal), No> {
    let rooms = ctx.rooms.clone();
    let body = read::body(session, &rooms.bodies, ctx.config.server.max_body_bytes)
        .await
        .map_err(|error| match error {
            ReadError::Refused(reply) => No::Reply(reply),
            ReadError::Gone(error) => No::Gone(error),
        })?;
    let headers = &session.req_header().headers;
    let (asked, principal) = match endpoint {
        Endpoint::Messages | Endpoint::CountTokens => {
            asked::messages(ctx, principal, operation, headers, &body.bytes)?
        }
        _ => {
            let asked = asked::responses(ctx, principal, operation, headers, &body.bytes)?;
            (asked, principal.clone())
        }
    };
    let mut exchange = Exchange::new(
        ctx.addressee(),
        asked.stream,
        Limits::new(&ctx.config.gateway),
        ctx.snapshot.rules.clone(),
        body,
    );
    if matches!(endpoint, Endpoint::Messages | Endpoint::CountTokens) {
        exchange.chances = SecondChances::of(ctx, &principal, asked.counts);
    }
    ctx.asked = Some(Arc::new(asked));
    Ok((Arc::new(Mutex::new(exchange)), principal))
}

/// The user's slot, at once or after a bounded wait; then, as time has passed, the money again.
async fn admit(
    session: &mut Session,
    ctx: &mut Context,
    exchange: &Arc<Mutex<Exchange>>,
    principal: &Principal,
) -> std::result::Result<(), No> {
    let rooms = ctx.rooms.clone();
    let want = limits::user_slot(&principal.user);
    match rooms.state.try_lease(want).await {
        Ok(Some(lease)) => {
            ctx.user_lease = Some(lease);
            return Ok(());
        }
        Ok(None) => {}
        Err(error) => {
            log::error!("{error}");
            return Err(errors::internal_error().into());
        }
    }
    let wait = Wait {
        line: Line::User,
        wants: &[want],
        max_waiting: limits::max_waiting(&principal.user),
        deadline: Instant::now() + ctx.config.concurrency.user_wait,
    };
    match in_line(session, ctx, exchange, wait, std::future::pending()).await {
        Ok(Lined::Granted(lease)) => {
            ctx.user_lease = Some(lease);
            // Time has passed: what the operator has changed of accounts meanwhile counts.
            ctx.snapshot = ctx.rooms.snapshot.load_full();
        }
        Ok(Lined::LineFull) => return Err(errors::too_many_pending().into()),
        Ok(Lined::TimedOut) => return Err(errors::user_slot_timeout().into()),
        Ok(Lined::StateGone(error)) => {
            log::error!("{error}");
            return Err(errors::internal_error().into());
        }
        Ok(Lined::Changed) => return Err(errors::internal_error().into()),
        Err(error) => return Err(No::Gone(error)),
    }
    // What was waited for a slot of the user's own is no part of the budget for accounts.
    ctx.tries.waited = std::time::Duration::ZERO;
    let expired = principal
        .key
        .expires_at
        .is_some_and(|end| end <= Utc::now());
    let standard = ctx.config.billing.mode == BillingMode::Standard;
    if expired && standard {
        return Err(errors::api_key_expired().into());
    }
    let subscription = principal.subscription.as_ref();
    if subscription.is_some_and(|s| !s.is_valid(Utc::now())) && standard {
        return Err(errors::subscription_invalid().into());
    }
    Ok(())
}

/// While so many records wait for the database that it cannot keep up, new requests are slowed down, the
/// more the fuller it gets: before any has to be refused.
async fn ease(
    session: &mut Session,
    ctx: &Context,
    exchange: &Mutex<Exchange>,
) -> std::result::Result<(), No> {
    const PRESSED: usize = UNAPPLIED_LIMIT / 2;
    const SLOWEST: std::time::Duration = std::time::Duration::from_secs(4);
    const LOOK: std::time::Duration = std::time::Duration::from_millis(20);
    let journal = ctx.rooms.journal.clone();
    let waiting = journal.len();
    if waiting <= PRESSED {
        return Ok(());
    }
    let share = (waiting - PRESSED).min(PRESSED) as u32;
    let deadline = Instant::now() + SLOWEST * share / PRESSED as u32;
    let relieved = async move {
        while journal.len() > PRESSED {
            tokio::time::sleep(LOOK).await;
        }
    };
    let ping = ctx.config.concurrency.ping_interval;
    match wait_for(session, exchange, ping, deadline, relieved).await {
        Ok(_) => Ok(()),
        Err(error) => Err(No::Gone(error)),
    }
}

/// What the request may cost is set aside, at once or after a bounded wait.
async fn fund(
    session: &mut Session,
    ctx: &mut Context,
    exchange: &Arc<Mutex<Exchange>>,
    principal: &Principal,
    room: Room,
) -> std::result::Result<(), No> {
    let (Some(asked), Some(quote)) = (ctx.asked.clone(), ctx.quote.clone()) else {
        return Err(errors::internal_error().into());
    };
    ease(session, ctx, exchange).await?;
    let hold = match ctx.config.billing.mode {
        BillingMode::Simple => None,
        BillingMode::Standard => {
            let bound = money::bound(
                &ctx.snapshot.directory,
                &ctx.config.billing,
                &ctx.tries.excluded,
                principal,
                &quote,
                &asked,
                ctx.arrived,
            );
            match money::reserve(session, ctx, exchange, principal, &bound).await {
                Ok(granted) => {
                    exchange.lock().output_limit = granted.output_limit;
                    Some(granted.hold)
                }
                Err(NotGranted::Refused(reply)) => return Err(reply.into()),
                Err(NotGranted::Gone(error)) => return Err(No::Gone(error)),
            }
        }
    };
    let settlement = Settlement::new(ctx, principal, &asked, quote, hold, room);
    exchange.lock().settlement = Some(settlement);
    Ok(())
}
