//! What a group says of who may use it, where its requests go on to, and which of its accounts take which models:
//! its options, with names resolved.

use std::collections::HashMap;

use serde_json::{Map, Value};
use tollgate_filters::client::Version;

use crate::domain::{AccountId, GroupId};

/// See [`GroupRules::claude_code_only`].
pub const CLAUDE_CODE_ONLY: &str = "claude_code_only";
/// See [`GroupRules::fallback`].
pub const FALLBACK_GROUP: &str = "fallback_group";
/// See [`GroupRules::min_client_version`].
pub const MIN_CLIENT_VERSION: &str = "min_client_version";
/// See [`GroupRules::max_client_version`].
pub const MAX_CLIENT_VERSION: &str = "max_client_version";
/// See [`GroupRules::fallback_on_invalid_request`].
pub const FALLBACK_GROUP_ON_INVALID_REQUEST: &str = "fallback_group_on_invalid_request";
/// See [`GroupRules::routing`].
pub const MODEL_ROUTING: &str = "model_routing";
/// See [`GroupRules::forced_cache_billing`].
pub const FORCED_CACHE_BILLING: &str = "forced_cache_billing";

/// The rules of one group. What is not written, or names what is not there, is as good as not given: resources are
/// checked when they are applied.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct GroupRules {
    /// Only Claude Code is served here.
    pub claude_code_only: bool,
    /// The group that serves everybody else.
    pub fallback: Option<GroupId>,
    /// The oldest Claude Code that is served.
    pub min_client_version: Option<Version>,
    /// The newest Claude Code that is served.
    pub max_client_version: Option<Version>,
    /// The group that takes requests whose prompt is too long here.
    pub fallback_on_invalid_request: Option<GroupId>,
    /// Models and the accounts that serve them first: exact, or with a `*` at the end.
    pub routing: Vec<(String, Vec<AccountId>)>,
    /// The prompt of a conversation that had to leave its account is charged as if it had been read from the cache
    /// (SPEC 4.9).
    pub forced_cache_billing: bool,
}

impl GroupRules {
    /// Reads the options of a group.
    pub fn new(
        options: &Map<String, Value>,
        groups: &HashMap<&str, GroupId>,
        accounts: &HashMap<&str, AccountId>,
    ) -> GroupRules {
        let flag = |name: &str| options.get(name).is_some_and(|on| on == true);
        let text = |name: &str| options.get(name).and_then(Value::as_str);
        let group = |name: &str| text(name).and_then(|group| groups.get(group).copied());
        let version = |name: &str| text(name).and_then(|version| version.parse().ok());
        let routing = options.get(MODEL_ROUTING).and_then(Value::as_object);
        let route = |(pattern, names): (&String, &Value)| {
            let names = names.as_array().into_iter().flatten();
            let named = names.filter_map(Value::as_str);
            let ids = named.filter_map(|name| accounts.get(name).copied());
            (pattern.clone(), ids.collect())
        };
        GroupRules {
            claude_code_only: flag(CLAUDE_CODE_ONLY),
            fallback: group(FALLBACK_GROUP),
            min_client_version: version(MIN_CLIENT_VERSION),
            max_client_version: version(MAX_CLIENT_VERSION),
            fallback_on_invalid_request: group(FALLBACK_GROUP_ON_INVALID_REQUEST),
            routing: routing.into_iter().flatten().map(route).collect(),
            forced_cache_billing: flag(FORCED_CACHE_BILLING),
        }
    }

    /// The accounts that are asked first for `model`, with the pattern that says so: an exact one first, then the one
    /// with the longest beginning.
    pub fn route(&self, model: &str) -> Option<(&str, &[AccountId])> {
        let routes = || self.routing.iter();
        let exact = routes().find(|(pattern, _)| pattern == model);
        let longest = || {
            let begins = |pattern: &str| {
                let prefix = pattern.strip_suffix('*');
                prefix.is_some_and(|prefix| model.starts_with(prefix))
            };
            routes()
                .filter(|(pattern, _)| begins(pattern))
                .max_by_key(|(pattern, _)| pattern.len())
        };
        let (pattern, accounts) = exact.or_else(longest)?;
        Some((pattern, accounts))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_exact_route_comes_before_the_longest_beginning() {
        let route = |pattern: &str, id| (pattern.to_owned(), vec![AccountId(id)]);
        let rules = |routing| GroupRules {
            routing,
            ..GroupRules::default()
        };
        let some = rules(vec![
            route("claude-*", 1),
            route("claude-opus-*", 2),
            route("claude-opus-5", 3),
            route("claude-o*", 4),
        ]);
        let all = rules(vec![route("*", 5), route("a*", 6)]);
        for (rules, model, expected) in [
            (&some, "claude-opus-5", Some(("claude-opus-5", 3))),
            (&some, "claude-opus-5-1", Some(("claude-opus-*", 2))),
            (&some, "claude-opus-", Some(("claude-opus-*", 2))),
            (&some, "claude-opus", Some(("claude-o*", 4))),
            (&some, "claude-haiku-5", Some(("claude-*", 1))),
            (&some, "Claude-haiku-5", None),
            (&some, "gpt-5", None),
            (&some, "", None),
            (&all, "", Some(("*", 5))),
            (&all, "b", Some(("*", 5))),
            (&all, "ab", Some(("a*", 6))),
        ] {
            let got = rules
                .route(model)
                .map(|(pattern, ids)| (pattern, ids.to_vec()));
            let expected = expected.map(|(pattern, id)| (pattern, vec![AccountId(id)]));
            assert_eq!(got, expected, "{model}");
        }
    }

    #[test]
    fn options_make_the_rules() {
        let groups = HashMap::from([("g", GroupId(1)), ("h", GroupId(2))]);
        let accounts = HashMap::from([("a", AccountId(7)), ("b", AccountId(8))]);
        let read =
            |options: Value| GroupRules::new(options.as_object().unwrap(), &groups, &accounts);
        assert_eq!(read(json!({})), GroupRules::default());
        let all = read(json!({
            "claude_code_only": true, "fallback_group": "g", "min_client_version": "1.2.3",
            "max_client_version": "2.0.0", "fallback_group_on_invalid_request": "h",
            "model_routing": {"opus*": ["b", "gone", "a"]}, "forced_cache_billing": true,
        }));
        let wanted = GroupRules {
            claude_code_only: true,
            fallback: Some(GroupId(1)),
            min_client_version: "1.2.3".parse().ok(),
            max_client_version: "2.0.0".parse().ok(),
            fallback_on_invalid_request: Some(GroupId(2)),
            routing: vec![("opus*".to_owned(), vec![AccountId(8), AccountId(7)])],
            forced_cache_billing: true,
        };
        assert_eq!(all, wanted);
        let unread =
            json!({"fallback_group": "gone", "min_client_version": "1.2", "model_routing": []});
        assert_eq!(read(unread), GroupRules::default());
    }
}
