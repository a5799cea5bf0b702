//! Typed reading of what was written. Every reader returns `None` after noting what is wrong, so
//! that checking goes on and all mistakes come out at once.

mod table;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;

use chrono::{DateTime, Utc};

pub(super) use table::Table;

use super::keys;
use super::node::Node;
use super::report::{Origin, Report, Trail};
use crate::domain::money::DecimalError;
use crate::domain::text::{NAME_RULE, is_name};

/// Longest piece of a value that a message repeats, in characters.
const MAX_SHOWN_CHARS: usize = 80;

/// A value and where it stands.
#[derive(Clone)]
pub(super) struct Field<'a> {
    node: &'a Node,
    trail: Rc<Trail<'a>>,
    origin: Origin<'a>,
    report: &'a Report<'a>,
    /// Never repeat it in a message.
    hidden: bool,
}

/// A text cut to what a message may repeat.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

impl<'a> Field<'a> {
    /// The top of a document.
    pub(super) fn top(node: &'a Node, origin: Origin<'a>, report: &'a Report<'a>) -> Field<'a> {
        Field::at(node, Rc::new(Trail::Top), origin, report, false)
    }

    fn at(
        node: &'a Node,
        trail: Rc<Trail<'a>>,
        mut origin: Origin<'a>,
        report: &'a Report<'a>,
        hidden: bool,
    ) -> Field<'a> {
        let node = match node {
            Node::FromEnv(variable, inner) => {
                origin.env = Some(variable);
                inner
            }
            node => node,
        };
        Field {
            node,
            trail,
            origin,
            report,
            hidden,
        }
    }

    fn child(&self, node: &'a Node, trail: Trail<'a>) -> Field<'a> {
        Field::at(node, Rc::new(trail), self.origin, self.report, self.hidden)
    }

    /// The same, but messages never repeat the value.
    pub(super) fn secretly(mut self) -> Field<'a> {
        self.hidden = true;
        self
    }

    /// Notes a mistake in this value.
    pub(super) fn bad(&self, problem: impl Into<String>, expected: impl Into<String>) {
        let value = (!self.hidden).then(|| self.shown());
        self.report.mistake(
            self.origin,
            &self.trail,
            None,
            value,
            problem.into(),
            expected.into(),
        );
    }

    /// Notes something worth saying that is not a mistake.
    pub(super) fn warn(&self, text: impl Into<String>) {
        self.report.warning(self.origin, &self.trail, text.into());
    }

    fn shown(&self) -> String {
        match self.node {
            Node::Null => "null".to_string(),
            Node::Bool(flag) => flag.to_string(),
            Node::Number { text, .. } | Node::Text(text) | Node::Word(text) => shorten(text),
            Node::List(items) => format!("a list of {}", items.len()),
            Node::Map(entries) => format!("a map of {}", entries.len()),
            Node::FromEnv(..) => String::new(),
        }
    }

    /// The environment secrets are taken from.
    pub(super) fn env(&self, name: &str) -> Option<&'a str> {
        self.report.env.get(name).map(String::as_str)
    }

    /// A path as written made absolute: relative ones are relative to the file's folder.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        let joined = self.report.base(self.origin).join(path);
        // Only an empty path fails, and `joined` has the base in it.
        std::path::absolute(&joined).unwrap_or(joined)
    }

    /// Where it stands, short: the path, and the file when that is another than `other`'s.
    pub(super) fn place_seen_from(&self, other: &Field<'_>) -> String {
        let path = self.trail.path();
        if self.origin.input == other.origin.input {
            path
        } else {
            format!("{} {path}", self.report.input_name(self.origin))
        }
    }

    pub(super) fn is_null(&self) -> bool {
        *self.node == Node::Null
    }

    /// Whether there is nothing in it: `null`, `[]` or `{}`.
    pub(super) fn is_empty(&self) -> bool {
        match self.node {
            Node::Null => true,
            Node::List(items) => items.is_empty(),
            Node::Map(entries) => entries.is_empty(),
            _ => false,
        }
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.node, Node::Map(_))
    }

    /// The value as JSON, for what is kept as written.
    pub(super) fn json(&self) -> serde_json::Value {
        self.node.to_json()
    }

    /// The value as JSON, but a number as its text: for what is read exactly afterwards.
    pub(super) fn json_with_number_texts(&self) -> serde_json::Value {
        match self.node {
            Node::Number { text, .. } => text.as_str().into(),
            node => node.to_json(),
        }
    }

    /// A map that may have these keys; any other is a mistake.
    pub(super) fn table(&self, known: &[&str]) -> Option<Table<'a>> {
        let Node::Map(entries) = self.node else {
            self.bad(
                "not a map",
                format!("a map with some of the keys {}", known.join(", ")),
            );
            return None;
        };
        self.no_other_keys(known, |_| false);
        self.no_key_twice(entries);
        Some(Table {
            field: self.clone(),
            entries,
        })
    }

    /// Every key of a map that is neither among these nor `also` known is a mistake.
    pub(super) fn no_other_keys(&self, known: &[&str], also: impl Fn(&str) -> bool) {
        let Node::Map(entries) = self.node else {
            return;
        };
        let table = Table {
            field: self.clone(),
            entries,
        };
        for (i, (key, _)) in entries.iter().enumerate() {
            if !known.contains(&key.as_str()) && !also(key) {
                table.unknown_key(i, known);
            }
        }
    }

    /// A map with any keys, in the order written.
    pub(super) fn pairs(&self, of_what: &str) -> Option<Vec<(&'a str, Field<'a>)>> {
        match self.node {
            Node::Null => Some(Vec::new()),
            Node::Map(entries) => {
                self.no_key_twice(entries);
                let pair = |(key, node): &'a (String, Node)| {
                    let trail = Trail::Key(self.trail.clone(), key);
                    (key.as_str(), self.child(node, trail))
                };
                Some(entries.iter().map(pair).collect())
            }
            _ => {
                self.bad("not a map", format!("a map of {of_what}"));
                None
            }
        }
    }

    fn no_key_twice(&self, entries: &'a [(String, Node)]) {
        let mut seen = std::collections::HashSet::new();
        for (i, (key, node)) in entries.iter().enumerate() {
            if !seen.insert(key) {
                let occurrence = entries[..i].iter().filter(|(k, _)| k == key).count();
                let twice = self.child(node, Trail::Key(self.trail.clone(), key));
                twice.bad_key(occurrence, "this key is written twice", "it once");
            }
        }
    }

    fn bad_key(&self, occurrence: usize, problem: &str, expected: impl Into<String>) {
        self.report.mistake(
            self.origin,
            &self.trail,
            Some(occurrence),
            None,
            problem.to_string(),
            expected.into(),
        );
    }

    /// The entries of a list.
    pub(super) fn items(&self, of_what: &str) -> Option<Vec<Field<'a>>> {
        match self.node {
            Node::Null => Some(Vec::new()),
            Node::List(items) => Some(
                items
                    .iter()
                    .enumerate()
                    .map(|(i, node)| {
                        self.child(node, Trail::Item(self.trail.clone(), i, name_in(node)))
                    })
                    .collect(),
            ),
            _ => {
                self.bad("not a list", format!("a list of {of_what}"));
                None
            }
        }
    }

    /// The entries of a list, or a single value that stands for a list of one.
    pub(super) fn items_or_one(&self, of_what: &str) -> Option<Vec<Field<'a>>> {
        match self.node {
            Node::Text(_) | Node::Word(_) => Some(vec![self.clone()]),
            _ => self.items(of_what),
        }
    }

    /// A text. Numbers are taken as their text: a name may be `4711`.
    pub(super) fn text(&self, expected: &str) -> Option<&'a str> {
        match self.node {
            Node::Text(text) | Node::Word(text) | Node::Number { text, .. } => Some(text),
            Node::Bool(_) => {
                self.bad(
                    "YAML reads this as a flag",
                    format!("{expected}, in quotes"),
                );
                None
            }
            _ => {
                self.bad("not a text", expected);
                None
            }
        }
    }

    /// Whether it is this text.
    pub(super) fn is_text(&self, wanted: &str) -> bool {
        matches!(self.node, Node::Text(text) | Node::Word(text) | Node::Number { text, .. } if text == wanted)
    }

    /// `true` or `false`.
    pub(super) fn flag(&self) -> Option<bool> {
        match self.node {
            Node::Bool(flag) => Some(*flag),
            Node::Word(word) if word == "true" => Some(true),
            Node::Word(word) if word == "false" => Some(false),
            _ => {
                self.bad("not a flag", "true or false");
                None
            }
        }
    }

    /// A whole number within bounds; `expected` names them and what they mean.
    pub(super) fn whole<T: TryFrom<i128>>(
        &self,
        bounds: RangeInclusive<i128>,
        expected: &str,
    ) -> Option<T> {
        let number = match self.node {
            Node::Number { whole, .. } => *whole,
            Node::Word(word) => word.parse().ok(),
            _ => None,
        };
        let Some(number) = number else {
            self.bad("not a whole number", expected);
            return None;
        };
        let fitting = Some(number).filter(|n| bounds.contains(n));
        let fitting = fitting.and_then(|n| T::try_from(n).ok());
        if fitting.is_none() {
            self.bad("out of bounds", expected);
        }
        fitting
    }

    /// A ratio within bounds, for the weights of a score; never for money.
    pub(super) fn ratio(&self, bounds: RangeInclusive<f64>, expected: &str) -> Option<f64> {
        let number = match self.node {
            Node::Number { text, .. } | Node::Word(text) => text.parse().ok(),
            _ => None,
        };
        let fitting = number.filter(|n| bounds.contains(n));
        if fitting.is_none() {
            self.bad("not a number within bounds", expected);
        }
        fitting
    }

    /// An amount or multiplier, read from the text of the number.
    pub(super) fn decimal<T: FromStr<Err = DecimalError>>(&self, expected: &str) -> Option<T> {
        let (Node::Text(text) | Node::Word(text) | Node::Number { text, .. }) = self.node else {
            self.bad("not a decimal number", expected);
            return None;
        };
        text.parse()
            .map_err(|error: DecimalError| self.bad(error.to_string(), expected))
            .ok()
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let expected = format!("one of {}", names.join(", "));
        let text = self.text(&expected)?;
        let choice = choices.iter().find(|(name, _)| *name == text);
        if choice.is_none() {
            let expected = match keys::nearest(text, names) {
                Some(near) => format!("{near}, perhaps; {expected}"),
                None => expected,
            };
            self.bad("no such choice", expected);
        }
        choice.map(|(_, value)| *value)
    }

    /// A moment, RFC 3339.
    pub(super) fn time(&self) -> Option<DateTime<Utc>> {
        const EXPECTED: &str = "a time as RFC 3339 has it, such as 2026-12-01T00:00:00Z";
        let text = self.text(EXPECTED)?;
        DateTime::parse_from_rfc3339(text)
            .map(|time| time.with_timezone(&Utc))
            .map_err(|_| self.bad("not a time", EXPECTED))
            .ok()
    }

    /// A name: not empty, not long, nothing unprintable, no space around it.
    pub(super) fn name(&self) -> Option<&'a str> {
        let name = self.text(NAME_RULE)?;
        let fine = is_name(name);
        if !fine {
            self.bad("not a usable name", NAME_RULE);
        }
        fine.then_some(name)
    }

    /// A list of names, none of them twice.
    pub(super) fn names(&self) -> Option<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        for item in self.items("names")? {
            if let Some(name) = item.name() {
                if names.iter().any(|n| n == name) {
                    item.bad("named twice", "each name once");
                } else {
                    names.push(name.to_string());
                }
            }
        }
        Some(names)
    }
}

/// The `name` of a list entry, for messages.
fn name_in(node: &Node) -> Option<&str> {
    let Node::Map(entries) = node else {
        return None;
    };
    entries.iter().find_map(|(key, value)| match value {
        Node::Text(text) | Node::Number { text, .. } if key == "name" => Some(text.as_str()),
        _ => None,
    })
}
