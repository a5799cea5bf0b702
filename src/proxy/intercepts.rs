//! Requests that a client makes for itself (warm-up, titles, probes), for accounts whose operator has them answered
//! here (SPEC 9.7, 9.7a): nothing goes upstream and nothing is charged. There is no record, but of an account that was
//! asked before and failed.
//!
//! Asked twice. Once the user's slot is held, the account that the request would go to is looked at: mostly that
//! settles it, before money is set aside or an account's slot is waited for. And when an account is chosen in the end:
//! it may be another one, after a failure or a wait.

use std::time::Instant;

use parking_lot::Mutex;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use tollgate_filters::intercept::Intercept;

use super::choice::{Choice, prospect};
use super::context::Context;
use super::downstream::write_bounded;
use super::exchange::{Exchange, Judgement, Reply};

/// The etype of a request whose account has it answered here.
const INTERCEPTED: &str = "intercepted";

/// Answers the request, if the account that it would go to has that done here. Whether it did; an error means that
/// the client has left.
pub async fn answered(
    session: &mut Session,
    ctx: &mut Context,
    exchange: &Mutex<Exchange>,
) -> Result<bool> {
    let Some(kind) = ctx.asked.as_ref().and_then(|asked| asked.intercept) else {
        return Ok(false);
    };
    let account = prospect(ctx).await;
    if !account.is_some_and(|account| account.habits.intercepts) {
        return Ok(false);
    }
    ctx.intercepted = Some(kind);
    write(session, ctx, exchange, kind).await?;
    Ok(true)
}

/// Ends the attempts of a request whose account, which has just been chosen, has it answered here. The account's slot
/// goes back.
///
/// # Errors
/// What the request ends with; [`last_word`] answers it.
pub fn not_for(ctx: &mut Context, choice: &Choice) -> Result<()> {
    let kind = ctx.asked.as_ref().and_then(|asked| asked.intercept);
    if let Some(kind) = kind.filter(|_| choice.account.habits.intercepts) {
        ctx.intercepted = Some(kind);
        // It was not asked: whether it works is as little known as before.
        ctx.rooms.scheduler.health().said_nothing(choice.account.id);
        return Err(Error::explain(ErrorType::Custom(INTERCEPTED), "").into_in());
    }
    Ok(())
}

/// The answer to a request that [`not_for`] has ended. Returns the status the client got; 0 = none.
pub async fn last_word(
    session: &mut Session,
    ctx: &Context,
    exchange: &Mutex<Exchange>,
    kind: Intercept,
) -> u16 {
    // Pingora closes the connection after an error; the client should be told.
    session.as_downstream_mut().set_keepalive(None);
    if write(session, ctx, exchange, kind).await.is_err() {
        exchange.lock().client_left(Instant::now());
    }
    exchange.lock().status
}

async fn write(
    session: &mut Session,
    ctx: &Context,
    exchange: &Mutex<Exchange>,
    kind: Intercept,
) -> Result<()> {
    let model = ctx
        .asked
        .as_ref()
        .map_or("", |asked| &asked.requested_model);
    let tasks = {
        let mut exchange = exchange.lock();
        if exchange.is_client_gone() || exchange.reply == Reply::Done {
            return Ok(());
        }
        let body = match exchange.is_stream() {
            true => kind.stream(model, &ctx.id),
            false => kind.json(model, &ctx.id),
        };
        match exchange.write_own(body) {
            Judgement::Write { tasks, .. } => tasks,
            Judgement::Fail(error) => return Err(error),
            _ => return Ok(()),
        }
    };
    let intercepted = &ctx.rooms.metrics.intercepted;
    intercepted.with_label_values(&[kind.as_str()]).inc();
    write_bounded(session.as_downstream_mut(), tasks)
        .await
        .map_err(Error::into_down)
}
