//! One structured line for every request. No secrets, no prompt text.

use super::context::Context;
use super::finish::{Ending, millis};
use super::relay::Answer;
use crate::domain::UsageRecord;

/// Writes the line.
pub fn write(ctx: &Context, answer: &Answer, ending: &Ending, record: Option<&UsageRecord>) {
    // Nothing is formatted for a line that is not written.
    if !log::log_enabled!(target: "tollgate::access", log::Level::Info) {
        return;
    }
    let principal = ctx.principal.as_ref();
    let key = principal.map(|p| &p.key).or(ctx.refused_key.as_ref());
    let asked = ctx.asked.as_ref();
    let charge = record.map(|r| r.charge.to_string()).unwrap_or_default();
    let ip = ctx.ip.map(|ip| ip.to_string()).unwrap_or_default();
    log::info!(
        target: "tollgate::access",
        "request.id" = ctx.id.as_str(),
        "endpoint" = ctx.endpoint,
        "status" = ending.status,
        "outcome" = ending.label(),
        "user" = principal.map_or("", |p| p.user.name.as_str()),
        "key" = key.map_or("", |k| k.name.as_str()),
        "group" = principal.map_or("", |p| p.group.name.as_str()),
        "account" = ctx.tries.sent.as_ref().map_or("", |s| s.account.name.as_str()),
        "model" = asked.map_or("", |a| a.model.as_str()),
        "upstream.model" = ctx.tries.sent.as_ref().map_or("", |s| s.upstream_model.as_str()),
        "upstream.status" = answer.status,
        "upstream.request_id" = answer.upstream_request_id.as_deref().unwrap_or(""),
        "stream" = asked.is_some_and(|a| a.stream),
        "attempts" = ctx.tries.attempts,
        "switches" = ctx.tries.switches,
        "duration_ms" = millis(ending.duration),
        "first_token_ms" = ending.first_token.map_or(0, millis),
        "input_tokens" = record.map_or(0, |r| r.tokens.input),
        "output_tokens" = record.map_or(0, |r| r.tokens.output),
        "charge_usd" = charge.as_str(),
        "body_bytes" = asked.map_or(0, |a| a.body_len),
        "client.gone" = ending.client_gone,
        "client.ip" = ip.as_str();
        "request"
    );
}
