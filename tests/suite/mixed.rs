//! Relays of Antigravity's models among the accounts of a group of Anthropic's platform.

use serde_json::{Value, json};
use tollgate_test_support::anthropic::{Block, Message};
use tollgate_test_support::{Answer, ClientReply, FakeUpstream, Request};

use crate::call::{Call, PROTOCOLS, Protocol};
use crate::harness::{Gateway, KEY, Setup};

const MODEL: &str = "claude-sonnet-4-5";
/// What the usual answer costs with [`MODEL`].
const CHARGE: &str = "0.000948";
const HELLO: &[Block<'static>] = &[Block::Text(&["Hel", "lo"])];

/// A relay, and behind it an account of Anthropic's, as `relay` and `a2`.
fn setup(relay: &FakeUpstream, own: &FakeUpstream) -> Setup {
    Setup::with(&[relay, own])
        .set("SERVER__H2C", true)
        .resources(|all| {
            all["groups"][0]["platform"] = json!("anthropic");
            all["accounts"][1]["platform"] = json!("anthropic");
            let relay = &mut all["accounts"][0];
            relay["name"] = json!("relay");
            relay["platform"] = json!("antigravity");
            relay["type"] = json!("upstream");
            relay["extra"] = json!({ "mixed_scheduling": true });
        })
}

fn body(stream: bool) -> Value {
    json!({
        "model": MODEL, "max_tokens": 1024, "stream": stream,
        "messages": [{ "role": "user", "content": "hi" }],
    })
}

fn post(body: &Value) -> Request {
    Request::post("/v1/messages?beta=true", body.to_string()).header("x-api-key", KEY)
}

fn count(model: &str) -> Request {
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }] });
    Request::post("/v1/messages/count_tokens", body.to_string()).header("x-api-key", KEY)
}

async fn send(gateway: &Gateway, request: &Request) -> ClientReply {
    gateway.h1().await.request(request).await.unwrap()
}

fn message(model: &str) -> Message<'_> {
    Message::new(model, "msg_1", HELLO)
}

fn answer(stream: bool) -> Answer {
    match stream {
        true => Answer::sse(message(MODEL).stream()),
        false => Answer::body(200, "application/json", message(MODEL).json()),
    }
}

fn error_of(value: &Value) -> (&str, &str) {
    assert_eq!(value["type"], "error", "{value}");
    let error = &value["error"];
    (
        error["type"].as_str().unwrap(),
        error["message"].as_str().unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_is_spoken_to_in_anthropics_dialect_with_its_own_key() {
    let (relay, own) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = setup(&relay, &own)
        .resources(|all| {
            all["accounts"][0]["model_mapping"] = json!({ "fast": MODEL });
            all["accounts"][1]["model_mapping"] = json!({ "slow": MODEL });
        })
        .start()
        .await;
    let mut records = 0;
    for stream in [false, true] {
        for protocol in PROTOCOLS {
            relay.push(answer(stream));
            let mut asked = body(stream);
            asked["model"] = json!("fast");
            // What the provider would not take is left out, as for every key.
            let empty = json!({ "type": "text", "text": "" });
            let hi = json!({ "type": "text", "text": "hi" });
            asked["messages"][0]["content"] = json!([hi, empty]);
            let request = post(&asked)
                .header("anthropic-beta", "context-1m-2025-08-07, tools-1")
                .header("cookie", "a=b");
            let call = Call::send(&gateway, protocol, &request).await;
            let (status, got) = call.answer().await;
            assert_eq!(status, 200);
            let expected = match stream {
                true => message("fast").stream().concat(),
                false => message("fast").json().to_vec(),
            };
            assert_eq!(got, expected, "{stream} {protocol:?}");
            let seen = relay.only_request();
            assert_eq!(seen.target, "/antigravity/v1/messages");
            for (header, value) in [
                ("x-api-key", Some("sk-a1")),
                ("authorization", None),
                ("anthropic-version", Some("2023-06-01")),
                ("anthropic-beta", Some("tools-1")),
                ("cookie", None),
            ] {
                assert_eq!(seen.header(header), value, "{header}");
            }
            asked["model"] = json!(MODEL);
            asked["messages"][0]["content"] = json!([hi]);
            assert_eq!(seen.json(), asked);
            relay.wait_idle().await;
            relay.forget();
            records += 1;
            for record in gateway.wait_records(records).await {
                for (field, expected) in [
                    ("outcome", json!("ok")),
                    ("account", json!("relay")),
                    ("platform", json!("antigravity")),
                    ("endpoint", json!("/v1/messages")),
                    ("upstream_endpoint", json!("/antigravity/v1/messages")),
                    ("requested_model", json!("fast")),
                    ("upstream_model", json!(MODEL)),
                    ("usage_source", json!("reported")),
                    ("input_tokens", json!(100)),
                    ("cache_creation_1h_tokens", json!(7)),
                    ("output_tokens", json!(30)),
                    ("charge", json!(CHARGE)),
                ] {
                    assert_eq!(record[field], expected, "{field}\n{record:#}");
                }
            }
        }
    }
    // Its models are among the group's.
    let request = Request::get("/v1/models").header("x-api-key", KEY);
    let models = send(&gateway, &request).await.json();
    let models: Vec<&Value> = models["data"].as_array().unwrap().iter().collect();
    let ids: Vec<&Value> = models.iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["fast", "slow"]);
    assert_eq!(own.total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_and_an_account_stand_in_for_each_other() {
    for (first, platform) in [("relay", "anthropic"), ("a2", "antigravity")] {
        for stream in [false, true] {
            let (relay, own) = (FakeUpstream::start().await, FakeUpstream::start().await);
            let gateway = setup(&relay, &own)
                .resources(|all| {
                    let accounts = all["accounts"].as_array_mut().unwrap();
                    for account in accounts {
                        account["priority"] = json!(if account["name"] == first { 1 } else { 2 });
                    }
                })
                .start()
                .await;
            let (failing, serving) = match first {
                "relay" => (&relay, &own),
                _ => (&own, &relay),
            };
            failing.push(Answer::anthropic_error(529, "no"));
            serving.push(answer(stream));
            let reply = send(&gateway, &post(&body(stream))).await;
            assert_eq!(reply.status, 200, "{first}");
            let record = gateway.only_record().await;
            assert_eq!(record["platform"], platform);
            assert_eq!(record["charge"], CHARGE);
            assert_eq!(record["attempts"], 2);
            let overloaded = || {
                let shown = gateway.run_json(&["accounts", "show", first, "--json"]);
                shown["status"] == "overloaded"
            };
            gateway.wait("its condition", overloaded).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_own_mistakes_come_back_in_the_relays_words() {
    let (relay, own) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = setup(&relay, &own).start().await;
    relay.push(Answer::anthropic_error(400, "max_tokens: too many"));
    let reply = send(&gateway, &post(&body(false))).await;
    assert_eq!(reply.status, 400);
    assert_eq!(
        error_of(&reply.json()),
        ("invalid_request_error", "max_tokens: too many")
    );
    // An error within a stream, after something of the answer.
    let frames = message(MODEL).failed(5, "overloaded_error", "Overloaded");
    relay.push(Answer::sse(frames));
    let reply = send(&gateway, &post(&body(true))).await;
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains("event: error"), "{}", reply.text());
    gateway.wait_records(2).await;
    assert_eq!(own.total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_not_counted_by_relays() {
    let (relay, own) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = setup(&relay, &own)
        .resources(|all| {
            all["accounts"][0]["model_mapping"] = json!({ "both": MODEL, "relayed": MODEL });
            all["accounts"][1]["model_mapping"] = json!({ "both": MODEL });
        })
        .start()
        .await;
    // The relay would come first.
    let reply = send(&gateway, &count("both")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let seen = own.only_request();
    assert_eq!(seen.target, "/v1/messages/count_tokens?beta=true");
    // Only a relay has this one; nobody that one.
    let reply = send(&gateway, &count("relayed")).await;
    let json = reply.json();
    let unsupported = "Token counting is not supported for this platform";
    assert_eq!(
        (reply.status, error_of(&json)),
        (404, ("not_found_error", unsupported))
    );
    assert_eq!(send(&gateway, &count("nobody's")).await.status, 503);
    // Who could count is out for a while: not a matter of the platform.
    let limited = Answer::anthropic_error(429, "no").header("retry-after", "60");
    own.push(limited);
    assert_eq!(send(&gateway, &count("both")).await.status, 429);
    let reply = send(&gateway, &count("both")).await;
    assert_eq!(reply.status, 429, "{}", reply.text());
    assert_eq!(relay.total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_antigravity_itself_are_not_served() {
    let (relay, own) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = setup(&relay, &own)
        .resources(|all| {
            let group = json!({ "name": "anti", "platform": "antigravity" });
            all["groups"].as_array_mut().unwrap().push(group);
            all["accounts"][0]["groups"] = json!(["main", "anti"]);
            all["api_keys"][0]["group"] = json!("anti");
        })
        .start()
        .await;
    for request in [post(&body(false)), count(MODEL)] {
        let reply = send(&gateway, &request).await;
        assert_eq!(reply.status, 404);
        assert_eq!(error_of(&reply.json()).0, "not_found_error");
    }
    assert_eq!((relay.total(), own.total()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_settles_what_a_relay_was_sent() {
    let (relay, own) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let mut gateway = setup(&relay, &own).start().await;
    relay.push(Answer::sse(message(MODEL).cut(5)).then_stall());
    let mut call = Call::send(&gateway, Protocol::H1, &post(&body(true))).await;
    call.head().await.unwrap();
    call.read_until("text_delta", 2).await;
    gateway.kill();
    gateway.launch();
    let record = gateway.only_record().await;
    for (field, expected) in [
        ("outcome", "interrupted"),
        ("usage_source", "estimated"),
        ("platform", "antigravity"),
    ] {
        assert_eq!(record[field], expected, "{record:#}");
    }
}
