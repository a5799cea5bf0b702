//! From a request's body to what is asked, one function for each API: checked, named as its group's channel names
//! it, and bounded in what it may cost.

use http::HeaderMap;
use tollgate_filters::affinity::claude::{Sender, conversation};
use tollgate_filters::client::claude_code;
use tollgate_filters::intercept::intercept;
use tollgate_filters::reply::{ErrorReply, errors};
use tollgate_filters::validate::ResponsesRequest;
use tollgate_filters::validate::messages::MessagesRequest;
use tollgate_filters::{affinity, validate};

use super::context::{Asked, Context};
use super::serving::{check_version, serve};
use crate::auth::Principal;
use crate::billing::bound::{Demand, ImageDemand};
use crate::billing::channel::Gate;
use crate::billing::image::ImageSize;
use crate::billing::quote::Quote;

/// Longest model name, bytes: it stands in records and log lines.
const MODEL_LIMIT: usize = 256;
/// Kept of other short strings of a body.
const WORD_LIMIT: usize = 64;

/// The operation, as records name it.
pub struct Operation {
    /// The endpoint, e.g. `/v1/responses`.
    pub endpoint: &'static str,
    /// What followed it in the path.
    pub subpath: String,
    /// Only tokens are to be counted.
    pub counts: bool,
}

/// What a request of the Responses API asks for.
pub fn responses(
    ctx: &mut Context,
    principal: &Principal,
    operation: Operation,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Asked, ErrorReply> {
    let request = validate::responses(body).map_err(|e| errors::invalid(e.to_string()))?;
    let model = named(ctx, principal, &request.model)?;
    let cache_key = request.prompt_cache_key.as_deref();
    let sticky_key = affinity::openai(headers, cache_key, || request.seed.key()).map(|key| key.0);
    Ok(Asked {
        endpoint: operation.endpoint,
        subpath: operation.subpath,
        counts: operation.counts,
        sticky_key,
        session: sticky_key,
        previous_response: request
            .previous_response_id
            .as_deref()
            .map(affinity::response_key),
        stream: request.stream,
        service_tier: request.service_tier.as_deref().map(word),
        reasoning_effort: request
            .reasoning_effort
            .as_deref()
            .map(word)
            .or_else(|| effort_of(&request.model)),
        demand: demand(&request, body.len()),
        intercept: None,
        model,
        requested_model: request.model.into_owned(),
        model_spans: request.model_spans,
        output_limit_spans: request.output_limit_spans,
        is_message: false,
        body_len: body.len(),
    })
}

/// What a request of the Messages API asks for, and of which group: what its client is stands in its body.
pub fn messages(
    ctx: &mut Context,
    principal: &Principal,
    operation: Operation,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(Asked, Principal), ErrorReply> {
    let request = validate::messages::messages(body).map_err(|e| errors::invalid(e.to_string()))?;
    let client = claude_code(headers, operation.endpoint, Some(&request));
    let principal = serve(ctx, principal, client.as_ref())?;
    if !operation.counts {
        check_version(ctx, &principal, client.as_ref())?;
    }
    let model = named(ctx, &principal, &request.model)?;
    // Where nobody would answer it here, it is not asked what it is.
    let intercepts = !operation.counts && ctx.snapshot.directory.intercepts(principal.group.id);
    let intercept = intercepts.then(|| intercept(&request, client.as_ref()));
    let sender = Sender {
        ip: ctx.ip,
        user_agent: ctx.user_agent.as_deref().unwrap_or_default(),
        api_key_id: principal.key.id.0,
    };
    let conversation = conversation(&request, &sender);
    let sticky_key = conversation.key.map(|key| key.0);
    let asked = Asked {
        is_message: !operation.counts && request.last.is_real_user(),
        endpoint: operation.endpoint,
        subpath: operation.subpath,
        counts: operation.counts,
        sticky_key,
        session: sticky_key.filter(|_| conversation.lasts && !operation.counts),
        // Every request of this API brings its whole history.
        previous_response: None,
        stream: request.stream,
        service_tier: request.service_tier.as_deref().map(word),
        reasoning_effort: request.effort.as_deref().map(word),
        demand: message_demand(&request, body.len()),
        intercept: intercept.flatten(),
        model,
        requested_model: request.model.into_owned(),
        model_spans: request.model_spans,
        output_limit_spans: request.max_tokens_spans,
        body_len: body.len(),
    };
    Ok((asked, principal))
}

/// The same request of the Messages API with another body. `None` where that is none.
pub fn with_body(asked: &Asked, body: &[u8]) -> Option<Asked> {
    let request = validate::messages::messages(body).ok()?;
    Some(Asked {
        demand: message_demand(&request, body.len()),
        model_spans: request.model_spans,
        output_limit_spans: request.max_tokens_spans,
        body_len: body.len(),
        ..asked.clone()
    })
}

/// What bounds the price of a request of the Responses API.
fn demand(request: &ResponsesRequest<'_>, body_len: usize) -> Demand {
    Demand {
        body_len: body_len as u64,
        max_output_tokens: request.max_output_tokens,
        thinking_tokens: 0,
        hosted: request.hosted,
        inline_images: request.inline_images,
        images: request.image_tool.as_ref().map(|tool| ImageDemand {
            // Without a number the model makes one.
            count: tool.n.map_or(1, |n| u32::try_from(n).unwrap_or(u32::MAX)),
            size: tool.size.as_deref().map(ImageSize::of),
        }),
    }
}

/// The same of the Messages API.
fn message_demand(request: &MessagesRequest<'_>, body_len: usize) -> Demand {
    Demand {
        body_len: body_len as u64,
        max_output_tokens: request.max_tokens,
        thinking_tokens: request.thinking_budget.unwrap_or(0),
        // Of another model that is asked in between the prompt is not known either.
        hosted: request.hosted.things || request.hosted.other_models,
        inline_images: request.hosted.inline_images,
        images: None,
    }
}

/// What the group's channel calls the model, and with it what the request is billed for. Accounts that a
/// channel's restriction keeps from it are left out of the choice.
pub fn named(ctx: &mut Context, principal: &Principal, model: &str) -> Result<String, ErrorReply> {
    if model.len() > MODEL_LIMIT {
        let message = format!("model is longer than {MODEL_LIMIT} bytes");
        return Err(errors::invalid(message));
    }
    let group = &principal.group;
    let directory = &ctx.snapshot.directory;
    let channel = directory.channel_of(group.id).cloned();
    let quote = Quote::new(ctx.snapshot.prices.clone(), group.clone(), channel, model);
    match quote.gate() {
        Gate::Open => {}
        Gate::Closed => return Err(errors::model_restricted()),
        Gate::PerAccount => {
            let kept_out = directory
                .accounts_of(group.id)
                .iter()
                .filter(|account| !quote.allows(account.upstream_model(quote.mapped())))
                .map(|account| account.id);
            ctx.tries.excluded.extend(kept_out);
        }
    }
    let mapped = quote.mapped().to_owned();
    ctx.quote = Some(std::sync::Arc::new(quote));
    Ok(mapped)
}

fn word(text: &str) -> String {
    text.chars().take(WORD_LIMIT).collect()
}

/// The reasoning effort that a model's name asks for, e.g. `high` of `gpt-5-high` (SPEC 9.3).
fn effort_of(model: &str) -> Option<String> {
    const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];
    let (_, suffix) = model.rsplit_once('-')?;
    EFFORTS.contains(&suffix).then(|| suffix.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_name_may_ask_for_an_effort() {
        for (model, effort) in [
            ("gpt-5-high", Some("high")),
            ("gpt-5.3-codex-xhigh", Some("xhigh")),
            ("gpt-5-mini", None),
            ("high", None),
        ] {
            assert_eq!(effort_of(model).as_deref(), effort, "{model}");
        }
    }
}
