//! Which headers pass, in both directions, and what the head of a request says about itself.
//!
//! Both directions are allow-lists: what is not named here stays here, so credentials, cookies,
//! forwarding and hop-by-hop headers need no list of their own. The headers an account adds
//! (its credential, its options) are the providers' business. [`anthropic`] has that platform's lists.

pub mod anthropic;
mod client_ip;
mod framing;

pub use client_ip::client_ip;
pub use framing::{AmbiguousFraming, framing};

use http::header::CONNECTION;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Request headers that mean something to an OpenAI upstream and nothing to anyone between.
/// `accept-encoding` is not among them: the answer has to be readable to us.
fn is_openai_request(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "accept"
            | "accept-language"
            | "content-type"
            | "conversation_id"
            | "originator"
            | "session_id"
            | "user-agent"
            | "x-codex-turn-metadata"
            | "x-codex-turn-state"
    )
}

/// The client's request headers that an OpenAI upstream may see.
pub fn openai_request(from: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    allowed(from, is_openai_request)
}

/// The client's request headers that a list allows and that are more than its connection's matter.
fn allowed(
    from: &HeaderMap,
    list: fn(&HeaderName) -> bool,
) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    let nominates = from.contains_key(CONNECTION);
    from.iter()
        .filter(move |(name, _)| list(name) && !(nominates && is_nominated(from, name.as_str())))
}

/// Whether the client's `Connection` header makes `name` a matter of its own connection only.
fn is_nominated(headers: &HeaderMap, name: &str) -> bool {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|option| option.trim().eq_ignore_ascii_case(name))
}

/// Whether a header of an upstream's answer is passed on to the client.
///
/// The upstream's `x-request-id` is not: that name is ours, and the upstream's id is returned under
/// another.
pub fn is_response_header_allowed(name: &HeaderName) -> bool {
    is_common_response(name)
        || matches!(
            name.as_str(),
            "openai-processing-ms" | "openai-version" | "x-codex-turn-state"
        )
}

/// What any upstream's answer may show (SPEC 9.0).
fn is_common_response(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "cache-control"
            | "content-encoding"
            | "content-language"
            | "content-type"
            | "date"
            | "etag"
            | "expires"
            | "last-modified"
            | "location"
            | "retry-after"
            | "vary"
            | "www-authenticate"
            | "x-ratelimit-limit-requests"
            | "x-ratelimit-limit-tokens"
            | "x-ratelimit-remaining-requests"
            | "x-ratelimit-remaining-tokens"
            | "x-ratelimit-reset-requests"
            | "x-ratelimit-reset-tokens"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENAI_REQUEST: [&str; 9] = [
        "accept",
        "accept-language",
        "content-type",
        "conversation_id",
        "originator",
        "session_id",
        "user-agent",
        "x-codex-turn-metadata",
        "x-codex-turn-state",
    ];

    fn passed(from: &HeaderMap) -> HeaderMap {
        let mut to = HeaderMap::new();
        for (name, value) in openai_request(from) {
            to.append(name, value.clone());
        }
        to
    }

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        map
    }

    #[test]
    fn request_headers_that_pass() {
        for name in OPENAI_REQUEST {
            let to = passed(&map(&[(name, "a"), (name, "b")]));
            let passed: Vec<_> = to.get_all(name).iter().collect();
            assert_eq!(passed, ["a", "b"], "{name}");
            assert_eq!(to.len(), 2, "{name}");
        }
    }

    #[test]
    fn request_headers_that_stay() {
        let names = [
            "accept-encoding",
            "authorization",
            "cf-connecting-ip",
            "connection",
            "content-encoding",
            "content-length",
            "cookie",
            "expect",
            "forwarded",
            "host",
            "keep-alive",
            "openai-beta",
            "openai-organization",
            "openai-project",
            "proxy-authorization",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "via",
            "x-api-key",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-goog-api-key",
            "x-real-ip",
            "x-request-id",
            "x-stainless-timeout",
        ];
        for name in names {
            assert!(passed(&map(&[(name, "a")])).is_empty(), "{name}");
        }
    }

    #[test]
    fn headers_named_by_connection_end_here() {
        let from = map(&[
            ("connection", "keep-alive, Session_Id"),
            ("connection", "originator"),
            ("session_id", "s"),
            ("originator", "o"),
            ("conversation_id", "c"),
        ]);
        assert_eq!(passed(&from), map(&[("conversation_id", "c")]));
    }

    #[test]
    fn response_headers() {
        let rows = [
            (
                true,
                "content-type content-encoding content-language cache-control etag last-modified \
                 expires vary date retry-after location www-authenticate x-codex-turn-state \
                 openai-processing-ms openai-version x-ratelimit-limit-requests \
                 x-ratelimit-limit-tokens x-ratelimit-remaining-requests \
                 x-ratelimit-remaining-tokens x-ratelimit-reset-requests x-ratelimit-reset-tokens",
            ),
            (
                false,
                "content-length transfer-encoding connection keep-alive trailer upgrade te \
                 proxy-authenticate set-cookie x-request-id cf-ray server alt-svc \
                 openai-organization openai-project strict-transport-security via \
                 x-codex-primary-used-percent x-ratelimit-limit",
            ),
        ];
        for (allowed, names) in rows {
            for name in names.split_whitespace() {
                let name = HeaderName::from_static(name);
                assert_eq!(is_response_header_allowed(&name), allowed, "{name}");
            }
        }
    }
}
