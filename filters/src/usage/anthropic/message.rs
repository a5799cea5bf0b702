//! The message of the Messages API and the events it comes in, read for what they report.

use super::super::{Failure, TokenUsage};
use crate::json::{Cursor, Malformed, Value};

/// Longest text kept of a failure, in bytes.
const MAX_TEXT_BYTES: usize = 4096;

/// What has been read of a message.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    pub id: Option<String>,
    pub model: Option<String>,
    pub stop_reason: Option<String>,
    pub service_tier: Option<String>,
    pub speed: Option<String>,
    pub failure: Option<Failure>,
    pub usage: Option<Counts>,
    /// Of summaries that the provider had made in between, which the other counts leave out.
    pub compaction: Counts,
    /// The usage is that of the whole message.
    pub is_final: bool,
    /// Bytes of text in the blocks.
    pub output_bytes: u64,
}

impl Message {
    /// The counts as classes of tokens. Input is reported without what was read from or written to a cache.
    pub fn usage(&self) -> Option<TokenUsage> {
        let counts = self.usage?;
        let more = &self.compaction;
        let sum = |of: fn(&Counts) -> u64| of(&counts).saturating_add(of(more));
        Some(TokenUsage {
            input: sum(|c| c.input),
            output: sum(|c| c.output),
            // Some say only for how long.
            cache_creation: sum(|c| c.cache_creation.max(c.cache_5m.saturating_add(c.cache_1h))),
            cache_creation_5m: sum(|c| c.cache_5m),
            cache_creation_1h: sum(|c| c.cache_1h),
            cache_read: sum(|c| {
                if c.cache_read > 0 {
                    c.cache_read
                } else {
                    c.cached
                }
            }),
            image_output: 0,
        })
    }

    /// Reads the `message` of a `message_start`.
    pub fn read_start(&mut self, data: &[u8]) -> Result<(), Malformed> {
        let mut cursor = open(data)?;
        while cursor.seek(b"message")? {
            self.read(&mut cursor)?;
        }
        Ok(())
    }

    /// Reads a `message_delta`: what the message has come to.
    pub fn read_delta(&mut self, data: &[u8]) -> Result<(), Malformed> {
        let mut cursor = open(data)?;
        while let Some(key) = cursor.key()? {
            match &*key.name() {
                b"delta" => {
                    if !cursor.object()? {
                        cursor.value()?;
                        continue;
                    }
                    while cursor.seek(b"stop_reason")? {
                        self.stop_reason = string(cursor.value()?).or(self.stop_reason.take());
                    }
                }
                b"usage" => self.is_final |= self.read_usage(&mut cursor)?,
                _ => drop(cursor.value()?),
            }
        }
        Ok(())
    }

    /// Reads a message, or an error in its place; anything else is passed over.
    pub fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Malformed> {
        if !cursor.object()? {
            return cursor.value().map(drop);
        }
        while let Some(key) = cursor.key()? {
            match &*key.name() {
                b"id" => self.id = string(cursor.value()?).or(self.id.take()),
                b"model" => self.model = string(cursor.value()?).or(self.model.take()),
                b"stop_reason" => {
                    self.stop_reason = string(cursor.value()?).or(self.stop_reason.take());
                }
                b"usage" => drop(self.read_usage(cursor)?),
                b"content" => self.output_bytes = blocks(cursor)?,
                b"error" => self.failure = failure(cursor)?.or(self.failure.take()),
                _ => drop(cursor.value()?),
            }
        }
        Ok(())
    }

    /// Reads a usage object and tells whether it counts anything.
    fn read_usage(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Malformed> {
        let mut counts = Counts::default();
        let mut any = false;
        let mut compaction = None;
        if !cursor.object()? {
            cursor.value()?;
            return Ok(any);
        }
        while let Some(key) = cursor.key()? {
            match &*key.name() {
                b"service_tier" => {
                    self.service_tier = string(cursor.value()?).or(self.service_tier.take());
                }
                b"speed" => self.speed = string(cursor.value()?).or(self.speed.take()),
                b"iterations" => compaction = compactions(cursor)?,
                name => any |= counts.read(name, cursor)?,
            }
        }
        if any {
            self.usage.get_or_insert_default().replace(&counts);
        }
        // These come as a whole each time.
        self.compaction = compaction.unwrap_or(self.compaction);
        Ok(any)
    }
}

/// Counts of tokens as the provider names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counts {
    input: u64,
    output: u64,
    cache_creation: u64,
    cache_5m: u64,
    cache_1h: u64,
    cache_read: u64,
    /// The same by the name that others have for it.
    cached: u64,
}

impl Counts {
    /// Takes the field called `name`, if it is a count, and reads over it anyway.
    fn read(&mut self, name: &[u8], cursor: &mut Cursor<'_>) -> Result<bool, Malformed> {
        let count = match name {
            b"input_tokens" => &mut self.input,
            b"output_tokens" => &mut self.output,
            b"cache_creation_input_tokens" => &mut self.cache_creation,
            b"cache_read_input_tokens" => &mut self.cache_read,
            b"cached_tokens" => &mut self.cached,
            b"cache_creation" => return self.read_lifetimes(cursor),
            _ => return cursor.value().map(|_| false),
        };
        let found = tokens(cursor.value()?);
        *count = found.unwrap_or(*count);
        Ok(found.is_some())
    }

    fn read_lifetimes(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, Malformed> {
        let mut any = false;
        if !cursor.object()? {
            cursor.value()?;
            return Ok(any);
        }
        while let Some(key) = cursor.key()? {
            let value = cursor.value()?;
            let count = match &*key.name() {
                b"ephemeral_5m_input_tokens" => &mut self.cache_5m,
                b"ephemeral_1h_input_tokens" => &mut self.cache_1h,
                _ => continue,
            };
            let found = tokens(value);
            *count = found.unwrap_or(*count);
            any |= found.is_some();
        }
        Ok(any)
    }

    /// Takes over the counts of a later report, as far as they are more than nothing: they are those of the whole
    /// answer, and what does not apply to a report is left out of it or written as 0.
    fn replace(&mut self, later: &Counts) {
        for (count, later) in self.each_mut().into_iter().zip(later.each()) {
            if later > 0 {
                *count = later;
            }
        }
    }

    fn add(&mut self, other: &Counts) {
        for (count, other) in self.each_mut().into_iter().zip(other.each()) {
            *count = count.saturating_add(other);
        }
    }

    fn each(&self) -> [u64; 7] {
        [
            self.input,
            self.output,
            self.cache_creation,
            self.cache_5m,
            self.cache_1h,
            self.cache_read,
            self.cached,
        ]
    }

    fn each_mut(&mut self) -> [&mut u64; 7] {
        [
            &mut self.input,
            &mut self.output,
            &mut self.cache_creation,
            &mut self.cache_5m,
            &mut self.cache_1h,
            &mut self.cache_read,
            &mut self.cached,
        ]
    }
}

/// The sum of what the summaries among `iterations` took; `None` when that is no list. The other entries make up the
/// counts beside the list; summaries are billed with them, by the same prices.
/// <https://platform.claude.com/docs/en/build-with-claude/compaction-threshold>
fn compactions(cursor: &mut Cursor<'_>) -> Result<Option<Counts>, Malformed> {
    if !cursor.array()? {
        cursor.value()?;
        return Ok(None);
    }
    let mut sum = Counts::default();
    while cursor.element()? {
        if !cursor.object()? {
            cursor.value()?;
            continue;
        }
        let mut counts = Counts::default();
        let mut is_compaction = false;
        while let Some(key) = cursor.key()? {
            match &*key.name() {
                b"type" => {
                    let kind = cursor.value()?.text();
                    is_compaction = kind.is_some_and(|kind| *kind.name() == *b"compaction");
                }
                name => drop(counts.read(name, cursor)?),
            }
        }
        if is_compaction {
            sum.add(&counts);
        }
    }
    Ok(Some(sum))
}

/// A count of tokens; `None` for what is none. Some relays write whole numbers as `12.0`.
fn tokens(value: Value<'_>) -> Option<u64> {
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

/// Part of an answer's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Part {
    /// It gives the client something.
    pub is_content: bool,
    /// Bytes of generated text in it, as UTF-8.
    pub bytes: u64,
}

impl Part {
    /// Something, without text.
    pub const OTHER: Part = Part {
        is_content: true,
        bytes: 0,
    };

    fn text(bytes: u64) -> Part {
        Part {
            is_content: bytes > 0,
            bytes,
        }
    }
}

/// The `delta` object of a `content_block_delta`, at the cursor.
pub(super) fn delta(cursor: &mut Cursor<'_>) -> Result<Part, Malformed> {
    if !cursor.object()? {
        return Ok(Part::OTHER);
    }
    let mut part = None;
    while let Some(key) = cursor.key()? {
        let value = cursor.value()?;
        if let b"text" | b"thinking" | b"partial_json" | b"content" = &*key.name() {
            part = value.text().map(|text| text.decoded_len() as u64);
        }
    }
    Ok(part.map_or(Part::OTHER, Part::text))
}

/// The same of the whole event, however it is written.
pub(super) fn member_delta(data: &[u8]) -> Result<Part, Malformed> {
    let mut cursor = open(data)?;
    match cursor.seek(b"delta")? {
        true => delta(&mut cursor),
        false => Ok(Part::OTHER),
    }
}

/// The block that a `content_block_start` begins.
pub(super) fn block_start(data: &[u8]) -> Result<Part, Malformed> {
    let mut cursor = open(data)?;
    match cursor.seek(b"content_block")? {
        true => block(&mut cursor),
        false => Ok(Part::default()),
    }
}

/// A block: of those that consist of text it is the text that counts, every other is something by itself.
fn block(cursor: &mut Cursor<'_>) -> Result<Part, Malformed> {
    if !cursor.object()? {
        return cursor.value().map(|_| Part::OTHER);
    }
    let (mut is_text, mut bytes) = (false, 0);
    while let Some(key) = cursor.key()? {
        let name = key.name();
        let value = cursor.value()?;
        match (&*name, value) {
            (b"type", value) => {
                let kind = value.text().map(|kind| kind.name());
                is_text = matches!(kind.as_deref(), Some(b"text" | b"thinking" | b"compaction"));
            }
            (b"text" | b"thinking" | b"content", Value::String(text)) => {
                bytes += text.decoded_len() as u64;
            }
            // Arguments, which a stream brings as text; begun ones are empty there.
            (b"input", Value::Object(input)) if input != b"{}" => bytes += input.len() as u64,
            _ => {}
        }
    }
    Ok(Part {
        is_content: !is_text || bytes > 0,
        bytes,
    })
}

/// Bytes of text in the `content` of a message.
fn blocks(cursor: &mut Cursor<'_>) -> Result<u64, Malformed> {
    let mut bytes = 0;
    if !cursor.array()? {
        cursor.value()?;
        return Ok(bytes);
    }
    while cursor.element()? {
        bytes += block(cursor)?.bytes;
    }
    Ok(bytes)
}

fn string(value: Value<'_>) -> Option<String> {
    let mut text = value.text()?.decode()?.into_owned();
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    Some(text)
}

/// Whether an object without a type has an error.
pub(super) fn has_error(data: &[u8]) -> bool {
    let found = open(data).and_then(|mut cursor| match cursor.seek(b"error")? {
        true => cursor.value(),
        false => Err(Malformed),
    });
    matches!(found, Ok(Value::Object(_) | Value::String(_)))
}

/// In the object that `data` is.
fn open(data: &[u8]) -> Result<Cursor<'_>, Malformed> {
    let mut cursor = Cursor::new(data);
    match cursor.object()? {
        true => Ok(cursor),
        false => Err(Malformed),
    }
}

/// What an `error` event says. What stands before a flaw is kept.
pub(super) fn error_event(data: &[u8]) -> Failure {
    let mut found = None;
    let _ = read_error_event(data, &mut found);
    found.unwrap_or_default()
}

fn read_error_event(data: &[u8], found: &mut Option<Failure>) -> Result<(), Malformed> {
    let mut cursor = open(data)?;
    while cursor.seek(b"error")? {
        *found = failure(&mut cursor)?;
    }
    Ok(())
}

/// An error object; a string is taken for its message.
fn failure(cursor: &mut Cursor<'_>) -> Result<Option<Failure>, Malformed> {
    if !cursor.object()? {
        let message = string(cursor.value()?);
        return Ok(message.map(|message| Failure {
            message: Some(message),
            ..Failure::default()
        }));
    }
    let mut failure = Failure::default();
    while let Some(key) = cursor.key()? {
        let value = cursor.value()?;
        match &*key.name() {
            b"type" => failure.kind = string(value),
            b"code" => failure.code = string(value),
            b"message" => failure.message = string(value),
            _ => {}
        }
    }
    Ok(Some(failure))
}
