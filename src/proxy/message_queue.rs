//! Messages of users go to some accounts one after another, or at some distance (SPEC 9.7): a program that sends many at
//! once through the token of one person would not look like that person. Nothing here is worth failing a request for:
//! what cannot be waited for is done without.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use pingora::Result;
use pingora::proxy::Session;

use super::choice::{Choice, fits_still};
use super::context::Context;
use super::wait::{Waited, wait_for};
use crate::config::MessageQueueConfig;
use crate::domain::{Account, AccountId, MessageQueueMode};
use crate::limits::{self, messages};
use crate::state::{Lease, LiveState, StateError, Ticket, WaitError};

/// A message on its way to an account to which they go one after another. When this is dropped (the provider has begun
/// to answer, or the attempt is over) the next one's distance begins, and it is its turn. One that goes out of turn has
/// none: were others to keep their distance from it, a line that has once become too long would never move again.
pub struct Turn {
    account: AccountId,
    state: Arc<dyn LiveState>,
    /// Given back behind the note of the end.
    _lease: Lease,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.state.message_ended(self.account, Utc::now());
    }
}

/// What became of a message that was queued.
pub enum Queued {
    /// It goes to the account that was chosen; with its turn, where it has one.
    Go(Option<Turn>),
    /// Meanwhile that account may not be chosen any more: another one is.
    Elsewhere,
}

/// Waits until the request's message may go to the account that was chosen, whose slot is held. An error means that the
/// client has left.
pub async fn queue(
    session: &mut Session,
    ctx: &mut Context,
    choice: &mut Choice,
) -> Result<Queued> {
    let config = ctx.config.gateway.message_queue;
    let account = choice.account.clone();
    let mode = messages::mode(
        account.platform,
        account.account_type,
        account.habits,
        &config,
    );
    let is_message = ctx.asked.as_ref().is_some_and(|asked| asked.is_message);
    let exchange = ctx.exchange.clone();
    let (false, true, Some(exchange)) = (mode == MessageQueueMode::Off, is_message, exchange)
    else {
        return Ok(Queued::Go(None));
    };
    let waiter = Waiter {
        state: ctx.rooms.state.clone(),
        account: account.clone(),
        ticket: ctx.ticket(),
        chance: ctx.chance,
        config,
    };
    let began = Instant::now();
    let deadline = began + config.wait.saturating_sub(ctx.tries.queued);
    let ping_interval = ctx.config.concurrency.ping_interval;
    let waited = wait_for(
        session,
        &exchange,
        ping_interval,
        deadline,
        waiter.wait(mode),
    )
    .await;
    let took = began.elapsed();
    ctx.tries.queued += took;
    let result = match &waited {
        Ok(Waited::Granted(Ok(_))) => "granted",
        Ok(Waited::Granted(Err(_))) => "error",
        Ok(Waited::TimedOut) => "timeout",
        Err(_) => "client_gone",
    };
    let metrics = &ctx.rooms.metrics;
    let labels = [mode.as_str(), result];
    metrics.message_queue.with_label_values(&labels).inc();
    metrics.message_queue_seconds.observe(took.as_secs_f64());
    let lease = match waited {
        Ok(Waited::Granted(Ok(lease))) => lease,
        Ok(Waited::Granted(Err(error))) => {
            log::debug!("request {}: its message goes out of turn: {error}", ctx.id);
            None
        }
        Ok(Waited::TimedOut) => {
            log::debug!(
                "request {}: its message goes out of turn after {took:?}",
                ctx.id
            );
            None
        }
        Err(error) => {
            ctx.rooms.scheduler.health().said_nothing(account.id);
            return Err(error);
        }
    };
    let turn = lease.map(|lease| Turn {
        account: account.id,
        state: ctx.rooms.state.clone(),
        _lease: lease,
    });
    // The message before this one may have been what it could take.
    if !fits_still(ctx, choice).await {
        ctx.rooms.scheduler.health().said_nothing(account.id);
        return Ok(Queued::Elsewhere);
    }
    Ok(Queued::Go(turn))
}

/// A message that waits.
struct Waiter {
    state: Arc<dyn LiveState>,
    account: Arc<Account>,
    ticket: Ticket,
    chance: u64,
    config: MessageQueueConfig,
}

impl Waiter {
    /// Until it may go; with its turn, where that lasts until it has been accepted.
    async fn wait(&self, mode: MessageQueueMode) -> std::result::Result<Option<Lease>, WaitError> {
        let wants = [limits::turn(self.account.id)];
        // The line is bounded by the slots that those who stand in it hold.
        let turn = self.state.lease_any(&wants, self.ticket, u32::MAX).await?;
        while let Some(left) = self.left().await? {
            tokio::time::sleep(left).await;
        }
        // Where they only keep their distance the next one may begin to wait for its own.
        Ok((mode == MessageQueueMode::Serialize).then_some(turn))
    }

    /// How long it is too early yet; `None` = it goes now.
    async fn left(&self) -> std::result::Result<Option<Duration>, StateError> {
        let (id, now) = (self.account.id, Utc::now());
        let requests = self.state.requests_in_minute(id, now);
        let base_rpm = self.account.soft_limits.base_rpm;
        let gap = messages::gap(&self.config, requests, base_rpm, self.chance);
        let gap = TimeDelta::from_std(gap).unwrap_or(TimeDelta::MAX);
        let left = self.state.let_message_go(id, gap, now).await?;
        Ok(left.map(|left| left.to_std().unwrap_or_default()))
    }
}
