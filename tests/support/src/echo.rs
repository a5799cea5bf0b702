//! The answer a fake upstream finds suitable when it was told nothing: it looks at the request
//! and answers as the API would, always with the model name it received.
//!
//! A function tool in the request is called (with made-up arguments) until the input holds a
//! `function_call_output` (Anthropic: a `tool_result`); otherwise the answer is a text that says how
//! long the request was. Anthropic's dialect thinks first when it is asked to, and counts a token for
//! each byte. These model names ask for something else:
//!
//! | model | answer |
//! |---|---|
//! | `fake-STATUS` | an error of that HTTP status (429 with `retry-after: 1`) |
//! | `fake-text` | text, tools or not |
//! | `fake-tool` | a function call, tools or not |
//! | `fake-slow-MS` | the answer after so many milliseconds |
//! | `fake-paced-MS` | a stream with that gap between events |
//! | `fake-deltas-N` | a text of N deltas |
//! | `fake-stall` | a stream that stops after two deltas; JSON: no answer |
//! | `fake-reset` | a stream reset after two deltas; JSON: reset |
//! | `fake-close` | a stream cut after two deltas; JSON: closed |
//! | `fake-failed`, `fake-incomplete` | a stream ending so |
//! | `fake-thinking` | Anthropic: thinking, asked for or not |
//! | `fake-error-N` | Anthropic: a stream of N events and an `error` event |

mod anthropic;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::answer::{Answer, Reply};
use crate::openai::{self, Call, Usage};
use crate::received::Received;

/// The text of every answer begins with this.
pub const TEXT: &str = "Hello from the fake upstream.";

/// What the answer depends on; everything else is skipped unread.
#[derive(Deserialize)]
struct Ask<'a> {
    #[serde(borrow, default)]
    model: Cow<'a, str>,
    #[serde(default)]
    stream: bool,
    #[serde(borrow)]
    tools: Option<&'a serde_json::value::RawValue>,
    #[serde(borrow)]
    input: Option<&'a serde_json::value::RawValue>,
}

/// The suitable answer.
pub fn answer(request: &Received) -> Answer {
    let id = id();
    if is_anthropic(request) {
        return anthropic_answer(request, &id);
    }
    let answer = match (request.method.as_str(), request.path()) {
        ("GET", "/v1/models") => json(openai::models(&["fake-text", "fake-tool"])),
        ("GET", "/v1/responses") => Answer::error(426, "upgrade_required"),
        ("POST", "/v1/responses/compact") => json(openai::compaction(&id, Usage::default())),
        ("POST", "/v1/responses") => match serde_json::from_slice(&request.body) {
            Ok(ask) => responses(&ask, &id, request.body.len()),
            Err(_) => Answer::error(400, "invalid_json"),
        },
        _ => Answer::error(404, "unknown_url"),
    };
    match answer.reply {
        Reply::Response(_) => answer
            .header("x-request-id", &id.replace("resp_", "req_"))
            .header("openai-processing-ms", "5"),
        _ => answer,
    }
}

/// An error in the dialect of the request; `code` is Anthropic's text.
pub fn error(request: &Received, status: u16, code: &str) -> Answer {
    match is_anthropic(request) {
        true => Answer::anthropic_error(status, code).header("request-id", "req_fake"),
        false => Answer::error(status, code),
    }
}

fn is_anthropic(request: &Received) -> bool {
    let path = request.path();
    path.starts_with("/v1/messages")
        || path == "/v1/models" && request.header("anthropic-version").is_some()
}

fn anthropic_answer(request: &Received, id: &str) -> Answer {
    let ask = || serde_json::from_slice(&request.body);
    let length = request.body.len();
    let answer = match (request.method.as_str(), request.path()) {
        ("GET", "/v1/models") => json(crate::anthropic::models(&["fake-text", "fake-tool"])),
        ("POST", "/v1/messages") => match ask() {
            Ok(ask) => anthropic::messages(&ask, &id.replace("resp_", "msg_"), length),
            Err(_) => Answer::anthropic_error(400, "invalid JSON"),
        },
        ("POST", "/v1/messages/count_tokens") => match ask() {
            Ok(ask) => anthropic::count_tokens(&ask, length),
            Err(_) => Answer::anthropic_error(400, "invalid JSON"),
        },
        _ => Answer::anthropic_error(404, "Not Found"),
    };
    match answer.reply {
        Reply::Response(_) => answer
            .header("request-id", &id.replace("resp_", "req_"))
            .header("anthropic-organization-id", "org-fake")
            .header("anthropic-ratelimit-requests-remaining", "999"),
        _ => answer,
    }
}

fn responses(ask: &Ask<'_>, id: &str, length: usize) -> Answer {
    let model = ask.model.as_ref();
    let (kind, number) = kind(model);
    let usage = Usage::default();
    if let Some(status) = kind.parse().ok().filter(|s| (400..600).contains(s)) {
        let error = Answer::error(status, "fake_error");
        return match status {
            429 => error.header("retry-after", "1"),
            _ => error,
        };
    }
    if let Some(call) = wanted_call(ask, kind) {
        let call = Call {
            id: "call_fake",
            name: &call.0,
            arguments: &call.1,
        };
        return match ask.stream {
            true => Answer::sse(openai::function_call_stream(model, id, call, usage)),
            false => json(openai::function_call_json(model, id, call, usage)),
        };
    }
    let text = format!("{TEXT} Your request has {length} bytes.");
    let deltas: Vec<&str> = match (kind, number) {
        ("deltas", Some(count)) => vec!["word "; usize::try_from(count).unwrap_or(usize::MAX)],
        _ => text.split_inclusive(' ').collect(),
    };
    if !ask.stream {
        let text = deltas.concat();
        return match (kind, number) {
            ("stall", _) => Answer::never(),
            ("reset", _) => Answer::reset(),
            ("close", _) => Answer::close(),
            ("slow", millis) => json(openai::responses_json(model, id, &text, usage))
                .delayed(Duration::from_millis(millis.unwrap_or(1000))),
            _ => json(openai::responses_json(model, id, &text, usage)),
        };
    }
    let two = || Answer::sse(openai::responses_cut(model, id, &deltas[..2]));
    let whole = || Answer::sse(openai::responses_stream(model, id, &deltas, usage));
    match kind {
        "stall" => two().then_stall(),
        "reset" => two().then_reset(),
        "close" => two().then_hang_up(),
        "failed" => Answer::sse(openai::responses_failed(
            model,
            id,
            &[],
            "server_error",
            "The fake failed as asked.",
            None,
        )),
        "incomplete" => Answer::sse(openai::responses_incomplete(
            model,
            id,
            &deltas,
            "max_output_tokens",
            usage,
        )),
        "slow" => whole().delayed(Duration::from_millis(number.unwrap_or(1000))),
        "paced" => whole().every(Duration::from_millis(number.unwrap_or(20))),
        _ => whole(),
    }
}

/// `fake-KIND` or `fake-KIND-NUMBER`; empty for any other model.
fn kind(model: &str) -> (&str, Option<u64>) {
    let rest = model.strip_prefix("fake-").unwrap_or_default();
    match rest.split_once('-') {
        Some((kind, number)) => (kind, number.parse().ok()),
        None => (rest, None),
    }
}

/// Name and arguments of the function to call, if one should be.
fn wanted_call(ask: &Ask<'_>, kind: &str) -> Option<(String, String)> {
    let answered = ask
        .input
        .is_some_and(|input| input.get().contains("\"function_call_output\""));
    if kind == "text" || answered {
        return None;
    }
    let tools: Vec<Value> = ask
        .tools
        .and_then(|tools| serde_json::from_str(tools.get()).ok())
        .unwrap_or_default();
    match tools.iter().find(|tool| tool["type"] == "function") {
        Some(tool) => {
            let name = tool["name"].as_str().unwrap_or_default().to_owned();
            Some((name, arguments(&tool["parameters"])))
        }
        None if kind == "tool" => Some(("fake_function".to_owned(), "{}".to_owned())),
        None => None,
    }
}

/// Something that satisfies a simple JSON schema: its required properties, or all when it names
/// none. A command-line client may really run a `cmd` or `command`, so that one is harmless.
fn arguments(schema: &Value) -> String {
    let mut made = serde_json::Map::new();
    let required = schema["required"].as_array();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if required.is_some_and(|names| names.iter().all(|needed| needed != name)) {
            continue;
        }
        let value = match (property["enum"].get(0), property["type"].as_str()) {
            (Some(first), _) => first.clone(),
            (None, Some("integer" | "number")) => Value::from(1),
            (None, Some("boolean")) => Value::from(true),
            (None, Some("array")) => Value::Array(vec![]),
            (None, Some("object")) => Value::Object(serde_json::Map::new()),
            (None, Some("string")) if name == "cmd" || name == "command" => {
                Value::from("echo example")
            }
            _ => Value::from("example"),
        };
        made.insert(name.clone(), value);
    }
    Value::Object(made).to_string()
}

fn json(body: Bytes) -> Answer {
    Answer::body(200, "application/json", body)
}

/// `resp_` and a number, different for every answer of this process.
fn id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("resp_{:048x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_model_name() {
        assert_eq!(kind("fake-429"), ("429", None));
        assert_eq!(kind("fake-slow-250"), ("slow", Some(250)));
        assert_eq!(kind("gpt-5-mini"), ("", None));
    }

    #[test]
    fn makes_up_arguments() {
        let schema = serde_json::json!({"type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"},
            "unit": {"type": "string", "enum": ["c", "f"]}}});
        let made: Value = serde_json::from_str(&arguments(&schema)).expect("JSON");
        assert_eq!(
            made,
            serde_json::json!({"city": "example", "days": 1, "unit": "c"})
        );
        let schema = serde_json::json!({"required": ["cmd"],
            "properties": {"cmd": {"type": "string"}, "dir": {"type": "string"}}});
        assert_eq!(arguments(&schema), "{\"cmd\":\"echo example\"}");
    }
}
