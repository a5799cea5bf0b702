//! Requests that a client makes for itself, answered here where their account wants that.

use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Gate, Request, sse};

use crate::call::{Call, PROTOCOLS, Protocol};
use crate::claude::{answer, body, claude_code, error_of, post, send, setup};
use crate::harness::{Gateway, Setup};

const MESSAGES: &str = "/v1/messages";

/// A group whose accounts, in order, have such requests answered here, or not.
fn group(upstream: &FakeUpstream, intercepts: &[bool]) -> Setup {
    let url = upstream.url();
    let urls: Vec<&str> = intercepts.iter().map(|_| url.as_str()).collect();
    setup(&[("main", json!({}), &urls)]).resources(|all| {
        for (account, on) in all["accounts"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .zip(intercepts)
        {
            account["extra"] = json!({ "intercept_warmup_requests": on });
        }
    })
}

fn saying(text: &str, stream: bool) -> Value {
    let mut asked = body(stream);
    asked["messages"][0]["content"] = json!(text);
    asked
}

fn warm_up(stream: bool) -> Request {
    post("main", MESSAGES, &saying("Warmup", stream))
}

/// Every kind of them: the request, the text of its answer, its output tokens, its end.
fn kinds(stream: bool) -> Vec<(&'static str, Request, &'static str, u64, &'static str)> {
    let title = "Please write a 5-10 word title for the following conversation:\n\nhi";
    let mut topic = body(stream);
    topic["system"] = json!([{ "type": "text", "text":
        "Analyze if this message indicates a new conversation topic. If it does, extract a 2-3 word title." }]);
    let suggestion = saying("[SUGGESTION MODE: what next?]", stream);
    let mut kinds = vec![
        (
            "warm_up",
            warm_up(stream),
            "New Conversation",
            2,
            "end_turn",
        ),
        (
            "warm_up",
            post("main", MESSAGES, &saying(title, stream)),
            "New Conversation",
            2,
            "end_turn",
        ),
        (
            "warm_up",
            post("main", MESSAGES, &topic),
            "New Conversation",
            2,
            "end_turn",
        ),
        (
            "suggestion",
            post("main", MESSAGES, &suggestion),
            "",
            1,
            "end_turn",
        ),
    ];
    if !stream {
        let probe = json!({
            "model": "claude-haiku-4-5", "max_tokens": 1, "messages": [{ "role": "user", "content": "test" }],
        });
        let probe = claude_code("main", MESSAGES, &probe, "2.0.14");
        kinds.push(("probe", probe, "#", 1, "max_tokens"));
    }
    kinds
}

/// The message that an answer is, whichever form it has: its text and its end.
fn message_of(bytes: &[u8], stream: bool) -> (String, u64, String) {
    if !stream {
        let message: Value = serde_json::from_slice(bytes).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        return (
            text(&message["content"][0]["text"]),
            message["usage"]["output_tokens"].as_u64().unwrap(),
            text(&message["stop_reason"]),
        );
    }
    let (mut text, mut tokens, mut reason) = (String::new(), 0, String::new());
    let events = sse::events(bytes);
    assert_eq!(events[0].name, "message_start");
    assert_eq!(events.last().unwrap().name, "message_stop");
    for event in events {
        let data = event.json();
        text += data["delta"]["text"].as_str().unwrap_or_default();
        if event.name == "message_delta" {
            tokens = data["usage"]["output_tokens"].as_u64().unwrap();
            reason = data["delta"]["stop_reason"].as_str().unwrap().to_owned();
        }
    }
    (text, tokens, reason)
}

fn intercepted(gateway: &Gateway, kind: &str) -> f64 {
    gateway.metric(&format!("intercepted_total{{kind=\"{kind}\"}}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_answered_without_a_model_and_cost_nothing() {
    let upstream = FakeUpstream::start().await;
    let gateway = group(&upstream, &[true]).start().await;
    let mut counts = [("probe", 0.0), ("suggestion", 0.0), ("warm_up", 0.0)];
    for stream in [false, true] {
        // One connection takes them all.
        let mut client = gateway.h1().await;
        for (kind, request, text, tokens, reason) in kinds(stream) {
            let reply = client.request(&request).await.unwrap();
            assert_eq!(reply.status, 200, "{kind}: {}", reply.text());
            let found = message_of(&reply.body, stream);
            assert_eq!(
                found,
                (text.to_owned(), tokens, reason.to_owned()),
                "{kind} {stream}"
            );
            let form = if stream {
                "text/event-stream"
            } else {
                "application/json"
            };
            assert_eq!(reply.header("content-type"), Some(form));
            let id = reply.header("x-request-id").unwrap().to_owned();
            assert_eq!(reply.header("request-id"), Some(id.as_str()));
            assert!(
                reply.text().contains(&format!("msg_local_{id}")),
                "{}",
                reply.text()
            );
            let count = counts.iter_mut().find(|(name, _)| *name == kind).unwrap();
            count.1 += 1.0;
            assert_eq!(intercepted(&gateway, kind), count.1, "{kind}");
        }
        for protocol in PROTOCOLS {
            let call = Call::send(&gateway, protocol, &warm_up(stream)).await;
            let (status, bytes) = call.answer().await;
            assert_eq!(
                (status, message_of(&bytes, stream).1),
                (200, 2),
                "{protocol:?}"
            );
            counts[2].1 += 1.0;
        }
    }
    assert_eq!(intercepted(&gateway, "warm_up"), counts[2].1);
    let ended = r#"requests_total{endpoint="messages",outcome="intercepted",status="200"}"#;
    gateway
        .wait_metric(ended, counts.iter().map(|(_, count)| count).sum())
        .await;
    let logged = || gateway.logged().contains("outcome=intercepted");
    gateway.wait("its line in the log", logged).await;
    assert!(upstream.requests().is_empty());
    assert_eq!(gateway.balance("alice"), "10");
    // A request for a model is the only one on record.
    upstream.push(answer(false));
    assert_eq!(
        send(&gateway, &post("main", MESSAGES, &body(false)))
            .await
            .status,
        200
    );
    gateway.only_record().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_the_account_that_decides() {
    let upstream = FakeUpstream::start().await;
    let gateway = group(&upstream, &[false, true])
        .resources(|all| {
            for account in all["accounts"].as_array_mut().unwrap() {
                account["concurrency"] = json!(1);
            }
        })
        .start()
        .await;
    // The first account has no such habit.
    upstream.push(answer(false));
    assert_eq!(send(&gateway, &warm_up(false)).await.status, 200);
    assert_eq!(upstream.only_request().credential(), Some("sk-main-1"));
    // While it is full, the second would serve, and has.
    let gate = Gate::new();
    upstream.push_for("sk-main-1", answer(false).after(&gate));
    let ask = |text: &str| post("main", MESSAGES, &saying(text, false));
    let first = Call::send(&gateway, Protocol::H1, &ask("one")).await;
    gate.wait_reached(1).await;
    let before = upstream.requests().len();
    let reply = send(&gateway, &warm_up(false)).await;
    assert_eq!(message_of(&reply.body, false).1, 2);
    assert_eq!(upstream.requests().len(), before);
    // Counting is another question.
    upstream.push(Answer::json(200, &json!({ "input_tokens": 7 })));
    let count = post(
        "main",
        "/v1/messages/count_tokens",
        &saying("Warmup", false),
    );
    assert_eq!(send(&gateway, &count).await.json()["input_tokens"], 7);
    gate.open();
    assert_eq!(first.answer().await.0, 200);
    gateway.wait_records(2).await;
    assert_eq!(intercepted(&gateway, "warm_up"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_an_account_that_need_not_be_asked() {
    let upstream = FakeUpstream::start().await;
    let gateway = group(&upstream, &[true])
        .resources(|all| all["accounts"][0]["concurrency"] = json!(1))
        .set("CONCURRENCY__ACCOUNT_WAIT_MS", 0)
        .start()
        .await;
    let gate = Gate::new();
    upstream.push(answer(false).after(&gate));
    let running = Call::send(
        &gateway,
        Protocol::H1,
        &post("main", MESSAGES, &body(false)),
    )
    .await;
    gate.wait_reached(1).await;
    for stream in [false, true] {
        let reply = send(&gateway, &warm_up(stream)).await;
        assert_eq!((reply.status, message_of(&reply.body, stream).1), (200, 2));
    }
    // Others are told that there is no room.
    assert_eq!(
        send(&gateway, &post("main", MESSAGES, &saying("two", false)))
            .await
            .status,
        429
    );
    gate.open();
    assert_eq!(running.answer().await.0, 200);
    gateway.only_record().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_events_follow_the_pings_of_a_stream_that_has_waited() {
    let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
    let upstream = FakeUpstream::start().await;
    let gateway = group(&upstream, &[true])
        .resources(|all| all["users"][0]["concurrency"] = json!(1))
        .set("CONCURRENCY__PING_INTERVAL_MS", 100)
        .start()
        .await;
    for protocol in PROTOCOLS {
        let gate = Gate::new();
        upstream.push(answer(false).after(&gate));
        let running = Call::send(&gateway, protocol, &post("main", MESSAGES, &body(false))).await;
        gate.wait_reached(1).await;
        let mut waiting = Call::send(&gateway, protocol, &warm_up(true)).await;
        assert_eq!(waiting.head().await.unwrap().status, 200);
        let begun = waiting.read_until(ping, 1).await;
        gate.open();
        assert_eq!(running.answer().await.0, 200);
        let (rest, end) = waiting.rest().await;
        end.unwrap();
        let whole = String::from_utf8([begun, rest].concat())
            .unwrap()
            .replace(ping, "");
        assert_eq!(
            message_of(whole.as_bytes(), true).0,
            "New Conversation",
            "{protocol:?}"
        );
    }
    gateway.wait_records(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_comes_second_answers_as_well() {
    let upstream = FakeUpstream::start().await;
    for stream in [false, true] {
        // A new server each: the first account has not failed yet.
        let gateway = group(&upstream, &[false, true]).start().await;
        upstream.push_for("sk-main-1", Answer::anthropic_error(500, "no"));
        let reply = send(&gateway, &warm_up(stream)).await;
        assert_eq!((reply.status, message_of(&reply.body, stream).1), (200, 2));
        assert_eq!(
            upstream.only_request().credential(),
            Some("sk-main-1"),
            "{stream}"
        );
        upstream.forget();
        // The first one was asked, which is on record and costs nothing.
        let record = gateway.only_record().await;
        for (field, expected) in [
            ("account", json!("main-1")),
            ("charge", json!("0")),
            ("status", json!(200)),
            ("outcome", json!("upstream_error")),
            ("usage_source", json!("none")),
        ] {
            assert_eq!(record[field], expected, "{field}\n{record:#}");
        }
        assert_eq!(gateway.balance("alice"), "10");
        assert_eq!(intercepted(&gateway, "warm_up"), 1.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_ask_gets_no_answer() {
    let upstream = FakeUpstream::start().await;
    let gateway = group(&upstream, &[true])
        .resources(|all| all["users"][0]["balance"] = json!("0"))
        .start()
        .await;
    let reply = send(&gateway, &warm_up(false)).await;
    assert_eq!(
        (reply.status, error_of(&reply.json()).0),
        (403, "billing_error")
    );
    let nobody = Request::post(MESSAGES, saying("Warmup", false).to_string()).bearer("tg-nobody");
    assert_eq!(send(&gateway, &nobody).await.status, 401);
    assert_eq!(intercepted(&gateway, "warm_up"), 0.0);
}
