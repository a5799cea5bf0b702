//! A map whose keys are known: what is missing, what is too much, what stands in for a default.

use super::Field;
use crate::config::keys;
use crate::config::node::Node;
use crate::config::report::Trail;

/// A map whose keys are known.
pub(in crate::config) struct Table<'a> {
    /// The map itself.
    pub(in crate::config) field: Field<'a>,
    pub(super) entries: &'a [(String, Node)],
}

impl<'a> Table<'a> {
    /// A map with nothing in it, at the place of `field`.
    pub(in crate::config) fn empty(field: Field<'a>) -> Table<'a> {
        Table {
            field,
            entries: &[],
        }
    }

    /// The value of a key, also when it is `null`.
    pub(in crate::config) fn get(&self, key: &'static str) -> Option<Field<'a>> {
        let (_, node) = self.entries.iter().find(|(k, _)| k == key)?;
        let trail = Trail::Key(self.field.trail.clone(), key);
        Some(self.field.child(node, trail))
    }

    /// The value of a key, unless it is `null`.
    pub(in crate::config) fn given(&self, key: &'static str) -> Option<Field<'a>> {
        self.get(key).filter(|field| !field.is_null())
    }

    /// The value of a key that must be there.
    pub(in crate::config) fn required(
        &self,
        key: &'static str,
        expected: &str,
    ) -> Option<Field<'a>> {
        let field = self.given(key);
        if field.is_none() {
            self.field.report.mistake(
                self.field.origin,
                &self.field.trail,
                None,
                None,
                format!("`{key}` is missing"),
                expected.to_string(),
            );
        }
        field
    }

    /// What `read` makes of a key, or the default when it is absent or wrong.
    pub(in crate::config) fn or<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Field<'a>) -> Option<T>,
    ) -> T {
        self.get(key).and_then(|f| read(&f)).unwrap_or(default)
    }

    /// What `read` makes of a key that may be `null`.
    pub(in crate::config) fn or_null<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Field<'a>) -> Option<T>,
    ) -> Option<T> {
        self.given(key).and_then(|f| read(&f))
    }

    pub(super) fn unknown_key(&self, index: usize, known: &[&str]) {
        let (key, node) = &self.entries[index];
        let occurrence = self.entries[..index]
            .iter()
            .filter(|(k, _)| k == key)
            .count();
        let all = format!("known here: {}", known.join(", "));
        let top = matches!(*self.field.trail, Trail::Top);
        let elsewhere = if top {
            keys::elsewhere(key)
        } else {
            Vec::new()
        };
        let expected = match keys::nearest(key, known.iter().copied()) {
            Some(near) => format!("`{near}`, perhaps ({all})"),
            None if !elsewhere.is_empty() && known.contains(&"server") => {
                format!("`{}`, perhaps ({all})", elsewhere.join("` or `"))
            }
            None => format!("another ({all})"),
        };
        let trail = Trail::Key(self.field.trail.clone(), key);
        // Its value is not repeated: under a misspelt name it may be a secret.
        self.field
            .child(node, trail)
            .bad_key(occurrence, "unknown key", expected);
    }
}
