//! Models that a group sends to some of its accounts first.

use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Gate, Request};

use crate::call::{Call, Protocol};
use crate::harness::{Gateway, KEY, Setup};

const OPUS: &str = "claude-opus-4-6";
const SONNET: &str = "claude-sonnet-4-6";
const HAIKU: &str = "claude-haiku-4-5";

/// Accounts `a1` to `a4` of Anthropic's, asked in this order but for Opus: that goes to the last two, which are equal,
/// and one of its models to the second.
fn setup(upstream: &FakeUpstream) -> Setup {
    Setup::new(&vec![upstream.url(); 4])
        .set("CONCURRENCY__PING_INTERVAL_MS", 100)
        .resources(|all| {
            all["groups"][0]["platform"] = json!("anthropic");
            all["groups"][0]["model_routing"] =
                json!({ "claude-opus-*": ["a3", "a4"], "claude-opus-4-5": ["a2"] });
            for account in all["accounts"].as_array_mut().unwrap() {
                account["platform"] = json!("anthropic");
            }
            all["accounts"][3]["priority"] = json!(3);
        })
}

/// A request of a conversation.
fn of(session: u32, model: &str, stream: bool) -> Request {
    let session = format!("00000000-0000-4000-8000-{session:012}");
    let user = json!({ "device_id": "d", "account_uuid": "", "session_id": session });
    let body = json!({
        "model": model, "max_tokens": 64, "stream": stream,
        "messages": [{ "role": "user", "content": "hi" }],
        "metadata": { "user_id": user.to_string() },
    });
    Request::post("/v1/messages", body.to_string()).header("x-api-key", KEY)
}

/// The accounts of the requests since the last call.
fn asked(upstream: &FakeUpstream) -> Vec<String> {
    let requests = upstream.requests();
    let accounts = requests.iter().map(|seen| {
        let credential = seen.credential().expect("a credential");
        credential.strip_prefix("sk-").unwrap().to_owned()
    });
    let accounts = accounts.collect();
    upstream.forget();
    accounts
}

/// Sends a request, which must be served; who was asked.
async fn account(gateway: &Gateway, upstream: &FakeUpstream, request: &Request) -> Vec<String> {
    let reply = gateway.h1().await.request(request).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    upstream.wait_idle().await;
    asked(upstream)
}

fn choices(gateway: &Gateway, layer: &str) -> f64 {
    gateway.metric(&format!(
        "scheduler_choices_total{{layer=\"{layer}\",platform=\"anthropic\"}}"
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_most_exact_pattern_names_who_is_asked_first() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&upstream)
        .resources(|all| {
            // Routed by the name that the channel gives it.
            all["channels"] = json!([{
                "name": "c", "groups": ["main"],
                "model_mapping": { "anthropic": { "house": OPUS, "claude-opus-x": SONNET } },
            }]);
        })
        .start()
        .await;
    let rows: [(&str, &[&str]); 5] = [
        (SONNET, &["a1"]),
        (OPUS, &["a3", "a4"]),
        ("claude-opus-4-5", &["a2"]),
        ("house", &["a3", "a4"]),
        ("claude-opus-x", &["a1"]),
    ];
    for (session, (model, expected)) in (0..).zip(rows) {
        let got = account(&gateway, &upstream, &of(session, model, false)).await;
        assert!(
            got.len() == 1 && expected.contains(&&*got[0]),
            "{model}: {got:?}"
        );
    }
    gateway.wait_records(5).await;
    assert_eq!(
        (choices(&gateway, "routed"), choices(&gateway, "load")),
        (3.0, 2.0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routed_accounts_that_fail_come_before_the_others() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&upstream).start().await;
    for key in ["sk-a3", "sk-a4", "sk-a1"] {
        upstream.push_for(key, Answer::anthropic_error(529, "no"));
    }
    let mut got = account(&gateway, &upstream, &of(1, OPUS, false)).await;
    got[..2].sort();
    assert_eq!(got, ["a3", "a4", "a1", "a2"]);
    let record = gateway.only_record().await;
    assert_eq!(
        (&record["account"], &record["attempts"]),
        (&json!("a2"), &json!(4))
    );
    // None of them may be chosen now: as if there were no routing.
    let got = account(&gateway, &upstream, &of(2, OPUS, false)).await;
    assert_eq!(got, ["a2"]);
    gateway
        .followed(|| gateway.run(&["accounts", "resume", "a4"]))
        .await;
    let got = account(&gateway, &upstream, &of(3, OPUS, false)).await;
    assert_eq!(got, ["a4"]);
    gateway
        .followed(|| gateway.run(&["accounts", "pause", "a4"]))
        .await;
    gateway
        .followed(|| gateway.run(&["accounts", "resume", "a1"]))
        .await;
    let got = account(&gateway, &upstream, &of(4, OPUS, false)).await;
    assert_eq!(got, ["a1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_routed_accounts_are_waited_for_though_others_are_idle() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&upstream)
        .resources(|all| {
            for account in all["accounts"].as_array_mut().unwrap() {
                account["concurrency"] = json!(1);
            }
        })
        .start()
        .await;
    let gates = [Gate::new(), Gate::new()];
    let mut held = Vec::new();
    for (session, gate) in (1..).zip(&gates) {
        upstream.push(Answer::echo().after(gate));
        held.push(Call::send(&gateway, Protocol::H1, &of(session, OPUS, false)).await);
        gate.wait_reached(1).await;
    }
    let mut waits = Call::send(&gateway, Protocol::H1, &of(3, OPUS, true)).await;
    assert_eq!(waits.head().await.unwrap().status, 200);
    waits.read_until("event: ping", 2).await;
    let accounts: Vec<String> = upstream
        .requests()
        .iter()
        .map(|seen| seen.credential().unwrap().to_owned())
        .collect();
    assert_eq!(accounts.len(), 2, "it waits");
    // Another model does not.
    let other = Call::send(&gateway, Protocol::H1, &of(4, SONNET, false)).await;
    assert_eq!(other.answer().await.0, 200);
    gates[1].open();
    let (rest, end) = waits.rest().await;
    end.unwrap();
    assert!(String::from_utf8_lossy(&rest).contains("message_stop"));
    let last = upstream.requests().pop().unwrap();
    assert_eq!(last.credential(), Some(&*accounts[1]));
    gates[0].open();
    for call in held {
        assert_eq!(call.answer().await.0, 200);
    }
    gateway.wait_records(4).await;
    assert_eq!(choices(&gateway, "routed"), 3.0);
    assert_eq!(
        gateway.metric("waits_total{end=\"granted\",slot=\"account\"}"),
        1.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_has_one_account_for_each_of_its_routes() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&upstream)
        .resources(|all| {
            let routes = &mut all["groups"][0]["model_routing"];
            routes["claude-haiku-*"] = json!(["a2", "a3", "a4"]);
            for account in all["accounts"].as_array_mut().unwrap() {
                account["priority"] = json!(1);
            }
        })
        .start()
        .await;
    for session in 0..6 {
        let mut home: Vec<(&str, String)> = Vec::new();
        for _ in 0..3 {
            for model in [SONNET, OPUS, HAIKU] {
                let got = account(&gateway, &upstream, &of(session, model, false)).await;
                let [got] = &got[..] else {
                    panic!("{got:?}");
                };
                match home.iter().find(|(of, _)| *of == model) {
                    Some((_, home)) => assert_eq!(got, home, "{session} {model}"),
                    None => home.push((model, got.clone())),
                }
            }
        }
        let home = |model: &str| home.iter().find(|(of, _)| *of == model).unwrap().1.clone();
        assert!(["a3", "a4"].contains(&&*home(OPUS)));
        // Where the conversation is, it stays, if that is among those who are asked.
        if home(SONNET) != "a1" {
            assert_eq!(home(HAIKU), home(SONNET), "{session}");
        }
        if ["a3", "a4"].contains(&&*home(SONNET)) {
            assert_eq!(home(OPUS), home(SONNET), "{session}");
        }
    }
    gateway.wait_records(54).await;
    let hits = gateway.metric("scheduler_sticky_total{result=\"hit\"}");
    assert!(hits >= 36.0, "{hits}");
    assert_eq!(
        gateway.metric("scheduler_sticky_total{result=\"spilled\"}"),
        0.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_counted_by_routed_accounts() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&upstream).start().await;
    let body: Value = json!({ "model": OPUS, "messages": [{ "role": "user", "content": "hi" }] });
    let request = Request::post("/v1/messages/count_tokens", body.to_string()).bearer(KEY);
    for _ in 0..4 {
        let got = account(&gateway, &upstream, &request).await;
        assert!(["a3", "a4"].contains(&&*got[0]), "{got:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_leaves_an_account_that_its_route_does_not_name_any_more() {
    let upstream = FakeUpstream::start().await;
    let setup = setup(&upstream);
    let mut group = setup.resources["groups"][0].clone();
    let gateway = setup.start().await;
    let first = account(&gateway, &upstream, &of(1, OPUS, false)).await;
    assert!(["a3", "a4"].contains(&&*first[0]));
    // The same pattern, with others: it stays with one of them.
    group["model_routing"]["claude-opus-*"] = json!(["a1", "a2"]);
    gateway
        .followed(|| gateway.apply(&json!({ "groups": [group] })))
        .await;
    let gate = Gate::new();
    upstream.push(Answer::echo().after(&gate));
    let held = Call::send(&gateway, Protocol::H1, &of(1, OPUS, false)).await;
    gate.wait_reached(1).await;
    let hits = gateway.metric("scheduler_sticky_total{result=\"hit\"}");
    let again = Call::send(&gateway, Protocol::H1, &of(1, OPUS, false)).await;
    assert_eq!(again.answer().await.0, 200);
    gate.open();
    assert_eq!(held.answer().await.0, 200);
    upstream.wait_idle().await;
    assert_eq!(asked(&upstream), ["a1", "a1"]);
    assert_eq!(
        gateway.metric("scheduler_sticky_total{result=\"hit\"}"),
        hits + 1.0
    );
}
