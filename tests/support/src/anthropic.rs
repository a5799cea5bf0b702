//! Canned answers of Anthropic's Messages API, in the field order and event order the API uses, accepted by the
//! official SDKs' parsers (<https://platform.claude.com/docs/en/build-with-claude/streaming>). Rendered as text for
//! the same reason as [`crate::openai`]'s.
//!
//! ```
//! use tollgate_test_support::anthropic::{Block, Message};
//!
//! let message = Message::new("claude-x", "msg_1", &[Block::Text(&["Hel", "lo"])]);
//! let whole = message.stream();
//! let broken = message.failed(4, "overloaded_error", "Overloaded");
//! assert!(broken.len() < whole.len());
//! ```

use bytes::Bytes;

use crate::sse::frame;

/// Tokens an answer reports; the classes do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Input tokens that neither were read from the cache nor written to it.
    pub input: u64,
    /// Written to the 5-minute cache.
    pub cache_5m: u64,
    /// Written to the 1-hour cache.
    pub cache_1h: u64,
    /// Read from the cache.
    pub cache_read: u64,
    /// Output tokens, thinking included.
    pub output: u64,
}

impl Default for Usage {
    /// Five different numbers, so that a mix-up shows.
    fn default() -> Self {
        Self {
            input: 100,
            cache_5m: 40,
            cache_1h: 7,
            cache_read: 20,
            output: 30,
        }
    }
}

impl Usage {
    /// The `usage` object of a whole message.
    pub fn json(&self) -> String {
        self.begun(self.output)
    }

    /// The one of `message_start`, where only so many output tokens are there.
    fn begun(&self, output: u64) -> String {
        format!(
            "{{\"input_tokens\":{},\"cache_creation_input_tokens\":{},\"cache_read_input_tokens\":{},\
             \"cache_creation\":{{\"ephemeral_5m_input_tokens\":{},\"ephemeral_1h_input_tokens\":{}}},\
             \"output_tokens\":{output},\"service_tier\":\"standard\"}}",
            self.input,
            self.cache_5m + self.cache_1h,
            self.cache_read,
            self.cache_5m,
            self.cache_1h,
        )
    }

    /// The one of `message_delta`, which is cumulative.
    fn total(&self) -> String {
        format!(
            "{{\"input_tokens\":{},\"cache_creation_input_tokens\":{},\"cache_read_input_tokens\":{},\
             \"output_tokens\":{}}}",
            self.input,
            self.cache_5m + self.cache_1h,
            self.cache_read,
            self.output,
        )
    }
}

/// A tool that a model asks for.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// `id`, such as `toolu_1`.
    pub id: &'a str,
    /// Name of the tool.
    pub name: &'a str,
    /// Its input, a JSON object as text.
    pub input: &'a str,
}

/// A block of content; texts are lists of deltas.
#[derive(Clone, Copy, Debug)]
pub enum Block<'a> {
    /// Thinking and its signature.
    Thinking(&'a [&'a str], &'a str),
    /// Thinking that is not shown.
    Redacted(&'a str),
    /// Text.
    Text(&'a [&'a str]),
    /// A call of a tool; its input comes in two deltas.
    ToolUse(Call<'a>),
}

impl Block<'_> {
    /// The block as a message has it.
    fn json(&self) -> String {
        match self {
            Block::Thinking(deltas, signature) => format!(
                "{{\"type\":\"thinking\",\"thinking\":{},\"signature\":{}}}",
                quoted(&deltas.concat()),
                quoted(signature)
            ),
            Block::Redacted(data) => {
                format!(
                    "{{\"type\":\"redacted_thinking\",\"data\":{}}}",
                    quoted(data)
                )
            }
            Block::Text(deltas) => {
                format!(
                    "{{\"type\":\"text\",\"text\":{}}}",
                    quoted(&deltas.concat())
                )
            }
            Block::ToolUse(call) => call_json(call, call.input),
        }
    }

    /// The block as `content_block_start` has it.
    fn begun(&self) -> String {
        match self {
            Block::Thinking(..) => Block::Thinking(&[], "").json(),
            Block::Redacted(_) => self.json(),
            Block::Text(_) => Block::Text(&[]).json(),
            Block::ToolUse(call) => call_json(call, "{}"),
        }
    }

    /// The `delta` objects that make the block of its beginning.
    fn deltas(&self) -> Vec<String> {
        match self {
            Block::Thinking(deltas, signature) => {
                let thinking = deltas
                    .iter()
                    .map(|text| delta("thinking_delta", "thinking", text));
                let signature = delta("signature_delta", "signature", signature);
                thinking.chain([signature]).collect()
            }
            Block::Redacted(_) => vec![],
            Block::Text(deltas) => {
                let deltas = deltas.iter();
                deltas
                    .map(|text| delta("text_delta", "text", text))
                    .collect()
            }
            Block::ToolUse(call) => {
                // A cut inside a character would be no string; fall back to one delta.
                let middle = call.input.len() / 2;
                let halves = call.input.split_at_checked(middle);
                let (first, second) = halves.unwrap_or((call.input, ""));
                // The API begins with an empty one.
                let parts = ["", first, second].into_iter();
                parts
                    .map(|part| delta("input_json_delta", "partial_json", part))
                    .collect()
            }
        }
    }
}

fn call_json(call: &Call<'_>, input: &str) -> String {
    format!(
        "{{\"type\":\"tool_use\",\"id\":{},\"name\":{},\"input\":{input}}}",
        quoted(call.id),
        quoted(call.name)
    )
}

fn delta(kind: &str, field: &str, text: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"{field}\":{}}}", quoted(text))
}

/// An answer, to be given whole or as a stream that may break anywhere.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// `model`
    pub model: &'a str,
    /// `id`
    pub id: &'a str,
    /// Its content.
    pub blocks: &'a [Block<'a>],
    /// `stop_reason`
    pub stop_reason: &'a str,
    /// `usage`
    pub usage: Usage,
}

impl<'a> Message<'a> {
    /// Ends as its content asks for: with `tool_use` when a tool is called, else with `end_turn`.
    pub fn new(model: &'a str, id: &'a str, blocks: &'a [Block<'a>]) -> Self {
        let calls = blocks
            .iter()
            .any(|block| matches!(block, Block::ToolUse(_)));
        Self {
            model,
            id,
            blocks,
            stop_reason: if calls { "tool_use" } else { "end_turn" },
            usage: Usage::default(),
        }
    }

    /// The same with other tokens.
    pub fn usage(self, usage: Usage) -> Self {
        Self { usage, ..self }
    }

    /// The same for another reason to stop, such as `max_tokens` or `refusal`.
    pub fn stop_reason(self, stop_reason: &'a str) -> Self {
        Self {
            stop_reason,
            ..self
        }
    }

    /// The JSON answer.
    pub fn json(&self) -> Bytes {
        let content: Vec<_> = self.blocks.iter().map(Block::json).collect();
        let reason = quoted(self.stop_reason);
        Bytes::from(self.object(&content.join(","), &reason, &self.usage.json()))
    }

    fn object(&self, content: &str, stop_reason: &str, usage: &str) -> String {
        format!(
            "{{\"model\":{},\"id\":\"{}\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[{content}],\
             \"stop_reason\":{stop_reason},\"stop_sequence\":null,\"usage\":{usage}}}",
            quoted(self.model),
            self.id
        )
    }

    /// The whole stream, one event each: `message_start`, then for every block `content_block_start` (a `ping`
    /// behind the first), its deltas and `content_block_stop`, then `message_delta` and `message_stop`.
    pub fn stream(&self) -> Vec<Bytes> {
        let mut frames = Vec::new();
        let mut add = |name: &str, fields: &str| {
            let data = format!("{{\"type\":\"{name}\"{fields}}}");
            frames.push(frame(name, &data));
        };
        let begun = self.object("", "null", &self.usage.begun(1));
        add("message_start", &format!(",\"message\":{begun}"));
        for (index, block) in self.blocks.iter().enumerate() {
            let at = format!(",\"index\":{index}");
            let begun = block.begun();
            add(
                "content_block_start",
                &format!("{at},\"content_block\":{begun}"),
            );
            if index == 0 {
                add("ping", "");
            }
            for delta in block.deltas() {
                add("content_block_delta", &format!("{at},\"delta\":{delta}"));
            }
            add("content_block_stop", &at);
        }
        let reason = quoted(self.stop_reason);
        let usage = self.usage.total();
        add(
            "message_delta",
            &format!(
                ",\"delta\":{{\"stop_reason\":{reason},\"stop_sequence\":null}},\"usage\":{usage}"
            ),
        );
        add("message_stop", "");
        frames
    }

    /// The first events of the stream and nothing after them.
    pub fn cut(&self, events: usize) -> Vec<Bytes> {
        let mut frames = self.stream();
        frames.truncate(events);
        frames
    }

    /// The first events of the stream and an `error` event of this type behind them.
    pub fn failed(&self, events: usize, kind: &str, text: &str) -> Vec<Bytes> {
        let mut frames = self.cut(events);
        frames.push(error_event(kind, text));
        frames
    }
}

/// A `ping` event.
pub fn ping() -> Bytes {
    frame("ping", "{\"type\": \"ping\"}")
}

/// An `error` event, of a type such as `overloaded_error`.
pub fn error_event(kind: &str, text: &str) -> Bytes {
    frame("error", &error_json(kind, text))
}

/// An error body of the type that goes with the status (<https://platform.claude.com/docs/en/api/errors>).
pub fn error(status: u16, text: &str) -> Bytes {
    let kind = match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    Bytes::from(error_json(kind, text))
}

fn error_json(kind: &str, text: &str) -> String {
    format!(
        "{{\"type\":\"error\",\"error\":{{\"type\":{},\"message\":{}}},\"request_id\":\"req_fake\"}}",
        quoted(kind),
        quoted(text)
    )
}

/// The answer of `POST /v1/messages/count_tokens`.
pub fn count_tokens(input: u64) -> Bytes {
    Bytes::from(format!("{{\"input_tokens\":{input}}}"))
}

/// The answer of `GET /v1/models`.
pub fn models(ids: &[&str]) -> Bytes {
    let model = |id: &&str| {
        let id = quoted(id);
        format!(
            "{{\"type\":\"model\",\"id\":{id},\"display_name\":{id},\"created_at\":\"2025-01-01T00:00:00Z\"}}"
        )
    };
    let all: Vec<_> = ids.iter().map(model).collect();
    let end = |id: Option<&&str>| id.map_or_else(|| "null".to_owned(), |id| quoted(id));
    Bytes::from(format!(
        "{{\"data\":[{}],\"has_more\":false,\"first_id\":{},\"last_id\":{}}}",
        all.join(","),
        end(ids.first()),
        end(ids.last())
    ))
}

fn quoted(text: &str) -> String {
    // A string always has a JSON form.
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::sse::events;

    const BLOCKS: &[Block<'static>] = &[
        Block::Thinking(&["Let me ", "see \"it\""], "c2ln"),
        Block::Redacted("ZGF0YQ=="),
        Block::Text(&["Hel", "lo\n"]),
        Block::ToolUse(Call {
            id: "toolu_1",
            name: "weather",
            input: "{\"städte\":\"Zürich\"}",
        }),
    ];

    fn message() -> Message<'static> {
        Message::new("claude-x", "msg_1", BLOCKS)
    }

    /// The message that a client puts together from a stream.
    fn assembled(frames: &[Bytes]) -> Value {
        let mut message = Value::Null;
        let mut inputs = String::new();
        for event in events(&frames.concat()) {
            let data = event.json();
            assert_eq!(data["type"], event.name.as_str());
            let index = data["index"].as_u64().unwrap_or_default() as usize;
            match event.name.as_str() {
                "message_start" => message = data["message"].clone(),
                "content_block_start" => {
                    let content = message["content"].as_array_mut().expect("begun");
                    assert_eq!(content.len(), index);
                    content.push(data["content_block"].clone());
                    inputs.clear();
                }
                "content_block_delta" => {
                    let delta = &data["delta"];
                    let kind = delta["type"].as_str().expect("a type");
                    if kind == "input_json_delta" {
                        inputs += delta["partial_json"].as_str().expect("a text");
                        continue;
                    }
                    let field = kind.trim_end_matches("_delta");
                    let block = &mut message["content"][index];
                    let so_far = block[field].as_str().expect("begun").to_owned();
                    block[field] = (so_far + delta[field].as_str().expect("a text")).into();
                }
                "content_block_stop" if !inputs.is_empty() => {
                    let input = serde_json::from_str(&inputs).expect("JSON");
                    message["content"][index]["input"] = input;
                }
                "message_delta" => {
                    message["stop_reason"] = data["delta"]["stop_reason"].clone();
                    for (name, value) in data["usage"].as_object().expect("an object") {
                        message["usage"][name] = value.clone();
                    }
                }
                _ => {}
            }
        }
        message
    }

    #[test]
    fn a_stream_makes_the_message() {
        let whole: Value = serde_json::from_slice(&message().json()).expect("JSON");
        assert_eq!(assembled(&message().stream()), whole);
        assert_eq!(whole["stop_reason"], "tool_use");
        assert_eq!(whole["content"][2]["text"], "Hello\n");
        assert_eq!(whole["usage"]["cache_creation_input_tokens"], 47);
        let usage = Usage {
            output: 5,
            ..Usage::default()
        };
        let cut = Message::new("m", "msg_2", &[Block::Text(&["a"])])
            .usage(usage)
            .stop_reason("max_tokens");
        let end = &assembled(&cut.stream())["stop_reason"];
        assert_eq!((end, cut.usage.output), (&json!("max_tokens"), 5));
    }

    #[test]
    fn the_events_and_where_they_break() {
        let one = Message::new("m", "msg_1", &[Block::Text(&["a", "b"])]);
        let names = |frames: Vec<Bytes>| -> Vec<String> {
            events(&frames.concat())
                .into_iter()
                .map(|e| e.name)
                .collect()
        };
        let all = [
            "message_start",
            "content_block_start",
            "ping",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ];
        assert_eq!(names(one.stream()), all);
        for at in 0..=all.len() {
            assert_eq!(names(one.cut(at)), all[..at]);
            let failed = one.failed(at, "overloaded_error", "Overloaded");
            let last = events(failed.last().expect("one")).remove(0).json();
            assert_eq!(last["error"]["type"], "overloaded_error");
            assert_eq!(failed.len(), at + 1);
        }
        let ping = events(&ping()).remove(0);
        assert_eq!(
            (ping.name.as_str(), ping.json()),
            ("ping", json!({"type": "ping"}))
        );
    }

    #[test]
    fn other_bodies() {
        let json = |body: Bytes| serde_json::from_slice::<Value>(&body).expect("JSON");
        for (status, kind) in [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (403, "permission_error"),
            (413, "request_too_large"),
            (422, "invalid_request_error"),
            (429, "rate_limit_error"),
            (500, "api_error"),
            (529, "overloaded_error"),
        ] {
            let error = json(error(status, "a \"b\""));
            assert_eq!(error["type"], "error");
            assert_eq!(error["error"], json!({"type": kind, "message": "a \"b\""}));
        }
        assert_eq!(json(count_tokens(7)), json!({"input_tokens": 7}));
        let models = json(models(&["a", "b"]));
        assert_eq!(
            (&models["data"][1]["id"], &models["last_id"]),
            (&json!("b"), &json!("b"))
        );
    }
}
