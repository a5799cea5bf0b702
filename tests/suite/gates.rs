//! Soft limits of accounts of Anthropic's subscriptions: who is let in when one is reached, who goes elsewhere, and
//! what the client hears when no account lets it in; and what the provider says about its session window.

use std::time::Duration;

use chrono::{DateTime, DurationRound, TimeDelta, Timelike, Utc};
use serde_json::{Value, json};
use tollgate::domain::{AccountId, Condition, ConditionKind, Secret};
use tollgate::storage::{ConditionChanges, Store};
use tollgate_test_support::anthropic::{Block, Message, count_tokens};
use tollgate_test_support::{Answer, ClientReply, FakeUpstream, Gate, Request};

use crate::call::{Call, Protocol};
use crate::harness::{Gateway, KEY, Setup};

const MODEL: &str = "claude-sonnet-4-5";
const HOURS: i64 = 3600;

/// Accounts `a1`, `a2`, … of subscriptions with these options, all at this provider, the first asked first. Each
/// answer costs 0.000948 USD at list price.
fn setup(upstream: &FakeUpstream, options: &[Value]) -> Setup {
    let answer = Message::new(MODEL, "msg_1", &[Block::Text(&["Hel", "lo"])]).json();
    upstream.otherwise(Answer::body(200, "application/json", answer));
    let urls = vec![upstream.url(); options.len()];
    Setup::new(&urls).resources(|all| {
        all["groups"][0]["platform"] = json!("anthropic");
        let accounts = all["accounts"].as_array_mut().unwrap();
        for (account, options) in accounts.iter_mut().zip(options) {
            let token = account["name"].as_str().unwrap().to_owned();
            let url = account["credentials"]["base_url"].clone();
            account["platform"] = json!("anthropic");
            account["type"] = json!("setup_token");
            account["credentials"] = json!({ "access_token": token, "base_url": url });
            account["extra"] = options.clone();
        }
    })
}

/// The standard answer, with headers about the session window.
fn answer(headers: &[(&str, String)]) -> Answer {
    let body = Message::new(MODEL, "msg_1", &[Block::Text(&["Hello"])]).json();
    let answer = Answer::body(200, "application/json", body);
    with(answer, headers)
}

fn with(answer: Answer, headers: &[(&str, String)]) -> Answer {
    headers.iter().fold(answer, |answer, (name, value)| {
        answer.header(&format!("anthropic-ratelimit-unified-{name}"), value)
    })
}

/// A window that ends at this moment, of which requests are let in.
fn allowed(end: DateTime<Utc>) -> [(&'static str, String); 2] {
    [
        ("5h-status", "allowed".into()),
        ("5h-reset", end.timestamp().to_string()),
    ]
}

/// A request of a conversation that its client names.
fn of(session: &str) -> Request {
    post("", KEY, in_session(session))
}

fn in_session(session: &str) -> Value {
    let user = json!({ "device_id": "d", "account_uuid": "", "session_id": session });
    json!({ "metadata": { "user_id": user.to_string() } })
}

/// The tokens of one are to be counted.
fn counting(session: &str) -> Request {
    post("/count_tokens", KEY, in_session(session))
}

fn post(path: &str, key: &str, more: Value) -> Request {
    let mut body = json!({
        "model": MODEL, "max_tokens": 64, "messages": [{ "role": "user", "content": "hi" }],
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    Request::post(&format!("/v1/messages{path}"), body.to_string())
        .header("x-api-key", key)
        .header("anthropic-version", "2023-06-01")
}

async fn send(gateway: &Gateway, request: &Request) -> ClientReply {
    let reply = gateway.h1().await.request(request).await.unwrap();
    // Requests are counted at their very end.
    gateway.wait_metric("requests_in_flight", 0.0).await;
    reply
}

/// The account that serves the next request of a conversation.
async fn home(gateway: &Gateway, upstream: &FakeUpstream, session: &str) -> String {
    let reply = send(gateway, &of(session)).await;
    assert_eq!(reply.status, 200, "{session}: {}", reply.text());
    last(upstream)
}

/// The account of the last request at the provider.
fn last(upstream: &FakeUpstream) -> String {
    let last = upstream.requests().pop().expect("a request");
    last.credential().expect("a credential").to_owned()
}

/// Nobody takes it; seconds after which somebody may.
fn refused(reply: &ClientReply) -> i64 {
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert_eq!(reply.json()["error"]["type"], "api_error");
    reply.header("retry-after").expect("when").parse().unwrap()
}

fn gates(gateway: &Gateway, gate: &str, result: &str) -> f64 {
    let name = format!("account_gates_total{{gate=\"{gate}\",result=\"{result}\"}}");
    gateway.metric(&name)
}

/// Gives an account other options, which the server follows.
async fn change(gateway: &Gateway, resources: &Value, name: &str, options: Value) {
    let accounts = resources["accounts"].as_array().unwrap();
    let mut account = accounts.iter().find(|a| a["name"] == name).unwrap().clone();
    account["extra"] = options;
    let resources = json!({ "accounts": [account] });
    gateway.followed(|| gateway.apply(&resources)).await;
}

/// Waits until this second of a minute has passed and none after `before`, so that what follows is in one minute.
async fn within_a_minute(after: u32, before: u32) {
    while !(after..before).contains(&Utc::now().second()) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_account_costs_in_its_window() {
    let upstream = FakeUpstream::start().await;
    let limit = json!({ "window_cost_limit": "0.0015", "window_cost_sticky_reserve": "0.001" });
    let setup = setup(&upstream, &[limit, json!({})]);
    let resources = setup.resources.clone();
    let mut gateway = setup.start().await;
    // The first answer says which window is counted in.
    upstream.push(answer(&allowed(Utc::now() + TimeDelta::hours(4))));
    assert_eq!(home(&gateway, &upstream, "one").await, "a1");
    assert_eq!(home(&gateway, &upstream, "two").await, "a1");
    assert_eq!(gates(&gateway, "window_cost", "sticky_only"), 0.0);
    // 0.001896 of 0.0015 are used: no new conversation, and of the others up to 0.0025.
    assert_eq!(home(&gateway, &upstream, "three").await, "a2");
    assert_eq!(gates(&gateway, "window_cost", "sticky_only"), 1.0);
    assert_eq!(home(&gateway, &upstream, "two").await, "a1");
    assert_eq!(gates(&gateway, "window_cost", "closed"), 0.0);
    // For hours: the conversation has a new home.
    assert_eq!(home(&gateway, &upstream, "two").await, "a2");
    let unbound = "scheduler_sticky_total{result=\"unbound\"}";
    assert_eq!(gateway.metric(unbound), 1.0);
    assert!(gates(&gateway, "window_cost", "closed") >= 1.0);
    change(&gateway, &resources, "a1", json!({})).await;
    assert_eq!(home(&gateway, &upstream, "two").await, "a2");

    // A limit that is put on an account later counts what was before; so it does after a restart and a crash.
    let limit = json!({ "window_cost_limit": "0.0015", "window_cost_sticky_reserve": "0" });
    change(&gateway, &resources, "a1", limit).await;
    assert_eq!(home(&gateway, &upstream, "four").await, "a2");
    gateway.wait_records(7).await;
    gateway.stop();
    gateway.launch();
    assert_eq!(home(&gateway, &upstream, "five").await, "a2");
    gateway.kill();
    gateway.launch();
    assert_eq!(home(&gateway, &upstream, "six").await, "a2");
    change(
        &gateway,
        &resources,
        "a1",
        json!({ "window_cost_limit": "0.003" }),
    )
    .await;
    assert_eq!(home(&gateway, &upstream, "seven").await, "a1");
    gateway.wait_records(10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_often_an_account_is_asked_in_a_minute() {
    let upstream = FakeUpstream::start().await;
    let limit = |strategy: &str, buffer: u32| json!({ "base_rpm": 1, "rpm_strategy": strategy, "rpm_sticky_buffer": buffer });
    let setup = setup(&upstream, &[limit("tiered", 1), json!({})]);
    let resources = setup.resources.clone();
    let gateway = setup.start().await;
    within_a_minute(0, 20).await;
    assert_eq!(home(&gateway, &upstream, "one").await, "a1");
    assert_eq!(home(&gateway, &upstream, "two").await, "a2");
    assert_eq!(gates(&gateway, "rpm", "sticky_only"), 1.0);
    assert_eq!(home(&gateway, &upstream, "one").await, "a1");
    assert_eq!(home(&gateway, &upstream, "one").await, "a2");
    assert_eq!(gates(&gateway, "rpm", "closed"), 1.0);
    // It was for this minute only: the conversation is still at home there.
    change(&gateway, &resources, "a1", limit("sticky_exempt", 0)).await;
    assert_eq!(home(&gateway, &upstream, "one").await, "a1");
    assert_eq!(home(&gateway, &upstream, "one").await, "a1");
    assert_eq!(home(&gateway, &upstream, "three").await, "a2");
    // Counting tokens is no request of this kind.
    change(&gateway, &resources, "a1", json!({ "base_rpm": 5 })).await;
    for _ in 0..3 {
        upstream.push(Answer::body(200, "application/json", count_tokens(7)));
        assert_eq!(send(&gateway, &counting("count")).await.status, 200);
        assert_eq!(last(&upstream), "a1");
    }
    assert_eq!(home(&gateway, &upstream, "four").await, "a1");
    assert_eq!(home(&gateway, &upstream, "five").await, "a2");
    // It does not go to one that is closed either.
    upstream.push(Answer::body(200, "application/json", count_tokens(7)));
    assert_eq!(send(&gateway, &counting("count")).await.status, 200);
    assert_eq!(last(&upstream), "a2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_every_gate_is_closed_the_client_hears_when_one_opens() {
    let upstream = FakeUpstream::start().await;
    let limit = json!({ "base_rpm": 1, "rpm_sticky_buffer": 0, "window_cost_limit": "0.0001", "window_cost_sticky_reserve": 0 });
    let setup = setup(&upstream, &[limit]);
    let resources = setup.resources.clone();
    let gateway = setup.start().await;
    within_a_minute(0, 30).await;
    upstream.push(answer(&allowed(Utc::now() + TimeDelta::hours(2))));
    assert_eq!(home(&gateway, &upstream, "one").await, "a1");
    for session in ["one", "two"] {
        let seconds = refused(&send(&gateway, &of(session)).await);
        assert!((HOURS..=2 * HOURS).contains(&seconds), "{seconds}");
    }
    change(
        &gateway,
        &resources,
        "a1",
        json!({ "base_rpm": 1, "rpm_sticky_buffer": 0 }),
    )
    .await;
    for session in ["one", "two"] {
        let seconds = refused(&send(&gateway, &of(session)).await);
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
    assert_eq!(upstream.total(), 1);
    change(&gateway, &resources, "a1", json!({})).await;
    assert_eq!(home(&gateway, &upstream, "one").await, "a1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_many_conversations_an_account_carries() {
    let upstream = FakeUpstream::start().await;
    let setup = setup(&upstream, &[json!({ "max_sessions": 2 })]);
    let resources = setup.resources.clone();
    let gateway = setup.start().await;
    for session in ["one", "two", "one"] {
        assert_eq!(home(&gateway, &upstream, session).await, "a1");
    }
    let seconds = refused(&send(&gateway, &of("three")).await);
    assert!((1..=300).contains(&seconds), "{seconds}");
    assert_eq!(gates(&gateway, "sessions", "closed"), 1.0);
    assert_eq!(home(&gateway, &upstream, "two").await, "a1");
    // What is no conversation is none of them: one turn is not known from the next.
    for text in ["a", "b", "c"] {
        let more = json!({ "messages": [{ "role": "user", "content": text }] });
        let request = post("", KEY, more);
        assert_eq!(send(&gateway, &request).await.status, 200);
    }
    // Nor is counting tokens.
    upstream.push(Answer::body(200, "application/json", count_tokens(7)));
    assert_eq!(send(&gateway, &counting("three")).await.status, 200);
    refused(&send(&gateway, &of("three")).await);
    change(&gateway, &resources, "a1", json!({ "max_sessions": 3 })).await;
    assert_eq!(home(&gateway, &upstream, "three").await, "a1");
    refused(&send(&gateway, &of("four")).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_conversations_never_exceed_the_limit() {
    let upstream = FakeUpstream::start().await;
    let limit = |max: u32| json!({ "max_sessions": max });
    let gateway = setup(&upstream, &[limit(1), limit(2)])
        .resources(|all| {
            for account in all["accounts"].as_array_mut().unwrap() {
                account["priority"] = json!(1);
            }
        })
        .start()
        .await;
    let gate = Gate::new();
    upstream.otherwise(answer(&[]).after(&gate));
    let mut calls = Vec::new();
    for number in 0..12 {
        let request = of(&format!("session {number}"));
        calls.push(Call::send(&gateway, Protocol::H1, &request).await);
    }
    gate.wait_reached(3).await;
    gate.open();
    let mut served = 0;
    for call in calls {
        let (status, body) = call.answer().await;
        match status {
            200 => served += 1,
            503 => {}
            other => panic!("{other}: {body:?}"),
        }
    }
    assert_eq!(served, 3);
    let mut homes: Vec<String> = upstream
        .requests()
        .iter()
        .map(|request| request.credential().unwrap().to_owned())
        .collect();
    homes.sort();
    assert_eq!(homes, ["a1", "a2", "a2"]);
    gateway.wait_records(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stands_in_line_is_kept_out_by_a_gate_that_has_closed_and_let_in_by_one_that_opens() {
    let upstream = FakeUpstream::start().await;
    let limit = json!({ "base_rpm": 1, "rpm_sticky_buffer": 0 });
    let gateway = setup(&upstream, &[limit])
        .set("CONCURRENCY__ACCOUNT_WAIT_MS", 120_000)
        .set("CONCURRENCY__PING_INTERVAL_MS", 100)
        .resources(|all| {
            all["accounts"][0]["concurrency"] = json!(1);
            let mut other = all["accounts"][0].clone();
            other["name"] = json!("a2");
            other["credentials"]["access_token"] = json!("a2");
            other["extra"] = json!({});
            other["groups"] = json!(["two"]);
            let mut two = all["groups"][0].clone();
            two["name"] = json!("two");
            all["accounts"][0]["groups"] = json!(["main", "two"]);
            all["accounts"].as_array_mut().unwrap().push(other);
            all["groups"].as_array_mut().unwrap().push(two);
            let key = json!({ "name": "two", "key": "tg-two-0123456789", "user": "alice", "group": "two" });
            let keys = all["api_keys"].as_array_mut().unwrap();
            keys.push(key);
        })
        .start()
        .await;
    // Late in a minute, so that the next is not far.
    within_a_minute(35, 45).await;
    let gate = Gate::new();
    upstream.push(answer(&[]).after(&gate));
    let first = Call::send(&gateway, Protocol::H1, &of("one")).await;
    gate.wait_reached(1).await;
    let mut streamed = in_session("two");
    streamed["stream"] = json!(true);
    let mut second = Call::send(&gateway, Protocol::H1, &post("", KEY, streamed)).await;
    // Pings are for those who stand in line.
    second.head().await.unwrap();
    let minute = Utc::now().duration_trunc(TimeDelta::minutes(1)).unwrap();
    gate.open();
    assert_eq!(first.answer().await.0, 200);
    // Its slot is free, and it has served its one request of this minute.
    let (told, end) = second.rest().await;
    end.unwrap();
    let told = String::from_utf8(told.to_vec()).unwrap();
    assert!(told.contains("api_error"), "{told}");
    assert_eq!(upstream.total(), 1);

    // One that waits for another account gets this one when the minute is over.
    let in_two = |session| post("", "tg-two-0123456789", in_session(session));
    let held = Gate::new();
    upstream.push_for("a2", answer(&[]).after(&held));
    let third = Call::send(&gateway, Protocol::H1, &in_two("three")).await;
    held.wait_reached(1).await;
    // A stream, which has pings meanwhile.
    let mut streamed = in_session("four");
    streamed["stream"] = json!(true);
    let request = post("", "tg-two-0123456789", streamed);
    let (status, told) = Call::send(&gateway, Protocol::H1, &request)
        .await
        .answer()
        .await;
    let told = String::from_utf8(told.to_vec()).unwrap();
    assert!(status == 200 && told.contains("message_stop"), "{told}");
    assert_eq!(last(&upstream), "a1");
    assert!(Utc::now() >= minute + TimeDelta::minutes(1));
    held.open();
    assert_eq!(third.answer().await.0, 200);
    gateway.wait_records(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_window_is_shown_and_outlasts_a_restart() {
    let upstream = FakeUpstream::start().await;
    let mut gateway = setup(&upstream, &[json!({}), json!({})])
        .resources(|all| {
            // An API key has no such window.
            let account = &mut all["accounts"][1];
            account["type"] = json!("api_key");
            account["credentials"]["api_key"] = json!("a2");
        })
        .start()
        .await;
    let end = (Utc::now() + TimeDelta::hours(4))
        .duration_trunc(TimeDelta::seconds(1))
        .unwrap();
    let window = async |gateway: &Gateway, name: &str, status: &str| {
        let mut shown = Value::Null;
        gateway
            .wait(&format!("{name} {status}"), || {
                shown = gateway.run_json(&["accounts", "show", name, "--json"]);
                shown["session_window"]["status"] == status
            })
            .await;
        shown
    };
    assert_eq!(
        gateway.run_json(&["accounts", "show", "a1", "--json"])["session_window"],
        Value::Null
    );
    // In milliseconds, as some answers have it.
    let mut headers = allowed(end).to_vec();
    headers[1].1 = end.timestamp_millis().to_string();
    headers.push(("5h-utilization", "0.421".into()));
    headers.push(("7d-utilization", "0.07".into()));
    upstream.push(answer(&headers));
    assert_eq!(home(&gateway, &upstream, "one").await, "a1");
    let shown = window(&gateway, "a1", "allowed").await;
    let expected = |status: &str, seen: &Value| {
        json!({
            "status": status, "starts_at": end - TimeDelta::hours(5), "ends_at": end,
            "used_percent": 42.1, "week_used_percent": 7.0, "seen_at": seen["session_window"]["seen_at"],
        })
    };
    assert_eq!(shown["session_window"], expected("allowed", &shown));
    assert_eq!(shown["status"], "active");

    // A 429 rejects; the other account's answer says the same, and has no window.
    let reset = end.timestamp().to_string();
    let limited = [
        ("5h-reset", reset),
        ("5h-utilization", "0.421".into()),
        ("5h-surpassed-threshold", "true".into()),
    ];
    upstream.push(with(Answer::anthropic_error(429, "Slow down"), &limited));
    upstream.push(answer(&allowed(end)));
    assert_eq!(home(&gateway, &upstream, "one").await, "a2");
    let shown = window(&gateway, "a1", "rejected").await;
    assert_eq!(shown["session_window"], expected("rejected", &shown));
    assert_eq!(shown["status"], "rate_limited");
    assert_eq!(
        gateway.run_json(&["accounts", "show", "a2", "--json"])["session_window"],
        Value::Null
    );
    gateway.kill();
    gateway.launch();
    assert_eq!(
        window(&gateway, "a1", "rejected").await["session_window"],
        shown["session_window"]
    );
    let text = gateway.run(&["accounts", "show", "a1"]);
    assert!(text.contains("rejected"), "{text}");
    // An implausible reset says nothing.
    gateway
        .followed(|| gateway.run(&["accounts", "resume", "a1"]))
        .await;
    let far = Utc::now() + TimeDelta::hours(40);
    upstream.push(answer(&allowed(far)));
    assert_eq!(home(&gateway, &upstream, "new").await, "a1");
    let shown = window(&gateway, "a1", "allowed").await;
    assert_eq!(shown["session_window"]["ends_at"], json!(end));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_lets_in_ends_a_limit() {
    let upstream = FakeUpstream::start().await;
    let mut gateway = setup(&upstream, &[json!({})]).start().await;
    gateway.stop();
    // One that does not keep this request out, or no attempt could follow it.
    let limited = Condition {
        kind: ConditionKind::RateLimited,
        model: Some("claude-opus-4-5".to_owned()),
        since: Utc::now(),
        until: Some(Utc::now() + TimeDelta::hours(1)),
        status: Some(429),
        reason: "limited".to_owned(),
    };
    let changes = ConditionChanges {
        set: vec![(AccountId(1), limited)],
        gone: vec![],
    };
    let secret = Secret::new("the secret of these tests");
    let store = Store::open(&gateway.data(), &secret).await.unwrap();
    store.save_conditions(&changes).await.unwrap();
    store.close().await.unwrap();
    gateway.launch();
    let conditions = |gateway: &Gateway| {
        let shown = gateway.run_json(&["accounts", "show", "a1", "--json"]);
        shown["conditions"].as_array().unwrap().len()
    };
    // One that rejects does not, nor one that says nothing.
    for status in ["", "rejected"] {
        upstream.push(answer(&[("5h-status", status.into())]));
        assert_eq!(home(&gateway, &upstream, "one").await, "a1");
    }
    gateway
        .wait("the window to be written", || {
            let shown = gateway.run_json(&["accounts", "show", "a1", "--json"]);
            shown["session_window"]["status"] == "rejected"
        })
        .await;
    assert_eq!(conditions(&gateway), 1);
    upstream.push(answer(&[("5h-status", "allowed_warning".into())]));
    assert_eq!(home(&gateway, &upstream, "one").await, "a1");
    gateway
        .wait("the limit to be lifted", || conditions(&gateway) == 0)
        .await;
    assert!(gateway.logged().contains("account is back"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_that_closes_during_an_attempt_does_not_keep_the_next_one_out() {
    // What is refused, how often, and how the account takes messages of users.
    let repaired = "messages.1.content.0: Invalid `signature` in `thinking` block";
    let rows = [
        (400, repaired, "off", 1),
        (400, repaired, "throttle", 1),
        (400, repaired, "serialize", 2),
        (403, "for a moment", "off", 1),
        (403, "for a moment", "serialize", 2),
    ];
    for (status, words, queue, accounts) in rows {
        let upstream = FakeUpstream::start().await;
        let limit = json!({
            "window_cost_limit": "0.0001", "window_cost_sticky_reserve": 0, "user_msg_queue_mode": queue,
        });
        let gateway = setup(&upstream, &vec![limit; accounts])
            .set("GATEWAY__INNER_RETRIES", "always")
            .set("GATEWAY__USER_MESSAGE_QUEUE__WAIT_MS", 2000)
            .start()
            .await;
        let gate = Gate::new();
        upstream.push(Answer::anthropic_error(status, words).after(&gate));
        let thought = json!({ "messages": [
            { "role": "user", "content": "hi" },
            { "role": "assistant", "content": [
                { "type": "thinking", "thinking": "Hm.", "signature": "c2ln" },
                { "type": "text", "text": "Hello" },
            ]},
            { "role": "user", "content": "go on" },
        ]});
        let running = Call::send(&gateway, Protocol::H1, &post("", KEY, thought)).await;
        gate.wait_reached(1).await;
        // No message of a user's: it does not wait for the one that is under way.
        let other = json!({ "messages": [
            { "role": "user", "content": "hi" }, { "role": "assistant", "content": "I" },
        ]});
        let other = post("", KEY, other);
        let reply = gateway.h1().await.request(&other).await.unwrap();
        assert_eq!((reply.status, last(&upstream)), (200, "a1".to_owned()));
        gate.open();
        let (answered, text) = running.answer().await;
        let case = format!("{status} {queue} {accounts}");
        assert_eq!(answered, 200, "{case}: {text:?}");
        assert_eq!(last(&upstream), "a1", "{case}");
        assert_eq!(upstream.requests().len(), 3, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_let_in_waits_for_its_account_though_its_gate_has_closed() {
    let upstream = FakeUpstream::start().await;
    let limit = json!({ "window_cost_limit": "0.0001", "window_cost_sticky_reserve": 0 });
    let setup = setup(&upstream, &[limit]).set("GATEWAY__INNER_RETRIES", "always");
    let mut resources = setup.resources.clone();
    let gateway = setup.start().await;
    let (refused, long) = (Gate::new(), Gate::new());
    upstream.push(Answer::anthropic_error(403, "for a moment").after(&refused));
    let retried = Call::send(&gateway, Protocol::H1, &of("one")).await;
    refused.wait_reached(1).await;
    upstream.push(answer(&[]).after(&long));
    let running = Call::send(&gateway, Protocol::H1, &of("two")).await;
    long.wait_reached(1).await;
    // What this costs closes the gate; then the account has room for one, which is taken.
    let reply = gateway.h1().await.request(&of("three")).await.unwrap();
    assert_eq!(reply.status, 200);
    resources["accounts"][0]["concurrency"] = json!(1);
    let accounts = json!({ "accounts": resources["accounts"] });
    gateway.followed(|| gateway.apply(&accounts)).await;
    refused.open();
    gateway
        .wait_metric("slots_held{slot=\"account\"}", 1.0)
        .await;
    // Time to get in line behind its pause; served without a wait it would show less.
    tokio::time::sleep(Duration::from_secs(1)).await;
    long.open();
    assert_eq!(running.answer().await.0, 200);
    let (status, text) = retried.answer().await;
    assert_eq!(status, 200, "{text:?}");
    assert_eq!(upstream.requests().len(), 4);
}
