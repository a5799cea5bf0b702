//! A failure within a stream as the status that would have told it.

use super::Shape;
use crate::usage::Failure;

/// Codes and types that say the account has no more to spend for now.
const LIMIT_CODES: [&str; 5] = [
    "insufficient_quota",
    "rate_limit_error",
    "rate_limit_exceeded",
    "usage_limit_reached",
    "usage_not_included",
];

/// Codes and types that say the account itself is not accepted.
const CREDENTIAL_CODES: [&str; 5] = [
    "account_deactivated",
    "authentication_error",
    "invalid_api_key",
    "token_invalidated",
    "token_revoked",
];

/// Codes and types that say the account is not paid for.
const PAYMENT_CODES: [&str; 2] = ["billing_error", "deactivated_workspace"];

/// Codes and types that say the account may not do this.
const PERMISSION_CODES: [&str; 2] = ["model_not_found", "permission_error"];

/// Codes and types that say the provider is full.
const OVERLOAD_CODES: [&str; 3] = ["overloaded_error", "server_is_overloaded", "slow_down"];

/// Words in any of type, code and message that put the failure down to the request.
const CLIENT_WORDS: [&str; 5] = [
    "invalid_request",
    "policy",
    "safety",
    "not allowed",
    "violation",
];

/// Codes of `response.error.code` in the public API reference that are about the request, as far as
/// they have neither a word above nor a prefix below.
const CLIENT_CODES: [&str; 4] = [
    "context_length_exceeded",
    "empty_image_file",
    "failed_to_download_image",
    "unsupported_image_media_type",
];

/// `invalid_prompt`, `invalid_image_url`, `image_too_large`, `image_parse_error` and their kin.
const CLIENT_CODE_PREFIXES: [&str; 2] = ["invalid_", "image_"];

/// Types of Anthropic's that are about the request.
const ANTHROPIC_CLIENT_TYPES: [&str; 3] = [
    "invalid_request_error",
    "not_found_error",
    "request_too_large",
];

/// The status that would have told a failure if no stream had begun: 400, 401, 402, 403, 429, 529, or
/// 500 for everything that is not known better.
pub(super) fn equivalent_status(shape: Shape, failure: &Failure) -> u16 {
    let lower = |field: &Option<String>| field.as_deref().unwrap_or_default().to_lowercase();
    let (kind, code) = (lower(&failure.kind), lower(&failure.code));
    let is_one_of = |list: &[&str]| list.contains(&&*code) || list.contains(&&*kind);
    let known: [(&[&str], u16); 5] = [
        (&LIMIT_CODES, 429),
        (&CREDENTIAL_CODES, 401),
        (&PAYMENT_CODES, 402),
        (&PERMISSION_CODES, 403),
        (&OVERLOAD_CODES, 529),
    ];
    if let Some((_, status)) = known.into_iter().find(|(names, _)| is_one_of(names)) {
        return status;
    }
    let is_client = match shape {
        Shape::Anthropic => is_one_of(&ANTHROPIC_CLIENT_TYPES),
        Shape::OpenAi => {
            let by_code = is_one_of(&CLIENT_CODES)
                || CLIENT_CODE_PREFIXES
                    .iter()
                    .any(|prefix| code.starts_with(prefix));
            let text = text(failure).to_lowercase();
            by_code || CLIENT_WORDS.iter().any(|word| text.contains(word))
        }
    };
    match is_client {
        true => 400,
        false => 500,
    }
}

/// All that a failure says.
pub(super) fn text(failure: &Failure) -> String {
    let field = |field: &'_ Option<String>| field.clone().unwrap_or_default();
    let (kind, code) = (field(&failure.kind), field(&failure.code));
    format!("{kind}\n{code}\n{}", field(&failure.message))
}
