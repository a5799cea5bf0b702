//! Model mappings: exact names, or a prefix with a trailing `*`.

use std::collections::BTreeMap;

/// A model mapping as the resources write it: exact or trailing-`*` keys to model names.
/// An empty mapping stands for "every model, under its own name".
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
#[serde(transparent)]
pub struct ModelMapping(BTreeMap<String, String>);

impl ModelMapping {
    /// A mapping of these pairs. Keys are checked by the caller (`*` only at the end).
    pub fn new(pairs: BTreeMap<String, String>) -> ModelMapping {
        ModelMapping(pairs)
    }

    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rules, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// What `model` maps to: an exact key first, then the longest matching prefix. `None` when no
    /// rule matches (SPEC 6.2, Change 14).
    pub fn lookup(&self, model: &str) -> Option<&str> {
        if let Some(exact) = self.0.get(model) {
            return Some(exact);
        }
        self.0
            .iter()
            .filter(|(key, _)| {
                key.strip_suffix('*')
                    .is_some_and(|prefix| model.starts_with(prefix))
            })
            .max_by_key(|(key, _)| key.len())
            .map(|(_, value)| value.as_str())
    }

    /// Whether an account with this mapping takes `model`.
    pub fn supports(&self, model: &str) -> bool {
        self.is_empty() || self.lookup(model).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
