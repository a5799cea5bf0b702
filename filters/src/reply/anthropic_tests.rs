//! What Anthropic's own libraries make of our errors: the class by the status, the rest from the body.

use serde_json::{Value, json};

use super::errors;
use super::*;

/// The types of an error that the libraries name, and the one that stands for a refusal before the API.
const KNOWN: [&str; 10] = [
    "invalid_request_error",
    "authentication_error",
    "billing_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "timeout_error",
    "api_error",
    "overloaded_error",
];

/// The class of exception that the libraries for Python and Node raise for a status.
fn class(status: u16) -> &'static str {
    match status {
        400 => "BadRequestError",
        401 => "AuthenticationError",
        403 => "PermissionDeniedError",
        404 => "NotFoundError",
        409 => "ConflictError",
        413 => "ContentTooLargeError",
        422 => "UnprocessableEntityError",
        429 => "RateLimitError",
        503 => "ServiceUnavailableError",
        529 => "OverloadedError",
        500.. => "InternalServerError",
        _ => "APIStatusError",
    }
}

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn every_class_of_error_has_its_type() {
    #[rustfmt::skip]
    let rows = [
        (errors::invalid("model is required"), "BadRequestError", "invalid_request_error"),
        (errors::body_empty(), "BadRequestError", "invalid_request_error"),
        (errors::invalid_api_key(), "AuthenticationError", "authentication_error"),
        (errors::api_key_required(), "AuthenticationError", "authentication_error"),
        (errors::access_denied(), "PermissionDeniedError", "permission_error"),
        (errors::insufficient_balance(), "PermissionDeniedError", "billing_error"),
        (errors::not_found(), "NotFoundError", "not_found_error"),
        (errors::platform_not_supported(), "NotFoundError", "not_found_error"),
        (errors::body_too_large(1), "ContentTooLargeError", "request_too_large"),
        (errors::client_fault(413, b""), "ContentTooLargeError", "request_too_large"),
        (errors::client_fault(409, b""), "ConflictError", "invalid_request_error"),
        (errors::client_fault(422, b""), "UnprocessableEntityError", "invalid_request_error"),
        (errors::too_many_pending(), "RateLimitError", "rate_limit_error"),
        (errors::usage_limit_exceeded(), "RateLimitError", "rate_limit_error"),
        (errors::exhausted(Some(429)), "RateLimitError", "rate_limit_error"),
        (errors::internal_error(), "InternalServerError", "api_error"),
        (errors::no_available_accounts(), "ServiceUnavailableError", "api_error"),
        (errors::exhausted(Some(529)), "ServiceUnavailableError", "overloaded_error"),
        (ErrorReply::new(529, "upstream_error", "Overloaded"), "OverloadedError", "overloaded_error"),
    ];
    for (error, expected, kind) in rows {
        assert_eq!(class(error.status), expected, "{error:?}");
        assert!(KNOWN.contains(&kind));
        let body = parse(&error.body(Dialect::Anthropic));
        let inner = json!({"type": kind, "message": error.message});
        assert_eq!(body, json!({"type": "error", "error": inner}));
    }
}

#[test]
fn an_error_says_which_request_it_was() {
    let error = errors::invalid("no");
    let body = parse(&error.body_for(Dialect::Anthropic, "req-1"));
    assert_eq!(body["request_id"], "req-1");
    assert_eq!(
        body["error"],
        parse(&error.body(Dialect::Anthropic))["error"]
    );
    let event = error.event_for(Dialect::Anthropic, "req-1");
    let data = event.strip_prefix(b"event: error\ndata: ").unwrap();
    assert_eq!(parse(data.strip_suffix(b"\n\n").unwrap()), body);
    for dialect in [Dialect::OpenAi, Dialect::Google] {
        assert_eq!(error.body_for(dialect, "req-1"), error.body(dialect));
        assert_eq!(error.event_for(dialect, "req-1"), error.event(dialect));
    }
}

#[test]
fn an_event_is_named_or_it_would_be_passed_over() {
    for error in [
        errors::stream_timeout(),
        errors::stream_read_error(),
        errors::exhausted(Some(529)),
    ] {
        let event = error.event(Dialect::Anthropic);
        let data = event.strip_prefix(b"event: error\ndata: ").unwrap();
        let data = parse(data.strip_suffix(b"\n\n").unwrap());
        assert_eq!(data["type"], "error");
        assert_eq!(data["error"]["message"], *error.message);
        assert!(data["error"]["type"].is_string());
    }
}
