//! Clients of the Messages API, Claude Code and others, and groups of accounts for them.

use serde_json::{Value, json};
use tollgate_test_support::anthropic::{Block, Message};
use tollgate_test_support::{Answer, ClientReply, Request};

use crate::harness::{Gateway, Setup, key_of};

/// A model with a known price.
pub const MODEL: &str = "claude-sonnet-4-5";
/// What the usage of [`answer`] costs: 100 × 3 + 40 × 3.75 + 7 × 6 + 20 × 0.3 + 30 × 15 USD a million.
pub const CHARGE: &str = "0.000948";
/// The content of [`answer`].
const HELLO: &[Block<'static>] = &[Block::Text(&["Hel", "lo"])];

/// Groups of platform anthropic: name, options, and base URLs of its accounts (`NAME-1`, …, asked in that order). Each
/// has a key of alice's (see [`key_of`]).
pub fn setup(groups: &[(&str, Value, &[&str])]) -> Setup {
    let mut setup = Setup::new(&[]).set("SERVER__H2C", true);
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    for (name, options, urls) in groups {
        let mut group = json!({ "name": name, "platform": "anthropic" });
        let given = options.as_object().unwrap().clone();
        group.as_object_mut().unwrap().extend(given);
        all[0].push(group);
        for (index, url) in urls.iter().enumerate() {
            let account = format!("{name}-{}", index + 1);
            all[1].push(json!({
                "name": account,
                "platform": "anthropic",
                "type": "api_key",
                "credentials": { "api_key": format!("sk-{account}"), "base_url": url },
                "groups": [name],
                "concurrency": 50,
                "priority": index + 1,
            }));
        }
        all[2].push(json!({
            "name": format!("key-{name}"), "key": key_of(name), "user": "alice", "group": name,
        }));
    }
    for (kind, list) in ["groups", "accounts", "api_keys"].into_iter().zip(all) {
        setup.resources[kind] = json!(list);
    }
    setup
}

/// A message of one user.
pub fn body(stream: bool) -> Value {
    json!({
        "model": MODEL, "max_tokens": 1024, "stream": stream,
        "messages": [{ "role": "user", "content": "hi" }],
    })
}

/// The message in a conversation of that name, as Claude Code names it.
pub fn in_conversation(mut body: Value, conversation: &str) -> Value {
    let id = json!({ "device_id": "d", "account_uuid": "", "session_id": conversation });
    body["metadata"] = json!({ "user_id": id.to_string() });
    body
}

/// As current SDKs ask.
pub fn post(group: &str, path: &str, body: &Value) -> Request {
    Request::post(path, body.to_string())
        .header("x-api-key", &key_of(group))
        .header("anthropic-version", "2023-06-01")
}

/// As Claude Code of that version asks.
pub fn claude_code(group: &str, path: &str, body: &Value, version: &str) -> Request {
    post(group, path, &in_conversation(body.clone(), "one"))
        .header(
            "user-agent",
            &format!("claude-cli/{version} (external, cli)"),
        )
        .header("x-app", "cli")
        .header("anthropic-beta", "claude-code-20250219")
}

/// Sends a request on a connection of its own.
pub async fn send(gateway: &Gateway, request: &Request) -> ClientReply {
    gateway.h1().await.request(request).await.unwrap()
}

/// A good answer, as JSON or as a stream.
pub fn answer(stream: bool) -> Answer {
    let message = Message::new(MODEL, "msg_1", HELLO);
    match stream {
        true => Answer::sse(message.stream()),
        false => Answer::body(200, "application/json", message.json()),
    }
}

/// The error in a body of the dialect: its type and its message.
pub fn error_of(value: &Value) -> (&str, &str) {
    assert_eq!(value["type"], "error", "{value}");
    let error = &value["error"];
    (
        error["type"].as_str().unwrap(),
        error["message"].as_str().unwrap(),
    )
}
