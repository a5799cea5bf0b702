//! What suits a request of the Messages API.

use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{TEXT, arguments, json, kind};
use crate::answer::Answer;
use crate::anthropic::{self, Block, Call, Message};

/// What the answer depends on; everything else is skipped unread.
#[derive(Deserialize)]
pub(super) struct Ask<'a> {
    #[serde(borrow, default)]
    model: Cow<'a, str>,
    #[serde(default)]
    stream: bool,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    thinking: Option<&'a RawValue>,
}

/// Events before and with the second delta of a text.
const TWO_DELTAS: usize = 5;

pub(super) fn count_tokens(ask: &Ask<'_>, length: usize) -> Answer {
    asked_error(&ask.model).unwrap_or_else(|| json(anthropic::count_tokens(length as u64)))
}

pub(super) fn messages(ask: &Ask<'_>, id: &str, length: usize) -> Answer {
    let model = ask.model.as_ref();
    if let Some(error) = asked_error(model) {
        return error;
    }
    let (kind, number) = kind(model);
    let mut blocks = Vec::with_capacity(2);
    if kind == "thinking" || thinks(ask) {
        blocks.push(Block::Thinking(
            &["Let me ", "think."],
            "ZmFrZSBzaWduYXR1cmU=",
        ));
    }
    let call = wanted_call(ask, kind);
    let text = format!("{TEXT} Your request has {length} bytes.");
    let deltas: Vec<&str> = match (kind, number) {
        ("deltas", Some(count)) => vec!["word "; usize::try_from(count).unwrap_or(usize::MAX)],
        _ => text.split_inclusive(' ').collect(),
    };
    blocks.push(match &call {
        Some((name, input)) => Block::ToolUse(Call {
            id: "toolu_fake",
            name,
            input,
        }),
        None => Block::Text(&deltas),
    });
    let message = match kind {
        "incomplete" => Message::new(model, id, &blocks).stop_reason("max_tokens"),
        _ => Message::new(model, id, &blocks),
    };
    match ask.stream {
        true => streamed(&message, kind, number),
        false => whole(&message, kind, number),
    }
}

fn whole(message: &Message<'_>, kind: &str, number: Option<u64>) -> Answer {
    match kind {
        "stall" => Answer::never(),
        "reset" => Answer::reset(),
        "close" => Answer::close(),
        "slow" => json(message.json()).delayed(Duration::from_millis(number.unwrap_or(1000))),
        _ => json(message.json()),
    }
}

fn streamed(message: &Message<'_>, kind: &str, number: Option<u64>) -> Answer {
    let two = || Answer::sse(message.cut(TWO_DELTAS));
    let whole = || Answer::sse(message.stream());
    let failed = |events| {
        let text = "The fake failed as asked.";
        Answer::sse(message.failed(events, "overloaded_error", text))
    };
    match kind {
        "stall" => two().then_stall(),
        "reset" => two().then_reset(),
        "close" => two().then_hang_up(),
        "failed" => failed(1),
        "error" => failed(number.map_or(1, |n| usize::try_from(n).unwrap_or(usize::MAX))),
        "slow" => whole().delayed(Duration::from_millis(number.unwrap_or(1000))),
        "paced" => whole().every(Duration::from_millis(number.unwrap_or(20))),
        _ => whole(),
    }
}

/// The error that the model's name asks for; there is always a model.
fn asked_error(model: &str) -> Option<Answer> {
    if model.is_empty() {
        let text = "model: String should have at least 1 character";
        return Some(Answer::anthropic_error(400, text));
    }
    let status = kind(model).0.parse().ok();
    let status = status.filter(|status| (400..600).contains(status))?;
    let error = Answer::anthropic_error(status, &format!("fake upstream says {status}"));
    Some(match status {
        429 => error.header("retry-after", "1"),
        _ => error,
    })
}

fn thinks(ask: &Ask<'_>) -> bool {
    let thinking: Option<Value> = ask
        .thinking
        .and_then(|thinking| serde_json::from_str(thinking.get()).ok());
    let kind = thinking
        .as_ref()
        .and_then(|thinking| thinking["type"].as_str());
    matches!(kind, Some("enabled" | "adaptive"))
}

/// Name and input of the tool to call, if one should be: `Bash` where it is offered, because what it is made to
/// do is harmless, else the first.
fn wanted_call(ask: &Ask<'_>, kind: &str) -> Option<(String, String)> {
    let answered = ask
        .messages
        .is_some_and(|messages| messages.get().contains("\"tool_result\""));
    if kind == "text" || answered {
        return None;
    }
    let tools: Vec<Value> = ask
        .tools
        .and_then(|tools| serde_json::from_str(tools.get()).ok())
        .unwrap_or_default();
    let mut own = tools.iter().filter(|tool| tool["input_schema"].is_object());
    let shell = own.clone().find(|tool| tool["name"] == "Bash");
    match shell.or_else(|| own.next()) {
        Some(tool) => {
            let name = tool["name"].as_str().unwrap_or_default().to_owned();
            Some((name, arguments(&tool["input_schema"])))
        }
        None if kind == "tool" => Some(("fake_tool".to_owned(), "{}".to_owned())),
        None => None,
    }
}
