//! Canned OpenAI Responses answers, in the field order and event order the API uses, accepted by
//! the official SDKs' parsers. Rendered as text on purpose: a JSON tree would sort the fields,
//! and what reads them cheaply depends on their order.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::sse::frame;

/// Tokens an answer reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// All input tokens, cached ones included.
    pub input: u64,
    /// Of those, read from the cache.
    pub cached: u64,
    /// All output tokens.
    pub output: u64,
    /// Of those, reasoning.
    pub reasoning: u64,
}

impl Default for Usage {
    /// Four different numbers, so that a mix-up shows.
    fn default() -> Self {
        Self {
            input: 120,
            cached: 20,
            output: 30,
            reasoning: 10,
        }
    }
}

impl Usage {
    /// The `usage` object.
    pub fn json(&self) -> String {
        format!(
            "{{\"input_tokens\":{},\"input_tokens_details\":{{\"cached_tokens\":{},\"cache_write_tokens\":0}},\
             \"output_tokens\":{},\"output_tokens_details\":{{\"reasoning_tokens\":{}}},\"total_tokens\":{}}}",
            self.input,
            self.cached,
            self.output,
            self.reasoning,
            self.input + self.output
        )
    }
}

/// A function call a model asks for.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// `call_id`.
    pub id: &'a str,
    /// Name of the function.
    pub name: &'a str,
    /// Its arguments, JSON as text.
    pub arguments: &'a str,
}

/// A complete JSON answer with one text message.
pub fn responses_json(model: &str, id: &str, text: &str, usage: Usage) -> Bytes {
    let output = message(id, "completed", Some(text));
    Bytes::from(response(model, id, "completed", &output, Some(usage), ""))
}

/// A complete JSON answer with one function call.
pub fn function_call_json(model: &str, id: &str, call: Call<'_>, usage: Usage) -> Bytes {
    let output = function_call(id, "completed", call, true);
    Bytes::from(response(model, id, "completed", &output, Some(usage), ""))
}

/// A complete stream of one text message: created, in_progress, output_item.added,
/// content_part.added, a delta each, the matching ends, completed. One frame each.
pub fn responses_stream(model: &str, id: &str, deltas: &[&str], usage: Usage) -> Vec<Bytes> {
    let mut events = Events::new(model, id);
    events.text(deltas);
    events.finish_text(deltas);
    let output = message(id, "completed", Some(&deltas.concat()));
    events.terminal("completed", &output, Some(usage), "");
    events.frames
}

/// A complete stream of one function call, its arguments in two deltas.
pub fn function_call_stream(model: &str, id: &str, call: Call<'_>, usage: Usage) -> Vec<Bytes> {
    let mut events = Events::new(model, id);
    events.preamble();
    let item = |status, whole| function_call(id, status, call, whole);
    events.add(
        "response.output_item.added",
        &format!("\"output_index\":0,\"item\":{}", item("in_progress", false)),
    );
    let at = format!("\"item_id\":\"fc_{id}\",\"output_index\":0");
    // A cut inside a character would be no string; fall back to one delta.
    let middle = call.arguments.len() / 2;
    let halves = call
        .arguments
        .split_at_checked(middle)
        .unwrap_or((call.arguments, ""));
    for half in [halves.0, halves.1] {
        events.add(
            "response.function_call_arguments.delta",
            &format!("{at},\"delta\":{}", quoted(half)),
        );
    }
    events.add(
        "response.function_call_arguments.done",
        &format!(
            "{at},\"name\":{},\"arguments\":{}",
            quoted(call.name),
            quoted(call.arguments)
        ),
    );
    let done = item("completed", true);
    events.add(
        "response.output_item.done",
        &format!("\"output_index\":0,\"item\":{done}"),
    );
    events.terminal("completed", &done, Some(usage), "");
    events.frames
}

/// The events that come before any output: `response.created` and `response.in_progress`.
pub fn preamble(model: &str, id: &str) -> Vec<Bytes> {
    let mut events = Events::new(model, id);
    events.preamble();
    events.frames
}

/// A stream that ends with `response.failed` after these deltas (none: right after the
/// preamble).
pub fn responses_failed(
    model: &str,
    id: &str,
    deltas: &[&str],
    code: &str,
    text: &str,
    usage: Option<Usage>,
) -> Vec<Bytes> {
    let mut events = Events::new(model, id);
    events.preamble_or_text(deltas);
    let error = format!(
        ",\"error\":{{\"code\":{},\"message\":{}}}",
        quoted(code),
        quoted(text)
    );
    let output = match deltas {
        [] => String::new(),
        _ => message(id, "incomplete", Some(&deltas.concat())),
    };
    events.terminal("failed", &output, usage, &error);
    events.frames
}

/// A stream that ends with `response.incomplete` for this reason (`max_output_tokens`,
/// `content_filter`).
pub fn responses_incomplete(
    model: &str,
    id: &str,
    deltas: &[&str],
    reason: &str,
    usage: Usage,
) -> Vec<Bytes> {
    let mut events = Events::new(model, id);
    events.preamble_or_text(deltas);
    let details = format!(",\"incomplete_details\":{{\"reason\":{}}}", quoted(reason));
    let output = message(id, "incomplete", Some(&deltas.concat()));
    events.terminal("incomplete", &output, Some(usage), &details);
    events.frames
}

/// A stream cut off after these deltas: no terminal event.
pub fn responses_cut(model: &str, id: &str, deltas: &[&str]) -> Vec<Bytes> {
    let mut events = Events::new(model, id);
    events.preamble_or_text(deltas);
    events.frames
}

/// An `error` event.
pub fn error_event(code: &str, text: &str) -> Bytes {
    let data = format!(
        "{{\"type\":\"error\",\"sequence_number\":2,\"code\":{},\"message\":{},\"param\":null}}",
        quoted(code),
        quoted(text)
    );
    frame("error", &data)
}

/// An error body of the type that goes with the status.
pub fn error(status: u16, code: &str) -> Bytes {
    let kind = match status {
        401 | 403 => "authentication_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    };
    Bytes::from(format!(
        "{{\"error\":{{\"message\":\"fake upstream says {status}\",\"type\":\"{kind}\",\"param\":null,\"code\":{}}}}}",
        quoted(code)
    ))
}

/// The answer of `POST /v1/responses/compact`.
pub fn compaction(id: &str, usage: Usage) -> Bytes {
    Bytes::from(format!(
        "{{\"id\":\"{id}\",\"object\":\"response.compaction\",\"created_at\":{},\
         \"output\":[{{\"id\":\"cmp_{id}\",\"type\":\"compaction\",\"encrypted_content\":\"Y29tcGFjdGVk\"}}],\"usage\":{}}}",
        now(),
        usage.json()
    ))
}

/// The answer of `GET /v1/models`.
pub fn models(ids: &[&str]) -> Bytes {
    let model = |id: &&str| {
        format!(
            "{{\"id\":{},\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"fake\"}}",
            quoted(id)
        )
    };
    let all: Vec<_> = ids.iter().map(model).collect();
    Bytes::from(format!(
        "{{\"object\":\"list\",\"data\":[{}]}}",
        all.join(",")
    ))
}

/// A stream under construction; numbers its events.
struct Events<'a> {
    model: &'a str,
    id: &'a str,
    frames: Vec<Bytes>,
}

impl<'a> Events<'a> {
    fn new(model: &'a str, id: &'a str) -> Self {
        Self {
            model,
            id,
            frames: Vec::new(),
        }
    }

    /// `fields` = what follows type and sequence number.
    fn add(&mut self, name: &str, fields: &str) {
        let number = self.frames.len();
        let data = format!("{{\"type\":\"{name}\",\"sequence_number\":{number},{fields}}}");
        self.frames.push(frame(name, &data));
    }

    fn preamble(&mut self) {
        let begun = response(self.model, self.id, "in_progress", "", None, "");
        let field = format!("\"response\":{begun}");
        self.add("response.created", &field);
        self.add("response.in_progress", &field);
    }

    fn preamble_or_text(&mut self, deltas: &[&str]) {
        match deltas {
            [] => self.preamble(),
            _ => self.text(deltas),
        }
    }

    fn text(&mut self, deltas: &[&str]) {
        self.preamble();
        let item = message(self.id, "in_progress", None);
        self.add(
            "response.output_item.added",
            &format!("\"output_index\":0,\"item\":{item}"),
        );
        let at = part_of(self.id);
        self.add(
            "response.content_part.added",
            &format!("{at},\"part\":{}", part("")),
        );
        for delta in deltas {
            let text = quoted(delta);
            self.add(
                "response.output_text.delta",
                &format!("{at},\"delta\":{text},\"logprobs\":[]"),
            );
        }
    }

    fn finish_text(&mut self, deltas: &[&str]) {
        let text = deltas.concat();
        let at = part_of(self.id);
        self.add(
            "response.output_text.done",
            &format!("{at},\"text\":{},\"logprobs\":[]", quoted(&text)),
        );
        self.add(
            "response.content_part.done",
            &format!("{at},\"part\":{}", part(&text)),
        );
        let item = message(self.id, "completed", Some(&text));
        self.add(
            "response.output_item.done",
            &format!("\"output_index\":0,\"item\":{item}"),
        );
    }

    fn terminal(&mut self, status: &str, output: &str, usage: Option<Usage>, extra: &str) {
        let whole = response(self.model, self.id, status, output, usage, extra);
        self.add(
            &format!("response.{status}"),
            &format!("\"response\":{whole}"),
        );
    }
}

/// A response object. `extra` replaces the null `error` and `incomplete_details` it names.
fn response(
    model: &str,
    id: &str,
    status: &str,
    output: &str,
    usage: Option<Usage>,
    extra: &str,
) -> String {
    let error = match extra.contains("\"error\":") {
        true => "",
        false => ",\"error\":null",
    };
    let details = match extra.contains("\"incomplete_details\":") {
        true => "",
        false => ",\"incomplete_details\":null",
    };
    let usage = usage.map_or_else(|| "null".to_owned(), |usage| usage.json());
    format!(
        "{{\"id\":\"{id}\",\"object\":\"response\",\"created_at\":{},\"status\":\"{status}\"{error}{details}{extra},\
         \"instructions\":null,\"max_output_tokens\":null,\"model\":{},\"output\":[{output}],\
         \"parallel_tool_calls\":true,\"previous_response_id\":null,\"reasoning\":{{\"effort\":null,\"summary\":null}},\
         \"service_tier\":\"default\",\"store\":true,\"temperature\":1.0,\"text\":{{\"format\":{{\"type\":\"text\"}}}},\
         \"tool_choice\":\"auto\",\"tools\":[],\"top_p\":1.0,\"truncation\":\"disabled\",\"usage\":{usage},\
         \"user\":null,\"metadata\":{{}}}}",
        now(),
        quoted(model)
    )
}

fn message(id: &str, status: &str, text: Option<&str>) -> String {
    let content = text.map(part).unwrap_or_default();
    format!(
        "{{\"id\":\"msg_{id}\",\"type\":\"message\",\"status\":\"{status}\",\"content\":[{content}],\"role\":\"assistant\"}}"
    )
}

fn function_call(id: &str, status: &str, call: Call<'_>, whole: bool) -> String {
    let arguments = if whole { call.arguments } else { "" };
    format!(
        "{{\"id\":\"fc_{id}\",\"type\":\"function_call\",\"status\":\"{status}\",\"arguments\":{},\"call_id\":{},\"name\":{}}}",
        quoted(arguments),
        quoted(call.id),
        quoted(call.name)
    )
}

fn part(text: &str) -> String {
    format!(
        "{{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],\"text\":{}}}",
        quoted(text)
    )
}

fn part_of(id: &str) -> String {
    format!("\"item_id\":\"msg_{id}\",\"output_index\":0,\"content_index\":0")
}

fn quoted(text: &str) -> String {
    // A string always has a JSON form.
    serde_json::to_string(text).unwrap_or_default()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map(|d| d.as_secs()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::sse::events;

    fn usage() -> Usage {
        Usage::default()
    }

    #[test]
    fn every_frame_is_a_numbered_event_that_names_its_type() {
        let call = Call {
            id: "call_1",
            name: "f",
            arguments: "{\"städte\":\"Zürich\"}",
        };
        for frames in [
            responses_stream("m", "resp_1", &["Hel", "lo \"x\"\n"], usage()),
            function_call_stream("m", "resp_1", call, usage()),
            responses_failed("m", "resp_1", &[], "server_error", "no", None),
            responses_failed("m", "resp_1", &["a"], "server_error", "no", Some(usage())),
            responses_incomplete("m", "resp_1", &["a"], "max_output_tokens", usage()),
        ] {
            let count = frames.len();
            let seen = events(&frames.concat());
            assert_eq!(seen.len(), count);
            for (number, event) in seen.iter().enumerate() {
                let data = event.json();
                assert_eq!(data["type"], event.name.as_str());
                assert_eq!(data["sequence_number"], number);
            }
        }
    }

    #[test]
    fn the_end_repeats_the_text_and_the_usage() {
        let frames = responses_stream("gpt-x", "resp_1", &["Hel", "lo"], usage());
        let last = events(&frames.concat()).pop().expect("an event").json();
        let whole = &last["response"];
        assert_eq!(whole["model"], "gpt-x");
        assert_eq!(whole["output"][0]["content"][0]["text"], "Hello");
        assert_eq!(whole["usage"]["input_tokens_details"]["cached_tokens"], 20);
        let json: Value =
            serde_json::from_slice(&responses_json("gpt-x", "resp_1", "Hello", usage()))
                .expect("JSON");
        assert_eq!(json["usage"], whole["usage"]);
        assert_eq!(json["output"], whole["output"]);
    }

    #[test]
    fn failures_carry_their_reason_once() {
        let frames = responses_failed("m", "r", &[], "rate_limit_exceeded", "slow", None);
        let text = String::from_utf8(frames.concat()).expect("text");
        let failed = text.rsplit_once("event: response.failed").expect("it").1;
        assert_eq!(failed.matches("\"error\":").count(), 1);
        let event = events(text.as_bytes()).pop().expect("an event").json();
        assert_eq!(event["response"]["error"]["code"], "rate_limit_exceeded");
        assert_eq!(event["response"]["usage"], Value::Null);
    }
}
