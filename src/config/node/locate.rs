//! Finds the line of a node again, when there is something to say about it.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Step;

/// Line and column (from 1) of the node at the end of `steps` in the given document, or of its key
/// when `key_occurrence` says which of several equal keys is meant (0 = the first).
///
/// The reader walks down to the node and raises an error there: that error carries the position.
pub(in crate::config) fn locate(
    text: &str,
    document: usize,
    steps: &[Step],
    key_occurrence: Option<usize>,
) -> Option<(usize, usize)> {
    let reader = serde_yaml::Deserializer::from_str(text).nth(document)?;
    let error = Locate {
        steps,
        key_occurrence,
    }
    .deserialize(reader)
    .err()?;
    error.location().map(|l| (l.line(), l.column()))
}

/// Walks down `steps` and fails at their end.
struct Locate<'a> {
    steps: &'a [Step],
    key_occurrence: Option<usize>,
}

/// The error whose position is what [`locate`] wants; nobody reads its text.
fn here<T, E: de::Error>() -> Result<T, E> {
    Err(E::custom("here"))
}

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the node looked for")
    }
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        here()
    }
    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        here()
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Step::Index(index), rest)) = self.steps.split_first() else {
            return here();
        };
        for _ in 0..*index {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element_seed(Locate {
            steps: rest,
            key_occurrence: self.key_occurrence,
        })?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(wanted), rest)) = self.steps.split_first() else {
            return here();
        };
        let mut wanted_key = WantedKey {
            wanted,
            fail_at: self.key_occurrence.filter(|_| rest.is_empty()),
        };
        while let Some(found) = map.next_key_seed(&mut wanted_key)? {
            if found && wanted_key.fail_at.is_none() {
                map.next_value_seed(Locate {
                    steps: rest,
                    key_occurrence: self.key_occurrence,
                })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Whether a key is the wanted one; fails at the occurrence that is looked for.
struct WantedKey<'a> {
    wanted: &'a str,
    fail_at: Option<usize>,
}

impl<'de> DeserializeSeed<'de> for &mut WantedKey<'_> {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for &mut WantedKey<'_> {
    type Value = bool;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        if key != self.wanted {
            return Ok(false);
        }
        match &mut self.fail_at {
            Some(0) => here(),
            Some(left) => {
                *left -= 1;
                Ok(true)
            }
            None => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_node_and_key_is_found_again() {
        let text = "a: 1\nb:\n  - x\n  - c: {d: 5}\n    e: null\nb: 2\n---\nz: true\n";
        let key = |k: &str| Step::Key(k.into());
        for (document, steps, occurrence, want) in [
            (0, vec![], None, Some((1, 1))),
            (0, vec![key("a")], None, Some((1, 4))),
            (0, vec![key("a")], Some(0), Some((1, 1))),
            (0, vec![key("b"), Step::Index(0)], None, Some((3, 5))),
            (
                0,
                vec![key("b"), Step::Index(1), key("c"), key("d")],
                None,
                Some((4, 12)),
            ),
            (
                0,
                vec![key("b"), Step::Index(1), key("e")],
                None,
                Some((5, 8)),
            ),
            (0, vec![key("b")], Some(1), Some((6, 1))),
            (1, vec![key("z")], None, Some((8, 4))),
            (0, vec![key("nothing")], None, None),
            (7, vec![], None, None),
        ] {
            assert_eq!(
                locate(text, document, &steps, occurrence),
                want,
                "{document} {steps:?} {occurrence:?}"
            );
        }
    }
}
