//! Requests that a program makes for itself rather than for its user, and the answers to them that need no model. For
//! accounts whose operator wants them answered here: nothing goes upstream, nothing is billed.

use bytes::Bytes;
use memchr::memmem;
use serde_json::{Value, json};

use crate::client::{self, ClaudeCode};
use crate::json::Cursor;
use crate::validate::messages::MessagesRequest;
use crate::validate::messages::content::{self, Block, Step};

/// What such a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intercept {
    /// Whether the key is good: one token of a small model.
    Probe,
    /// What the user may say next.
    Suggestion,
    /// A title for the conversation, or nothing but to warm up.
    WarmUp,
}

// Texts by which a program's own requests are known. None of them needs an escape in JSON, and the programs write
// none: they are looked for as they would stand in the body.

/// All that a warm-up says.
const WARM_UP: &[u8] = b"Warmup";
/// In a message that asks for a title.
const TITLE: &[u8] = b"Please write a 5-10 word title for the following conversation:";
/// In a system text that asks for a topic.
const TOPIC: &[u8] =
    b"nalyze if this message indicates a new conversation topic. If it does, extract a 2-3 word title";

/// What the prompt of every canned answer is said to have had: a plausible small number, as nothing was counted.
const INPUT_TOKENS: u64 = 10;

/// Tells whether a request can be answered here, and how. `client` is Claude Code, if it was recognised: only its
/// probes are answered.
pub fn intercept(request: &MessagesRequest<'_>, client: Option<&ClaudeCode>) -> Option<Intercept> {
    if client.is_some() && client::is_probe(request) {
        Some(Intercept::Probe)
    } else if request.last.asks_suggestion {
        Some(Intercept::Suggestion)
    } else if warms_up(request) {
        Some(Intercept::WarmUp)
    } else {
        None
    }
}

fn warms_up(request: &MessagesRequest<'_>) -> bool {
    let has = |bytes: &[u8], text: &[u8]| memmem::find(bytes, text).is_some();
    // Most requests have none of the texts anywhere. What stands in a request that was read is well-formed.
    let (system, messages) = (request.system, request.messages);
    let mut found = false;
    if has(system, TOPIC) {
        let _ = content::content(&mut Cursor::new(system), &mut |block| {
            found |= says(block, |text| has(text, TOPIC));
        });
    }
    if !found && (has(messages, WARM_UP) || has(messages, TITLE)) {
        let _ = content::messages(&mut Cursor::new(messages), &mut |step| {
            if let Step::Block(block) = step {
                found |= says(block, |text| text == WARM_UP || has(text, TITLE));
            }
        });
    }
    found
}

fn says(block: &Block<'_>, what: impl Fn(&[u8]) -> bool) -> bool {
    block.text().is_some_and(|text| what(text.raw))
}

impl Intercept {
    /// The name used in logs and as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Intercept::Probe => "probe",
            Intercept::Suggestion => "suggestion",
            Intercept::WarmUp => "warm_up",
        }
    }

    /// The texts of the answer, as a stream brings them one after another.
    fn texts(self) -> &'static [&'static str] {
        match self {
            Intercept::Probe => &["#"],
            Intercept::Suggestion => &[""],
            Intercept::WarmUp => &["New", " Conversation"],
        }
    }

    fn output_tokens(self) -> u64 {
        match self {
            Intercept::Probe | Intercept::Suggestion => 1,
            Intercept::WarmUp => 2,
        }
    }

    fn stop_reason(self) -> &'static str {
        match self {
            Intercept::Probe => "max_tokens",
            Intercept::Suggestion | Intercept::WarmUp => "end_turn",
        }
    }

    fn usage(self, output_tokens: u64) -> Value {
        json!({
            "input_tokens": INPUT_TOKENS,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output_tokens,
        })
    }

    fn message(self, model: &str, request_id: &str) -> Value {
        json!({
            "id": message_id(request_id),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [{"type": "text", "text": self.texts().concat()}],
            "stop_reason": self.stop_reason(),
            "stop_sequence": null,
            "usage": self.usage(self.output_tokens()),
        })
    }

    /// The answer as JSON. `model` is what the client called it, `request_id` ours of the request.
    pub fn json(self, model: &str, request_id: &str) -> Bytes {
        Bytes::from(self.message(model, request_id).to_string())
    }

    /// The answer as a whole stream of events. (A probe never asks for one.)
    pub fn stream(self, model: &str, request_id: &str) -> Bytes {
        let mut start = self.message(model, request_id);
        start["content"] = json!([]);
        start["stop_reason"] = Value::Null;
        start["usage"] = self.usage(0);
        let block = json!({"type": "text", "text": ""});
        let delta = |text: &&str| {
            let delta = json!({"type": "text_delta", "text": text});
            json!({"type": "content_block_delta", "index": 0, "delta": delta})
        };
        let end = json!({"stop_reason": self.stop_reason(), "stop_sequence": null});
        let usage = self.usage(self.output_tokens());

        let mut events = vec![
            json!({"type": "message_start", "message": start}),
            json!({"type": "content_block_start", "index": 0, "content_block": block}),
        ];
        events.extend(self.texts().iter().map(delta));
        events.extend([
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "message_delta", "delta": end, "usage": usage}),
            json!({"type": "message_stop"}),
        ]);
        let frame = |event: &Value| {
            let name = event["type"].as_str().unwrap_or_default();
            format!("event: {name}\ndata: {event}\n\n")
        };
        Bytes::from(events.iter().map(frame).collect::<String>())
    }
}

/// The id of a message that no provider made: nobody can take it for one of theirs.
pub fn message_id(request_id: &str) -> String {
    format!("msg_local_{request_id}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::SseScanner;
    use crate::usage::TokenUsage;
    use crate::usage::anthropic::{MessagesObserver, Seen, Terminal};
    use crate::validate::messages::messages;

    const ALL: [Intercept; 3] = [Intercept::Probe, Intercept::Suggestion, Intercept::WarmUp];
    const CLIENT: ClaudeCode = ClaudeCode { version: None };

    fn kind(body: &Value, client: bool) -> Option<Intercept> {
        let body = body.to_string();
        intercept(
            &messages(body.as_bytes()).unwrap(),
            client.then_some(&CLIENT),
        )
    }

    fn user(content: Value) -> Value {
        json!({"role": "user", "content": content})
    }

    fn text(text: &str) -> Value {
        json!({"type": "text", "text": text})
    }

    #[test]
    fn kinds_come_in_order() {
        let title = "Please write a 5-10 word title for the following conversation:\n\nhi";
        let topic = "Analyze if this message indicates a new conversation topic. If it does, extract a 2-3 word title that";
        let (probe, suggestion, warm_up) = (
            Some(Intercept::Probe),
            Some(Intercept::Suggestion),
            Some(Intercept::WarmUp),
        );
        let of = |list: Value| json!({"model": "m", "max_tokens": 9, "messages": list});
        let haiku =
            |list: Value| json!({"model": "claude-haiku", "max_tokens": 1, "messages": list});
        #[rustfmt::skip]
        let rows = [
            (of(json!([user(json!("hi"))])), None),
            (haiku(json!([user(json!("test"))])), probe),
            (haiku(json!([user(json!("[SUGGESTION MODE: x]"))])), probe),
            (of(json!([user(json!("[SUGGESTION MODE: x]"))])), suggestion),
            (of(json!([user(json!("Warmup")), user(json!([text("[SUGGESTION MODE: x]")]))])), suggestion),
            (of(json!([user(json!("[SUGGESTION MODE: x]")), user(json!("hi"))])), None),
            (of(json!([user(json!("Warmup"))])), warm_up),
            (of(json!([user(json!([text("hi"), text("Warmup")])), user(json!("hi"))])), warm_up),
            (of(json!([{"role": "assistant", "content": "Warmup"}])), warm_up),
            (of(json!([user(json!("Warmup now"))])), None),
            (of(json!([user(json!([{"type": "tool_result", "content": "Warmup"}]))])), None),
            (of(json!([user(json!([{"type": "tool_use", "input": {"x": title}}]))])), None),
            (of(json!([user(json!([text(title)]))])), warm_up),
            (of(json!([user(json!(title))])), warm_up),
            // What belongs into `system` counts only there.
            (of(json!([user(json!(topic))])), None),
        ];
        for (body, expected) in rows {
            assert_eq!(kind(&body, true), expected, "{body}");
            let other = expected.filter(|kind| *kind != Intercept::Probe);
            let other = other.or_else(|| {
                let asks = body["messages"][0]["content"] == "[SUGGESTION MODE: x]";
                (expected == probe && asks).then_some(Intercept::Suggestion)
            });
            assert_eq!(kind(&body, false), other, "{body}");
        }
        for system in [json!(topic), json!([text("x"), text(topic)])] {
            let body = json!({"model": "m", "system": system, "messages": [user(json!("hi"))]});
            assert_eq!(kind(&body, false), warm_up, "{body}");
        }
        for system in [
            json!(null),
            json!(title),
            json!([{"type": "x", "text": topic}]),
        ] {
            let body = json!({"model": "m", "system": system, "messages": [user(json!("hi"))]});
            assert_eq!(kind(&body, true), None, "{body}");
        }
    }

    #[test]
    fn answers_are_messages() {
        for (kind, text, tokens, reason) in [
            (Intercept::Probe, "#", 1, "max_tokens"),
            (Intercept::Suggestion, "", 1, "end_turn"),
            (Intercept::WarmUp, "New Conversation", 2, "end_turn"),
        ] {
            let answer: Value =
                serde_json::from_slice(&kind.json("claude \"x\"", "req-1")).unwrap();
            let expected = json!({
                "id": "msg_local_req-1", "type": "message", "role": "assistant", "model": "claude \"x\"",
                "content": [{"type": "text", "text": text}], "stop_reason": reason, "stop_sequence": null,
                "usage": {
                    "input_tokens": 10, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                    "output_tokens": tokens,
                },
            });
            assert_eq!(answer, expected);
        }
    }

    /// Puts a stream together again as the SDKs do.
    fn fold(stream: &[u8]) -> (Value, Vec<String>) {
        let (mut message, mut names) = (Value::Null, Vec::new());
        let mut scanner = SseScanner::new(1 << 16);
        let take = |event: crate::sse::Event<'_>| {
            let data: Value = serde_json::from_slice(event.data).unwrap();
            let name = std::str::from_utf8(event.name.unwrap()).unwrap();
            assert_eq!(data["type"], name);
            names.push(name.to_owned());
            match name {
                "message_start" => message = data["message"].clone(),
                "content_block_start" => {
                    let content = message["content"].as_array_mut().unwrap();
                    assert_eq!(data["index"], content.len());
                    content.push(data["content_block"].clone());
                }
                "content_block_delta" => {
                    let block = &mut message["content"][data["index"].as_u64().unwrap() as usize];
                    let text = block["text"].as_str().unwrap().to_owned();
                    block["text"] = json!(text + data["delta"]["text"].as_str().unwrap());
                }
                "message_delta" => {
                    for (name, value) in data["delta"].as_object().unwrap() {
                        message[name] = value.clone();
                    }
                    for (name, value) in data["usage"].as_object().unwrap() {
                        message["usage"][name] = value.clone();
                    }
                }
                _ => {}
            }
        };
        scanner.feed(stream, take).unwrap();
        assert!(scanner.at_boundary());
        (message, names)
    }

    #[test]
    fn a_stream_is_the_same_message() {
        for kind in ALL {
            let stream = kind.stream("m", "r");
            let (message, names) = fold(&stream);
            let whole: Value = serde_json::from_slice(&kind.json("m", "r")).unwrap();
            assert_eq!(message, whole, "{kind:?}");
            let deltas = names
                .iter()
                .filter(|name| *name == "content_block_delta")
                .count();
            assert_eq!(deltas, if kind == Intercept::WarmUp { 2 } else { 1 });
            let mut order = names.clone();
            order.dedup();
            assert_eq!(
                order,
                [
                    "message_start",
                    "content_block_start",
                    "content_block_delta",
                    "content_block_stop",
                    "message_delta",
                    "message_stop"
                ]
            );
        }
    }

    #[test]
    fn our_own_observer_reads_them() {
        for kind in ALL {
            let mut observer = MessagesObserver::new();
            let mut last = None;
            SseScanner::new(1 << 16)
                .feed(&kind.stream("m", "r"), |event| {
                    last = Some(observer.event(&event))
                })
                .unwrap();
            assert!(matches!(
                last,
                Some(Seen::Terminal(Terminal::Completed | Terminal::Incomplete))
            ));
            let expected = TokenUsage {
                input: INPUT_TOKENS,
                output: kind.output_tokens(),
                ..TokenUsage::default()
            };
            assert_eq!(observer.usage(), Some(expected));
            assert_eq!(observer.message_id(), Some("msg_local_r"));
        }
    }
}
