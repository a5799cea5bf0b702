//! The sticky key a request carries, if any: what ties the requests of one conversation to the account that has its
//! prompt cache. Use it before choosing an account.

pub mod claude;
mod seed;

pub use seed::Seed;

use http::{HeaderMap, HeaderName};
use xxhash_rust::xxh3::xxh3_128;

/// Headers that name the conversation, in order of precedence: the session, then the conversation or
/// thread. Clients spell them with either separator: Codex sends `session_id`, of late `session-id`
/// and `thread-id`; opencode sends `x-session-affinity` and `x-session-id`, which are the same.
static OPENAI_HEADERS: [HeaderName; 8] = [
    HeaderName::from_static("session_id"),
    HeaderName::from_static("session-id"),
    HeaderName::from_static("x-session-id"),
    HeaderName::from_static("x-session-affinity"),
    HeaderName::from_static("conversation_id"),
    HeaderName::from_static("conversation-id"),
    HeaderName::from_static("thread_id"),
    HeaderName::from_static("thread-id"),
];

/// A conversation: 128 bits of hash of whatever the client calls it. Only equal within the scope (a group) it is
/// stored under; not a secret, not authenticated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StickyKey(pub u128);

impl StickyKey {
    /// The key of a conversation id.
    pub fn of(id: &[u8]) -> Self {
        StickyKey(xxh3_128(id))
    }
}

impl std::fmt::Display for StickyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The sticky key of an OpenAI request: its session header, else its conversation header, else the
/// `prompt_cache_key` of its body, else what its content says ([`Seed::key`]), which is asked for only then.
/// The first that is not blank wins; the same id gives the same key from any of them.
pub fn openai(
    headers: &HeaderMap,
    prompt_cache_key: Option<&str>,
    seed: impl FnOnce() -> Option<StickyKey>,
) -> Option<StickyKey> {
    OPENAI_HEADERS
        .iter()
        .filter_map(|name| headers.get(name))
        .map(|value| value.as_bytes())
        .chain(prompt_cache_key.map(str::as_bytes))
        .map(<[u8]>::trim_ascii)
        .find(|id| !id.is_empty())
        .map(StickyKey::of)
        .or_else(seed)
}

/// The key under which a response is known to come from an account, for requests that go on from it. Another space
/// than that of conversations: a client cannot make the one stand for the other.
pub fn response_key(response_id: &str) -> u128 {
    StickyKey::of(format!("response\0{response_id}").as_bytes()).0
}

/// The key of a conversation among the accounts that a group's routing names for some of its models. The models of one
/// conversation may be served apart: each part has its own account, and none moves that of another.
pub fn routed_key(conversation: u128, pattern: &str) -> u128 {
    StickyKey::of(format!("routed\0{conversation:032x}\0{pattern}").as_bytes()).0
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn key(
        headers: &[(&'static str, &'static str)],
        prompt_cache_key: Option<&str>,
    ) -> Option<StickyKey> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
            .collect();
        openai(&headers, prompt_cache_key, || None)
    }

    #[test]
    fn the_first_source_that_says_something_wins() {
        let a = Some(StickyKey::of(b"a"));
        for (headers, prompt_cache_key, expected) in [
            (&[][..], None, None),
            (&[], Some(""), None),
            (&[], Some("  "), None),
            (&[], Some("a"), a),
            (&[("session_id", "a")], None, a),
            (&[("session-id", " a ")], Some("b"), a),
            (
                &[("conversation_id", "b"), ("session_id", "a")],
                Some("c"),
                a,
            ),
            (
                &[("conversation-id", "b"), ("session-id", "a")],
                Some("c"),
                a,
            ),
            (
                &[("conversation_id", "a"), ("conversation-id", "b")],
                Some("c"),
                a,
            ),
            (
                &[("session_id", ""), ("conversation-id", "a")],
                Some("c"),
                a,
            ),
            (&[("session_id", ""), ("session-id", " ")], Some("a"), a),
            (&[("x-session-id", "a"), ("thread-id", "b")], Some("c"), a),
            (&[("x-session-affinity", "a")], Some("c"), a),
            (
                &[("x-session-affinity", "b"), ("x-session-id", "a")],
                None,
                a,
            ),
            (&[("thread-id", "b"), ("session-id", "a")], None, a),
            (&[("thread-id", "a")], Some("c"), a),
            (&[("thread_id", "a")], None, a),
            (&[("x-session", "b")], None, None),
        ] {
            assert_eq!(
                key(headers, prompt_cache_key),
                expected,
                "{headers:?} {prompt_cache_key:?}"
            );
        }
    }

    #[test]
    fn the_content_is_the_last_source_and_asked_for_only_then() {
        let key = StickyKey::of(b"a");
        let mut headers = HeaderMap::new();
        assert_eq!(openai(&headers, None, || Some(key)), Some(key));
        assert_eq!(openai(&headers, Some(" "), || Some(key)), Some(key));
        let never = || unreachable!("there is a better source");
        assert_eq!(openai(&headers, Some("a"), never), Some(key));
        headers.insert("session-id", HeaderValue::from_static("a"));
        assert_eq!(openai(&headers, None, never), Some(key));
    }

    #[test]
    fn different_ids_differ() {
        assert_ne!(StickyKey::of(b"a"), StickyKey::of(b"b"));
        let keys = [
            1,
            2,
            routed_key(1, "a*"),
            routed_key(1, "a"),
            routed_key(2, "a*"),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "{at}");
        }
        assert_eq!(routed_key(1, "a*"), keys[2]);
    }

    #[test]
    fn displayed_as_32_hex_digits() {
        assert_eq!(StickyKey(0xab).to_string(), format!("{:0>32}", "ab"));
        assert_eq!(StickyKey(u128::MAX).to_string(), "f".repeat(32));
    }
}
