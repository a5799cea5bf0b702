//! Collects mistakes and warnings while the sections are checked, and says where each one stands.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::rc::Rc;

use super::mistakes::Mistake;
use super::node::{Step, locate};
use super::raw::Input;

/// A position is looked up by reading the file again. This many bytes are read for all of them; the
/// mistakes beyond have a key path only.
const MAX_BYTES_READ_AGAIN: usize = 16 * 1024 * 1024;

/// What checking has found so far, and what it needs to know.
pub(super) struct Report<'a> {
    inputs: &'a [Input],
    /// The environment, for secrets written `${NAME}`.
    pub(super) env: &'a BTreeMap<String, String>,
    /// What relative paths are relative to when there is no file.
    base: &'a Path,
    mistakes: RefCell<Vec<(Spot, Finding)>>,
    warnings: RefCell<Vec<(Spot, String)>>,
}

/// A mistake but for its place.
struct Finding {
    value: Option<String>,
    problem: String,
    expected: String,
}

/// The way from the top of a document to a value, for as long as it is being checked.
pub(super) enum Trail<'a> {
    Top,
    Key(Rc<Trail<'a>>, &'a str),
    /// An entry of a list, with its `name` if it has one.
    Item(Rc<Trail<'a>>, usize, Option<&'a str>),
}

/// Which file or variable a value came from.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    /// Index of the input; `None` = there is no file.
    pub(super) input: Option<usize>,
    /// Document in it.
    pub(super) document: usize,
    /// The environment variable, when it did not come from the file.
    pub(super) env: Option<&'a str>,
}

/// A place, as kept for later.
struct Spot {
    input: Option<usize>,
    document: usize,
    env: Option<String>,
    steps: Vec<Step>,
    path: String,
    key_occurrence: Option<usize>,
}

impl Trail<'_> {
    /// The steps for a reader, and the path for people: `accounts[2] "openai-1".concurrency`.
    fn write(&self, steps: &mut Vec<Step>, path: &mut String) {
        match self {
            Trail::Top => {}
            Trail::Key(parent, key) => {
                parent.write(steps, path);
                steps.push(Step::Key((*key).to_string()));
                if !path.is_empty() {
                    path.push('.');
                }
                let plain = |c: char| c.is_ascii_alphanumeric() || "_-/*:".contains(c);
                // Writing to a String cannot fail.
                if !key.is_empty() && key.chars().all(plain) {
                    path.push_str(key);
                } else {
                    let _ = write!(path, "{:?}", super::field::shorten(key));
                }
            }
            Trail::Item(parent, index, name) => {
                parent.write(steps, path);
                steps.push(Step::Index(*index));
                let _ = write!(path, "[{index}]");
                if let Some(name) = name {
                    let _ = write!(path, " {:?}", super::field::shorten(name));
                }
            }
        }
    }

    /// The path for people.
    pub(super) fn path(&self) -> String {
        let mut path = String::new();
        self.write(&mut Vec::new(), &mut path);
        path
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(
        inputs: &'a [Input],
        env: &'a BTreeMap<String, String>,
        base: &'a Path,
    ) -> Report<'a> {
        Report {
            inputs,
            env,
            base,
            mistakes: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// The folder that relative paths of a value are relative to.
    pub(super) fn base(&self, origin: Origin<'_>) -> &'a Path {
        origin
            .input
            .and_then(|i| self.inputs.get(i))
            .map_or(self.base, |input| &input.base)
    }

    /// The name of the file a value came from.
    pub(super) fn input_name(&self, origin: Origin<'_>) -> &'a str {
        origin
            .input
            .and_then(|i| self.inputs.get(i))
            .map_or("", |input| &input.name)
    }

    /// Adds a mistake; `key_occurrence` when it is about the key rather than its value.
    pub(super) fn mistake(
        &self,
        origin: Origin<'_>,
        trail: &Trail<'_>,
        key_occurrence: Option<usize>,
        value: Option<String>,
        problem: String,
        expected: String,
    ) {
        self.mistakes.borrow_mut().push((
            spot(origin, trail, key_occurrence),
            Finding {
                value,
                problem,
                expected,
            },
        ));
    }

    /// Adds a warning about a value.
    pub(super) fn warning(&self, origin: Origin<'_>, trail: &Trail<'_>, text: String) {
        self.warnings
            .borrow_mut()
            .push((spot(origin, trail, None), text));
    }

    /// Everything found, each with its place, in the order of the files.
    pub(super) fn finish(self) -> (Vec<Mistake>, Vec<String>) {
        let inputs = self.inputs;
        let mistakes = in_order(inputs, self.mistakes.into_inner())
            .map(|(place, finding)| Mistake {
                place,
                value: finding.value,
                problem: finding.problem,
                expected: finding.expected,
            })
            .collect();
        let warnings = in_order(inputs, self.warnings.into_inner())
            .map(|(place, text)| format!("{place}: {text}"))
            .collect();
        (mistakes, warnings)
    }
}

fn spot(origin: Origin<'_>, trail: &Trail<'_>, key_occurrence: Option<usize>) -> Spot {
    let (mut steps, mut path) = (Vec::new(), String::new());
    trail.write(&mut steps, &mut path);
    Spot {
        input: origin.input,
        document: origin.document,
        env: origin.env.map(str::to_string),
        steps,
        path,
        key_occurrence,
    }
}

/// Finds the place of everything found and sorts it by file and line; what stands in no file last.
fn in_order<T>(inputs: &[Input], found: Vec<(Spot, T)>) -> impl Iterator<Item = (String, T)> {
    let mut bytes_left = MAX_BYTES_READ_AGAIN;
    let mut placed: Vec<_> = found
        .into_iter()
        .map(|(spot, what)| {
            let position = spot.position(inputs, &mut bytes_left);
            let from_env = spot.env.is_some();
            let input = if from_env { None } else { spot.input };
            let key = (from_env, input, position.is_none(), position);
            (key, spot.place(inputs, position), what)
        })
        .collect();
    placed.sort_by_key(|(key, _, _)| *key);
    placed.into_iter().map(|(_, place, what)| (place, what))
}

impl Spot {
    fn position(&self, inputs: &[Input], bytes_left: &mut usize) -> Option<(usize, usize)> {
        if self.env.is_some() || *bytes_left == 0 {
            return None;
        }
        let text = &inputs.get(self.input?)?.text;
        *bytes_left = bytes_left.saturating_sub(text.len());
        locate(text, self.document, &self.steps, self.key_occurrence)
    }

    fn place(&self, inputs: &[Input], position: Option<(usize, usize)>) -> String {
        if let Some(variable) = &self.env {
            return if super::env::variable_of(&self.path) == *variable {
                variable.clone()
            } else {
                format!("{variable} {}", self.path)
            };
        }
        let mut place = String::new();
        if let Some(input) = self.input.and_then(|i| inputs.get(i)) {
            place.push_str(&input.name);
            if let Some((line, column)) = position {
                let _ = write!(place, ":{line}:{column}");
            }
        }
        if !self.path.is_empty() {
            if !place.is_empty() {
                place.push(' ');
            }
            place.push_str(&self.path);
        }
        place
    }
}
