//! Between an event stream and a single JSON answer of the Messages API, both ways.

use bytes::Bytes;
use serde_json::{Value, json};

/// A message being put together from its events.
#[derive(Default)]
pub struct Assembly {
    message: Value,
    /// The input of the tool that is being called, which comes in pieces that are no JSON by themselves.
    input: String,
    complete: bool,
}

impl Assembly {
    /// Takes the data of the next event.
    pub fn take(&mut self, data: &[u8]) {
        let Ok(mut event) = serde_json::from_slice::<Value>(data) else {
            return;
        };
        let at = event["index"]
            .as_u64()
            .and_then(|at| usize::try_from(at).ok());
        let kind = event["type"].take();
        match kind.as_str().unwrap_or_default() {
            "message_start" => self.message = event["message"].take(),
            "content_block_start" => {
                self.input.clear();
                if let Some(content) = self.message["content"].as_array_mut() {
                    content.push(event["content_block"].take());
                }
            }
            "content_block_delta" => {
                if let Some(block) = at.and_then(|at| self.message["content"].get_mut(at)) {
                    delta(block, &mut event["delta"], &mut self.input);
                }
            }
            "content_block_stop" => {
                if let Ok(input) = serde_json::from_str::<Value>(&self.input)
                    && let Some(block) = at.and_then(|at| self.message["content"].get_mut(at))
                {
                    block["input"] = input;
                }
                self.input.clear();
            }
            "message_delta" => {
                merge(&mut self.message, event["delta"].take());
                if self.message.is_object() {
                    merge(&mut self.message["usage"], event["usage"].take());
                }
            }
            "message_stop" => self.complete = self.message.is_object(),
            _ => {}
        }
    }

    /// The message, if all of it was there.
    pub fn finish(self) -> Option<Value> {
        self.complete.then_some(self.message)
    }
}

/// Adds a piece to its block. Pieces of kinds that are not known are lost: nothing tells how they belong there.
fn delta(block: &mut Value, delta: &mut Value, input: &mut String) {
    if !block.is_object() {
        return;
    }
    for field in ["text", "thinking", "signature"] {
        if let Some(more) = delta[field].as_str() {
            let text = block[field].as_str().unwrap_or_default();
            block[field] = format!("{text}{more}").into();
        }
    }
    if let Some(more) = delta["partial_json"].as_str() {
        input.push_str(more);
    }
    if !delta["citation"].is_null() {
        let citation = delta["citation"].take();
        match block["citations"].as_array_mut() {
            Some(citations) => citations.push(citation),
            None => block["citations"] = json!([citation]),
        }
    }
}

/// The fields of `from` take the place of those of `to`.
fn merge(to: &mut Value, from: Value) {
    let Value::Object(from) = from else { return };
    if to.is_null() {
        *to = json!({});
    }
    if let Some(to) = to.as_object_mut() {
        to.extend(from);
    }
}

/// The events that a message would have come in; `None` for what is no message.
pub fn to_events(message: &[u8]) -> Option<Bytes> {
    let mut message: Value = serde_json::from_slice(message).ok()?;
    if message["type"] != "message" {
        return None;
    }
    let content = message["content"].take();
    let end = json!({
        "type": "message_delta",
        "delta": { "stop_reason": message["stop_reason"].take(), "stop_sequence": message["stop_sequence"].take() },
        "usage": message["usage"].clone(),
    });
    message["content"] = json!([]);
    let mut events = Events::default();
    events.add(json!({ "type": "message_start", "message": message }));
    for (index, block) in content.as_array()?.iter().enumerate() {
        let (begun, deltas) = begun(block);
        events
            .add(json!({ "type": "content_block_start", "index": index, "content_block": begun }));
        for delta in deltas {
            events.add(json!({ "type": "content_block_delta", "index": index, "delta": delta }));
        }
        events.add(json!({ "type": "content_block_stop", "index": index }));
    }
    events.add(end);
    events.add(json!({ "type": "message_stop" }));
    Some(events.0.into())
}

/// A block as it begins, and what makes it whole. Of kinds that are not known all comes at once.
fn begun(block: &Value) -> (Value, Vec<Value>) {
    let mut begun = block.clone();
    let mut deltas = Vec::new();
    let mut piece = |kind: &str, field: &str, name: &str, empty: Value| {
        let value = begun[field].take();
        begun[field] = empty;
        let value = if field == "input" {
            value.to_string().into()
        } else {
            value
        };
        deltas.push(json!({ "type": kind, name: value }));
    };
    match block["type"].as_str() {
        Some("text") => piece("text_delta", "text", "text", "".into()),
        Some("thinking") => {
            piece("thinking_delta", "thinking", "thinking", "".into());
            piece("signature_delta", "signature", "signature", "".into());
        }
        Some("tool_use" | "server_tool_use") => {
            piece("input_json_delta", "input", "partial_json", json!({}));
        }
        _ => {}
    }
    (begun, deltas)
}

#[derive(Default)]
struct Events(Vec<u8>);

impl Events {
    fn add(&mut self, data: Value) {
        let name = data["type"].as_str().unwrap_or_default();
        let frame = format!("event: {name}\ndata: {data}\n\n");
        self.0.extend_from_slice(frame.as_bytes());
    }
}
