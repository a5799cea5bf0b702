//! What the body of an Anthropic Messages request says, as far as it decides anything: read in one pass over its
//! bytes, which checks all of it and builds no tree. Use [`messages`] on the body of `POST /v1/messages` and of
//! `POST /v1/messages/count_tokens`.
//!
//! What is not known here passes: block types, roles (a `system` message among the others is one), fields.
//! Fields and blocks: <https://platform.claude.com/docs/en/api/messages>.

pub(crate) mod content;
mod hosted;

use std::borrow::Cow;
use std::ops::Range;

pub use self::hosted::Hosted;

use self::content::{Block, Role, Step};
use crate::json::{Cursor, Malformed, Text, Value};
use crate::peek::{Field, MODEL_SPANS};

/// Why a body is refused: 400, with this message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Invalid {
    /// The body is not JSON, `model` is not a string, or `stream` not a boolean.
    #[error("Failed to parse request body")]
    Parse,
    /// `model` is missing or empty.
    #[error("model is required")]
    ModelRequired,
    /// A field whose every value is kept is given over and over.
    #[error("{0} is given more than {MODEL_SPANS} times")]
    Repeated(&'static str),
}

impl From<Malformed> for Invalid {
    fn from(_: Malformed) -> Self {
        Invalid::Parse
    }
}

/// A valid Messages request, as far as it decides anything. Where a key occurs more than once its last value counts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MessagesRequest<'a> {
    /// The model asked for, never empty.
    pub model: Cow<'a, str>,
    /// Where the values of every top-level `model` stand, for [`crate::peek::splice`].
    pub model_spans: Vec<Range<usize>>,
    /// Whether the answer is to be a stream.
    pub stream: bool,
    /// Most output tokens the client allows, where that is a whole number.
    pub max_tokens: Option<u64>,
    /// Where the values of every top-level `max_tokens` stand, for whoever has to lower it.
    pub max_tokens_spans: Vec<Range<usize>>,
    /// `metadata.user_id`; see [`crate::affinity::claude::UserId`].
    pub user_id: Option<Cow<'a, str>>,
    /// `system`, as it stands in the body; empty without one.
    pub system: &'a [u8],
    /// `messages`, as it stands in the body; empty without one.
    pub messages: &'a [u8],
    /// Whether the model is asked to think, whichever way.
    pub thinking: bool,
    /// How many tokens of the answer may be thinking, where that is on and limited.
    pub thinking_budget: Option<u64>,
    /// Whether there is a tool.
    pub has_tools: bool,
    /// `output_config.effort`, as written.
    pub effort: Option<Cow<'a, str>>,
    /// `service_tier`, as written.
    pub service_tier: Option<Cow<'a, str>>,
    /// `speed`, as written.
    pub speed: Option<Cow<'a, str>>,
    /// The last of the messages.
    pub last: LastMessage,
    /// What makes the prompt more than the body.
    pub hosted: Hosted,
}

impl MessagesRequest<'_> {
    /// Whether `system` is there, even when it says nothing.
    pub fn has_system(&self) -> bool {
        !self.system.is_empty()
    }
}

/// What the last message of a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LastMessage {
    /// Its role is `user`.
    pub from_user: bool,
    /// It brings the result of a tool.
    pub has_tool_result: bool,
    /// It brings something else.
    pub has_other: bool,
    /// Its first text asks for what the user may say next ([`crate::intercept`]).
    pub asks_suggestion: bool,
}

impl LastMessage {
    /// Whether somebody has said something, rather than a program having returned what its tools gave. What stands
    /// beside the results of tools is a program's as well: it goes on with what was begun.
    pub fn is_real_user(&self) -> bool {
        self.from_user && !self.has_tool_result
    }
}

/// How Claude Code begins the message by which it asks for a suggestion. It needs no escape in JSON and is compared as
/// written.
const SUGGESTION_MODE: &[u8] = b"[SUGGESTION MODE:";

/// Reads the body of a Messages request: JSON and the types of `model` and `stream`, then whether there is a model.
///
/// # Errors
/// The first check that fails.
pub fn messages(body: &[u8]) -> Result<MessagesRequest<'_>, Invalid> {
    if std::str::from_utf8(body).is_err() {
        return Err(Invalid::Parse);
    }
    let mut cursor = Cursor::new(body);
    if !cursor.object()? {
        cursor.value()?;
        cursor.finish()?;
        // It did parse; it just has no model.
        return Err(Invalid::ModelRequired);
    }
    let mut request = MessagesRequest::default();
    let (mut model, mut stream) = (Field::Absent, Field::Absent);
    let mut blocks = Hosted::default();
    while let Some(key) = cursor.key()? {
        let start = cursor.start();
        match &*key.name() {
            b"model" => {
                model = cursor.value()?.into();
                note(&mut request.model_spans, start..cursor.at());
            }
            b"max_tokens" => {
                request.max_tokens = whole(cursor.value()?);
                note(&mut request.max_tokens_spans, start..cursor.at());
            }
            b"stream" => stream = cursor.value()?.into(),
            b"metadata" => request.user_id = member(&mut cursor, b"user_id")?.and_then(decoded),
            b"output_config" => request.effort = member(&mut cursor, b"effort")?.and_then(filled),
            b"thinking" => {
                let (kind, budget) = thinking(&mut cursor)?;
                request.thinking = kind.is_some_and(|kind| thinks(&kind.name()));
                request.thinking_budget = budget.filter(|_| request.thinking);
            }
            b"service_tier" => request.service_tier = cursor.value()?.text().and_then(filled),
            b"speed" => request.speed = cursor.value()?.text().and_then(filled),
            b"system" => {
                cursor.value()?;
                request.system = &body[start..cursor.at()];
            }
            b"messages" => {
                let mut last = Last::default();
                content::messages(&mut cursor, &mut |step| last.take(step))?;
                request.messages = &body[start..cursor.at()];
                (request.last, blocks) = (last.message, last.hosted);
            }
            b"tools" => request.has_tools = request.hosted.read_tools(&mut cursor)?,
            name => {
                let value = cursor.value()?;
                request.hosted.note_field(name, value);
            }
        }
    }
    cursor.finish()?;
    request.hosted.add(&blocks);

    request.model = match model {
        Field::Absent => return Err(Invalid::ModelRequired),
        model => model.as_str().ok_or(Invalid::Parse)?,
    };
    request.stream = match stream {
        Field::Absent => false,
        Field::Bool(stream) => stream,
        _ => return Err(Invalid::Parse),
    };
    if request.model.is_empty() {
        return Err(Invalid::ModelRequired);
    }
    for (spans, name) in [
        (&request.model_spans, "model"),
        (&request.max_tokens_spans, "max_tokens"),
    ] {
        if spans.len() > MODEL_SPANS {
            return Err(Invalid::Repeated(name));
        }
    }
    Ok(request)
}

/// Keeps where a value stands; of those too many, one.
fn note(spans: &mut Vec<Range<usize>>, span: Range<usize>) {
    if spans.len() <= MODEL_SPANS {
        spans.push(span);
    }
}

/// The last string called `name` in the object at the cursor; `None` for anything else.
fn member<'a>(cursor: &mut Cursor<'a>, name: &[u8]) -> Result<Option<Text<'a>>, Malformed> {
    let mut found = None;
    if !cursor.object()? {
        cursor.value()?;
        return Ok(found);
    }
    while cursor.seek(name)? {
        found = cursor.value()?.text();
    }
    Ok(found)
}

/// The `type` and `budget_tokens` of `thinking`.
fn thinking<'a>(cursor: &mut Cursor<'a>) -> Result<(Option<Text<'a>>, Option<u64>), Malformed> {
    let (mut kind, mut budget) = (None, None);
    if !cursor.object()? {
        cursor.value()?;
        return Ok((kind, budget));
    }
    while let Some(key) = cursor.key()? {
        let name = key.name();
        let value = cursor.value()?;
        match &*name {
            b"type" => kind = value.text(),
            b"budget_tokens" => budget = whole(value),
            _ => {}
        }
    }
    Ok((kind, budget))
}

fn decoded(text: Text<'_>) -> Option<Cow<'_, str>> {
    text.decode()
}

/// The text, unless it is blank.
fn filled(text: Text<'_>) -> Option<Cow<'_, str>> {
    text.decode().filter(|text| !text.trim().is_empty())
}

fn thinks(kind: &[u8]) -> bool {
    matches!(kind, b"enabled" | b"adaptive" | b"between_tools")
}

/// A whole number; some clients write it as `1024.0`.
fn whole(value: Value<'_>) -> Option<u64> {
    let Value::Number(number) = value else {
        return None;
    };
    let number = std::str::from_utf8(number).ok()?;
    let whole = match number.split_once('.') {
        Some((whole, zeros)) if zeros.bytes().all(|digit| digit == b'0') => whole,
        _ => number,
    };
    whole.parse().ok()
}

/// What the messages read so far come to.
#[derive(Default)]
struct Last {
    /// The latest message.
    message: LastMessage,
    seen_text: bool,
    hosted: Hosted,
}

impl Last {
    fn take(&mut self, step: Step<'_, '_>) {
        match step {
            Step::Begin => {
                self.message = LastMessage::default();
                self.seen_text = false;
            }
            Step::Block(block) => self.block(block),
            Step::End(role) => {
                self.message.from_user = role == Role::User;
                self.message.asks_suggestion &= role == Role::User;
            }
        }
    }

    fn block(&mut self, block: &Block<'_>) {
        self.hosted.add(&block.hosted);
        if block.is_tool_result() {
            self.message.has_tool_result = true;
        } else {
            self.message.has_other = true;
        }
        if let Some(text) = block.text()
            && !std::mem::replace(&mut self.seen_text, true)
        {
            self.message.asks_suggestion = text.raw.starts_with(SUGGESTION_MODE);
        }
    }
}

#[cfg(test)]
mod tests;
