//! What one upstream response means: served, the client's own mistake, or a reason to go elsewhere.
//!
//! A verdict decides three things: whether the request may be tried on another account, whether the
//! client sees the upstream's words, and what is remembered about the account. How often to try, and
//! what to remember, is not decided here.

mod message;
mod policy;
mod retry_after;

pub use message::{is_openai_error, upstream_message};
pub use policy::{ErrorPolicy, TempRule};

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use crate::usage::Failure;

/// Our reading of one upstream response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The answer is good.
    Fine,
    /// The client's request is at fault on any account: its status and body are for the client.
    ClientFault,
    /// The account may not be used as it is: its credential, its payment, its permissions.
    BadCredential,
    /// The account has used up what it may use for now.
    Limited {
        /// How long, if the upstream said.
        retry_after: Option<Duration>,
    },
    /// The provider has more to do than it can.
    Overloaded,
    /// Anything else that went wrong at or before the upstream.
    Failed,
}

impl Verdict {
    /// Whether another account may do better.
    pub fn fails_over(&self) -> bool {
        match self {
            Verdict::Fine | Verdict::ClientFault => false,
            Verdict::BadCredential
            | Verdict::Limited { .. }
            | Verdict::Overloaded
            | Verdict::Failed => true,
        }
    }

    /// A short name for logs and metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Verdict::Fine => "fine",
            Verdict::ClientFault => "client_fault",
            Verdict::BadCredential => "bad_credential",
            Verdict::Limited { .. } => "limited",
            Verdict::Overloaded => "overloaded",
            Verdict::Failed => "failed",
        }
    }
}

/// Judges an answer of an OpenAI upstream. `body_head` is the beginning of its body, enough to hold
/// an error object; it is looked at for statuses 400 and 429 only.
pub fn openai(status: u16, headers: &HeaderMap, body_head: &[u8], now: SystemTime) -> Verdict {
    match status {
        100..=299 => Verdict::Fine,
        400 => bad_request(body_head),
        401..=403 => Verdict::BadCredential,
        429 => Verdict::Limited {
            retry_after: retry_after::openai(headers, body_head, now),
        },
        // About the way to the upstream or its moment rather than about the request.
        407 | 408 | 421 | 425 => Verdict::Failed,
        404..=499 => Verdict::ClientFault,
        529 => Verdict::Overloaded,
        // Redirects among them: they are not followed.
        _ => Verdict::Failed,
    }
}

/// Most 400s are the client's; a few are the provider's bad moment, or about the account.
fn bad_request(body: &[u8]) -> Verdict {
    let Some(text) = message::raw(body).map(|text| text.to_lowercase()) else {
        return Verdict::ClientFault;
    };
    let says = |phrase: &str| says(&text, phrase);
    if says("organization has been disabled") || says("identity verification is required") {
        return Verdict::BadCredential;
    }
    let processing = ["your", "the", "this"]
        .iter()
        .any(|which| says(&format!("while processing {which} request")));
    let help = says("retry") && says("help.openai.com") && says("request id");
    match (processing && says("error")) || help {
        true => Verdict::Failed,
        false => Verdict::ClientFault,
    }
}

/// Whether the upstream itself says `phrase`. What stands behind a quotation mark may be the
/// client's own words repeated to it, with which it must not be able to accuse an account.
fn says(text: &str, phrase: &str) -> bool {
    let own = match opening_quote(text) {
        Some(start) => &text[..start],
        None => text,
    };
    own.contains(phrase)
}

/// Where the first quotation begins; the apostrophe of "couldn't" begins none.
fn opening_quote(text: &str) -> Option<usize> {
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        let quote = match c {
            '"' | '`' | '\u{201c}' | '\u{2018}' => true,
            '\'' => !before.is_alphanumeric(),
            _ => false,
        };
        if quote {
            return Some(at);
        }
        before = c;
    }
    None
}

/// Codes and types that say the account has no more to spend for now.
const LIMIT_CODES: [&str; 5] = [
    "insufficient_quota",
    "rate_limit_error",
    "rate_limit_exceeded",
    "usage_limit_reached",
    "usage_not_included",
];

/// Codes and types that say the account itself is not accepted.
const CREDENTIAL_CODES: [&str; 8] = [
    "account_deactivated",
    "authentication_error",
    "billing_error",
    "deactivated_workspace",
    "invalid_api_key",
    "permission_error",
    "token_invalidated",
    "token_revoked",
];

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

/// Judges a failure that a stream reports before it has produced anything, after a status of 200.
pub fn stream_failure(failure: &Failure) -> Verdict {
    let lower = |field: &Option<String>| field.as_deref().unwrap_or_default().to_lowercase();
    let (kind, code) = (lower(&failure.kind), lower(&failure.code));
    let is_one_of = |list: &[&str]| list.contains(&&*code) || list.contains(&&*kind);
    if is_one_of(&LIMIT_CODES) {
        return Verdict::Limited { retry_after: None };
    }
    if is_one_of(&CREDENTIAL_CODES) {
        return Verdict::BadCredential;
    }
    if is_one_of(&OVERLOAD_CODES) {
        return Verdict::Overloaded;
    }
    let by_code = is_one_of(&CLIENT_CODES)
        || CLIENT_CODE_PREFIXES
            .iter()
            .any(|prefix| code.starts_with(prefix));
    let text = format!("{kind}\n{code}\n{}", lower(&failure.message));
    match by_code || CLIENT_WORDS.iter().any(|word| text.contains(word)) {
        true => Verdict::ClientFault,
        false => Verdict::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn judge(status: u16, body: &str) -> Verdict {
        openai(
            status,
            &HeaderMap::new(),
            body.as_bytes(),
            SystemTime::UNIX_EPOCH,
        )
    }

    #[test]
    fn every_status() {
        use Verdict::*;
        let limited = Limited { retry_after: None };
        #[rustfmt::skip]
        let rows: [(&[u16], Verdict); 6] = [
            (&[100, 101, 103, 200, 201, 202, 204, 299], Fine),
            (&[400, 404, 405, 406, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 422, 424, 426, 428, 431, 451, 499], ClientFault),
            (&[401, 402, 403], BadCredential),
            (&[429], limited),
            (&[529], Overloaded),
            (&[0, 99, 300, 301, 302, 304, 307, 308, 399, 407, 408, 421, 425, 500, 501, 502, 503, 504, 520, 524, 528, 530, 599, 600, 999], Failed),
        ];
        for (statuses, verdict) in rows {
            for &status in statuses {
                assert_eq!(judge(status, ""), verdict, "{status}");
            }
        }
    }

    #[test]
    fn what_fails_over_and_under_which_name() {
        let rows = [
            (Verdict::Fine, false, "fine"),
            (Verdict::ClientFault, false, "client_fault"),
            (Verdict::BadCredential, true, "bad_credential"),
            (Verdict::Limited { retry_after: None }, true, "limited"),
            (Verdict::Overloaded, true, "overloaded"),
            (Verdict::Failed, true, "failed"),
        ];
        for (verdict, fails_over, label) in rows {
            assert_eq!(verdict.fails_over(), fails_over, "{label}");
            assert_eq!(verdict.label(), label);
        }
    }

    #[test]
    fn the_texts_of_a_400() {
        use Verdict::{BadCredential, ClientFault, Failed};
        let json = |message: &str| serde_json::json!({"error": {"message": message}}).to_string();
        let transient = "An error occurred while processing your request. You can retry your request, \
                         or contact us through our help center at help.openai.com if the error persists. \
                         Please include the request ID req_1 in your message.";
        #[rustfmt::skip]
        let rows = [
            (json(transient), Failed),
            (json(&transient.to_uppercase()), Failed),
            (transient.to_owned(), Failed),
            (json("An error occurred while processing this request."), Failed),
            (json("Error while processing the request"), Failed),
            (json("We couldn't do it: error while processing the request"), Failed),
            (json("Please retry, or visit help.openai.com with your request ID"), Failed),
            (serde_json::json!({"message": transient}).to_string(), Failed),
            (serde_json::json!({"error": transient}).to_string(), Failed),
            (json("This organization has been disabled."), BadCredential),
            (json("Your organization has been disabled"), BadCredential),
            (json("Identity verification is required to use this model"), BadCredential),
            // Not enough of it.
            (json("The image could not be read while processing your request"), ClientFault),
            (json("Please retry with your request ID"), ClientFault),
            (json("See help.openai.com"), ClientFault),
            (json("Your credit balance is too low"), ClientFault),
            (json("Unsupported parameter"), ClientFault),
            (json(""), ClientFault),
            (String::new(), ClientFault),
            ("{}".to_owned(), ClientFault),
            ("null".to_owned(), ClientFault),
            // The client's own words, repeated to it.
            (json(&format!("Invalid value: '{transient}'")), ClientFault),
            (json(&format!("Invalid value: \"{transient}\"")), ClientFault),
            (json("Unknown model `organization has been disabled`"), ClientFault),
            (serde_json::json!({"error": {"message": "no", "param": transient}}).to_string(), ClientFault),
            // An object that is cut short could hide what is quoted and what is not.
            (json(transient)[..200].to_owned(), ClientFault),
        ];
        for (body, verdict) in rows {
            assert_eq!(judge(400, &body), verdict, "{body}");
        }
        // Nowhere else does the text matter.
        assert_eq!(judge(404, &json(transient)), ClientFault);
        assert_eq!(judge(422, &json(transient)), ClientFault);
    }

    #[test]
    fn failures_within_a_stream() {
        use Verdict::*;
        let limited = Limited { retry_after: None };
        #[rustfmt::skip]
        let rows = [
            ("", "", "", Failed),
            ("", "server_error", "The server had an error", Failed),
            ("server_error", "", "", Failed),
            ("upstream_error", "something_new", "who knows", Failed),
            ("", "", "Connection reset", Failed),
            ("", "rate_limit_exceeded", "Rate limit reached", limited),
            ("requests", "rate_limit_exceeded", "", limited),
            ("tokens", "Rate_Limit_Exceeded", "", limited),
            ("usage_limit_reached", "", "", limited),
            ("rate_limit_error", "", "", limited),
            ("insufficient_quota", "insufficient_quota", "You exceeded your quota", limited),
            ("", "usage_not_included", "", limited),
            ("invalid_request_error", "invalid_api_key", "Incorrect API key", BadCredential),
            ("authentication_error", "", "", BadCredential),
            ("permission_error", "", "", BadCredential),
            ("", "account_deactivated", "", BadCredential),
            ("", "server_is_overloaded", "", Overloaded),
            ("", "slow_down", "", Overloaded),
            ("overloaded_error", "", "", Overloaded),
            ("invalid_request_error", "", "", ClientFault),
            ("invalid_request_error", "unknown_parameter", "", ClientFault),
            ("", "content_policy_violation", "", ClientFault),
            ("", "image_content_policy_violation", "", ClientFault),
            ("", "invalid_prompt", "", ClientFault),
            ("", "invalid_image_url", "", ClientFault),
            ("", "image_too_large", "", ClientFault),
            ("", "context_length_exceeded", "", ClientFault),
            ("", "cyber_policy", "", ClientFault),
            ("", "empty_image_file", "", ClientFault),
            ("", "vector_store_timeout", "", Failed),
            ("", "", "Your request was flagged by our Safety system", ClientFault),
            ("", "", "This is against our usage POLICY", ClientFault),
            ("", "", "This tool is not allowed here", ClientFault),
            ("", "server_error", "Terms violation", ClientFault),
        ];
        for (kind, code, message, verdict) in rows {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let failure = Failure {
                kind: some(kind),
                code: some(code),
                message: some(message),
            };
            assert_eq!(stream_failure(&failure), verdict, "{failure:?}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_judged(status in any::<u16>(), body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let verdict = openai(status, &HeaderMap::new(), &body, SystemTime::UNIX_EPOCH);
            prop_assert_eq!(verdict == Verdict::Fine, (100..300).contains(&status));
        }

        #[test]
        fn quoted_words_never_accuse(before in "[a-z ]{0,10}", quote in "['\"`]", after in "[ -~]{0,10}") {
            let text = format!("{before} {quote}organization has been disabled{after}");
            prop_assert!(!says(&text, "organization has been disabled"));
        }
    }
}
