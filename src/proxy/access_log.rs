//! One structured line for every request. No secrets, no prompt text.

use std::fmt::Write;

use super::context::Context;
use super::finish::{Ending, millis};
use super::relay::Answer;
use crate::domain::{AttemptTrace, UsageRecord};
use crate::logging;

/// Writes the line.
pub fn write(ctx: &Context, answer: &Answer, ending: &Ending, record: Option<&UsageRecord>) {
    let principal = ctx.principal.as_ref();
    let key = principal.map(|p| &p.key).or(ctx.refused_key.as_ref());
    let asked = ctx.asked.as_ref();
    let sent = ctx.tries.sent.as_ref();
    let level = match ending.unmonitored {
        true => log::Level::Debug,
        false => log::Level::Info,
    };
    logging::write(level, "tollgate::access", "request", |line| {
        line.text("request.id", &ctx.id);
        line.text("endpoint", ctx.endpoint);
        line.number("status", ending.status.into());
        line.text("outcome", ending.label());
        line.text("user", principal.map_or("", |p| &p.user.name));
        line.text("key", key.map_or("", |k| &k.name));
        line.text("group", principal.map_or("", |p| &p.group.name));
        if let Some(from) = &ctx.fallback_from {
            line.text("group.fallback_from", &from.name);
        }
        line.text("account", sent.map_or("", |s| &s.account.name));
        line.text("model", asked.map_or("", |a| &a.requested_model));
        line.text("upstream.model", sent.map_or("", |s| &s.upstream_model));
        line.number("upstream.status", answer.status.into());
        let upstream_id = answer.upstream_request_id.as_deref();
        line.text("upstream.request_id", upstream_id.unwrap_or(""));
        line.flag("stream", asked.is_some_and(|a| a.stream));
        line.number("attempts", ctx.tries.attempts.into());
        line.number("switches", ctx.tries.all_switches().into());
        // What a single attempt would say stands in the line already.
        if ctx.tries.trail.len() > 1 {
            line.text("trail", &trail(&ctx.tries.trail));
        }
        line.number("duration_ms", millis(ending.duration));
        line.number("first_token_ms", ending.first_token.map_or(0, millis));
        line.number("input_tokens", record.map_or(0, |r| r.tokens.input));
        line.number("output_tokens", record.map_or(0, |r| r.tokens.output));
        match record {
            Some(record) => line.plain("charge_usd", record.charge),
            None => line.text("charge_usd", ""),
        }
        line.number("body_bytes", asked.map_or(0, |a| a.body_len as u64));
        line.flag("client.gone", ending.client_gone);
        match (record.and_then(|r| r.ip.as_deref()), ctx.ip) {
            (Some(text), _) => line.text("client.ip", text),
            (None, Some(ip)) => line.plain("client.ip", ip),
            (None, None) => line.text("client.ip", ""),
        }
    });
}

/// Every attempt in one text: `a1:limited/429/12ms a2:answered/200/340ms`.
fn trail(attempts: &[AttemptTrace]) -> String {
    let mut text = String::new();
    for attempt in attempts {
        if !text.is_empty() {
            text.push(' ');
        }
        let status = attempt.status.unwrap_or(0);
        let (account, result, ms) = (&attempt.account, &attempt.result, attempt.duration_ms);
        // Writing to a text does not fail.
        let _ = write!(text, "{account}:{result}/{status}/{ms}ms");
    }
    text
}
