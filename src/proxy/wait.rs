//! Waiting while the client is watched and, for a stream, kept company with pings: for a slot, or for
//! the moment of the next try.

use std::future::Future;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora::proxy::Session;
use pingora::{Error, Result};

use super::answer::stream_head;
use super::context::Context;
use super::downstream::unchunk;
use super::exchange::{Exchange, Reply};
use crate::state::{Lease, StateError, WaitError, Want};

/// How a wait ended.
pub enum Waited<T> {
    /// With what was waited for.
    Granted(T),
    /// Without it.
    TimedOut,
}

/// Which line a request stands in, for its metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// For one of its user's slots.
    User,
    /// For a slot of any of several accounts.
    Accounts,
}

impl Line {
    const fn label(self) -> &'static str {
        match self {
            Line::User => "user",
            Line::Accounts => "account",
        }
    }
}

/// How standing in line ended.
pub enum Lined {
    /// With a slot.
    Granted(Lease),
    /// Every line it could join is full.
    LineFull,
    /// Nothing came free in time.
    TimedOut,
    /// What may be waited for has changed: look again.
    Changed,
    /// The live state cannot be reached.
    StateGone(StateError),
}

/// What a wait in line is for, and for how long.
pub struct Wait<'w> {
    /// Which line.
    pub line: Line,
    /// The slots, any of which will do.
    pub wants: &'w [Want],
    /// Bound of each slot's line.
    pub max_waiting: u32,
    /// Until when.
    pub deadline: Instant,
}

/// Stands in line for the first of several slots, until `changed` says that there may be others. An
/// error means that the client has left.
pub async fn in_line(
    session: &mut Session,
    ctx: &mut Context,
    exchange: &Mutex<Exchange>,
    wait: Wait<'_>,
    changed: impl Future<Output = ()>,
) -> Result<Lined> {
    let state = ctx.rooms.state.clone();
    let ticket = ctx.ticket();
    let began = Instant::now();
    let granted = async {
        tokio::select! {
            biased;
            lease = state.lease_any(wait.wants, ticket, wait.max_waiting) => match lease {
                Ok(lease) => Lined::Granted(lease),
                Err(WaitError::LineFull) => Lined::LineFull,
                Err(WaitError::State(error)) => Lined::StateGone(error),
            },
            () = changed => Lined::Changed,
        }
    };
    let ping_interval = ctx.config.concurrency.ping_interval;
    let waited = wait_for(session, exchange, ping_interval, wait.deadline, granted).await;
    ctx.tries.waited += began.elapsed();
    let (end, result) = match waited {
        // It goes on waiting, or will find out why not.
        Ok(Waited::Granted(Lined::Changed)) => return Ok(Lined::Changed),
        Ok(Waited::Granted(lined)) => match &lined {
            Lined::Granted(_) => ("granted", Ok(lined)),
            Lined::LineFull => ("line_full", Ok(lined)),
            _ => ("error", Ok(lined)),
        },
        Ok(Waited::TimedOut) => ("timeout", Ok(Lined::TimedOut)),
        Err(error) => ("client_gone", Err(error)),
    };
    let line = wait.line.label();
    let metrics = &ctx.rooms.metrics;
    metrics.waits.with_label_values(&[line, end]).inc();
    metrics
        .wait_seconds
        .with_label_values(&[line])
        .observe(began.elapsed().as_secs_f64());
    result
}

/// Waits for `grant` until `deadline`. An error means that the client has left.
pub async fn wait_for<T>(
    session: &mut Session,
    exchange: &Mutex<Exchange>,
    ping_interval: Duration,
    deadline: Instant,
    grant: impl Future<Output = T>,
) -> Result<Waited<T>> {
    let mut grant = std::pin::pin!(grant);
    let is_stream = exchange.lock().is_stream();
    let mut next_ping = Instant::now() + ping_interval;
    loop {
        let wake = if is_stream {
            deadline.min(next_ping)
        } else {
            deadline
        };
        tokio::select! {
            biased;
            granted = &mut grant => return Ok(Waited::Granted(granted)),
            // Cancel-safe; ends only when the client leaves (or breaks the protocol).
            read = session.as_downstream_mut().read_body_or_idle(true) => {
                let error = match read {
                    Err(error) => error,
                    Ok(_) => Error::explain(
                        pingora::ErrorType::ConnectionClosed,
                        "the client sent data after the end of its request",
                    ),
                };
                exchange.lock().client_left(Instant::now());
                return Err(error.into_down());
            }
            () = tokio::time::sleep_until(wake.into()) => {}
        }
        let now = Instant::now();
        if now >= deadline {
            return Ok(Waited::TimedOut);
        }
        if is_stream && now >= next_ping {
            // Not part of the `select!`: a write that has begun is finished.
            if let Err(error) = ping(session, exchange).await {
                exchange.lock().client_left(Instant::now());
                return Err(error.into_down());
            }
            next_ping = Instant::now() + ping_interval;
        }
    }
}

async fn ping(session: &mut Session, exchange: &Mutex<Exchange>) -> Result<()> {
    let downstream = session.as_downstream_mut();
    // Begun: the header is out already.
    let (begun, to, ping) = {
        let exchange = exchange.lock();
        let begun = exchange.reply != Reply::NotStarted;
        (begun, exchange.addressee().clone(), exchange.keep_alive())
    };
    if !begun {
        let mut head = stream_head(&to)?;
        unchunk(downstream, &mut head);
        downstream.write_response_header(Box::new(head)).await?;
        exchange.lock().preamble_written(Instant::now());
    }
    // SPEC 3.6.
    downstream.write_response_body(ping, false).await
}
