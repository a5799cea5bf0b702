//! Every error Tollgate answers with, by name.
//!
//! Clients' libraries choose their exception by the status; programs tell errors apart by the code,
//! where one is given; people read the message, which says what to do.

use std::borrow::Cow;
use std::time::Duration;

use super::ErrorReply;
use crate::body::{DecodeError, too_large_message};
use crate::credential::CredentialError;
use crate::headers::AmbiguousFraming;
use crate::route::RouteError;
use crate::verdict::{Verdict, upstream_message};

const AUTHENTICATION: &str = "authentication_error";
const PERMISSION: &str = "permission_error";
const BILLING: &str = "billing_error";
const RATE_LIMIT: &str = "rate_limit_error";
const INVALID_REQUEST: &str = "invalid_request_error";
const API: &str = "api_error";
const UPSTREAM: &str = "upstream_error";

const UPSTREAM_FAILED: &str = "Upstream request failed";

/// When to come back, in seconds, after a body found no room: room is made within moments.
const BODY_RETRY_S: u64 = 1;

/// When to come back, in seconds, after a slot was not free in time: a request has already waited
/// long by then, and slots come free as running requests end.
const SLOT_RETRY_S: u64 = 5;

// The request itself.

/// 404: nothing is served under this path.
pub fn not_found() -> ErrorReply {
    let message = "Unknown path; check the base URL and the endpoint of your client";
    ErrorReply::new(404, INVALID_REQUEST, message)
}

/// 405: the path takes other methods, those in `allow`.
pub fn method_not_allowed(allow: &str) -> ErrorReply {
    let message = format!("Method not allowed, use {allow}");
    ErrorReply::new(405, INVALID_REQUEST, message)
}

/// 426: the Responses API over a WebSocket is not served.
pub fn websocket_not_supported() -> ErrorReply {
    let message = "WebSocket is not supported here; use POST with Content-Type application/json";
    ErrorReply::new(426, INVALID_REQUEST, message)
}

/// 404 or 405.
pub fn route(error: &RouteError) -> ErrorReply {
    match error {
        RouteError::NotFound { .. } => not_found(),
        RouteError::MethodNotAllowed { allow, .. } => method_not_allowed(allow),
    }
}

/// 400: the end of the request cannot be told for certain. The connection is to be closed.
pub fn ambiguous_framing(error: AmbiguousFraming) -> ErrorReply {
    let message = format!("Ambiguous request framing: {error}");
    ErrorReply::new(400, INVALID_REQUEST, message)
}

/// 431: the head of the request is too long.
pub fn headers_too_large() -> ErrorReply {
    let message = "Request headers too large, send fewer or shorter ones";
    ErrorReply::new(431, INVALID_REQUEST, message)
}

/// 413: the body, plain or decoded, is longer than `limit` bytes.
pub fn body_too_large(limit: usize) -> ErrorReply {
    ErrorReply::new(413, INVALID_REQUEST, too_large_message(limit))
}

/// 400: the body could not be read to its end.
pub fn body_unreadable() -> ErrorReply {
    ErrorReply::new(400, INVALID_REQUEST, "Failed to read request body")
}

/// 400: there is no body.
pub fn body_empty() -> ErrorReply {
    ErrorReply::new(400, INVALID_REQUEST, "Request body is empty")
}

/// 400 or 413: the body could not be decoded within `limit` bytes.
pub fn body_encoding(error: &DecodeError, limit: usize) -> ErrorReply {
    let why = match error {
        DecodeError::TooLarge => return body_too_large(limit),
        DecodeError::UnknownEncoding(name) => {
            format!("unsupported Content-Encoding {name:?}, use gzip, deflate, zstd or none")
        }
        DecodeError::Corrupt => "it does not match its Content-Encoding".to_owned(),
    };
    let message = format!("Failed to read request body: {why}");
    ErrorReply::new(400, INVALID_REQUEST, message)
}

/// 503: the bodies of other requests fill the memory set aside for them.
pub fn bodies_in_flight() -> ErrorReply {
    let message = "Too many large requests at the moment, please retry later";
    ErrorReply::new(503, API, message).with_retry_after(BODY_RETRY_S)
}

/// 400: the body is not a valid request; `message` says why.
pub fn invalid(message: impl Into<Cow<'static, str>>) -> ErrorReply {
    ErrorReply::new(400, INVALID_REQUEST, message)
}

// Who asks.

/// 400: the key stands in the URL.
pub fn api_key_in_query() -> ErrorReply {
    let message = "API key in query parameter is deprecated, use the Authorization header instead";
    ErrorReply::new(400, INVALID_REQUEST, message).with_code("api_key_in_query_deprecated")
}

/// 401: there is no key.
pub fn api_key_required() -> ErrorReply {
    let message =
        "API key is required: send it as Authorization: Bearer <key>, x-api-key or x-goog-api-key";
    ErrorReply::new(401, AUTHENTICATION, message).with_code("API_KEY_REQUIRED")
}

/// 400 or 401: no key that could be looked up.
pub fn credential(error: CredentialError) -> ErrorReply {
    match error {
        CredentialError::InQuery => api_key_in_query(),
        CredentialError::Missing => api_key_required(),
    }
}

/// 401: nobody has this key.
pub fn invalid_api_key() -> ErrorReply {
    ErrorReply::new(401, AUTHENTICATION, "Invalid API key").with_code("INVALID_API_KEY")
}

/// 500: something of ours failed, such as looking up the key.
pub fn internal_error() -> ErrorReply {
    let message = "Internal server error, please retry later";
    ErrorReply::new(500, API, message).with_code("INTERNAL_ERROR")
}

/// 401: the key is switched off.
pub fn api_key_disabled() -> ErrorReply {
    let message = "API key is disabled, use another or ask for it to be enabled";
    ErrorReply::new(401, AUTHENTICATION, message).with_code("API_KEY_DISABLED")
}

/// 403: the key may not be used from this address.
pub fn access_denied() -> ErrorReply {
    let message = "Access denied: this API key may not be used from your IP address";
    ErrorReply::new(403, PERMISSION, message).with_code("ACCESS_DENIED")
}

/// 401: the key's user is gone.
pub fn user_not_found() -> ErrorReply {
    let message = "The user of this API key does not exist";
    ErrorReply::new(401, AUTHENTICATION, message).with_code("USER_NOT_FOUND")
}

/// 401: the key's user is switched off.
pub fn user_inactive() -> ErrorReply {
    let message = "The user of this API key is not active";
    ErrorReply::new(401, AUTHENTICATION, message).with_code("USER_INACTIVE")
}

/// 403: the key belongs to no group, so no account can serve it.
pub fn no_group() -> ErrorReply {
    let message = "This API key is not assigned to a group, ask for it to be assigned to one";
    ErrorReply::new(403, PERMISSION, message)
}

/// 503: the key's group serves Claude Code only, and names no group for others.
pub fn only_claude_code() -> ErrorReply {
    let message = "No available accounts: this group only allows Claude Code clients";
    ErrorReply::new(503, API, message)
}

/// 403: the key's group serves Claude Code only, which does not use this endpoint.
pub fn only_claude_code_here() -> ErrorReply {
    let message = "This group is restricted to Claude Code clients (/v1/messages only)";
    ErrorReply::new(403, PERMISSION, message)
}

// What they may spend.

/// 403: the key's group wants a subscription the user does not have.
pub fn subscription_not_found() -> ErrorReply {
    let message = "No active subscription for this group";
    ErrorReply::new(403, PERMISSION, message).with_code("SUBSCRIPTION_NOT_FOUND")
}

/// 403: the user's subscription has expired or is suspended.
pub fn subscription_invalid() -> ErrorReply {
    let message = "The subscription is expired or suspended, renew it";
    ErrorReply::new(403, PERMISSION, message).with_code("SUBSCRIPTION_INVALID")
}

/// 403: the user's subscription is for later: it begins at `begins`.
pub fn subscription_not_begun(begins: &str) -> ErrorReply {
    let message = format!("The subscription has not begun, it begins at {begins}");
    ErrorReply::new(403, PERMISSION, message).with_code("SUBSCRIPTION_INVALID")
}

/// 429: a limit of the subscription is used up.
pub fn usage_limit_exceeded() -> ErrorReply {
    let message = "Usage limit exceeded, wait for the next period or raise the limit";
    ErrorReply::new(429, RATE_LIMIT, message).with_code("USAGE_LIMIT_EXCEEDED")
}

/// 429: the key has spent what it may in a window of time.
pub fn key_window_exceeded() -> ErrorReply {
    let message = "The rate limit of this API key is reached, wait for the next period";
    ErrorReply::new(429, RATE_LIMIT, message).with_code("rate_limit_exceeded")
}

/// 429: the user has made as many requests as may be made in a minute.
pub fn requests_per_minute() -> ErrorReply {
    let message = "Too many requests in this minute, please retry in the next";
    ErrorReply::new(429, RATE_LIMIT, message).with_code("rate_limit_exceeded")
}

/// 429: what the request may cost is there, but held by the user's other running requests.
pub fn money_held() -> ErrorReply {
    let message =
        "The remaining funds are held by other running requests, please retry when they have ended";
    ErrorReply::new(429, RATE_LIMIT, message)
        .with_code("FUNDS_HELD")
        .with_retry_after(SLOT_RETRY_S)
}

/// 429: the key has spent its quota. It has no next period, so there is no time to come back.
pub fn quota_exhausted() -> ErrorReply {
    let message = "The quota of this API key is exhausted, use another key or raise the quota";
    ErrorReply::new(429, RATE_LIMIT, message).with_code("API_KEY_QUOTA_EXHAUSTED")
}

/// 403: the key's time is over.
pub fn api_key_expired() -> ErrorReply {
    let message = "This API key has expired, use another or have it extended";
    ErrorReply::new(403, PERMISSION, message).with_code("API_KEY_EXPIRED")
}

/// 403: what is left cannot pay for the request, however short its answer.
pub fn unaffordable() -> ErrorReply {
    let message = "What is left cannot pay for this request, make it smaller or top up the account";
    ErrorReply::new(403, BILLING, message).with_code("INSUFFICIENT_BALANCE")
}

/// 403: the user has no money left.
pub fn insufficient_balance() -> ErrorReply {
    let message = "Insufficient balance, top up the account to continue";
    ErrorReply::new(403, BILLING, message).with_code("INSUFFICIENT_BALANCE")
}

// Waiting.

/// 429: the user has more requests waiting than may wait.
pub fn too_many_pending() -> ErrorReply {
    let message = "Too many pending requests, please retry later";
    ErrorReply::new(429, RATE_LIMIT, message).with_retry_after(SLOT_RETRY_S)
}

/// 429: none of the user's slots came free in time.
pub fn user_slot_timeout() -> ErrorReply {
    let message = "Concurrency limit exceeded for user, please retry later";
    ErrorReply::new(429, RATE_LIMIT, message).with_retry_after(SLOT_RETRY_S)
}

/// 429: no account's slot came free in time.
pub fn account_slot_timeout() -> ErrorReply {
    let message = "Concurrency limit exceeded for account, please retry later";
    ErrorReply::new(429, RATE_LIMIT, message).with_retry_after(SLOT_RETRY_S)
}

/// 503: no account of the group can serve the request, and none was tried.
pub fn no_available_accounts() -> ErrorReply {
    ErrorReply::new(503, API, "No available accounts")
}

/// 503: the group's channel has no price for the model and allows no other.
pub fn model_restricted() -> ErrorReply {
    ErrorReply::new(503, API, "No available accounts").with_detail("channel pricing restriction")
}

/// 503: something the request needs is not working.
pub fn service_unavailable() -> ErrorReply {
    ErrorReply::new(503, API, "Service temporarily unavailable")
}

/// 404: none of the models of the key's group has this id.
pub fn model_not_found() -> ErrorReply {
    let message = "No such model; GET /v1/models lists those that there are";
    ErrorReply::new(404, INVALID_REQUEST, message).with_code("model_not_found")
}

// The upstream.

/// So many usage records wait to be written that none may be added: 503.
pub fn records_unwritable() -> ErrorReply {
    ErrorReply::new(
        503,
        "api_error",
        "Usage cannot be recorded at the moment, please retry later",
    )
    .with_retry_after(5)
}

/// The key's group is of a platform that this endpoint does not serve: 404.
pub fn platform_not_supported() -> ErrorReply {
    ErrorReply::new(
        404,
        "not_found_error",
        "This endpoint is not supported for the platform of the API key's group",
    )
}

/// 404: tokens are counted for other platforms than that of the key's group.
pub fn counting_not_supported() -> ErrorReply {
    let message = "Token counting is not supported for this platform";
    ErrorReply::new(404, "not_found_error", message)
}

/// Tokens could not be counted (SPEC 12.3): the upstream's status, if it answered, and nothing of its words.
pub fn count_failed(status: Option<u16>) -> ErrorReply {
    match status {
        Some(429) => ErrorReply::new(429, RATE_LIMIT, "Rate limit exceeded"),
        Some(529) => upstream(529, "Service overloaded"),
        // Many a relay lacks the endpoint.
        Some(404) => ErrorReply::new(
            404,
            "not_found_error",
            "Token counting is not supported by the upstream",
        ),
        Some(status) if status >= 400 => upstream(status, UPSTREAM_FAILED),
        Some(_) | None => upstream(502, "Request failed"),
    }
}

/// The answer when no other account may be tried any more: `last_status` is that of the last
/// upstream that answered at all.
pub fn exhausted(last_status: Option<u16>) -> ErrorReply {
    match last_status {
        Some(401) => upstream(
            502,
            "Upstream authentication failed, please contact administrator",
        ),
        Some(403) => upstream(
            502,
            "Upstream access forbidden, please contact administrator",
        ),
        Some(429) => ErrorReply::new(
            429,
            RATE_LIMIT,
            "Upstream rate limit exceeded, please retry later",
        ),
        Some(529) => ErrorReply {
            anthropic_kind: Some("overloaded_error"),
            ..upstream(503, "Upstream service overloaded, please retry later")
        },
        Some(500 | 502 | 503 | 504) => upstream(502, "Upstream service temporarily unavailable"),
        _ => upstream_failed(),
    }
}

/// The last word on a request, when the upstream's answer or the want of one is judged and nobody else
/// may be tried (SPEC 8.5, 8.6, Change 12), no passthrough rule having been found. `status` is the
/// upstream's, if it answered with an error; `body` belongs to it.
///
/// A client's own mistake comes back as [`client_fault`]; a body that is an error of the client's dialect
/// already is better relayed as it is.
pub fn last_word(status: Option<u16>, verdict: &Verdict, body: &[u8]) -> ErrorReply {
    // A failure within a stream has no status of an error; its verdict stands for one.
    let status = status.filter(|status| *status >= 300);
    match verdict {
        Verdict::ClientFault => client_fault(status.unwrap_or(400), body),
        Verdict::Unlisted => upstream_gateway_error(),
        Verdict::BadCredential => exhausted(status.or(Some(401))),
        Verdict::Limited { retry_after } => {
            let reply = exhausted(status.or(Some(429)));
            match retry_after {
                // Rounded up: whoever comes back a moment early is refused again.
                Some(wait) => reply.with_retry_after(whole_seconds(*wait).max(1)),
                None => reply,
            }
        }
        Verdict::Overloaded => exhausted(status.or(Some(529))),
        Verdict::Fine | Verdict::Failed => exhausted(status),
    }
}

fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// An upstream's error as a passthrough rule wants it shown; see [`crate::passthrough::Rule::reply`].
pub(crate) fn passed_through(status: u16, message: Option<String>) -> ErrorReply {
    let message = message.map_or(Cow::from(UPSTREAM_FAILED), Cow::from);
    ErrorReply {
        anthropic_kind: Some(UPSTREAM),
        ..ErrorReply::new(status, UPSTREAM, message)
    }
}

/// The client's own mistake as the upstream named it, with its status. For a body that is not an
/// error object of the client's dialect; one that is (see [`crate::verdict::is_openai_error`]) goes to
/// the client as it is.
pub fn client_fault(status: u16, body: &[u8]) -> ErrorReply {
    let message = match upstream_message(body) {
        Some(message) => Cow::from(message),
        None => Cow::from(format!("The upstream refused the request with {status}")),
    };
    ErrorReply::new(status, INVALID_REQUEST, message)
}

/// 502: no upstream gave an answer worth relaying; also what a panic before any output becomes.
pub fn upstream_failed() -> ErrorReply {
    upstream(502, UPSTREAM_FAILED)
}

/// 502: a panic in the request, before any output.
pub fn panicked() -> ErrorReply {
    upstream_failed()
}

/// 502: the answer is longer than we hold.
pub fn upstream_response_too_large() -> ErrorReply {
    upstream(502, "Upstream response too large")
}

/// 500: a status outside an account's list of custom error codes.
pub fn upstream_gateway_error() -> ErrorReply {
    upstream(500, "Upstream gateway error")
}

fn upstream(status: u16, message: &'static str) -> ErrorReply {
    ErrorReply::new(status, UPSTREAM, message)
}

// The upstream, when the stream has begun: sent as events.

/// The upstream sent nothing for too long.
pub fn stream_timeout() -> ErrorReply {
    stream("stream_timeout")
}

/// The upstream's stream broke off.
pub fn stream_read_error() -> ErrorReply {
    stream("stream_read_error")
}

/// A line of the upstream's stream is longer than we hold.
pub fn stream_too_large() -> ErrorReply {
    stream("response_too_large")
}

fn stream(reason: &'static str) -> ErrorReply {
    upstream(502, reason).with_code(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Dialect;

    #[test]
    fn every_error_has_its_status_type_and_code() {
        #[rustfmt::skip]
        let rows = [
            // 1.2
            (api_key_in_query(), 400, INVALID_REQUEST, Some("api_key_in_query_deprecated")),
            (api_key_required(), 401, AUTHENTICATION, Some("API_KEY_REQUIRED")),
            (credential(CredentialError::InQuery), 400, INVALID_REQUEST, Some("api_key_in_query_deprecated")),
            (credential(CredentialError::Missing), 401, AUTHENTICATION, Some("API_KEY_REQUIRED")),
            // 1.3
            (invalid_api_key(), 401, AUTHENTICATION, Some("INVALID_API_KEY")),
            (internal_error(), 500, API, Some("INTERNAL_ERROR")),
            (api_key_disabled(), 401, AUTHENTICATION, Some("API_KEY_DISABLED")),
            (access_denied(), 403, PERMISSION, Some("ACCESS_DENIED")),
            (user_not_found(), 401, AUTHENTICATION, Some("USER_NOT_FOUND")),
            (user_inactive(), 401, AUTHENTICATION, Some("USER_INACTIVE")),
            (subscription_not_found(), 403, PERMISSION, Some("SUBSCRIPTION_NOT_FOUND")),
            (quota_exhausted(), 429, RATE_LIMIT, Some("API_KEY_QUOTA_EXHAUSTED")),
            (api_key_expired(), 403, PERMISSION, Some("API_KEY_EXPIRED")),
            (usage_limit_exceeded(), 429, RATE_LIMIT, Some("USAGE_LIMIT_EXCEEDED")),
            (subscription_invalid(), 403, PERMISSION, Some("SUBSCRIPTION_INVALID")),
            (subscription_not_begun("2026-12-01T00:00:00Z"), 403, PERMISSION, Some("SUBSCRIPTION_INVALID")),
            (insufficient_balance(), 403, BILLING, Some("INSUFFICIENT_BALANCE")),
            (unaffordable(), 403, BILLING, Some("INSUFFICIENT_BALANCE")),
            (key_window_exceeded(), 429, RATE_LIMIT, Some("rate_limit_exceeded")),
            (requests_per_minute(), 429, RATE_LIMIT, Some("rate_limit_exceeded")),
            (money_held(), 429, RATE_LIMIT, Some("FUNDS_HELD")),
            // 1.4
            (no_group(), 403, PERMISSION, None),
            // 1.7, 6.3
            (only_claude_code(), 503, API, None),
            (only_claude_code_here(), 403, PERMISSION, None),
            // 12.1
            (model_not_found(), 404, INVALID_REQUEST, Some("model_not_found")),
            // Routes, framing, bodies.
            (not_found(), 404, INVALID_REQUEST, None),
            (route(&RouteError::NotFound { dialect: Dialect::OpenAi }), 404, INVALID_REQUEST, None),
            (method_not_allowed("GET"), 405, INVALID_REQUEST, None),
            (route(&RouteError::MethodNotAllowed { dialect: Dialect::OpenAi, allow: "GET" }), 405, INVALID_REQUEST, None),
            (websocket_not_supported(), 426, INVALID_REQUEST, None),
            (ambiguous_framing(AmbiguousFraming::BareLf), 400, INVALID_REQUEST, None),
            (headers_too_large(), 431, INVALID_REQUEST, None),
            (body_too_large(1), 413, INVALID_REQUEST, None),
            (body_unreadable(), 400, INVALID_REQUEST, None),
            (body_empty(), 400, INVALID_REQUEST, None),
            (body_encoding(&DecodeError::UnknownEncoding("br".into()), 1), 400, INVALID_REQUEST, None),
            (body_encoding(&DecodeError::Corrupt, 1), 400, INVALID_REQUEST, None),
            (body_encoding(&DecodeError::TooLarge, 1), 413, INVALID_REQUEST, None),
            (bodies_in_flight(), 503, API, None),
            (invalid("model is required"), 400, INVALID_REQUEST, None),
            // Waiting.
            (too_many_pending(), 429, RATE_LIMIT, None),
            (user_slot_timeout(), 429, RATE_LIMIT, None),
            (account_slot_timeout(), 429, RATE_LIMIT, None),
            (no_available_accounts(), 503, API, None),
            (service_unavailable(), 503, API, None),
            // The upstream.
            (upstream_failed(), 502, UPSTREAM, None),
            (panicked(), 502, UPSTREAM, None),
            (upstream_response_too_large(), 502, UPSTREAM, None),
            (upstream_gateway_error(), 500, UPSTREAM, None),
            (stream_timeout(), 502, UPSTREAM, Some("stream_timeout")),
            (stream_read_error(), 502, UPSTREAM, Some("stream_read_error")),
            (stream_too_large(), 502, UPSTREAM, Some("response_too_large")),
        ];
        for (error, status, kind, code) in rows {
            assert_eq!(
                (error.status, error.kind, error.code),
                (status, kind, code),
                "{error:?}"
            );
            assert!(!error.message.is_empty());
        }
    }

    #[test]
    fn texts_that_clients_know() {
        #[rustfmt::skip]
        let rows = [
            (body_too_large(268_435_456), "Request body too large, limit is 256MB"),
            (body_encoding(&DecodeError::TooLarge, 1000), "Request body too large, limit is 1000B"),
            (body_unreadable(), "Failed to read request body"),
            (body_empty(), "Request body is empty"),
            (subscription_not_begun("2026-12-01T00:00:00Z"), "The subscription has not begun, it begins at 2026-12-01T00:00:00Z"),
            (invalid("model is required"), "model is required"),
            (method_not_allowed("GET, POST"), "Method not allowed, use GET, POST"),
            (too_many_pending(), "Too many pending requests, please retry later"),
            (user_slot_timeout(), "Concurrency limit exceeded for user, please retry later"),
            (account_slot_timeout(), "Concurrency limit exceeded for account, please retry later"),
            (no_available_accounts(), "No available accounts"),
            (only_claude_code(), "No available accounts: this group only allows Claude Code clients"),
            (only_claude_code_here(), "This group is restricted to Claude Code clients (/v1/messages only)"),
            (service_unavailable(), "Service temporarily unavailable"),
            (upstream_failed(), "Upstream request failed"),
            (upstream_gateway_error(), "Upstream gateway error"),
            (stream_timeout(), "stream_timeout"),
            (stream_read_error(), "stream_read_error"),
            (stream_too_large(), "response_too_large"),
        ];
        for (error, message) in rows {
            assert_eq!(error.message, message);
        }
        let named = body_encoding(&DecodeError::UnknownEncoding("br".into()), 1);
        assert!(named.message.contains("\"br\""));
        let framed = ambiguous_framing(AmbiguousFraming::ManyLengths);
        assert!(framed.message.contains("Content-Length"));
    }

    #[test]
    fn when_to_come_back() {
        #[rustfmt::skip]
        let rows = [
            (bodies_in_flight(), Some(1)),
            (too_many_pending(), Some(5)),
            (user_slot_timeout(), Some(5)),
            (account_slot_timeout(), Some(5)),
            (usage_limit_exceeded(), None),
            (money_held(), Some(SLOT_RETRY_S)),
            (quota_exhausted(), None),
            (insufficient_balance(), None),
            (exhausted(Some(429)).with_retry_after(9), Some(9)),
        ];
        for (error, seconds) in rows {
            assert_eq!(error.retry_after_s, seconds, "{error:?}");
        }
    }

    #[test]
    fn after_failover() {
        let temporary = "Upstream service temporarily unavailable";
        #[rustfmt::skip]
        let rows = [
            (Some(401), 502, UPSTREAM, "Upstream authentication failed, please contact administrator"),
            (Some(403), 502, UPSTREAM, "Upstream access forbidden, please contact administrator"),
            (Some(429), 429, RATE_LIMIT, "Upstream rate limit exceeded, please retry later"),
            (Some(529), 503, UPSTREAM, "Upstream service overloaded, please retry later"),
            (Some(500), 502, UPSTREAM, temporary),
            (Some(502), 502, UPSTREAM, temporary),
            (Some(503), 502, UPSTREAM, temporary),
            (Some(504), 502, UPSTREAM, temporary),
            (Some(400), 502, UPSTREAM, "Upstream request failed"),
            (Some(402), 502, UPSTREAM, "Upstream request failed"),
            (Some(408), 502, UPSTREAM, "Upstream request failed"),
            (Some(501), 502, UPSTREAM, "Upstream request failed"),
            (Some(520), 502, UPSTREAM, "Upstream request failed"),
            (None, 502, UPSTREAM, "Upstream request failed"),
        ];
        for (last, status, kind, message) in rows {
            let error = exhausted(last);
            let found = (error.status, error.kind, &*error.message, error.code);
            assert_eq!(found, (status, kind, message, None), "{last:?}");
        }
    }

    #[test]
    fn an_overloaded_upstream_has_its_own_type_in_anthropics_dialect() {
        for (status, kind) in [(529, "overloaded_error"), (503, UPSTREAM), (401, UPSTREAM)] {
            let error = exhausted(Some(status));
            let kind_in = |dialect| {
                let body: serde_json::Value = serde_json::from_slice(&error.body(dialect)).unwrap();
                body["error"]["type"].as_str().unwrap().to_owned()
            };
            assert_eq!(kind_in(Dialect::Anthropic), kind, "{status}");
            assert_eq!(kind_in(Dialect::OpenAi), UPSTREAM, "{status}");
        }
    }

    #[test]
    fn the_last_word_follows_the_verdict() {
        let body = br#"{"error":{"message":"no such model"}}"#;
        let wait = |ms| Verdict::Limited {
            retry_after: Some(Duration::from_millis(ms)),
        };
        let limited = exhausted(Some(429));
        let unknown = Verdict::Limited { retry_after: None };
        #[rustfmt::skip]
        let rows = [
            (Some(404), Verdict::ClientFault, ErrorReply::new(404, INVALID_REQUEST, "no such model")),
            (Some(200), Verdict::ClientFault, ErrorReply::new(400, INVALID_REQUEST, "no such model")),
            (Some(404), Verdict::Unlisted, upstream_gateway_error()),
            (Some(429), Verdict::Unlisted, upstream_gateway_error()),
            (Some(401), Verdict::BadCredential, exhausted(Some(401))),
            (Some(402), Verdict::BadCredential, upstream_failed()),
            (Some(403), Verdict::BadCredential, exhausted(Some(403))),
            (Some(400), Verdict::BadCredential, upstream_failed()),
            (None, Verdict::BadCredential, exhausted(Some(401))),
            (Some(429), unknown, limited.clone()),
            (Some(429), wait(7_000), limited.clone().with_retry_after(7)),
            (Some(429), wait(7_001), limited.clone().with_retry_after(8)),
            (Some(429), wait(0), limited.clone().with_retry_after(1)),
            (Some(200), wait(7_000), limited.clone().with_retry_after(7)),
            (None, unknown, limited),
            (Some(529), Verdict::Overloaded, exhausted(Some(529))),
            (Some(200), Verdict::Overloaded, exhausted(Some(529))),
            (Some(503), Verdict::Failed, exhausted(Some(503))),
            // By a rule of the account's, after all.
            (Some(404), Verdict::Failed, upstream_failed()),
            (Some(200), Verdict::Failed, upstream_failed()),
            (None, Verdict::Failed, upstream_failed()),
        ];
        for (status, verdict, expected) in rows {
            assert_eq!(
                last_word(status, &verdict, body),
                expected,
                "{status:?} {verdict:?}"
            );
        }
    }

    #[test]
    fn the_clients_own_mistakes_keep_their_status_and_words() {
        let body = br#"{"detail":"Model not found"}"#;
        for status in [400, 404, 405, 409, 413, 415, 422] {
            let error = client_fault(status, body);
            assert_eq!(
                error,
                ErrorReply::new(status, INVALID_REQUEST, "Model not found")
            );
            let error = client_fault(status, b"<html>");
            assert!(error.message.contains(&status.to_string()));
        }
    }

    #[test]
    fn a_stream_failure_is_the_event_clients_know() {
        for error in [stream_timeout(), stream_read_error(), stream_too_large()] {
            let event = error.event(Dialect::OpenAi);
            let text = std::str::from_utf8(&event).unwrap();
            let data = text.strip_prefix("event: error\ndata: ").unwrap();
            let data: serde_json::Value = serde_json::from_str(data.trim_end()).unwrap();
            assert_eq!(data["type"], "error");
            assert_eq!(data["sequence_number"], 0);
            let reason = error.code.unwrap();
            let inner = serde_json::json!({"type": UPSTREAM, "message": reason, "code": reason});
            assert_eq!(data["error"], inner);
        }
    }
}
