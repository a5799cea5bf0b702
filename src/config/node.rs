//! A file as written: a tree that keeps the text of numbers, and finds the line of any of its
//! nodes again. Everything typed happens in `field`.

mod locate;

use std::fmt;

use serde::Deserialize;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

pub(super) use locate::locate;

/// A value as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, with its text: amounts are read from that and never pass through a float.
    Number { text: String, whole: Option<i128> },
    /// A string.
    Text(String),
    /// A scalar of an environment variable: a string or number or flag, as its key has it.
    Word(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping in the order written; a key may wrongly be there twice.
    Map(Vec<(String, Node)>),
    /// A value that came from this environment variable rather than from the file.
    FromEnv(String, Box<Node>),
}

/// Why a text is not YAML or JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line_and_column: Option<(usize, usize)>,
    pub(super) message: String,
}

/// One step from a node to one inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl Node {
    /// Reads every document of a YAML text. The documents before a syntax error are kept.
    pub(super) fn from_yaml(text: &str) -> (Vec<Node>, Option<SyntaxError>) {
        let mut documents = Vec::new();
        // Two readers in step: the first sees what kind each scalar is, the second its text.
        let readers =
            serde_yaml::Deserializer::from_str(text).zip(serde_yaml::Deserializer::from_str(text));
        for (kinds, texts) in readers {
            let document = Node::deserialize(kinds).and_then(|mut node| {
                if node.has_number() {
                    NumberTexts(&mut node).deserialize(texts)?;
                }
                Ok(node)
            });
            match document {
                Ok(node) => documents.push(node),
                Err(error) => {
                    let error = SyntaxError {
                        line_and_column: error.location().map(|l| (l.line(), l.column())),
                        message: error.to_string(),
                    };
                    return (documents, Some(error));
                }
            }
        }
        (documents, None)
    }

    /// Reads a JSON text.
    pub(super) fn from_json(text: &str) -> Result<Node, SyntaxError> {
        serde_json::from_str(text).map_err(|error| SyntaxError {
            line_and_column: None,
            message: error.to_string(),
        })
    }

    fn has_number(&self) -> bool {
        match self {
            Node::Number { .. } => true,
            Node::List(items) => items.iter().any(Node::has_number),
            Node::Map(entries) => entries.iter().any(|(_, value)| value.has_number()),
            _ => false,
        }
    }

    /// The same as JSON, for fields that are kept as written. A number that JSON cannot hold
    /// becomes its text.
    pub(super) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match self {
            Node::Null => Value::Null,
            Node::Bool(flag) => Value::Bool(*flag),
            Node::Number { text, whole } => match whole {
                Some(n) => {
                    i64::try_from(*n).map_or_else(|_| Value::from(text.as_str()), Value::from)
                }
                None => text
                    .parse()
                    .ok()
                    .and_then(serde_json::Number::from_f64)
                    .map_or_else(|| Value::from(text.as_str()), Value::Number),
            },
            Node::Text(text) | Node::Word(text) => Value::from(text.as_str()),
            Node::List(items) => items.iter().map(Node::to_json).collect(),
            Node::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(key, value)| (key.clone(), value.to_json()))
                    .collect(),
            ),
            Node::FromEnv(_, inner) => inner.to_json(),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

fn whole<E>(value: impl fmt::Display + TryInto<i128>) -> Result<Node, E> {
    Ok(Node::Number {
        text: value.to_string(),
        whole: value.try_into().ok(),
    })
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar, a list or a map")
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        whole(value)
    }
    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        whole(value)
    }
    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        whole(value)
    }
    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        whole(value)
    }
    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Number {
            text: value.to_string(),
            whole: None,
        })
    }
    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(ScalarText)? {
            entries.push((key, map.next_value()?));
        }
        Ok(Node::Map(entries))
    }
    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Node, A::Error> {
        Err(de::Error::custom(
            "YAML tags (`!name`) have no meaning here",
        ))
    }
}

/// The text of a scalar, whatever its kind.
struct ScalarText;

impl<'de> DeserializeSeed<'de> for ScalarText {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for ScalarText {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar")
    }
    fn visit_str<E>(self, value: &str) -> Result<String, E> {
        Ok(value.to_string())
    }
}

/// Second reading: puts the text of every number beside its value.
struct NumberTexts<'a>(&'a mut Node);

impl<'de> DeserializeSeed<'de> for NumberTexts<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.0 {
            Node::Number { text, .. } => *text = ScalarText.deserialize(deserializer)?,
            Node::List(_) => deserializer.deserialize_seq(self)?,
            Node::Map(_) => deserializer.deserialize_map(self)?,
            _ => {
                IgnoredAny::deserialize(deserializer)?;
            }
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for NumberTexts<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the list or map of the first reading")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if let Node::List(items) = self.0 {
            for item in items {
                seq.next_element_seed(NumberTexts(item))?;
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let Node::Map(entries) = self.0 {
            for (_, value) in entries {
                map.next_key::<IgnoredAny>()?;
                map.next_value_seed(NumberTexts(value))?;
            }
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> Node {
        let (mut documents, error) = Node::from_yaml(text);
        assert_eq!(error, None, "{text}");
        assert_eq!(documents.len(), 1, "{text}");
        documents.remove(0)
    }

    #[test]
    fn numbers_keep_their_text() {
        let node = only("[1.10, 0.1000000000000000055511151231257827, 1e-7, 0x10, 7, '1.0', 007]");
        let Node::List(items) = node else { panic!() };
        let texts: Vec<_> = items
            .iter()
            .map(|item| match item {
                Node::Number { text, whole } => (text.as_str(), *whole),
                Node::Text(text) => (text.as_str(), None),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            texts,
            [
                ("1.10", None),
                ("0.1000000000000000055511151231257827", None),
                ("1e-7", None),
                ("0x10", Some(16)),
                ("7", Some(7)),
                ("1.0", None),
                ("007", None),
            ]
        );
    }

    #[test]
    fn every_document_is_read_until_the_first_error() {
        let (documents, error) = Node::from_yaml("a: 1\n---\n# nothing\n---\nb: 2.50\n");
        assert_eq!(error, None);
        assert_eq!(documents.len(), 3);
        assert_eq!(documents[1], Node::Null);
        let (documents, error) = Node::from_yaml("a: 1\n---\nb: [1\nc: 2\n");
        assert_eq!(documents.len(), 1);
        assert_eq!(error.unwrap().line_and_column.unwrap().0, 4);
        let (documents, error) = Node::from_yaml("");
        assert_eq!((documents, error), (vec![Node::Null], None));
        let (_, error) = Node::from_yaml("a: !secret x");
        assert!(error.unwrap().message.contains("tags"));
    }

    #[test]
    fn aliases_and_json_are_read() {
        let node = only("a: &x {n: 1.50}\nb: *x\n");
        let Node::Map(entries) = node else { panic!() };
        assert_eq!(entries[0].1, entries[1].1);
        assert_eq!(entries[0].1.to_json(), serde_json::json!({"n": 1.5}));
        assert_eq!(
            Node::from_json("[1, 0.25, \"x\", null]").unwrap().to_json(),
            serde_json::json!([1, 0.25, "x", null])
        );
        assert!(Node::from_json("[1,").is_err());
    }
}
