//! What is changed in a request of Anthropic's Messages API before it goes upstream (SPEC 9.7).
//!
//! [`tidy`] gives the edits that keep the API from refusing a request for small things: cache marks beyond what
//! it takes, and texts without a character. [`max_tokens`] lowers the output limit. [`dated_model`] is the name
//! that a model has for subscriptions. The model's own name goes in with [`Edits::string`].

use std::ops::Range;

use memchr::memmem;

use super::{Edits, MOST_EDITS, Members};
use crate::json::{Cursor, Malformed, Value};
use crate::peek::MODEL_SPANS;

/// Cache marks that the API takes in one request
/// (<https://platform.claude.com/docs/en/build-with-claude/prompt-caching>).
pub const MOST_CACHE_MARKS: usize = 4;

/// Models by their short names and by the names that Anthropic gave their snapshots. From the 4.6 generation on
/// the short name is the whole name (<https://platform.claude.com/docs/en/about-claude/models/model-ids-and-versions>).
const DATED: [(&str, &str); 3] = [
    ("claude-haiku-4-5", "claude-haiku-4-5-20251001"),
    ("claude-opus-4-5", "claude-opus-4-5-20251101"),
    ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929"),
];

/// The dated id of a model that has a short name as well; `None` for every other name. For OAuth and set-up
/// tokens.
pub fn dated_model(short: &str) -> Option<&'static str> {
    let found = DATED.iter().find(|(name, _)| *name == short);
    found.map(|(_, dated)| *dated)
}

/// Sets `max_tokens` to `limit` where the request asks for more; every occurrence of the key, so that no reader
/// can come to another limit. No edit where it is no number, which the API refuses.
///
/// `None` for a body that cannot be held to a limit, because the key is given more than [`MODEL_SPANS`] times or it
/// is not JSON: refuse it.
pub fn max_tokens(body: &[u8], limit: u64) -> Option<Edits> {
    let mut edits = Edits::default();
    if let Some((spans, asked)) = numbers(body, b"max_tokens").ok()?
        && asked > limit as f64
    {
        edits.number(&spans, limit);
    }
    Some(edits)
}

/// Where the values of a top-level key stand, and the number that the last of them is.
pub(crate) type Numbers = Option<(Vec<Range<usize>>, f64)>;

/// A key that is given more than [`MODEL_SPANS`] times is as bad as malformed.
pub(crate) fn numbers(object: &[u8], name: &[u8]) -> Result<Numbers, Malformed> {
    let mut cursor = Cursor::new(object);
    let mut spans = Vec::new();
    let mut last = None;
    if cursor.object()? {
        while cursor.seek(name)? {
            let start = cursor.start();
            last = match cursor.value()? {
                Value::Number(digits) => std::str::from_utf8(digits).ok(),
                _ => None,
            };
            if spans.len() == MODEL_SPANS {
                return Err(Malformed);
            }
            spans.push(start..cursor.at());
        }
    }
    let number = last.and_then(|digits| digits.parse().ok());
    Ok(number.map(|number| (spans, number)))
}

/// The edits that leave out
///
/// - cache marks on thinking blocks, which the API refuses;
/// - text blocks without a character, which it refuses too: in messages, in `system` and in tool results. A
///   message that has nothing else stays as it is, and the API's own answer to it reaches the client;
/// - cache marks beyond [`MOST_CACHE_MARKS`], counting all that it counts: from the messages front to back, then
///   from `system` back to front, then from the tools front to back.
///
/// None where none of it applies, where there is more of it than any client writes, or the body is not JSON. Blocks of unknown types, and what tools are called
/// with, are not looked into.
pub fn tidy(body: &[u8]) -> Edits {
    let mut tidy = Tidy::default();
    let mut edits = Edits::default();
    if !may_need_tidying(body) || tidy.read(body).is_err() {
        return edits;
    }
    for range in tidy.ranges() {
        edits.remove(range);
    }
    edits
}

/// Whether the body has any of what [`tidy`] removes, by a search that is faster than reading it.
fn may_need_tidying(body: &[u8]) -> bool {
    if memmem::find(body, b"\"\"").is_some() {
        return true;
    }
    let marks = memmem::find_iter(body, b"cache_control");
    match marks.take(MOST_CACHE_MARKS + 1).count() {
        0 => false,
        1..=MOST_CACHE_MARKS => memmem::find(body, b"thinking\"").is_some(),
        _ => true,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Tools,
    System,
    Messages,
}

/// A cache mark and the bytes that go with it.
struct Mark {
    place: Place,
    ranges: Vec<Range<usize>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    ToolResult,
    Other,
}

impl Kind {
    fn of(value: Value<'_>) -> Kind {
        let name = value.text().map(|text| text.name());
        match name.as_deref() {
            Some(b"text") => Kind::Text,
            Some(b"thinking" | b"redacted_thinking") => Kind::Thinking,
            Some(b"tool_result") => Kind::ToolResult,
            _ => Kind::Other,
        }
    }
}

/// How far lists of findings had grown.
#[derive(Clone, Copy)]
struct Growth {
    removed: usize,
    marks: usize,
}

#[derive(Default)]
struct Tidy {
    /// What goes whatever else there is.
    removed: Vec<Range<usize>>,
    /// Marks that the API takes, in order.
    marks: Vec<Mark>,
    /// The mark of the request itself, which is never removed.
    own: usize,
}

impl Tidy {
    fn read(&mut self, body: &[u8]) -> Result<(), Malformed> {
        let mut cursor = Cursor::new(body);
        if !cursor.object()? {
            return Ok(());
        }
        while let Some(key) = cursor.key()? {
            match &*key.name() {
                b"tools" => {
                    self.blocks(&mut cursor, Place::Tools)?;
                }
                b"system" => {
                    self.blocks(&mut cursor, Place::System)?;
                }
                b"messages" => self.messages(&mut cursor)?,
                b"cache_control" => {
                    self.own = usize::from(!matches!(cursor.value()?, Value::Null));
                }
                _ => {
                    cursor.value()?;
                }
            }
        }
        cursor.finish()
    }

    fn messages(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Malformed> {
        if !cursor.array()? {
            cursor.value()?;
            return Ok(());
        }
        while cursor.element()? {
            if !cursor.object()? {
                cursor.value()?;
                continue;
            }
            while let Some(key) = cursor.key()? {
                if *key.name() != *b"content" {
                    cursor.value()?;
                    continue;
                }
                let before = self.growth();
                if !self.blocks(cursor, Place::Messages)? {
                    self.removed.truncate(before.removed);
                }
            }
        }
        Ok(())
    }

    /// A list of blocks, or whatever else stands there. `false` when nothing of a list would be left.
    fn blocks(&mut self, cursor: &mut Cursor<'_>, place: Place) -> Result<bool, Malformed> {
        if !cursor.array()? {
            cursor.value()?;
            return Ok(true);
        }
        let mut members = Members::default();
        let (mut kept, mut any) = (false, false);
        while cursor.element()? {
            let start = cursor.start();
            self.removed.extend(members.begin(start));
            let before = self.growth();
            let keep = self.block(cursor, place)?;
            if !keep {
                self.shrink(before);
            }
            (any, kept) = (true, kept || keep);
            self.removed.extend(members.end(start..cursor.at(), keep));
            if self.removed.len() + self.marks.len() > MOST_EDITS {
                return Err(Malformed);
            }
        }
        self.removed.extend(members.close());
        Ok(kept || !any)
    }

    /// A block, or whatever else stands there. `false` for a text without a character.
    fn block(&mut self, cursor: &mut Cursor<'_>, place: Place) -> Result<bool, Malformed> {
        if !cursor.object()? {
            cursor.value()?;
            return Ok(true);
        }
        let mut members = Members::default();
        // Of this block's own marks; what is in its content comes into the lists by itself.
        let mut ranges = Vec::new();
        let (mut kind, mut is_empty, mut is_marked) = (Kind::Other, false, false);
        let before = self.growth();
        while let Some(key) = cursor.key()? {
            let start = key.span().start;
            ranges.extend(members.begin(start));
            let mut keep = true;
            match &*key.name() {
                b"type" => kind = Kind::of(cursor.value()?),
                b"text" => {
                    let text = cursor.value()?.text();
                    is_empty = text.is_some_and(|text| text.raw.is_empty());
                }
                b"cache_control" => {
                    is_marked = !matches!(cursor.value()?, Value::Null);
                    keep = false;
                }
                b"content" => {
                    self.blocks(cursor, place)?;
                }
                _ => {
                    cursor.value()?;
                }
            }
            ranges.extend(members.end(start..cursor.at(), keep));
        }
        ranges.extend(members.close());
        if kind != Kind::ToolResult {
            self.shrink(before);
        }
        if kind == Kind::Thinking {
            self.removed.append(&mut ranges);
        } else if is_marked {
            self.marks.push(Mark { place, ranges });
        }
        Ok(!(kind == Kind::Text && is_empty))
    }

    fn growth(&self) -> Growth {
        Growth {
            removed: self.removed.len(),
            marks: self.marks.len(),
        }
    }

    fn shrink(&mut self, to: Growth) {
        self.removed.truncate(to.removed);
        self.marks.truncate(to.marks);
    }

    /// All that goes, in order.
    fn ranges(mut self) -> Vec<Range<usize>> {
        let excess = (self.own + self.marks.len()).saturating_sub(MOST_CACHE_MARKS);
        let of = |place| self.marks.iter().filter(move |mark| mark.place == place);
        let order = of(Place::Messages)
            .chain(of(Place::System).rev())
            .chain(of(Place::Tools));
        let marks = order
            .take(excess)
            .flat_map(|mark| mark.ranges.iter().cloned());
        self.removed.extend(marks);
        self.removed.sort_unstable_by_key(|range| range.start);
        self.removed
    }
}

#[cfg(test)]
mod tests;
