//! What passes between a client and an Anthropic upstream, in both directions (SPEC 9.7, Change 19).
//!
//! Two request headers have rules of their own and are not among what [`request`] gives: [`version`] has
//! a default, and `anthropic-beta` is a list ([`Betas`]) that the operator's [`crate::beta`] policy and the
//! account's credential have a say in.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The version of the API that a client speaks.
pub const VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// The beta features that a client asks for, a list.
pub const BETA: HeaderName = HeaderName::from_static("anthropic-beta");

/// The id of a request, which the official SDKs show with every error. What the client gets under this name is
/// our own id; the upstream's is returned under another.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// The version of a client that names none: the first that is still served
/// (<https://platform.claude.com/docs/en/api/versioning>).
pub const DEFAULT_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// The beta that Anthropic requires of every request made with an OAuth token.
pub const OAUTH_BETA: &str = "oauth-2025-04-20";

/// Request headers that mean something to the upstream. `accept-encoding` is not among them: the answer
/// has to be readable to us.
fn is_request(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "accept"
            | "accept-language"
            | "anthropic-dangerous-direct-browser-access"
            | "content-type"
            | "sec-fetch-mode"
            | "user-agent"
            | "x-app"
            | "x-claude-code-session-id"
            | "x-client-request-id"
    ) || name.as_str().starts_with("x-stainless-")
}

/// The same for an account that relays as much as possible: whatever is named as the provider's.
fn is_relayed(name: &HeaderName) -> bool {
    is_request(name) || name.as_str().starts_with("anthropic-")
}

/// The client's request headers that an Anthropic upstream may see, but for [`VERSION`] and [`BETA`].
pub fn request(from: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    super::allowed(from, is_request)
}

/// The client's request headers for an account with `anthropic_passthrough`: those of [`request`] and every
/// `anthropic-*` as the client wrote it. Where [`VERSION`] is not among them, [`version`] has the default.
pub fn relayed(from: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    super::allowed(from, is_relayed)
}

/// The client's version of the API, or [`DEFAULT_VERSION`].
pub fn version(from: &HeaderMap) -> HeaderValue {
    let is_there = |value: &&HeaderValue| !value.as_bytes().trim_ascii().is_empty();
    let named = from.get_all(VERSION).iter().find(is_there);
    named.cloned().unwrap_or(DEFAULT_VERSION)
}

/// Whether a header of an Anthropic upstream's answer is passed on to the client.
///
/// The organisation that an account belongs to is not the client's business; how much of a limit is left
/// is, because clients slow down by it.
pub fn is_response_header_allowed(name: &HeaderName) -> bool {
    super::is_common_response(name)
        || name.as_str() == "x-should-retry"
        || name.as_str().starts_with("anthropic-ratelimit-")
}

/// The tokens of the `anthropic-beta` lines of one request, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Betas<'a>(Vec<&'a str>);

impl<'a> Betas<'a> {
    /// Of a request's headers. Lines that are not visible ASCII hold no token.
    pub fn read(from: &'a HeaderMap) -> Self {
        let lines = from.get_all(BETA).into_iter();
        let texts = lines.filter_map(|line| line.to_str().ok());
        let tokens = texts.flat_map(|text| text.split(',')).map(str::trim);
        Betas(tokens.filter(|token| !token.is_empty()).collect())
    }

    /// The tokens, as written.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> {
        self.0.iter().copied()
    }

    /// Whether this token is there, compared without case.
    pub fn contains(&self, token: &str) -> bool {
        self.iter().any(|has| has.eq_ignore_ascii_case(token))
    }

    /// Puts this token at the end, unless it is there.
    pub fn add(&mut self, token: &'a str) {
        if !self.contains(token) {
            self.0.push(token);
        }
    }

    /// Leaves out the tokens that are not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.0.retain(|token| keep(token));
    }

    /// The header's one line; `None` where there is no token, or one that no header can hold.
    pub fn value(&self) -> Option<HeaderValue> {
        if self.0.is_empty() {
            return None;
        }
        HeaderValue::try_from(self.0.join(",")).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn names<'a>(of: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>) -> Vec<String> {
        of.map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn request_headers() {
        let passes = "accept accept-language anthropic-dangerous-direct-browser-access content-type \
                      sec-fetch-mode user-agent x-app x-claude-code-session-id x-client-request-id \
                      x-stainless-lang x-stainless-retry-count x-stainless-timeout";
        let relayed_only = "anthropic-beta anthropic-version anthropic-something-new";
        let stays = "accept-encoding authorization x-api-key x-goog-api-key cookie connection keep-alive te \
                     transfer-encoding content-length content-encoding host expect forwarded via \
                     x-forwarded-for x-real-ip x-request-id proxy-authorization x-stainless anthropic \
                     openai-beta originator session_id";
        let rows = [
            (passes, true, true),
            (relayed_only, false, true),
            (stays, false, false),
        ];
        for (list, passed, kept) in rows {
            for name in list.split_whitespace() {
                let from = map(&[(name, "a"), (name, "b")]);
                assert_eq!(request(&from).count(), if passed { 2 } else { 0 }, "{name}");
                assert_eq!(relayed(&from).count(), if kept { 2 } else { 0 }, "{name}");
            }
        }
    }

    #[test]
    fn headers_named_by_connection_end_here() {
        let from = map(&[
            ("connection", "X-App, anthropic-new"),
            ("x-app", "cli"),
            ("anthropic-new", "1"),
            ("accept", "a"),
        ]);
        assert_eq!(names(request(&from)), ["accept"]);
        assert_eq!(names(relayed(&from)), ["accept"]);
    }

    #[test]
    fn the_version_has_a_default() {
        let name = "anthropic-version";
        for (pairs, expected) in [
            (vec![], "2023-06-01"),
            (vec![(name, "")], "2023-06-01"),
            (vec![(name, " ")], "2023-06-01"),
            (vec![(name, "2023-01-01")], "2023-01-01"),
            (vec![(name, ""), (name, "2099-01-01")], "2099-01-01"),
        ] {
            assert_eq!(version(&map(&pairs)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn response_headers() {
        let rows = [
            (
                true,
                "retry-after x-should-retry content-type date anthropic-ratelimit-requests-limit \
                 anthropic-ratelimit-tokens-remaining anthropic-ratelimit-input-tokens-reset \
                 anthropic-ratelimit-unified-5h-status anthropic-ratelimit-unified-reset \
                 x-ratelimit-limit-requests",
            ),
            (
                false,
                "anthropic-organization-id anthropic-ratelimit request-id x-request-id set-cookie server cf-ray via \
                 content-length transfer-encoding connection openai-version x-codex-turn-state \
                 x-envoy-upstream-service-time strict-transport-security",
            ),
        ];
        for (allowed, names) in rows {
            for name in names.split_whitespace() {
                let name = HeaderName::from_static(name);
                assert_eq!(is_response_header_allowed(&name), allowed, "{name}");
            }
        }
    }

    #[test]
    fn betas_are_one_list_over_all_lines() {
        let from = map(&[
            ("anthropic-beta", " a-1, b-2,,"),
            ("anthropic-beta", ","),
            ("anthropic-beta", "c-3"),
        ]);
        let mut betas = Betas::read(&from);
        assert_eq!(betas.iter().collect::<Vec<_>>(), ["a-1", "b-2", "c-3"]);
        assert!(betas.contains("B-2") && !betas.contains("b"));
        betas.add("A-1");
        betas.add(OAUTH_BETA);
        betas.retain(|token| token != "b-2");
        assert_eq!(betas.value().unwrap(), "a-1,c-3,oauth-2025-04-20");
        betas.retain(|_| false);
        assert_eq!(betas.value(), None);
        assert_eq!(Betas::read(&HeaderMap::new()), Betas::default());
    }

    proptest! {
        #[test]
        fn what_is_joined_reads_the_same(lines in prop::collection::vec("[ -~]{0,20}", 0..4)) {
            let mut from = HeaderMap::new();
            for line in &lines {
                from.append(BETA, HeaderValue::from_str(line).unwrap());
            }
            let betas = Betas::read(&from);
            let mut joined = HeaderMap::new();
            joined.extend(betas.value().map(|value| (BETA, value)));
            prop_assert_eq!(Betas::read(&joined), betas);
        }
    }
}
