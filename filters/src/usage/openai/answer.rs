//! The `response` object of the Responses API, read for what it reports.

use std::borrow::Cow;

use super::super::{Failure, TokenUsage};
use crate::json::{Cursor, Malformed, Value};

/// Longest text kept of a failure, in bytes.
const MAX_TEXT_BYTES: usize = 4096;

/// What the response objects read so far have reported.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub id: Option<String>,
    pub service_tier: Option<String>,
    pub usage: Option<TokenUsage>,
    pub failure: Option<Failure>,
    /// Finished images among the output items.
    pub images: u32,
    /// Bytes of text in the output items.
    pub output_bytes: u64,
}

impl Answer {
    /// Reads the `response` of a terminal event and returns its status. What stands before a flaw is kept.
    pub fn read_event(&mut self, data: &[u8]) -> Result<Option<String>, Malformed> {
        let mut cursor = Cursor::new(data);
        let mut status = None;
        if !cursor.object()? {
            return Err(Malformed);
        }
        while let Some(key) = cursor.key()? {
            if *key.name() == *b"response" {
                status = self.read(&mut cursor)?;
            } else {
                cursor.value()?;
            }
        }
        cursor.finish()?;
        Ok(status)
    }

    /// Reads a response object and returns its status; anything else is passed over.
    pub fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<Option<String>, Malformed> {
        let mut status = None;
        if !cursor.object()? {
            cursor.value()?;
            return Ok(status);
        }
        while let Some(key) = cursor.key()? {
            match &*key.name() {
                b"id" => self.id = string(cursor.value()?).or(self.id.take()),
                b"status" => status = string(cursor.value()?),
                b"service_tier" => {
                    self.service_tier = string(cursor.value()?).or(self.service_tier.take())
                }
                b"usage" => self.usage = usage(cursor)?.or(self.usage),
                b"error" => self.failure = failure(cursor)?.or(self.failure.take()),
                b"output" => self.output(cursor)?,
                _ => drop(cursor.value()?),
            }
        }
        Ok(status)
    }

    fn output(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Malformed> {
        (self.images, self.output_bytes) = (0, 0);
        if !cursor.array()? {
            cursor.value()?;
            return Ok(());
        }
        while cursor.element()? {
            if !cursor.object()? {
                cursor.value()?;
                continue;
            }
            let (mut image, mut result) = (false, false);
            while let Some(key) = cursor.key()? {
                match &*key.name() {
                    b"type" => {
                        image = cursor
                            .value()?
                            .text()
                            .is_some_and(|kind| &*kind.name() == IMAGE)
                    }
                    b"result" => {
                        result = cursor
                            .value()?
                            .text()
                            .is_some_and(|image| !image.raw.is_empty())
                    }
                    b"arguments" | b"input" => self.output_bytes += text_len(cursor.value()?),
                    b"content" | b"summary" => self.output_bytes += parts_len(cursor)?,
                    _ => drop(cursor.value()?),
                }
            }
            self.images += u32::from(image && result);
        }
        Ok(())
    }
}

/// The type of output items that are images.
const IMAGE: &[u8] = b"image_generation_call";

/// Whether a string, in its quotes, is the type of an image item.
pub(super) fn is_image(quoted: &[u8]) -> bool {
    quoted.get(1..quoted.len() - 1) == Some(IMAGE)
}

/// Bytes of text in the parts of a message or a summary.
fn parts_len(cursor: &mut Cursor<'_>) -> Result<u64, Malformed> {
    let mut len = 0;
    if !cursor.array()? {
        return cursor.value().map(text_len);
    }
    while cursor.element()? {
        if !cursor.object()? {
            cursor.value()?;
            continue;
        }
        while let Some(key) = cursor.key()? {
            let value = cursor.value()?;
            if matches!(&*key.name(), b"text" | b"refusal") {
                len += text_len(value);
            }
        }
    }
    Ok(len)
}

fn text_len(value: Value<'_>) -> u64 {
    value.text().map_or(0, |text| text.decoded_len() as u64)
}

fn string(value: Value<'_>) -> Option<String> {
    value.text()?.decode().map(Cow::into_owned)
}

/// The usage object: cached input and image output are classes of their own. `None` when it is null or
/// counts nothing.
fn usage(cursor: &mut Cursor<'_>) -> Result<Option<TokenUsage>, Malformed> {
    if !cursor.object()? {
        cursor.value()?;
        return Ok(None);
    }
    let (mut input, mut output, mut cached, mut images) = (None, None, 0, 0);
    while let Some(key) = cursor.key()? {
        match &*key.name() {
            b"input_tokens" => input = tokens(cursor.value()?),
            b"output_tokens" => output = tokens(cursor.value()?),
            b"input_tokens_details" => cached = detail(cursor, b"cached_tokens")?,
            b"output_tokens_details" => images = detail(cursor, b"image_tokens")?,
            _ => drop(cursor.value()?),
        }
    }
    if input.or(output).is_none() {
        return Ok(None);
    }
    Ok(Some(TokenUsage {
        input: input.unwrap_or(0).saturating_sub(cached),
        cache_read: cached,
        output: output.unwrap_or(0).saturating_sub(images),
        image_output: images,
        ..TokenUsage::default()
    }))
}

/// The count called `name` in an object of details, 0 without one.
fn detail(cursor: &mut Cursor<'_>, name: &[u8]) -> Result<u64, Malformed> {
    let mut count = 0;
    if !cursor.object()? {
        cursor.value()?;
        return Ok(count);
    }
    while cursor.seek(name)? {
        count = tokens(cursor.value()?).unwrap_or(0);
    }
    Ok(count)
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

/// An error object; a string is taken for its message.
fn failure(cursor: &mut Cursor<'_>) -> Result<Option<Failure>, Malformed> {
    if !cursor.object()? {
        let message = failure_text(cursor.value()?);
        return Ok(message.map(|message| Failure {
            message: Some(message),
            ..Failure::default()
        }));
    }
    let mut failure = Failure::default();
    while let Some(key) = cursor.key()? {
        let value = cursor.value()?;
        match &*key.name() {
            b"type" => failure.kind = failure_text(value),
            b"code" => failure.code = failure_text(value),
            b"message" => failure.message = failure_text(value),
            _ => {}
        }
    }
    Ok(Some(failure))
}

/// What an `error` event says, at its top or in its `error` object; the object knows better. What stands before a
/// flaw is kept.
pub(super) fn error_event(data: &[u8]) -> Failure {
    let mut top = Failure::default();
    let mut nested = None;
    let _ = read_error_event(data, &mut top, &mut nested);
    let nested = nested.unwrap_or_default();
    Failure {
        kind: nested.kind,
        code: nested.code.or(top.code),
        message: nested.message.or(top.message),
    }
}

fn read_error_event(
    data: &[u8],
    top: &mut Failure,
    nested: &mut Option<Failure>,
) -> Result<(), Malformed> {
    let mut cursor = Cursor::new(data);
    if !cursor.object()? {
        return Err(Malformed);
    }
    while let Some(key) = cursor.key()? {
        match &*key.name() {
            b"code" => top.code = failure_text(cursor.value()?),
            b"message" => top.message = failure_text(cursor.value()?),
            b"error" => *nested = failure(&mut cursor)?,
            _ => drop(cursor.value()?),
        }
    }
    Ok(())
}

/// A string or number of a failure, cut to a bounded length.
fn failure_text(value: Value<'_>) -> Option<String> {
    let mut text = match value {
        Value::String(text) => text.decode()?.into_owned(),
        Value::Number(number) => String::from_utf8_lossy(number).into_owned(),
        _ => return None,
    };
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(usage_object: &str) -> Option<TokenUsage> {
        usage(&mut Cursor::new(usage_object.as_bytes())).unwrap()
    }

    #[test]
    fn token_classes_do_not_overlap() {
        let tokens = |input, cache_read, output, image_output| {
            Some(TokenUsage {
                input,
                cache_read,
                output,
                image_output,
                ..TokenUsage::default()
            })
        };
        for (usage, expected) in [
            ("null", None),
            ("5", None),
            ("{}", None),
            (r#"{"total_tokens":5}"#, None),
            (r#"{"input_tokens":null,"output_tokens":"5"}"#, None),
            (r#"{"input_tokens":0}"#, tokens(0, 0, 0, 0)),
            (r#"{"output_tokens":5}"#, tokens(0, 0, 5, 0)),
            (
                r#"{"input_tokens":10,"input_tokens_details":{"cached_tokens":10}}"#,
                tokens(0, 10, 0, 0),
            ),
            (
                r#"{"input_tokens":10,"input_tokens_details":{"cached_tokens":11}}"#,
                tokens(0, 11, 0, 0),
            ),
            (
                r#"{"input_tokens":10,"input_tokens_details":null}"#,
                tokens(10, 0, 0, 0),
            ),
            (
                r#"{"output_tokens_details":{"reasoning_tokens":3,"image_tokens":4},"output_tokens":9}"#,
                tokens(0, 0, 5, 4),
            ),
            (
                r#"{"input_tokens":12.0,"output_tokens":1.5}"#,
                tokens(12, 0, 0, 0),
            ),
            (
                r#"{"input_tokens":-3,"output_tokens":1}"#,
                tokens(0, 0, 1, 0),
            ),
        ] {
            assert_eq!(read(usage), expected, "{usage}");
        }
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let data = format!(r#"{{"message":"x{}"}}"#, "é".repeat(5000));
        let message = error_event(data.as_bytes()).message.unwrap();
        assert_eq!(message.len(), MAX_TEXT_BYTES - 1);
    }
}
