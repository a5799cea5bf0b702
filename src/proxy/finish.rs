//! The end of every request: its usage record, its metrics, its line in the access log. Everything
//! here is immediate, so that it also works when the task is dropped.

use std::time::Instant;

use tollgate_filters::usage::TokenUsage;

use super::access_log;
use super::context::{Context, SentAttempt};
use super::failover::{ANSWERED, EndedAttempt, count_attempt};
use super::relay::Answer;
use crate::billing::pricing::{self, ServiceTier};
use crate::config::BillingMode;
use crate::domain::{BillingType, Money, Outcome, PricingMode, UsageRecord, UsageSource};

/// Bytes of text that make a token, for estimates: the providers' own rule of thumb.
const BYTES_PER_TOKEN: u64 = 4;

/// An estimate never charges more input than this, and no long-context price: a body may be mostly
/// images, whose bytes are no tokens.
const ESTIMATED_INPUT_LIMIT: u64 = 200_000;

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
}

impl Ending {
    /// The outcome for metrics and the log; what we refused is not an upstream's error there.
    pub fn label(&self) -> &'static str {
        if self.unmonitored {
            "unmonitored"
        } else if self.refused {
            "refused"
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
    let ending = Ending {
        outcome: outcome(ctx, &answer, status, client_gone),
        status,
        client_gone,
        duration: ctx.moments.started.elapsed(),
        first_token: answer
            .first_token_at
            .map(|at| at.saturating_duration_since(ctx.moments.started)),
        unmonitored,
        refused: status >= 400 && ctx.tries.sent.is_none() && !client_gone,
    };
    let record = ctx
        .tries
        .sent
        .clone()
        .and_then(|sent| record(ctx, sent, &answer, &ending));
    measure(ctx, &answer, &ending);
    access_log::write(ctx, &answer, &ending, record.as_ref());
    if let Some(record) = record {
        ctx.rooms.outbox.push(record);
    }
    // In this order: whoever sees the slots free finds the record on its way.
    ctx.user_lease = None;
    ctx.exchange = None;
}

fn outcome(ctx: &Context, answer: &Answer, status: u16, client_gone: bool) -> Outcome {
    if client_gone {
        return Outcome::ClientGone;
    }
    if ctx.cut {
        return Outcome::Interrupted;
    }
    if ctx.tries.last.is_some() && !answer.complete || answer.failed {
        return Outcome::UpstreamError;
    }
    match status {
        0 => Outcome::Interrupted,
        200..300 if ctx.tries.sent.is_some() && !answer.complete => Outcome::Interrupted,
        200..300 => Outcome::Ok,
        _ => Outcome::UpstreamError,
    }
}

fn record(
    ctx: &Context,
    sent: SentAttempt,
    answer: &Answer,
    ending: &Ending,
) -> Option<UsageRecord> {
    let (principal, asked) = (ctx.principal.as_ref()?, ctx.asked.as_ref()?);
    let (tokens, usage_source) = usage(answer, asked.body_len);
    // What was asked for is billed (SPEC 9.3), under the tier's own name.
    let tier = asked.service_tier.as_deref().and_then(ServiceTier::parse);
    let service_tier = match tier {
        Some(tier) => Some(tier.as_str().to_owned()),
        None => asked.service_tier.clone(),
    };
    // The model that is billed is the one the client asked for: an account's own mapping is the
    // operator's matter (SPEC 4.7). Where that has no price, the upstream's name may have one.
    let prices = &ctx.snapshot.prices;
    let price = prices
        .lookup(&asked.model)
        .or_else(|| prices.lookup(&sent.upstream_model));
    let priced = pricing::price(
        &tokens,
        answer.image_count,
        price,
        tier,
        principal.multiplier,
    );
    if price.is_none() && tokens != TokenUsage::default() {
        ctx.rooms.metrics.unpriced.inc();
        ctx.rooms.unpriced.warn(&asked.model);
    }
    let standard = ctx.config.billing.mode == BillingMode::Standard;
    let (charge, billing_type) = if standard {
        (priced.charge, BillingType::Balance)
    } else {
        (Money::ZERO, BillingType::None)
    };
    let platform = sent.account.platform;
    let metrics = &ctx.rooms.metrics;
    for (class, count) in [
        ("input", tokens.input),
        ("output", tokens.output),
        ("cache_creation", tokens.cache_creation),
        ("cache_read", tokens.cache_read),
        ("image_output", tokens.image_output),
    ] {
        if count > 0 {
            metrics
                .tokens
                .with_label_values(&[platform.as_str(), class])
                .inc_by(count);
        }
    }
    metrics
        .cost
        .with_label_values(&[platform.as_str()])
        .inc_by(priced.cost.as_usd_f64());
    metrics
        .charge
        .with_label_values(&[platform.as_str()])
        .inc_by(charge.as_usd_f64());
    let chain = (sent.upstream_model != asked.model)
        .then(|| format!("{}→{}", asked.model, sent.upstream_model));
    Some(UsageRecord {
        request_id: ctx.id.clone(),
        client_request_id: ctx.client_request_id.clone(),
        upstream_request_id: answer.upstream_request_id.clone(),
        created_at: ctx.arrived,
        user_id: principal.user.id,
        user: principal.user.name.clone(),
        api_key_id: principal.key.id,
        api_key: principal.key.name.clone(),
        group_id: principal.group.id,
        group: principal.group.name.clone(),
        fallback_from_group: None,
        account_id: sent.account.id,
        account: sent.account.name.clone(),
        platform,
        endpoint: format!("{}{}", asked.endpoint, asked.subpath),
        upstream_endpoint: sent.path,
        requested_model: asked.model.clone(),
        model: asked.model.clone(),
        upstream_model: sent.upstream_model,
        model_mapping_chain: chain,
        stream: asked.stream,
        status: ending.status,
        outcome: ending.outcome,
        tokens,
        image_count: answer.image_count,
        cost: priced.cost,
        charge,
        rate_multiplier: principal.multiplier,
        account_rate_multiplier: sent.account.rate_multiplier,
        billing_type,
        billing_mode: PricingMode::Token,
        channel: None,
        billing_tier: None,
        priced: priced.priced,
        service_tier,
        reasoning_effort: asked.reasoning_effort.clone(),
        attempts: ctx.tries.attempts,
        account_switches: ctx.tries.switches,
        // What a single attempt would say stands in the record already.
        trail: match ctx.tries.trail.len() {
            0 | 1 => Vec::new(),
            _ => ctx.tries.trail.clone(),
        },
        duration_ms: millis(ending.duration),
        first_token_ms: ending.first_token.map(millis),
        usage_source,
        client_disconnected: ending.client_gone,
        ip: ctx.ip.map(|ip| ip.to_string()),
        user_agent: ctx.user_agent.clone(),
    })
}

/// What is billed: what the provider reported; else, where output was seen, an estimate.
fn usage(answer: &Answer, body_len: usize) -> (TokenUsage, UsageSource) {
    match answer.usage {
        Some(usage) => (usage, UsageSource::Reported),
        None if answer.output_bytes > 0 => {
            let estimate = TokenUsage {
                input: (body_len as u64)
                    .div_ceil(BYTES_PER_TOKEN)
                    .min(ESTIMATED_INPUT_LIMIT),
                output: answer.output_bytes.div_ceil(BYTES_PER_TOKEN),
                ..TokenUsage::default()
            };
            (estimate, UsageSource::Estimated)
        }
        None => (TokenUsage::default(), UsageSource::None),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reported_usage_is_never_replaced_and_silence_costs_nothing() {
        let reported = TokenUsage {
            input: 0,
            ..TokenUsage::default()
        };
        let mut answer = Answer {
            usage: Some(reported),
            output_bytes: 400,
            ..Answer::default()
        };
        assert_eq!(usage(&answer, 100), (reported, UsageSource::Reported));
        answer.usage = None;
        let (estimate, source) = usage(&answer, 101);
        assert_eq!(source, UsageSource::Estimated);
        assert_eq!((estimate.input, estimate.output), (26, 100));
        answer.output_bytes = 0;
        assert_eq!(
            usage(&answer, 100),
            (TokenUsage::default(), UsageSource::None)
        );
    }
}
