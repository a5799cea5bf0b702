//! Waiting for a slot: the user's, an account's; with pings for a stream, bounded, and left by who
//! leaves.

use bytes::Bytes;
use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Gate, Request};

use crate::call::{Call, LEAVINGS, PROTOCOLS, Protocol};
use crate::dialect::{Dialect, OUTPUT, in_each_dialect};
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
fn one_slot(dialect: Dialect, upstream: &FakeUpstream, line: Line) -> Setup {
    Setup::with(&[upstream])
        .speaking(dialect)
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

fn frames(dialect: Dialect) -> Vec<Bytes> {
    dialect.stream("r", &["one", "two"])
}

/// A request that holds the slot until the gate is opened.
async fn hold(dialect: Dialect, gateway: &Gateway, upstream: &FakeUpstream, gate: &Gate) -> Call {
    upstream.push(dialect.body("held", "held").after(gate));
    let before = gate.reached();
    let held = Call::send(gateway, Protocol::H1, &dialect.apart(dialect.model())).await;
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

in_each_dialect!(a_stream_gets_pings_then_its_answer);
async fn a_stream_gets_pings_then_its_answer(dialect: Dialect) {
    for line in LINES {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(dialect, &upstream, line).start().await;
        let mut count = 0;
        for protocol in PROTOCOLS {
            let gate = Gate::new();
            let held = hold(dialect, &gateway, &upstream, &gate).await;
            let frames = frames(dialect);
            upstream.push(Answer::sse(frames.clone()).split_every(13));
            let mut call = Call::send(&gateway, protocol, &dialect.streamed(dialect.model())).await;
            let head = call.head().await.unwrap();
            assert_eq!(head.status, 200);
            assert_eq!(head.content_type, "text/event-stream");
            assert!(head.request_id.starts_with("req_"));
            let pings = call.read_until(dialect.ping(), 2).await;
            assert_eq!(dialect.without_pings(&pings), "", "{pings:?}");
            assert_eq!(upstream.total(), count + 1, "it has not been sent yet");
            gate.open();
            assert_eq!(held.answer().await.0, 200);
            let (body, end) = call.rest().await;
            end.unwrap();
            let body = dialect.without_pings(&body);
            assert_eq!(body.as_bytes(), frames.concat(), "{line:?} {protocol:?}");
            count += 2;
            gateway.wait_records(usize::try_from(count).unwrap()).await;
        }
        assert_eq!(waits(&gateway, line, "granted"), 2.0);
    }
}

in_each_dialect!(json_in_place_of_a_stream_after_pings_becomes_an_event);
async fn json_in_place_of_a_stream_after_pings_becomes_an_event(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = one_slot(dialect, &upstream, Line::Account)
        .resources(|all| {
            all["accounts"][0]["model_mapping"] =
                json!({ "fast": dialect.model(), dialect.model(): dialect.model() });
        })
        .start()
        .await;
    let gate = Gate::new();
    let held = hold(dialect, &gateway, &upstream, &gate).await;
    upstream.push(dialect.body("r", "Hello"));
    let mut call = Call::send(&gateway, Protocol::H1, &dialect.streamed("fast")).await;
    call.head().await.unwrap();
    call.read_until(dialect.ping(), 1).await;
    gate.open();
    held.answer().await;
    let (body, end) = call.rest().await;
    end.unwrap();
    let events = tollgate_test_support::sse::events(&body);
    let pinged = |event: &&tollgate_test_support::sse::Event| event.name != "ping";
    let events: Vec<_> = events.iter().filter(pinged).collect();
    let event = events.last().unwrap();
    assert_eq!(event.name, dialect.ends());
    let (named, used) = match dialect {
        Dialect::Responses => (
            event.json()["response"].clone(),
            event.json()["response"].clone(),
        ),
        Dialect::Messages => (
            events[0].json()["message"].clone(),
            events[events.len() - 2].json(),
        ),
    };
    assert_eq!(named["model"], "fast");
    assert_eq!(used["usage"]["output_tokens"], OUTPUT);
    for record in gateway.wait_records(2).await {
        assert_eq!(record["output_tokens"], OUTPUT);
        assert_eq!(record["outcome"], "ok");
    }
}

in_each_dialect!(json_waits_in_silence_then_is_answered);
async fn json_waits_in_silence_then_is_answered(dialect: Dialect) {
    for line in LINES {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(dialect, &upstream, line).start().await;
        let gate = Gate::new();
        let held = hold(dialect, &gateway, &upstream, &gate).await;
        let waiting = Call::send(&gateway, Protocol::H1, &dialect.plain("fake-text")).await;
        gateway.wait_metric("requests_in_flight", 2.0).await;
        assert_eq!(upstream.total(), 1);
        gate.open();
        assert_eq!(held.answer().await.0, 200);
        assert_eq!(waiting.answer().await.0, 200);
        gateway.wait_records(2).await;
    }
}

in_each_dialect!(a_wait_ends_with_429_or_an_event);
async fn a_wait_ends_with_429_or_an_event(dialect: Dialect) {
    for line in LINES {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(dialect, &upstream, line)
            .set(wait_key(line), 350)
            .start()
            .await;
        let gate = Gate::new();
        let held = hold(dialect, &gateway, &upstream, &gate).await;
        // Nothing has been written to a client that wants JSON.
        let reply = gateway
            .h1()
            .await
            .request(&dialect.plain(dialect.model()))
            .await
            .unwrap();
        assert_refused(reply.status, &reply.json()["error"], line);
        dialect.refusal(&reply.json());
        assert_eq!(reply.header("retry-after"), Some("5"));
        for protocol in PROTOCOLS {
            let call = Call::send(&gateway, protocol, &dialect.streamed(dialect.model())).await;
            let (status, body) = call.answer().await;
            assert_eq!(status, 200, "{line:?} {protocol:?}");
            let text = String::from_utf8_lossy(&body);
            assert!(text.starts_with(dialect.ping()), "{text}");
            let events =
                tollgate_test_support::sse::events(dialect.without_pings(&body).as_bytes());
            assert_eq!(events.len(), 1, "{text}");
            assert_eq!(events[0].name, "error");
            assert_refused(429, &events[0].json()["error"], line);
            dialect.refusal(&events[0].json());
        }
        assert_eq!(waits(&gateway, line, "timeout"), 3.0);
        gate.open();
        assert_eq!(held.answer().await.0, 200);
        gateway.only_record().await;
    }
}

in_each_dialect!(a_stream_without_a_ping_yet_gets_a_plain_429);
async fn a_stream_without_a_ping_yet_gets_a_plain_429(dialect: Dialect) {
    for line in LINES {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(dialect, &upstream, line)
            .set(wait_key(line), 100)
            .set("CONCURRENCY__PING_INTERVAL_MS", 60_000)
            .start()
            .await;
        let gate = Gate::new();
        let held = hold(dialect, &gateway, &upstream, &gate).await;
        let mut client = gateway.h1().await;
        for _ in 0..2 {
            let reply = client
                .request(&dialect.streamed(dialect.model()))
                .await
                .unwrap();
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

in_each_dialect!(a_line_has_an_end);
async fn a_line_has_an_end(dialect: Dialect) {
    // A user's line: max(concurrency, 1) + 20. An account's: as configured.
    for (line, places) in [(Line::User, 21), (Line::Account, 2)] {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(dialect, &upstream, line)
            .set("CONCURRENCY__MAX_WAITING_PER_ACCOUNT", 2)
            .start()
            .await;
        let gate = Gate::new();
        let held = hold(dialect, &gateway, &upstream, &gate).await;
        let mut calls = Vec::new();
        for _ in 0..=places {
            calls.push(Call::send(&gateway, Protocol::H1, &dialect.plain("fake-text")).await);
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

in_each_dialect!(the_first_account_that_frees_is_taken);
async fn the_first_account_that_frees_is_taken(dialect: Dialect) {
    for freed in [0, 1] {
        let upstream = FakeUpstream::start().await;
        let gateway = Setup::with(&[&upstream, &upstream])
            .speaking(dialect)
            .resources(|all| {
                all["accounts"][0]["concurrency"] = json!(1);
                all["accounts"][1]["concurrency"] = json!(1);
            })
            .start()
            .await;
        let gates = [Gate::new(), Gate::new()];
        let held = [
            hold(dialect, &gateway, &upstream, &gates[0]).await,
            hold(dialect, &gateway, &upstream, &gates[1]).await,
        ];
        let waiting = Call::send(&gateway, Protocol::H1, &dialect.plain("fake-text")).await;
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

in_each_dialect!(the_balance_counts_again_after_the_wait);
async fn the_balance_counts_again_after_the_wait(dialect: Dialect) {
    for is_stream in [false, true] {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(dialect, &upstream, Line::User)
            // Less than the request that is held will cost.
            .resources(|all| all["users"][0]["balance"] = json!("0.00001"))
            .start()
            .await;
        let gate = Gate::new();
        let held = hold(dialect, &gateway, &upstream, &gate).await;
        let request = dialect.request(dialect.model(), is_stream, KEY);
        let mut waiting = Call::send(&gateway, Protocol::H1, &request).await;
        if is_stream {
            waiting.head().await.unwrap();
            waiting.read_until(dialect.ping(), 1).await;
        } else {
            gateway.wait_metric("requests_in_flight", 2.0).await;
        }
        gate.open();
        assert_eq!(held.answer().await.0, 200);
        let error = if is_stream {
            let (body, end) = waiting.rest().await;
            end.unwrap();
            let events =
                tollgate_test_support::sse::events(dialect.without_pings(&body).as_bytes());
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

in_each_dialect!(who_leaves_frees_its_place_and_leaves_no_record);
async fn who_leaves_frees_its_place_and_leaves_no_record(dialect: Dialect) {
    for line in LINES {
        let upstream = FakeUpstream::start().await;
        let gateway = one_slot(dialect, &upstream, line)
            .set("CONCURRENCY__MAX_WAITING_PER_ACCOUNT", 1)
            .start()
            .await;
        let gate = Gate::new();
        let held = hold(dialect, &gateway, &upstream, &gate).await;
        let mut left = 0.0;
        let mut open = Vec::new();
        for leaving in LEAVINGS {
            for is_stream in [true, false] {
                let request = dialect.request(dialect.model(), is_stream, KEY);
                let mut call = Call::send(&gateway, leaving.protocol(), &request).await;
                gateway.wait_metric("requests_in_flight", 2.0).await;
                if is_stream {
                    // With a ping out already.
                    call.head().await.unwrap();
                    call.read_until(dialect.ping(), 1).await;
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
        let waiting = Call::send(&gateway, Protocol::H1, &dialect.plain("fake-text")).await;
        gateway.wait_metric("requests_in_flight", 2.0).await;
        gate.open();
        assert_eq!(held.answer().await.0, 200);
        assert_eq!(waiting.answer().await.0, 200);
        assert_eq!(upstream.total(), 2, "{line:?}");
        gateway.wait_records(2).await;
    }
}

in_each_dialect!(a_connection_goes_on_after_pings);
async fn a_connection_goes_on_after_pings(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = one_slot(dialect, &upstream, Line::User).start().await;
    let gate = Gate::new();
    let held = hold(dialect, &gateway, &upstream, &gate).await;
    let mut client = gateway.h1().await;
    client
        .send_request(&dialect.streamed("fake-text"))
        .await
        .unwrap();
    let head = client.final_head().await.unwrap();
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    assert_eq!(head.header("cache-control"), Some("no-cache"));
    client.read_until(dialect.ping()).await.unwrap();
    gate.open();
    held.answer().await;
    client.body().await.unwrap();
    for request in [
        dialect.streamed("fake-text"),
        dialect.plain("fake-text"),
        Request::get("/v1/models").bearer(KEY),
    ] {
        assert_eq!(client.request(&request).await.unwrap().status, 200);
    }
    gateway.wait_records(4).await;
}
