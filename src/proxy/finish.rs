//! The end of every request: its usage record, its metrics, its line in the access log. Everything
//! here is immediate, so that it also works when the task is dropped.

use std::sync::Arc;
use std::time::Instant;

use super::access_log;
use super::context::Context;
use super::failover::{ANSWERED, EndedAttempt, count_attempt};
use super::relay::Answer;
use super::settlement::{End, outcome};
use crate::domain::{Outcome, UsageRecord};

/// How a request ended, for its record, metrics and log line.
pub struct Ending {
    /// In one word.
    pub outcome: Outcome,
    /// What the client got; 0 = nothing.
    pub status: u16,
    /// The client left before the end.
    pub client_gone: bool,
    /// From arrival to here.
    pub duration: std::time::Duration,
    /// From arrival to the first real output.
    pub first_token: Option<std::time::Duration>,
    /// We said no before anything was sent upstream.
    pub refused: bool,
    /// An operator's rule leaves this error out of what is watched.
    pub unmonitored: bool,
    /// Answered here in place of an account.
    pub intercepted: bool,
}

impl Ending {
    /// The outcome for metrics and the log; what we refused is not an upstream's error there.
    pub fn label(&self) -> &'static str {
        if self.unmonitored {
            "unmonitored"
        } else if self.refused {
            "refused"
        } else if self.intercepted && !self.client_gone {
            "intercepted"
        } else {
            self.outcome.as_str()
        }
    }
}

/// Ends a request. Called once; later calls do nothing.
pub fn finish(ctx: &mut Context) {
    if std::mem::replace(&mut ctx.finished, true) {
        return;
    }
    if let Some(attempt) = ctx.attempt.take() {
        ctx.tries.note(&attempt);
        // A failed attempt has been counted where it failed; this one answered.
        let result = if ctx.cut { "cut" } else { ANSWERED };
        let status = ctx.exchange.as_ref().map(|e| e.lock().answer.status);
        count_attempt(ctx, &EndedAttempt::of(&attempt), result, status);
    }
    let (answer, status, gone, unmonitored) = match &ctx.exchange {
        Some(exchange) => {
            let mut exchange = exchange.lock();
            (
                exchange.answer_seen(),
                exchange.status,
                exchange.is_client_gone(),
                exchange.unmonitored,
            )
        }
        None => (Answer::default(), ctx.early_status, false, false),
    };
    let client_gone = gone || ctx.client_left;
    let end = End {
        status,
        client_gone,
        cut: ctx.cut,
        failed: ctx.tries.last.is_some(),
    };
    let record = settle(ctx, &answer, end);
    let ending = Ending {
        outcome: match &record {
            Some(record) => record.outcome,
            None => refused_outcome(end),
        },
        status,
        client_gone,
        duration: ctx.moments.started.elapsed(),
        first_token: answer
            .first_token_at
            .map(|at| at.saturating_duration_since(ctx.moments.started)),
        unmonitored,
        intercepted: ctx.intercepted.is_some(),
        refused: status >= 400 && ctx.tries.sent.is_none() && !client_gone,
    };
    measure(ctx, &answer, &ending);
    access_log::write(ctx, &answer, &ending, record.as_deref());
    // In this order: whoever sees the slots free finds the record on its way.
    ctx.user_lease = None;
    ctx.exchange = None;
}

/// The record of a request that was sent, settled now if it has not been where its answer ended; what
/// was held for one that was not sent goes back.
fn settle(ctx: &Context, answer: &Answer, end: End) -> Option<Arc<UsageRecord>> {
    let mut settlement = ctx.exchange.as_ref()?.lock().settlement.take()?;
    // The attempt that ended last stands at the trail's end, unless it was the only one and answered.
    let last = ctx.tries.trail.last();
    let attempt = last.map(|attempt| (attempt.result.as_str(), attempt.status));
    settlement.settle(answer, end, attempt);
    settlement.record().cloned()
}

/// How a request ended that never went upstream: with an answer of ours, or with none.
fn refused_outcome(end: End) -> Outcome {
    let ours = Answer {
        complete: true,
        ..Answer::default()
    };
    outcome(&ours, end)
}

/// Whole milliseconds, as records and log lines have them.
pub fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn measure(ctx: &Context, answer: &Answer, ending: &Ending) {
    let metrics = &ctx.rooms.metrics;
    // The status is one of a few dozen: ours, or one a provider may send.
    metrics
        .requests
        .with_label_values(&[ctx.endpoint, status_label(ending.status), ending.label()])
        .inc();
    metrics
        .request_seconds
        .with_label_values(&[ctx.endpoint])
        .observe(ending.duration.as_secs_f64());
    if ending.client_gone {
        let phase = match (ctx.tries.attempts, answer.status) {
            (0, _) => "before",
            (_, 0) => "attempt",
            _ => "answer",
        };
        metrics.clients_gone.with_label_values(&[phase]).inc();
    }
    let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
    let moments = &ctx.moments;
    let Some(ready) = moments.ready else { return };
    metrics
        .auth_seconds
        .observe(seconds(moments.started, ready));
    let Some(attempt) = moments.attempt else {
        return;
    };
    metrics.routing_seconds.observe(seconds(ready, attempt));
    let Some(header) = answer.header_at else {
        return;
    };
    metrics.upstream_seconds.observe(seconds(attempt, header));
    metrics
        .response_seconds
        .observe(header.elapsed().as_secs_f64());
    if let Some(first) = ending.first_token {
        metrics.first_token_seconds.observe(first.as_secs_f64());
    }
}

/// Statuses as labels: the ones that occur, and a class for any other.
fn status_label(status: u16) -> &'static str {
    match status {
        0 => "0",
        200 => "200",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        409 => "409",
        413 => "413",
        415 => "415",
        422 => "422",
        426 => "426",
        429 => "429",
        500 => "500",
        502 => "502",
        503 => "503",
        s if s < 300 => "2xx",
        s if s < 400 => "3xx",
        s if s < 500 => "4xx",
        _ => "5xx",
    }
}
