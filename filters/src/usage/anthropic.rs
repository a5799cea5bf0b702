//! What an answer of the Messages API reports: its usage, its id, how it ended. Use [`MessagesObserver`] on every
//! event of a stream, or on the body of a plain answer.
//!
//! Names of events and fields: <https://platform.claude.com/docs/en/build-with-claude/streaming>.

mod message;

use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem::Finder;

pub use super::openai::{Seen, Terminal};

use self::message::{Message, Part};
use super::{Failure, TokenUsage};
use crate::json::{Cursor, Malformed};
use crate::peek::find_string_at;
use crate::sse::Event;

/// Made once: that costs more than a search in a small event.
static DELTA: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"delta\":"));

/// Why an answer can end without being whole.
const CUT_SHORT: [&str; 3] = ["max_tokens", "model_context_window_exceeded", "refusal"];

/// Watches one answer of the Messages API go by.
#[derive(Clone, Debug, Default)]
pub struct MessagesObserver {
    delta_bytes: u64,
    message: Message,
}

impl MessagesObserver {
    /// An observer of an answer of which nothing has been seen.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next event of a stream and tells what it means.
    ///
    /// [`Seen::Preamble`] is everything that gives the client nothing of the answer: the beginning of the message, of a
    /// block that is still empty, an empty piece of one, the end of a block, a ping. [`Seen::Terminal`] is
    /// `message_stop` only, and only when its data is whole; without it the stream is unfinished.
    pub fn event(&mut self, event: &Event<'_>) -> Seen {
        let data = event.data;
        match event.name {
            Some(name) if is_known(name) => self.named(name, data),
            _ => match kind(data) {
                Kind::Named(span) => self.named(&data[span], data),
                Kind::Done => Seen::Done,
                Kind::Nothing => Seen::Preamble,
                Kind::Error => self.error(data),
                Kind::Unknown => Seen::Output,
            },
        }
    }

    /// Takes the whole body of a plain answer, or of an error. A body that is neither reports nothing.
    pub fn json(&mut self, body: &[u8]) {
        // What stands before a flaw is kept.
        let _ = self.message.read(&mut Cursor::new(body));
        self.message.is_final |= self.message.usage.is_some();
    }

    /// The tokens reported so far. Counts in a stream are those of the whole answer up to there, each event's taking the
    /// place of the former's where it is more than nothing; see [`Self::is_final`].
    pub fn usage(&self) -> Option<TokenUsage> {
        self.message.usage()
    }

    /// Whether the usage counts the output as well. A stream that breaks off before its `message_delta` has reported
    /// its input, but of the output only the first token or so.
    pub fn is_final(&self) -> bool {
        self.message.is_final
    }

    /// The id of the message.
    pub fn message_id(&self) -> Option<&str> {
        self.message.id.as_deref()
    }

    /// The model that answers, as the provider calls it.
    pub fn model(&self) -> Option<&str> {
        self.message.model.as_deref()
    }

    /// Why the model stopped, in the provider's word.
    pub fn stop_reason(&self) -> Option<&str> {
        self.message.stop_reason.as_deref()
    }

    /// The service tier that the usage reports.
    pub fn service_tier(&self) -> Option<&str> {
        self.message.service_tier.as_deref()
    }

    /// The speed that the usage reports.
    pub fn speed(&self) -> Option<&str> {
        self.message.speed.as_deref()
    }

    /// What went wrong, by an `error` event or an error for a body.
    pub fn failure(&self) -> Option<&Failure> {
        self.message.failure.as_ref()
    }

    /// Bytes of output seen (texts, thinking, arguments), as UTF-8: what to estimate from when no usage was reported.
    pub fn output_bytes(&self) -> u64 {
        self.delta_bytes.max(self.message.output_bytes)
    }

    fn named(&mut self, name: &[u8], data: &[u8]) -> Seen {
        match name {
            b"content_block_delta" => self.delta(data),
            b"message_start" => {
                // Of an event cut off what it got to say is kept.
                let _ = self.message.read_start(data);
                Seen::Preamble
            }
            b"content_block_start" => self.block_start(data),
            b"content_block_stop" | b"ping" => Seen::Preamble,
            b"message_delta" => {
                let _ = self.message.read_delta(data);
                Seen::Output
            }
            b"message_stop" => match is_whole(data) {
                Ok(()) => Seen::Terminal(self.terminal()),
                Err(Malformed) => Seen::Output,
            },
            b"error" => self.error(data),
            _ => Seen::Output,
        }
    }

    fn terminal(&self) -> Terminal {
        match self.stop_reason() {
            Some(reason) if CUT_SHORT.contains(&reason) => Terminal::Incomplete,
            _ => Terminal::Completed,
        }
    }

    fn block_start(&mut self, data: &[u8]) -> Seen {
        let part = message::block_start(data).unwrap_or_default();
        self.seen(part)
    }

    /// A piece of a block: nearly all events of a stream are this.
    fn delta(&mut self, data: &[u8]) -> Seen {
        // Inside a string the quotes would be escaped: this is a key. Of others by that name there are none before it.
        let found = DELTA.find(data).map(|at| at + DELTA.needle().len());
        let part = match found {
            Some(at) => message::delta(&mut Cursor::new(&data[at..])),
            None => message::member_delta(data),
        };
        self.seen(part.unwrap_or(Part::OTHER))
    }

    fn seen(&mut self, part: Part) -> Seen {
        self.delta_bytes += part.bytes;
        if part.is_content {
            Seen::Output
        } else {
            Seen::Preamble
        }
    }

    fn error(&mut self, data: &[u8]) -> Seen {
        self.message.failure = Some(message::error_event(data));
        Seen::Error
    }
}

/// Names of events that tell for certain what an event is; by others, its data does.
fn is_known(name: &[u8]) -> bool {
    matches!(
        name,
        b"message_start"
            | b"content_block_start"
            | b"content_block_delta"
            | b"content_block_stop"
            | b"message_delta"
            | b"message_stop"
            | b"ping"
            | b"error"
    )
}

fn is_whole(data: &[u8]) -> Result<(), Malformed> {
    let mut cursor = Cursor::new(data);
    cursor.value()?;
    cursor.finish()
}

/// What the data of an event says it is.
enum Kind {
    /// Its `type`, as a place in the data.
    Named(Range<usize>),
    Done,
    Nothing,
    /// No type, but an error: relays write these.
    Error,
    Unknown,
}

fn kind(data: &[u8]) -> Kind {
    match data.trim_ascii() {
        b"" => return Kind::Nothing,
        b"[DONE]" => return Kind::Done,
        _ => {}
    }
    if let Some(span) = find_string_at(data, &["type"]) {
        return Kind::Named(span.start + 1..span.end - 1);
    }
    match message::has_error(data) {
        true => Kind::Error,
        false => Kind::Unknown,
    }
}

#[cfg(test)]
mod tests;
