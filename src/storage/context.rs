//! What usage records share: who asked, where it went, how it ended. Each such context is kept once
//! in `usage_contexts`, as it was at the time, and every record names it by id. What stands in a
//! path behind `/responses` is mostly the id of a response, new with every request: it is the
//! record's own, and the paths of its context have `/*` for it.

use std::borrow::Cow;
use std::collections::HashMap;

use super::StorageError;
use super::convert::{from_json, millionths, to_json};
use crate::domain::{Multiplier, PricingMode, UsageRecord};

/// Contexts remembered with their ids; some hundred bytes each. A gateway has about as many at work
/// as it has keys times accounts times models in use; what is forgotten is looked up again.
const REMEMBERED: usize = 8192;
/// Contexts whose key is longer than these bytes are looked up every time: clients choose models
/// and user agents, and what is remembered is bounded in bytes as well.
const LONGEST_KEY: usize = 4096;
/// Sub-paths that say what was asked for, not of which response. They stay in the context.
const WORDS: [&str; 4] = ["/compact", "/input_tokens", "/input_items", "/cancel"];
/// Stands in a path of a context for the record's own sub-path; no route has a path like that.
const OWN: &str = "/*";

/// The part of the paths of `r` that is its own, from its slash on.
pub(super) fn subpath(r: &UsageRecord) -> Option<&str> {
    const RESPONSES: &str = "/responses";
    let at = memchr::memmem::find(r.endpoint.as_bytes(), RESPONSES.as_bytes())?;
    let rest = &r.endpoint[at + RESPONSES.len()..];
    let own = rest.len() > 1 && rest.starts_with('/') && !WORDS.contains(&rest);
    own.then_some(rest)
}

/// A path of a record without its own part: what of it is shared, and what follows that. The
/// provider's path need not have the part.
fn shared_path<'a>(path: &'a str, own: Option<&str>) -> (&'a str, &'static str) {
    match own.and_then(|own| path.strip_suffix(own)) {
        Some(shared) => (shared, OWN),
        None => (path, ""),
    }
}

/// A path of a context with the record's own part.
pub(super) fn whole_path(path: Cow<'_, str>, own: Option<&str>) -> String {
    match (path.strip_suffix(OWN), own) {
        (Some(shared), Some(own)) => format!("{shared}{own}"),
        _ => path.into_owned(),
    }
}

/// The part of a record that repeats, as its JSON in the database has it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Context<'a> {
    pub(super) user_id: i64,
    pub(super) user: Cow<'a, str>,
    pub(super) api_key_id: i64,
    pub(super) api_key: Cow<'a, str>,
    pub(super) group_id: i64,
    pub(super) group: Cow<'a, str>,
    pub(super) fallback_from_group: Option<Cow<'a, str>>,
    pub(super) account_id: i64,
    pub(super) account: Cow<'a, str>,
    pub(super) platform: Cow<'a, str>,
    pub(super) endpoint: Cow<'a, str>,
    pub(super) upstream_endpoint: Cow<'a, str>,
    pub(super) requested_model: Cow<'a, str>,
    pub(super) model: Cow<'a, str>,
    pub(super) upstream_model: Cow<'a, str>,
    pub(super) model_mapping_chain: Option<Cow<'a, str>>,
    pub(super) stream: bool,
    pub(super) status: u16,
    pub(super) outcome: Cow<'a, str>,
    pub(super) rate_multiplier_millionths: i64,
    pub(super) billing_type: Cow<'a, str>,
    pub(super) service_tier: Option<Cow<'a, str>>,
    pub(super) reasoning_effort: Option<Cow<'a, str>>,
    pub(super) attempts: u32,
    pub(super) account_switches: u32,
    pub(super) usage_source: Cow<'a, str>,
    pub(super) client_disconnected: bool,
    pub(super) user_agent: Option<Cow<'a, str>>,
    // What follows is not in contexts of earlier versions. It is left out where it says what those
    // meant, so that their texts and ours stay the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) channel: Option<Cow<'a, str>>,
    #[serde(default = "by_token", skip_serializing_if = "is_by_token")]
    pub(super) billing_mode: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) billing_tier: Option<Cow<'a, str>>,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub(super) priced: bool,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(super) account_rate_multiplier_millionths: i64,
}

fn by_token<'a>() -> Cow<'a, str> {
    Cow::Borrowed(PricingMode::Token.as_str())
}

fn is_by_token(mode: &str) -> bool {
    mode == PricingMode::Token.as_str()
}

const fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
const fn is_yes(priced: &bool) -> bool {
    *priced
}

fn one() -> i64 {
    millionths(Multiplier::ONE)
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_one(multiplier: &i64) -> bool {
    *multiplier == one()
}

impl<'a> Context<'a> {
    /// The context of a record.
    pub(super) fn of(r: &'a UsageRecord) -> Context<'a> {
        fn optional(text: &Option<String>) -> Option<Cow<'_, str>> {
            text.as_deref().map(Cow::Borrowed)
        }
        let own = subpath(r);
        let path = |path| match shared_path(path, own) {
            (path, "") => Cow::Borrowed(path),
            (path, end) => Cow::Owned(format!("{path}{end}")),
        };
        Context {
            user_id: r.user_id.0,
            user: Cow::Borrowed(&r.user),
            api_key_id: r.api_key_id.0,
            api_key: Cow::Borrowed(&r.api_key),
            group_id: r.group_id.0,
            group: Cow::Borrowed(&r.group),
            fallback_from_group: optional(&r.fallback_from_group),
            account_id: r.account_id.0,
            account: Cow::Borrowed(&r.account),
            platform: Cow::Borrowed(r.platform.as_str()),
            endpoint: path(&r.endpoint),
            upstream_endpoint: path(&r.upstream_endpoint),
            requested_model: Cow::Borrowed(&r.requested_model),
            model: Cow::Borrowed(&r.model),
            upstream_model: Cow::Borrowed(&r.upstream_model),
            model_mapping_chain: optional(&r.model_mapping_chain),
            stream: r.stream,
            status: r.status,
            outcome: Cow::Borrowed(r.outcome.as_str()),
            rate_multiplier_millionths: millionths(r.rate_multiplier),
            billing_type: Cow::Borrowed(r.billing_type.as_str()),
            service_tier: optional(&r.service_tier),
            reasoning_effort: optional(&r.reasoning_effort),
            attempts: r.attempts,
            account_switches: r.account_switches,
            usage_source: Cow::Borrowed(r.usage_source.as_str()),
            client_disconnected: r.client_disconnected,
            user_agent: optional(&r.user_agent),
            channel: optional(&r.channel),
            billing_mode: Cow::Borrowed(r.billing_mode.as_str()),
            billing_tier: optional(&r.billing_tier),
            priced: r.priced,
            account_rate_multiplier_millionths: millionths(r.account_rate_multiplier),
        }
    }

    /// As it is stored; equal contexts have equal texts.
    pub(super) fn to_json(&self) -> Result<String, StorageError> {
        to_json(self)
    }

    /// From what is stored.
    pub(super) fn from_json(text: &str) -> Result<Context<'static>, StorageError> {
        from_json(text)
    }
}

/// Writes what tells the context of `r` from any other to `key`, after emptying it. Much cheaper
/// than the JSON, and done for every record.
pub(super) fn key(r: &UsageRecord, key: &mut Vec<u8>) {
    fn text(key: &mut Vec<u8>, text: &str) {
        key.extend_from_slice(&(text.len() as u64).to_le_bytes());
        key.extend_from_slice(text.as_bytes());
    }
    fn optional(key: &mut Vec<u8>, value: &Option<String>) {
        match value {
            Some(value) => text(key, value),
            // No text is that long.
            None => key.extend_from_slice(&u64::MAX.to_le_bytes()),
        }
    }
    key.clear();
    for number in [
        r.user_id.0,
        r.api_key_id.0,
        r.group_id.0,
        r.account_id.0,
        millionths(r.rate_multiplier),
        millionths(r.account_rate_multiplier),
    ] {
        key.extend_from_slice(&number.to_le_bytes());
    }
    for number in [r.attempts, r.account_switches] {
        key.extend_from_slice(&number.to_le_bytes());
    }
    key.extend_from_slice(&r.status.to_le_bytes());
    key.extend_from_slice(&[
        u8::from(r.stream),
        u8::from(r.client_disconnected),
        r.outcome as u8,
        r.billing_type as u8,
        r.usage_source as u8,
        r.platform as u8,
        r.billing_mode as u8,
        u8::from(r.priced),
    ]);
    for value in [
        &r.user,
        &r.api_key,
        &r.group,
        &r.account,
        &r.requested_model,
        &r.model,
        &r.upstream_model,
    ] {
        text(key, value);
    }
    let own = subpath(r);
    for path in [&r.endpoint, &r.upstream_endpoint] {
        let (path, end) = shared_path(path, own);
        key.extend_from_slice(&((path.len() + end.len()) as u64).to_le_bytes());
        key.extend_from_slice(path.as_bytes());
        key.extend_from_slice(end.as_bytes());
    }
    for value in [
        &r.fallback_from_group,
        &r.model_mapping_chain,
        &r.service_tier,
        &r.reasoning_effort,
        &r.user_agent,
        &r.channel,
        &r.billing_tier,
    ] {
        optional(key, value);
    }
}

/// The ids of contexts that are in the database for good, by [`key`].
#[derive(Debug, Default)]
pub(super) struct KnownContexts {
    ids: HashMap<Box<[u8]>, i64>,
}

impl KnownContexts {
    /// The id of the context with this key, if it is remembered.
    pub(super) fn get(&self, key: &[u8]) -> Option<i64> {
        self.ids.get(key).copied()
    }

    /// Remembers contexts whose transaction is committed, but for those with a long key.
    pub(super) fn extend(&mut self, mut committed: HashMap<Box<[u8]>, i64>) {
        committed.retain(|key, _| key.len() <= LONGEST_KEY);
        if self.ids.len() + committed.len() > REMEMBERED {
            self.ids.clear();
        }
        self.ids.extend(committed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{BillingType, Outcome, Platform, UsageSource};
    use crate::storage::tests::record;

    /// Two records get one id exactly when they would be stored with the same JSON.
    #[test]
    fn the_key_tells_apart_what_the_json_tells_apart() {
        let changes: [fn(&mut UsageRecord); 47] = [
            |_| {},
            |r| r.user_id.0 = 9,
            |r| r.user.push('x'),
            |r| r.api_key_id.0 = 9,
            |r| r.api_key.push('x'),
            |r| r.group_id.0 = 9,
            |r| r.group.push('x'),
            |r| r.fallback_from_group = None,
            |r| r.fallback_from_group = Some(String::new()),
            |r| r.account_id.0 = 9,
            |r| r.account.push('x'),
            |r| r.platform = Platform::Anthropic,
            |r| r.endpoint.push('x'),
            |r| r.upstream_endpoint.push('x'),
            |r| r.requested_model.push('x'),
            |r| r.model.push('x'),
            |r| r.upstream_model.push('x'),
            |r| r.model_mapping_chain = None,
            |r| r.stream = !r.stream,
            |r| r.status = 201,
            |r| r.outcome = Outcome::ClientGone,
            |r| r.rate_multiplier.0 += 1,
            |r| r.billing_type = BillingType::None,
            |r| r.service_tier = None,
            |r| r.reasoning_effort = None,
            |r| r.attempts += 1,
            |r| r.account_switches += 1,
            |r| r.usage_source = UsageSource::Estimated,
            |r| r.client_disconnected = !r.client_disconnected,
            |r| r.user_agent = None,
            |r| r.channel = Some("c".to_owned()),
            |r| r.billing_tier = Some("c".to_owned()),
            |r| r.billing_mode = PricingMode::Image,
            |r| r.billing_mode = PricingMode::PerRequest,
            |r| r.priced = false,
            |r| r.account_rate_multiplier.0 += 1,
            // A name that looks like two.
            |r| {
                r.user = "alic".to_owned();
                r.api_key = "ealice-laptop".to_owned();
            },
            // What a record has for itself is no part of it.
            |r| r.request_id.push('x'),
            |r| r.ip = None,
            |r| r.tokens.input += 1,
            |r| r.charge.0 += 1,
            |r| r.duration_ms += 1,
            // Three with ids of their own share a context; one has it for the provider only.
            |r| {
                r.endpoint += "/resp_1";
                r.upstream_endpoint += "/resp_1";
            },
            |r| {
                r.endpoint += "/resp_2/cancel";
                r.upstream_endpoint += "/resp_2/cancel";
            },
            |r| {
                r.endpoint += "/*";
                r.upstream_endpoint += "/*";
            },
            |r| r.endpoint += "/resp_1",
            |r| {
                r.endpoint += "/compact";
                r.upstream_endpoint += "/compact";
            },
        ];
        let records: Vec<UsageRecord> = changes
            .iter()
            .map(|change| {
                let mut record = record("r-1", "1");
                change(&mut record);
                record
            })
            .collect();
        let described: Vec<(Vec<u8>, String)> = records
            .iter()
            .map(|record| {
                let mut bytes = b"left over".to_vec();
                key(record, &mut bytes);
                (bytes, Context::of(record).to_json().unwrap())
            })
            .collect();
        for (one, other) in described
            .iter()
            .flat_map(|d| described.iter().map(move |e| (d, e)))
        {
            assert_eq!(one.0 == other.0, one.1 == other.1, "{} {}", one.1, other.1);
        }
        let distinct: std::collections::HashSet<&String> =
            described.iter().map(|(_, json)| json).collect();
        assert_eq!(distinct.len(), 40);
        let text = &described[0].1;
        assert_eq!(&Context::from_json(text).unwrap().to_json().unwrap(), text);
    }

    #[test]
    fn paths_come_back_whole() {
        for (endpoint, upstream, own, shared) in [
            ("/v1/responses", "/responses", None, "/responses"),
            ("/v1/responses/", "/responses", None, "/responses"),
            ("/v1/responsesfoo/x", "/x", None, "/x"),
            ("/v1/models", "/v1/models", None, "/v1/models"),
            (
                "/v1/responses/compact",
                "/v1/responses/compact",
                None,
                "/v1/responses/compact",
            ),
            ("/v1/responses/cancel", "/cancel", None, "/cancel"),
            (
                "/v1/responses/r_1",
                "/api/responses/r_1",
                Some("/r_1"),
                "/api/responses/*",
            ),
            (
                "/v1/responses/r_1/cancel",
                "/r/cancel",
                Some("/r_1/cancel"),
                "/r/cancel",
            ),
            (
                "/v1/responses/compact/r_1",
                "/x/compact/r_1",
                Some("/compact/r_1"),
                "/x/*",
            ),
            (
                "/v1/responses/responses/r",
                "/responses/r",
                Some("/responses/r"),
                "/*",
            ),
            ("/v1/responses/r_1", "", Some("/r_1"), ""),
        ] {
            let mut record = record("r-1", "1");
            record.endpoint = endpoint.to_owned();
            record.upstream_endpoint = upstream.to_owned();
            let own_part = subpath(&record);
            assert_eq!(own_part, own, "{endpoint}");
            let context = Context::of(&record);
            assert_eq!(context.upstream_endpoint, shared, "{endpoint}");
            assert_eq!(whole_path(context.endpoint, own_part), endpoint);
            assert_eq!(whole_path(context.upstream_endpoint, own_part), upstream);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut known = KnownContexts::default();
        for number in 0..3 * REMEMBERED as i64 {
            let key: Box<[u8]> = number.to_le_bytes().into();
            known.extend(HashMap::from([(key.clone(), number)]));
            assert_eq!(known.get(&key), Some(number));
        }
        assert!(known.ids.len() <= REMEMBERED);
        for (length, kept) in [(LONGEST_KEY, true), (LONGEST_KEY + 1, false)] {
            let key: Box<[u8]> = vec![b'x'; length].into();
            known.extend(HashMap::from([(key.clone(), 1)]));
            assert_eq!(known.get(&key).is_some(), kept, "{length}");
        }
    }
}
