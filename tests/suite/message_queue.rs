//! Messages of users at one account: one after another, or some time apart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Gate, Request};

use crate::call::{Call, LEAVINGS, PROTOCOLS, Protocol};
use crate::harness::{Gateway, KEY, Setup};

const MODEL: &str = "claude-sonnet-4-5";
const PING: &str = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
/// Between messages.
const GAP: Duration = Duration::from_millis(300);

/// Accounts with tokens `sk-a1`, … at these providers, which take messages one after another, [`GAP`] apart.
fn setup(upstreams: &[&FakeUpstream]) -> Setup {
    Setup::with(upstreams)
        .set("SERVER__H2C", true)
        .set("CONCURRENCY__PING_INTERVAL_MS", 100)
        .set("GATEWAY__USER_MESSAGE_QUEUE__MODE", "serialize")
        .set("GATEWAY__USER_MESSAGE_QUEUE__MIN_DELAY_MS", GAP.as_millis())
        .resources(|all| {
            all["groups"][0]["platform"] = json!("anthropic");
            for account in all["accounts"].as_array_mut().unwrap() {
                let key = account["credentials"]["api_key"].take();
                account["platform"] = json!("anthropic");
                account["type"] = json!("oauth");
                account["credentials"] =
                    json!({ "access_token": key, "base_url": account["credentials"]["base_url"] });
            }
        })
}

fn body(text: &str, stream: bool) -> Value {
    json!({
        "model": MODEL, "max_tokens": 64, "stream": stream,
        "messages": [{ "role": "user", "content": text }],
    })
}

fn post(body: &Value) -> Request {
    Request::post("/v1/messages", body.to_string()).header("x-api-key", KEY)
}

/// A message as a stream, which says by pings that it waits.
fn message(text: &str) -> Request {
    post(&body(text, true))
}

/// When each request was received, and what it said.
type Seen = Arc<Mutex<Vec<(Instant, String)>>>;

/// A provider that answers the first message when the gate is passed, all others at once.
fn gated(upstream: &FakeUpstream, gate: &Gate) -> Seen {
    let seen = Seen::default();
    let (log, gate) = (seen.clone(), gate.clone());
    upstream.handle(move |request| {
        let said = &request.json()["messages"][0]["content"];
        let said = said.as_str().unwrap_or_default().to_owned();
        let is_first = said == "first";
        log.lock().push((Instant::now(), said));
        match is_first {
            true => Answer::echo().after(&gate),
            false => Answer::echo(),
        }
    });
    seen
}

fn said(seen: &Seen) -> Vec<String> {
    seen.lock().iter().map(|(_, said)| said.clone()).collect()
}

/// Sends a message, which must wait: it gets pings, and nothing of it is sent.
async fn queued(gateway: &Gateway, protocol: Protocol, text: &str, seen: &Seen) -> Call {
    let before = seen.lock().len();
    let mut call = Call::send(gateway, protocol, &message(text)).await;
    assert_eq!(call.head().await.unwrap().status, 200);
    call.read_until(PING, 2).await;
    assert_eq!(seen.lock().len(), before, "{text}: it has not been sent");
    call
}

/// The rest of an answer, which must be one.
async fn served(mut call: Call) {
    let (rest, end) = call.rest().await;
    end.unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.contains("message_stop"), "{rest}");
}

fn ended(gateway: &Gateway, mode: &str, result: &str) -> f64 {
    gateway.metric(&format!(
        "message_queue_total{{mode=\"{mode}\",result=\"{result}\"}}"
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_one_after_another_each_some_time_after_the_last_was_accepted() {
    for protocol in PROTOCOLS {
        let upstream = FakeUpstream::start().await;
        let gateway = setup(&[&upstream]).start().await;
        let gate = Gate::new();
        let seen = gated(&upstream, &gate);
        let first = Call::send(&gateway, protocol, &post(&body("first", false))).await;
        gate.wait_reached(1).await;
        assert_eq!(gateway.metric("slots_held{slot=\"turn\"}"), 1.0);
        let mut waiting = Vec::new();
        for text in ["second", "third", "fourth"] {
            waiting.push(queued(&gateway, protocol, text, &seen).await);
        }
        // They hold slots of their account: what is waited for is no slot.
        assert_eq!(gateway.metric("slots_held{slot=\"account\"}"), 4.0);
        let accepted = Instant::now();
        gate.open();
        assert_eq!(first.answer().await.0, 200);
        for call in waiting {
            served(call).await;
        }
        assert_eq!(said(&seen), ["first", "second", "third", "fourth"]);
        let mut last = accepted;
        for (at, said) in &seen.lock()[1..] {
            assert!(*at >= last + GAP, "{said}: {:?}", *at - last);
            last = *at;
        }
        gateway.wait_records(4).await;
        assert_eq!(ended(&gateway, "serialize", "granted"), 4.0);
        assert_eq!(gateway.metric("message_queue_wait_seconds_count"), 4.0);
        assert!(gateway.metric("message_queue_wait_seconds_sum") >= GAP.as_secs_f64());
        // Until then no attempt has begun: to a request the wait is part of its way there.
        let routing = gateway.metric("routing_seconds_sum");
        assert!(routing >= gateway.metric("message_queue_wait_seconds_sum"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttled_messages_go_some_time_apart_and_wait_for_no_answer() {
    let upstream = FakeUpstream::start().await;
    // What the account says counts before what is configured.
    let gateway = setup(&[&upstream])
        .resources(|all| {
            all["accounts"][0]["extra"] = json!({ "user_msg_queue_mode": "throttle" });
        })
        .start()
        .await;
    let gate = Gate::new();
    let seen = gated(&upstream, &gate);
    let begun = Instant::now();
    let first = Call::send(&gateway, Protocol::H1, &post(&body("first", false))).await;
    gate.wait_reached(1).await;
    for text in ["second", "third"] {
        let call = Call::send(&gateway, Protocol::H1, &post(&body(text, false))).await;
        assert_eq!(call.answer().await.0, 200);
    }
    assert_eq!(said(&seen), ["first", "second", "third"]);
    assert_eq!(gateway.metric("slots_held{slot=\"turn\"}"), 0.0);
    for (sent, (at, said)) in (0_u32..).zip(&*seen.lock()) {
        assert!(*at >= begun + sent * GAP, "{said}: {:?}", *at - begun);
    }
    gate.open();
    assert_eq!(first.answer().await.0, 200);
    gateway.wait_records(3).await;
    assert_eq!(ended(&gateway, "throttle", "granted"), 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_of_a_users_waits_for_nobody() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        .resources(|all| {
            let token = all["accounts"][0].clone();
            let url = token["credentials"]["base_url"].clone();
            let mut key = token.clone();
            key["name"] = json!("key");
            key["type"] = json!("api_key");
            key["credentials"] = json!({ "api_key": "sk-key", "base_url": url });
            // An option that means nothing to it.
            key["extra"] = json!({ "user_msg_queue_mode": "serialize" });
            let mut off = token.clone();
            off["name"] = json!("off");
            off["extra"] = json!({ "user_msg_queue_mode": "off" });
            for account in [key, off] {
                let name = account["name"].as_str().unwrap().to_owned();
                let group = json!({ "name": name, "platform": "anthropic" });
                all["groups"].as_array_mut().unwrap().push(group);
                let of = json!({ "name": name, "key": format!("tg-{name}-0123456789"), "user": "alice", "group": name });
                all["api_keys"].as_array_mut().unwrap().push(of);
                let mut account = account;
                account["groups"] = json!([name]);
                all["accounts"].as_array_mut().unwrap().push(account);
            }
        })
        .start()
        .await;
    let gate = Gate::new();
    let seen = gated(&upstream, &gate);
    let first = Call::send(&gateway, Protocol::H1, &post(&body("first", false))).await;
    gate.wait_reached(1).await;
    // While it has its turn: what its tools gave, with words of the program's beside it or without; what an assistant
    // is to go on with; counting.
    let result = json!({ "type": "tool_result", "tool_use_id": "t", "content": "ok" });
    let beside = json!({ "type": "text", "text": "<system-reminder>" });
    let mut others = Vec::new();
    for last in [
        json!({ "role": "user", "content": [result] }),
        json!({ "role": "user", "content": [result, beside] }),
        json!({ "role": "assistant", "content": "I" }),
    ] {
        let mut asked = body("second", false);
        asked["messages"].as_array_mut().unwrap().push(last);
        others.push(post(&asked));
    }
    let count = body("third", false).to_string();
    others.push(Request::post("/v1/messages/count_tokens", count).header("x-api-key", KEY));
    for other in &others {
        let call = Call::send(&gateway, Protocol::H1, other).await;
        assert_eq!(call.answer().await.0, 200);
    }
    // Accounts that queue nothing: two at once.
    for name in ["key", "off"] {
        let key = format!("tg-{name}-0123456789");
        let ask = |text| {
            let body = body(text, false).to_string();
            Request::post("/v1/messages", body).header("x-api-key", &key)
        };
        let before = gate.reached();
        let held = Call::send(&gateway, Protocol::H1, &ask("first")).await;
        gate.wait_reached(before + 1).await;
        let other = Call::send(&gateway, Protocol::H1, &ask("second")).await;
        assert_eq!(other.answer().await.0, 200, "{name}");
        others.push(ask("third"));
        drop(held);
        gateway
            .wait_metric("slots_held{slot=\"account\"}", 2.0)
            .await;
        gate.release(1);
        gateway
            .wait_metric("slots_held{slot=\"account\"}", 1.0)
            .await;
    }
    assert_eq!(seen.lock().len(), 9);
    gate.open();
    assert_eq!(first.answer().await.0, 200);
    gateway.wait_records(8).await;
    assert_eq!(ended(&gateway, "serialize", "granted"), 1.0);
    assert_eq!(gateway.metric("message_queue_wait_seconds_count"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_the_queue_holds_nobody_up() {
    for how in LEAVINGS {
        let upstream = FakeUpstream::start().await;
        let gateway = setup(&[&upstream]).start().await;
        let gate = Gate::new();
        let seen = gated(&upstream, &gate);
        let protocol = how.protocol();
        let first = Call::send(&gateway, protocol, &post(&body("first", false))).await;
        gate.wait_reached(1).await;
        let second = queued(&gateway, protocol, "second", &seen).await;
        let third = queued(&gateway, protocol, "third", &seen).await;
        let left = second.leave(how).await;
        gateway
            .wait_metric("slots_held{slot=\"account\"}", 2.0)
            .await;
        gate.open();
        assert_eq!(first.answer().await.0, 200);
        served(third).await;
        assert_eq!(said(&seen), ["first", "third"], "{how:?}");
        gateway.wait_records(2).await;
        assert_eq!(ended(&gateway, "serialize", "client_gone"), 1.0);
        assert_eq!(ended(&gateway, "serialize", "granted"), 2.0);
        drop(left);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_waited_long_enough_goes_out_of_turn() {
    for wait_ms in [0, 250] {
        let upstream = FakeUpstream::start().await;
        let gateway = setup(&[&upstream])
            .set("GATEWAY__USER_MESSAGE_QUEUE__WAIT_MS", wait_ms)
            .start()
            .await;
        let gate = Gate::new();
        let seen = gated(&upstream, &gate);
        let first = Call::send(&gateway, Protocol::H1, &post(&body("first", false))).await;
        gate.wait_reached(1).await;
        let begun = Instant::now();
        let second = Call::send(&gateway, Protocol::H1, &message("second")).await;
        assert_eq!(second.answer().await.0, 200);
        let (at, said) = seen.lock()[1].clone();
        assert_eq!(said, "second");
        assert!(at >= begun + Duration::from_millis(wait_ms));
        assert_eq!(gateway.metric("slots_held{slot=\"turn\"}"), 1.0);
        gate.open();
        assert_eq!(first.answer().await.0, 200);
        gateway.wait_records(2).await;
        assert_eq!(ended(&gateway, "serialize", "timeout"), 1.0);
        assert_eq!(ended(&gateway, "serialize", "granted"), 1.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_does_not_go_to_an_account_that_refused_the_one_before() {
    let upstreams = [FakeUpstream::start().await, FakeUpstream::start().await];
    let gateway = setup(&[&upstreams[0], &upstreams[1]])
        // Ample time for what the first answer says of its account.
        .set("GATEWAY__USER_MESSAGE_QUEUE__MIN_DELAY_MS", 1000)
        .start()
        .await;
    let gate = Gate::new();
    let limited = Answer::anthropic_error(429, "enough").header("retry-after", "60");
    upstreams[0].push(limited.after(&gate));
    let first = Call::send(&gateway, Protocol::H1, &post(&body("first", false))).await;
    gate.wait_reached(1).await;
    let mut second = Call::send(&gateway, Protocol::H1, &message("second")).await;
    assert_eq!(second.head().await.unwrap().status, 200);
    second.read_until(PING, 2).await;
    gate.open();
    assert_eq!(first.answer().await.0, 200);
    served(second).await;
    assert_eq!((upstreams[0].total(), upstreams[1].total()), (1, 2));
    let records = gateway.wait_records(2).await;
    let switches: Vec<_> = records.iter().map(|r| &r["account_switches"]).collect();
    // It was never sent to the first: it has not failed there.
    assert!(switches.contains(&&json!(0)) && switches.contains(&&json!(1)));
    // Each of both was queued at both accounts.
    assert_eq!(ended(&gateway, "serialize", "granted"), 4.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_fails_gives_its_turn_on() {
    for failure in [
        Answer::close(),
        Answer::reset(),
        Answer::anthropic_error(500, "no"),
    ] {
        let upstream = FakeUpstream::start().await;
        let gateway = setup(&[&upstream])
            // Whatever happens, it stays in the choice.
            .resources(|all| {
                all["accounts"][0]["extra"] =
                    json!({ "pool_mode": true, "pool_mode_retry_count": 0 });
            })
            .start()
            .await;
        let gate = Gate::new();
        upstream.push(failure.after(&gate));
        let first = Call::send(&gateway, Protocol::H1, &post(&body("first", false))).await;
        gate.wait_reached(1).await;
        let mut second = Call::send(&gateway, Protocol::H1, &message("second")).await;
        assert_eq!(second.head().await.unwrap().status, 200);
        second.read_until(PING, 2).await;
        upstream.only_request();
        gate.open();
        assert!(first.answer().await.0 >= 500);
        served(second).await;
        assert_eq!(upstream.total(), 2);
        assert_eq!(gateway.metric("slots_held{slot=\"turn\"}"), 0.0);
    }
}
