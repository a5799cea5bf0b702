//! Waiting for a slot: the user's, an account's; with pings for a stream, bounded, and left by who
//! leaves.

use bytes::Bytes;
use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Gate, Request, Usage, openai};

use crate::call::{Call, LEAVINGS, PROTOCOLS, Protocol, apart, plain, request, streamed};
use crate::harness::{Gateway, KEY, Setup};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    User,
    Account,
}

const LINES: [Line; 2] = [Line::User, Line::Account];

impl Line {
    fn name(self) -> &'static str {
        match self {
            Line::User => "user",
            Line::Account => "account",
        }
    }
}

/// One slot of the kind that is waited for, which lets `waiting` requests wait.
fn one_slot(upstream: &FakeUpstream, line: Line) -> Setup {
    Setup::with(&[upstream])
        .resources(|all| match line {
            Line::User => all["users"][0]["concurrency"] = json!(1),
            Line::Account => all["accounts"][0]["concurrency"] = json!(1),
        })
        .set("SERVER__H2C", true)
        .set("CONCURRENCY__PING_INTERVAL_MS", 100)
}

fn wait_key(line: Line) -> &'static str {
    match line {
        Line::User => "CONCURRENCY__USER_WAIT_MS",
        Line::Account => "CONCURRENCY__ACCOUNT_WAIT_MS",
    }
}

fn frames() -> Vec<Bytes> {
    openai::responses_stream("gpt-5-mini", "r", &["one", "two"], Usage::default())
}

/// A request that holds the slot until the gate is opened.
async fn hold(gateway: &Gateway, upstream: &FakeUpstream, gate: &Gate) -> Call {
    let json = openai::responses_json("gpt-5-mini", "held", "held", Usage::default());
    upstream.push(Answer::body(200, "application/json", json).after(gate));
    let before = gate.reached();
    let held = Call::send(gateway, Protocol::H1, &apart("gpt-5-mini")).await;
    gate.wait_reached(before + 1).await;
    held
}

fn waits(gateway: &Gateway, line: Line, end: &str) -> f64 {
    gateway.metric(&format!(
        "waits_total{{end=\"{end}\",slot=\"{}\"}}",
        line.name()
    ))
}

fn assert_refused(status: u16, error: &Value, line: Line) {
    assert_eq!(status, 429, "{error}");
    assert_eq!(error["type"], "rate_limit_error");
    assert_eq!(
        error["message"],
        format!(
            "Concurrency limit exceeded for {}, please retry later",
            line.name()
        )
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_gets_pings_then_its_answer() {
    for line in LINES {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(&upstream, line).start().await;
        let mut count = 0;
        for protocol in PROTOCOLS {
            let gate = Gate::new();
            let held = hold(&gateway, &upstream, &gate).await;
            let frames = frames();
            upstream.push(Answer::sse(frames.clone()).split_every(13));
            let mut call = Call::send(&gateway, protocol, &streamed("gpt-5-mini")).await;
            let head = call.head().await.unwrap();
            assert_eq!(head.status, 200);
            assert_eq!(head.content_type, "text/event-stream");
            assert!(head.request_id.starts_with("req_"));
            let pings = call.read_until(":\n\n", 2).await;
            assert!(pings.chunks(3).all(|ping| ping == b":\n\n"), "{pings:?}");
            assert_eq!(upstream.total(), count + 1, "it has not been sent yet");
            gate.open();
            assert_eq!(held.answer().await.0, 200);
            let (body, end) = call.rest().await;
            end.unwrap();
            let body = String::from_utf8_lossy(&body).replace(":\n\n", "");
            assert_eq!(body.as_bytes(), frames.concat(), "{line:?} {protocol:?}");
            count += 2;
            gateway.wait_records(usize::try_from(count).unwrap()).await;
        }
        assert_eq!(waits(&gateway, line, "granted"), 2.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_in_place_of_a_stream_after_pings_becomes_an_event() {
    let upstream = FakeUpstream::start().await;
    let gateway = one_slot(&upstream, Line::Account)
        .resources(|all| {
            all["accounts"][0]["model_mapping"] =
                json!({ "fast": "gpt-5-mini", "gpt-5-mini": "gpt-5-mini" });
        })
        .start()
        .await;
    let gate = Gate::new();
    let held = hold(&gateway, &upstream, &gate).await;
    let answer = openai::responses_json("gpt-5-mini", "r", "Hello", Usage::default());
    upstream.push(Answer::body(200, "application/json", answer));
    let mut call = Call::send(&gateway, Protocol::H1, &streamed("fast")).await;
    call.head().await.unwrap();
    call.read_until(":\n\n", 1).await;
    gate.open();
    held.answer().await;
    let (body, end) = call.rest().await;
    end.unwrap();
    let events = tollgate_test_support::sse::events(&body);
    let event = events.last().unwrap();
    assert_eq!(event.name, "response.completed");
    assert_eq!(event.json()["response"]["model"], "fast");
    assert_eq!(event.json()["response"]["usage"]["output_tokens"], 30);
    for record in gateway.wait_records(2).await {
        assert_eq!(record["output_tokens"], 30);
        assert_eq!(record["outcome"], "ok");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_waits_in_silence_then_is_answered() {
    for line in LINES {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(&upstream, line).start().await;
        let gate = Gate::new();
        let held = hold(&gateway, &upstream, &gate).await;
        let waiting = Call::send(&gateway, Protocol::H1, &plain("fake-text")).await;
        gateway.wait_metric("requests_in_flight", 2.0).await;
        assert_eq!(upstream.total(), 1);
        gate.open();
        assert_eq!(held.answer().await.0, 200);
        assert_eq!(waiting.answer().await.0, 200);
        gateway.wait_records(2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_with_429_or_an_event() {
    for line in LINES {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(&upstream, line)
            .set(wait_key(line), 350)
            .start()
            .await;
        let gate = Gate::new();
        let held = hold(&gateway, &upstream, &gate).await;
        // Nothing has been written to a client that wants JSON.
        let reply = gateway
            .h1()
            .await
            .request(&plain("gpt-5-mini"))
            .await
            .unwrap();
        assert_refused(reply.status, &reply.json()["error"], line);
        assert_eq!(reply.header("retry-after"), Some("5"));
        for protocol in PROTOCOLS {
            let call = Call::send(&gateway, protocol, &streamed("gpt-5-mini")).await;
            let (status, body) = call.answer().await;
            assert_eq!(status, 200, "{line:?} {protocol:?}");
            let text = String::from_utf8_lossy(&body);
            assert!(text.starts_with(":\n\n"), "{text}");
            let events = tollgate_test_support::sse::events(&body);
            assert_eq!(events.len(), 1, "{text}");
            assert_eq!(events[0].name, "error");
            assert_refused(429, &events[0].json()["error"], line);
        }
        assert_eq!(waits(&gateway, line, "timeout"), 3.0);
        gate.open();
        assert_eq!(held.answer().await.0, 200);
        gateway.only_record().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_a_ping_yet_gets_a_plain_429() {
    for line in LINES {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(&upstream, line)
            .set(wait_key(line), 100)
            .set("CONCURRENCY__PING_INTERVAL_MS", 60_000)
            .start()
            .await;
        let gate = Gate::new();
        let held = hold(&gateway, &upstream, &gate).await;
        let mut client = gateway.h1().await;
        for _ in 0..2 {
            let reply = client.request(&streamed("gpt-5-mini")).await.unwrap();
            assert_refused(reply.status, &reply.json()["error"], line);
            if line == Line::Account {
                // An error from there ends the connection, and says so.
                client = gateway.h1().await;
            }
        }
        gate.open();
        assert_eq!(held.answer().await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_has_an_end() {
    // A user's line: max(concurrency, 1) + 20. An account's: as configured.
    for (line, places) in [(Line::User, 21), (Line::Account, 2)] {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(&upstream, line)
            .set("CONCURRENCY__MAX_WAITING_PER_ACCOUNT", 2)
            .start()
            .await;
        let gate = Gate::new();
        let held = hold(&gateway, &upstream, &gate).await;
        let mut calls = Vec::new();
        for _ in 0..=places {
            calls.push(Call::send(&gateway, Protocol::H1, &plain("fake-text")).await);
        }
        // Which of them came last is anybody's guess; that one is refused at once.
        gateway
            .wait("a refusal", || waits(&gateway, line, "line_full") == 1.0)
            .await;
        gate.open();
        assert_eq!(held.answer().await.0, 200);
        let mut refused = 0;
        for call in calls {
            let (status, body) = call.answer().await;
            if status == 429 {
                refused += 1;
                let body: Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(
                    body["error"]["message"],
                    "Too many pending requests, please retry later"
                );
            } else {
                assert_eq!(status, 200);
            }
        }
        assert_eq!(refused, 1, "{line:?}");
        gateway.wait_records(places + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_account_that_frees_is_taken() {
    for freed in [0, 1] {
        let upstream = FakeUpstream::start().await;
        let gateway = Setup::with(&[&upstream, &upstream])
            .resources(|all| {
                all["accounts"][0]["concurrency"] = json!(1);
                all["accounts"][1]["concurrency"] = json!(1);
            })
            .start()
            .await;
        let gates = [Gate::new(), Gate::new()];
        let held = [
            hold(&gateway, &upstream, &gates[0]).await,
            hold(&gateway, &upstream, &gates[1]).await,
        ];
        let waiting = Call::send(&gateway, Protocol::H1, &plain("fake-text")).await;
        gateway.wait_metric("requests_in_flight", 3.0).await;
        gates[freed].open();
        // The other one is not let through before: nothing but the freed account can serve it.
        assert_eq!(waiting.answer().await.0, 200);
        let credential = format!("sk-a{}", freed + 1);
        let last = upstream.requests().pop().unwrap();
        assert_eq!(last.credential(), Some(&*credential));
        gates[1 - freed].open();
        for call in held {
            assert_eq!(call.answer().await.0, 200);
        }
        gateway.wait_records(3).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_balance_counts_again_after_the_wait() {
    for is_stream in [false, true] {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(&upstream, Line::User)
            // Less than the request that is held will cost.
            .resources(|all| all["users"][0]["balance"] = json!("0.00001"))
            .start()
            .await;
        let gate = Gate::new();
        let held = hold(&gateway, &upstream, &gate).await;
        let request = request("gpt-5-mini", is_stream, KEY);
        let mut waiting = Call::send(&gateway, Protocol::H1, &request).await;
        if is_stream {
            waiting.head().await.unwrap();
            waiting.read_until(":\n\n", 1).await;
        } else {
            gateway.wait_metric("requests_in_flight", 2.0).await;
        }
        gate.open();
        assert_eq!(held.answer().await.0, 200);
        let error = if is_stream {
            let (body, end) = waiting.rest().await;
            end.unwrap();
            let events = tollgate_test_support::sse::events(&body);
            events[0].json()["error"].clone()
        } else {
            let (status, body) = waiting.answer().await;
            assert_eq!(status, 403);
            let body: Value = serde_json::from_slice(&body).unwrap();
            body["error"].clone()
        };
        assert_eq!(error["type"], "billing_error");
        gateway.only_record().await;
        assert!(gateway.balance("alice").starts_with('-'));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_frees_its_place_and_leaves_no_record() {
    for line in LINES {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(&upstream, line)
            .set("CONCURRENCY__MAX_WAITING_PER_ACCOUNT", 1)
            .start()
            .await;
        let gate = Gate::new();
        let held = hold(&gateway, &upstream, &gate).await;
        let mut left = 0.0;
        let mut open = Vec::new();
        for leaving in LEAVINGS {
            for is_stream in [true, false] {
                let request = request("gpt-5-mini", is_stream, KEY);
                let mut call = Call::send(&gateway, leaving.protocol(), &request).await;
                gateway.wait_metric("requests_in_flight", 2.0).await;
                if is_stream {
                    // With a ping out already.
                    call.head().await.unwrap();
                    call.read_until(":\n\n", 1).await;
                }
                open.extend(call.leave(leaving).await);
                left += 1.0;
                gateway
                    .wait(&format!("{leaving:?} to be noticed"), || {
                        gateway.metric("clients_gone_total{phase=\"before\"}") == left
                    })
                    .await;
                gateway.wait_metric("requests_in_flight", 1.0).await;
            }
        }
        // The only place in the line (of an account) is free again.
        let waiting = Call::send(&gateway, Protocol::H1, &plain("fake-text")).await;
        gateway.wait_metric("requests_in_flight", 2.0).await;
        gate.open();
        assert_eq!(held.answer().await.0, 200);
        assert_eq!(waiting.answer().await.0, 200);
        assert_eq!(upstream.total(), 2, "{line:?}");
        gateway.wait_records(2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_goes_on_after_pings() {
    let upstream = FakeUpstream::start().await;
    let gateway = one_slot(&upstream, Line::User).start().await;
    let gate = Gate::new();
    let held = hold(&gateway, &upstream, &gate).await;
    let mut client = gateway.h1().await;
    client.send_request(&streamed("fake-text")).await.unwrap();
    let head = client.final_head().await.unwrap();
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    assert_eq!(head.header("cache-control"), Some("no-cache"));
    client.read_until(":\n\n").await.unwrap();
    gate.open();
    held.answer().await;
    client.body().await.unwrap();
    for request in [
        streamed("fake-text"),
        plain("fake-text"),
        Request::get("/v1/models").bearer(KEY),
    ] {
        assert_eq!(client.request(&request).await.unwrap().status, 200);
    }
    gateway.wait_records(4).await;
}
