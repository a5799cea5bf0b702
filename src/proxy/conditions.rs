//! What attempts mean for their accounts, and what is remembered of a request that was served: set in
//! the hooks that can wait, out of those that cannot.

use chrono::Utc;
use pingora::http::ResponseHeader;
use tollgate_filters::affinity;
use tollgate_filters::verdict::{SessionWindow, weekly_use};

use super::context::{AccountEffect, Context};
use super::gates::join;
use crate::domain::account::seen_window::SeenWindow;
use crate::domain::{Account, AccountId, Condition, ConditionKind};
use crate::scheduler::effect::{Cause, condition_of, struck};
use crate::state::ResponseBinding;

/// Sets the conditions of accounts that have failed this request; only then do their slots go back,
/// so that nobody in line gets the slot of an account that has just failed.
pub async fn set(ctx: &mut Context) {
    for effect in std::mem::take(&mut ctx.tries.effects) {
        set_one(ctx, effect).await;
    }
    ctx.tries.leases.clear();
}

async fn set_one(ctx: &Context, what: AccountEffect) {
    let AccountEffect {
        account,
        effect,
        status,
        model,
        transport,
    } = what;
    let now = Utc::now();
    let (rooms, id) = (&ctx.rooms, account.id);
    if transport {
        if let Some(condition) = rooms.scheduler.health().transport_failed(id, now) {
            put(ctx, &account.name, id, account.platform.as_str(), condition).await;
        }
        return;
    }
    let strikes = match struck(&effect) {
        Some(window) => rooms.state.strike(id, window, now).await,
        None => Ok(0),
    };
    let strikes = strikes.unwrap_or_else(|error| {
        log::warn!(
            "account {:?}: a strike is not counted: {error}",
            account.name
        );
        1
    });
    let cause = Cause {
        status,
        model: &model.model,
        strikes,
        now,
    };
    if let Some(condition) = condition_of(effect, cause) {
        put(ctx, &account.name, id, account.platform.as_str(), condition).await;
    }
}

async fn put(ctx: &Context, name: &str, id: AccountId, platform: &'static str, c: Condition) {
    let kind = c.kind.as_str();
    let until = c.until.map(|until| until.to_rfc3339()).unwrap_or_default();
    ctx.rooms
        .metrics
        .conditions
        .with_label_values(&[platform, kind])
        .inc();
    let level = match c.kind {
        ConditionKind::Error => log::Level::Warn,
        _ => ctx.rooms.noise.level(("out", id, kind), log::Level::Info),
    };
    log::log!(
        target: "tollgate::accounts", level,
        "request.id" = ctx.id.as_str(),
        "account" = name,
        "condition" = kind,
        "until" = until.as_str(),
        "reason" = c.reason.as_str();
        "account is out"
    );
    if let Err(error) = ctx.rooms.state.set_condition(id, c).await {
        log::warn!("account {name:?} keeps being chosen: {error}");
    }
}

/// What the header of an answer says about the session window of its account, good or bad (SPEC 7.8, 7.9). At once and
/// not at the answer's end, which may be minutes later.
pub async fn heard(ctx: &Context, head: &ResponseHeader) {
    let Some(attempt) = &ctx.attempt else { return };
    let account = &attempt.account;
    if !account.is_subscription() {
        return;
    }
    let now = Utc::now();
    let headers = &head.headers;
    let Some(window) = SessionWindow::read(head.status.as_u16(), headers, now.into()) else {
        return;
    };
    let window = SeenWindow::new(&window, weekly_use(headers), now);
    let (state, id) = (&ctx.rooms.state, account.id);
    if let Err(error) = state.note_session_window(id, window).await {
        log::warn!(
            "account {:?}: its window is not noted: {error}",
            account.name
        );
    }
    if !window.lifts(state.conditions().of(id), attempt.began) {
        return;
    }
    let limited = Some(ConditionKind::RateLimited);
    match state.lift_conditions(id, limited, attempt.began).await {
        Ok(()) => {
            log::info!(
                target: "tollgate::accounts",
                "account" = account.name.as_str();
                "account is back: its provider lets requests in"
            );
            // Who stands in line for others looks again.
            ctx.rooms.changes.send_replace(());
        }
        Err(error) => log::warn!("account {:?} stays limited: {error}", account.name),
    }
}

/// Counts what the soft limits of the account that served the request are held against.
async fn count_served(ctx: &Context, account: &Account) {
    let Some(asked) = ctx.asked.as_ref().filter(|asked| !asked.counts) else {
        return;
    };
    if !account.is_subscription() {
        return;
    }
    let now = Utc::now();
    if let Err(error) = ctx.rooms.state.count_request(account.id, now).await {
        log::warn!(
            "account {:?}: a request is not counted: {error}",
            account.name
        );
    }
    // An answer may take longer than a conversation may be silent: it goes on from here.
    join(&ctx.rooms, asked.session, account, now).await;
}

/// What a request that was served says for its account, and for requests that go on from its response.
pub async fn remember_served(ctx: &mut Context) {
    let Some(id) = ctx.tries.served else { return };
    let rooms = &ctx.rooms;
    let failing = |c: &Condition| c.kind == ConditionKind::Failing;
    if rooms.state.conditions().of(id).iter().any(failing) {
        let lifted = rooms
            .state
            .lift_conditions(id, Some(ConditionKind::Failing), ctx.tries.served_since)
            .await;
        if let Err(error) = lifted {
            log::warn!("account {id} stays behind the others: {error}");
        }
    }
    if let Err(error) = rooms.state.forgive(id).await {
        log::warn!("account {id} keeps its strikes: {error}");
    }
    // It is still there: the request is only now about to end.
    if let Some(attempt) = &ctx.attempt {
        count_served(ctx, &attempt.account).await;
    }
    let (Some(exchange), Some(principal)) = (&ctx.exchange, &ctx.principal) else {
        return;
    };
    let Some(response) = exchange.lock().answer_seen().response_id else {
        return;
    };
    let binding = ResponseBinding {
        group: principal.group.id,
        key: affinity::response_key(&response),
        account: id,
        at: Utc::now(),
    };
    if let Err(error) = rooms.state.remember_response(binding).await {
        log::warn!("a response's account is not remembered: {error}");
    }
}
