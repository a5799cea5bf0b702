//! Model mappings: exact names, or a prefix with a trailing `*`.

use std::collections::BTreeMap;

/// A model mapping as the resources write it: exact or trailing-`*` keys to model names.
/// An empty mapping stands for "every model, under its own name".
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
#[serde(transparent)]
pub struct ModelMapping {
    rules: BTreeMap<String, String>,
    /// The keys that end in `*`, without it, with what they map to.
    #[serde(skip)]
    wildcards: Prefixes<Box<str>>,
}

impl ModelMapping {
    /// A mapping of these pairs. Keys are checked by the caller (`*` only at the end).
    pub fn new(rules: BTreeMap<String, String>) -> ModelMapping {
        let wildcards = Prefixes::new(rules.iter().filter_map(|(key, value)| {
            let prefix = key.strip_suffix('*')?;
            Some((prefix.into(), value.as_str().into()))
        }));
        ModelMapping { rules, wildcards }
    }

    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rules.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// What `model` maps to: an exact key first, then the longest matching prefix. `None` when no
    /// rule matches (SPEC 6.2, Change 14).
    pub fn lookup(&self, model: &str) -> Option<&str> {
        match self.rules.get(model) {
            Some(exact) => Some(exact),
            None => self.wildcards.longest(model).map(|(_, value)| &**value),
        }
    }

    /// Whether an account with this mapping takes `model`.
    pub fn supports(&self, model: &str) -> bool {
        self.is_empty() || self.lookup(model).is_some()
    }
}

/// Values by prefix, found by the longest prefix of a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prefixes<T>(Box<[(Box<str>, T)]>);

impl<T> Default for Prefixes<T> {
    fn default() -> Prefixes<T> {
        Prefixes(Box::default())
    }
}

impl<T> Prefixes<T> {
    /// Of these pairs. Each prefix is given once.
    pub fn new(pairs: impl Iterator<Item = (Box<str>, T)>) -> Prefixes<T> {
        let mut sorted: Box<[_]> = pairs.collect();
        sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
        Prefixes(sorted)
    }

    /// The longest of the prefixes that `name` begins with. A few binary searches, however many
    /// prefixes there are.
    pub fn longest(&self, name: &str) -> Option<(&str, &T)> {
        let mut known = name.as_bytes();
        let mut left = &self.0[..];
        loop {
            // Every prefix of `name` is at most `name`, and a longer one is greater: the greatest
            // that is at most `name` is the one, or shows how long the one can be.
            left = &left[..left.partition_point(|(prefix, _)| prefix.as_bytes() <= known)];
            let (prefix, value) = left.last()?;
            let shared = prefix
                .bytes()
                .zip(known)
                .take_while(|(a, b)| a == *b)
                .count();
            if shared == prefix.len() {
                return Some((prefix, value));
            }
            known = &known[..shared];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_longest_prefix_is_what_a_plain_search_finds(
            prefixes in proptest::collection::btree_set("[ab\u{e9}]{0,4}", 0..12),
            name in "[ab\u{e9}]{0,6}",
        ) {
            let found = Prefixes::new(prefixes.iter().map(|p| (p.as_str().into(), ())));
            let plain = prefixes.iter().filter(|p| name.starts_with(p.as_str())).max_by_key(|p| p.len());
            prop_assert_eq!(found.longest(&name).map(|(p, ())| p), plain.map(String::as_str));
        }
    }

    fn mapping(pairs: &[(&str, &str)]) -> ModelMapping {
        ModelMapping::new(
            pairs
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
        )
    }

    #[test]
    fn exact_before_the_longest_prefix() {
        let m = mapping(&[("gpt-5", "a"), ("gpt-*", "b"), ("gpt-5*", "c"), ("*", "d")]);
        assert_eq!(m.lookup("gpt-5"), Some("a"));
        assert_eq!(m.lookup("gpt-5-mini"), Some("c"));
        assert_eq!(m.lookup("gpt-4o"), Some("b"));
        assert_eq!(m.lookup("o3"), Some("d"));
    }

    #[test]
    fn an_empty_mapping_supports_everything_and_maps_nothing() {
        let m = mapping(&[]);
        assert!(m.supports("anything"));
        assert_eq!(m.lookup("anything"), None);
        assert!(!mapping(&[("a", "b")]).supports("c"));
    }
}
