//! The Messages API: what goes upstream, what comes back, and what it costs.

use bytes::Bytes;
use serde_json::{Value, json};
use tollgate_test_support::anthropic::{self, Block, Message, Usage};
use tollgate_test_support::{Answer, ClientReply, FakeUpstream, Gate, Received, Request};

use crate::call::{Call, LEAVINGS, PROTOCOLS, Protocol};
use crate::harness::{Gateway, KEY, Setup};

pub const MODEL: &str = "claude-sonnet-4-5";
/// What [`Usage::default`] costs with [`MODEL`]: 100 × 3 + 40 × 3.75 + 7 × 6 + 20 × 0.3 + 30 × 15 USD a million.
pub const CHARGE: &str = "0.000948";
/// The content of a good answer.
pub const HELLO: &[Block<'static>] = &[Block::Text(&["Hel", "lo"])];

/// A set-up for these providers in Anthropic's platform.
pub fn setup(upstreams: &[&FakeUpstream]) -> Setup {
    Setup::with(upstreams)
        .set("SERVER__H2C", true)
        .resources(|all| {
            all["groups"][0]["platform"] = json!("anthropic");
            for account in all["accounts"].as_array_mut().unwrap() {
                account["platform"] = json!("anthropic");
            }
        })
}

pub fn body(stream: bool) -> Value {
    json!({
        "model": MODEL, "max_tokens": 1024, "stream": stream,
        "messages": [{ "role": "user", "content": "hi" }],
    })
}

/// As current SDKs ask.
pub fn post(body: &Value) -> Request {
    Request::post("/v1/messages", body.to_string())
        .header("x-api-key", KEY)
        .header("anthropic-version", "2023-06-01")
}

pub async fn send(gateway: &Gateway, request: &Request) -> ClientReply {
    gateway.h1().await.request(request).await.unwrap()
}

pub fn message() -> Message<'static> {
    Message::new(MODEL, "msg_1", HELLO)
}

/// The message, as JSON or as a stream.
pub fn answer(stream: bool) -> Answer {
    match stream {
        true => Answer::sse(message().stream()),
        false => Answer::body(200, "application/json", message().json()),
    }
}

pub fn assert_charged(record: &Value) {
    for (field, expected) in [
        ("outcome", json!("ok")),
        ("platform", json!("anthropic")),
        ("endpoint", json!("/v1/messages")),
        ("upstream_endpoint", json!("/v1/messages")),
        ("usage_source", json!("reported")),
        ("input_tokens", json!(100)),
        ("cache_creation_tokens", json!(47)),
        ("cache_creation_5m_tokens", json!(40)),
        ("cache_creation_1h_tokens", json!(7)),
        ("cache_read_tokens", json!(20)),
        ("output_tokens", json!(30)),
        ("charge", json!(CHARGE)),
    ] {
        assert_eq!(record[field], expected, "{field}\n{record:#}");
    }
}

/// The error in a body or an event of the dialect: its type and its message.
pub fn error_of(value: &Value) -> (&str, &str) {
    assert_eq!(value["type"], "error", "{value}");
    let error = &value["error"];
    (
        error["type"].as_str().unwrap(),
        error["message"].as_str().unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_passes_as_it_is_and_is_charged_exactly() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream]).start().await;
    for (count, (stream, protocol)) in [false, true]
        .into_iter()
        .flat_map(|stream| PROTOCOLS.map(|protocol| (stream, protocol)))
        .enumerate()
    {
        upstream.push(answer(stream));
        let mut asked = body(stream);
        asked["output_config"] = json!({ "effort": "high" });
        let request = Request::post("/v1/messages?beta=true", asked.to_string()).bearer(KEY);
        let call = Call::send(&gateway, protocol, &request).await;
        let (status, got) = call.answer().await;
        assert_eq!(status, 200);
        let expected = match stream {
            true => message().stream().concat(),
            false => message().json().to_vec(),
        };
        assert_eq!(got, expected, "{stream} {protocol:?}");
        let records = gateway.wait_records(count + 1).await;
        for record in &records {
            assert_charged(record);
            assert_eq!(record["reasoning_effort"], "high");
        }
    }
    assert_eq!(gateway.balance("alice"), "9.996208");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thinking_and_tools_pass_and_their_output_begins_the_answer() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream]).start().await;
    let blocks = [
        Block::Thinking(&["Let me ", "see"], "c2ln"),
        Block::Redacted("ZGF0YQ=="),
        Block::Text(&["Hel", "lo"]),
        Block::ToolUse(anthropic::Call {
            id: "toolu_1",
            name: "weather",
            input: r#"{"model":"claude"}"#,
        }),
    ];
    let message = Message::new(MODEL, "msg_1", &blocks);
    for (count, size) in [1, 7, 64, 4096].into_iter().enumerate() {
        upstream.push(Answer::sse(message.stream()).split_every(size));
        let mut asked = body(true);
        asked["thinking"] = json!({ "type": "enabled", "budget_tokens": 1024 });
        asked["tools"] = json!([{ "name": "weather", "input_schema": { "type": "object" } }]);
        let reply = send(&gateway, &post(&asked)).await;
        assert_eq!(reply.body, message.stream().concat(), "{size}");
        assert_eq!(upstream.requests()[count].json(), asked);
        let records = gateway.wait_records(count + 1).await;
        records.iter().for_each(assert_charged);
        assert!(records.iter().all(|r| r["first_token_ms"].is_number()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_upstream() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        .resources(|all| {
            let mut accounts = Vec::new();
            let base = all["accounts"][0].clone();
            let kinds = [
                ("plain", "api_key", json!({ "api_key": "sk-plain" })),
                ("relay", "api_key", json!({ "api_key": "sk-relay" })),
                ("oauth", "oauth", json!({ "access_token": "at-oauth" })),
                ("setup", "setup_token", json!({ "access_token": "at-setup" })),
                ("empty", "oauth", json!({})),
            ];
            for (name, kind, mut credentials) in kinds {
                let mut account = base.clone();
                credentials["base_url"] = base["credentials"]["base_url"].clone();
                account["name"] = json!(name);
                account["type"] = json!(kind);
                account["credentials"] = credentials;
                account["groups"] = json!([name]);
                account["extra"] = json!({ "anthropic_passthrough": name == "relay" });
                accounts.push(account);
                let group = json!({ "name": name, "platform": "anthropic" });
                all["groups"].as_array_mut().unwrap().push(group);
                let key = json!({ "name": name, "key": format!("tg-{name}-0123456789"), "user": "alice", "group": name });
                all["api_keys"].as_array_mut().unwrap().push(key);
            }
            all["accounts"] = json!(accounts);
        })
        .start()
        .await;
    // Five cache marks and an empty text: one of each too many.
    let mark = json!({ "type": "ephemeral" });
    let text = |text: &str| json!({ "type": "text", "text": text, "cache_control": mark });
    let mut asked = body(false);
    asked["messages"][0]["content"] = json!([text("a"), text("b"), text("c"), text("d"), text("e"),
        { "type": "text", "text": "" }, { "type": "unknown_block", "x": 1 }]);
    let mut tidied = asked.clone();
    let content = tidied["messages"][0]["content"].as_array_mut().unwrap();
    content.remove(5);
    content[0].as_object_mut().unwrap().remove("cache_control");
    let mut dated = tidied.clone();
    dated["model"] = json!("claude-sonnet-4-5-20250929");

    for (name, credential, betas, expected) in [
        ("plain", ("x-api-key", "sk-plain"), Some("tools-1"), &tidied),
        (
            "relay",
            ("x-api-key", "sk-relay"),
            Some("context-1m-2025-08-07, tools-1"),
            &asked,
        ),
        (
            "oauth",
            ("authorization", "Bearer at-oauth"),
            Some("tools-1,oauth-2025-04-20"),
            &dated,
        ),
        (
            "setup",
            ("authorization", "Bearer at-setup"),
            Some("tools-1,oauth-2025-04-20"),
            &dated,
        ),
    ] {
        let request = Request::post("/v1/messages", asked.to_string())
            .bearer(&format!("tg-{name}-0123456789"))
            .header("anthropic-beta", "context-1m-2025-08-07, tools-1")
            .header("x-stainless-lang", "python")
            .header("accept-encoding", "gzip")
            .header("cookie", "a=b");
        let reply = send(&gateway, &request).await;
        assert_eq!(reply.status, 200, "{name}: {}", reply.text());
        assert_eq!(reply.json()["model"], MODEL, "{name}");
        let seen = upstream.only_request();
        assert_eq!(&seen.json(), expected, "{name}");
        assert_eq!(seen.target, "/v1/messages?beta=true");
        for (header, value) in [
            (credential.0, Some(credential.1)),
            (
                if credential.0 == "x-api-key" {
                    "authorization"
                } else {
                    "x-api-key"
                },
                None,
            ),
            ("anthropic-version", Some("2023-06-01")),
            ("anthropic-beta", betas),
            ("x-stainless-lang", Some("python")),
            ("accept-encoding", None),
            ("cookie", None),
        ] {
            assert_eq!(seen.header(header), value, "{name}: {header}");
        }
        upstream.forget();
    }
    // Without a token there is nothing to send.
    let request = Request::post("/v1/messages", asked.to_string()).bearer("tg-empty-0123456789");
    let reply = send(&gateway, &request).await;
    assert_eq!((reply.status, upstream.requests().len()), (503, 0));
    assert_eq!(error_of(&reply.json()).0, "api_error");
    let records = gateway.wait_records(4).await;
    let mapped: Vec<&Value> = records.iter().map(|r| &r["model"]).collect();
    assert!(mapped.iter().all(|model| **model == MODEL), "{mapped:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_name_for_the_model_is_put_back() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        .resources(|all| {
            all["accounts"][0]["model_mapping"] = json!({ "fast": MODEL });
        })
        .start()
        .await;
    let named = |bytes: Bytes| {
        String::from_utf8(bytes.to_vec())
            .unwrap()
            .replace(MODEL, "fast")
    };
    for (stream, expected) in [
        (false, named(message().json())),
        (true, named(message().stream().concat().into())),
    ] {
        for size in [1, 10, 100_000] {
            upstream.push(answer(stream).split_every(size));
            let mut asked = body(stream);
            asked["model"] = json!("fast");
            let reply = send(&gateway, &post(&asked)).await;
            assert_eq!(reply.text(), expected, "{stream} {size}");
        }
    }
    assert!(upstream.requests().iter().all(|seen| seen.model() == MODEL));
    let records = gateway.wait_records(6).await;
    assert!(
        records
            .iter()
            .all(|r| r["requested_model"] == "fast" && r["upstream_model"] == MODEL)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_in_the_dialect_and_carry_our_id() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        .set("SERVER__MAX_BODY_BYTES", 2000)
        .resources(|all| {
            // Whatever it answers, it stays in the choice.
            all["accounts"][0]["extra"] = json!({ "pool_mode": true, "pool_mode_retry_count": 0 });
            let user = json!({ "name": "poor", "balance": "0" });
            all["users"].as_array_mut().unwrap().push(user);
            let poor = json!({ "name": "poor", "key": "tg-poor-0123456789", "user": "poor", "group": "main" });
            all["api_keys"].as_array_mut().unwrap().push(poor);
            let group = json!({ "name": "open", "platform": "openai" });
            all["groups"].as_array_mut().unwrap().push(group);
            let open = json!({ "name": "open", "key": "tg-open-0123456789", "user": "alice", "group": "open" });
            all["api_keys"].as_array_mut().unwrap().push(open);
        })
        .start()
        .await;
    let fine = body(false);
    let with = |change: fn(&mut Value)| {
        let mut asked = body(false);
        change(&mut asked);
        post(&asked)
    };
    let keyed = |key: &str| Request::post("/v1/messages", fine.to_string()).bearer(key);
    // Ours: nothing goes upstream.
    #[rustfmt::skip]
    let rows = [
        (Request::post("/v1/messages", fine.to_string()), 401, "authentication_error"),
        (keyed("tg-nobody"), 401, "authentication_error"),
        (keyed("tg-poor-0123456789"), 403, "billing_error"),
        (keyed("tg-open-0123456789"), 404, "not_found_error"),
        (with(|b| b["model"] = json!(1)), 400, "invalid_request_error"),
        (with(|b| b["model"] = json!("")), 400, "invalid_request_error"),
        (with(|b| b["stream"] = json!("yes")), 400, "invalid_request_error"),
        (with(|b| b["system"] = json!("x".repeat(3000))), 413, "request_too_large"),
        (Request::get("/v1/messages").bearer(KEY), 405, "invalid_request_error"),
        (Request::post("/v1/messages/batches", "{}").bearer(KEY), 404, "not_found_error"),
    ];
    for (request, status, kind) in rows {
        let reply = send(&gateway, &request).await;
        let json = reply.json();
        assert_eq!((reply.status, error_of(&json).0), (status, kind), "{json}");
        let id = reply.header("request-id").unwrap();
        assert_eq!(reply.header("x-request-id"), Some(id));
        assert_eq!(json["request_id"], id);
    }
    assert!(upstream.requests().is_empty());
    // The client's own mistakes come back in the provider's words, everything else in ours.
    #[rustfmt::skip]
    let rows = [
        (400, 400, "invalid_request_error", true),
        (404, 404, "not_found_error", true),
        (413, 413, "request_too_large", true),
        (401, 502, "upstream_error", false),
        (403, 502, "upstream_error", false),
        (429, 429, "rate_limit_error", false),
        (500, 502, "upstream_error", false),
        (529, 503, "overloaded_error", false),
    ];
    for (told, status, kind, own_words) in rows {
        for stream in [false, true] {
            upstream
                .push(Answer::anthropic_error(told, "the words").header("request-id", "req_up"));
            let reply = send(&gateway, &post(&body(stream))).await;
            let json = reply.json();
            assert_eq!(
                (reply.status, error_of(&json).0),
                (status, kind),
                "{told} {json}"
            );
            assert_eq!(error_of(&json).1 == "the words", own_words, "{told} {json}");
            let id = reply.header("request-id").unwrap();
            assert!(id.starts_with("req_") && id != "req_up", "{id}");
            if own_words {
                assert_eq!(reply.header("x-upstream-request-id"), Some("req_up"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_account_is_not_the_end() {
    let (bad, good) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let overloaded =
        |events| Answer::sse(message().failed(events, "overloaded_error", "Overloaded"));
    let mut rows: Vec<(&str, bool, Answer)> = Vec::new();
    for stream in [false, true] {
        for status in [401, 403, 429, 500, 503, 529] {
            rows.push(("a status", stream, Answer::anthropic_error(status, "no")));
        }
        rows.push(("closed", stream, Answer::close()));
    }
    // Nothing of an answer is in message_start, the start of an empty block and a ping.
    rows.extend((0..=3).map(|events| ("an error event", true, overloaded(events))));
    rows.extend(
        (0..=3).map(|events| ("cut", true, Answer::sse(message().cut(events)).then_reset())),
    );
    for (what, stream, failure) in rows {
        let gateway = setup(&[&bad, &good]).start().await;
        bad.push(failure);
        good.push(answer(stream));
        let reply = send(&gateway, &post(&body(stream))).await;
        assert_eq!(reply.status, 200, "{what} {stream}");
        let expected = match stream {
            true => message().stream().concat(),
            false => message().json().to_vec(),
        };
        assert_eq!(reply.body, expected, "{what} {stream}");
        let record = gateway.only_record().await;
        assert_charged(&record);
        assert_eq!(
            (&record["attempts"], &record["account"]),
            (&json!(2), &json!("a2")),
            "{what}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_after_content_is_told_in_the_stream_and_charged_by_what_came() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream]).start().await;
    // message_start, content_block_start, ping, two deltas: five bytes of output.
    let begun = message().cut(5).concat();
    let failed = message().failed(5, "overloaded_error", "Overloaded");
    for (count, (what, answer)) in [
        ("told", Answer::sse(failed.clone())),
        ("reset", Answer::sse(message().cut(5)).then_reset()),
    ]
    .into_iter()
    .enumerate()
    {
        upstream.push(answer);
        let reply = send(&gateway, &post(&body(true))).await;
        assert_eq!(reply.status, 200);
        assert!(reply.body.starts_with(&begun), "{what}: {}", reply.text());
        let last = reply.events().pop().unwrap();
        assert_eq!(last.name, "error", "{what}");
        let told = last.json();
        let expected = match what {
            "told" => ("overloaded_error", "Overloaded"),
            _ => ("upstream_error", "stream_read_error"),
        };
        assert_eq!(error_of(&told), expected);
        let records = gateway.wait_records(count + 1).await;
        for record in &records {
            assert_ne!(record["outcome"], "ok");
            // The input was told; of the output two tokens were seen at least.
            assert_eq!(record["usage_source"], "estimated", "{record:#}");
            assert_eq!(record["output_tokens"], 2);
            assert_eq!(
                (&record["input_tokens"], &record["cache_read_tokens"]),
                (&json!(100), &json!(20))
            );
            // 948 − 28 × 15
            assert_eq!(record["charge"], "0.000528");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_is_charged_for_the_whole_answer() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        // Where the leaving is written down.
        .set("LOGGING__LEVEL", "debug")
        .start()
        .await;
    for (count, leaving) in LEAVINGS.into_iter().enumerate() {
        let gate = Gate::new();
        upstream.push(answer(true).gated(5, &gate));
        let mut call = Call::send(&gateway, leaving.protocol(), &post(&body(true))).await;
        call.head().await.unwrap();
        call.read_until("text_delta", 2).await;
        let _open = call.leave(leaving).await;
        let missed = || gateway.logged().matches("the client has left").count() > count;
        gateway.wait("the client to be missed", missed).await;
        gate.open();
        for record in gateway.wait_records(count + 1).await {
            assert_eq!(record["outcome"], "client_gone", "{leaving:?}");
            assert_eq!(record["output_tokens"], 30, "{leaving:?}");
            assert_eq!(record["charge"], CHARGE, "{leaving:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_filled_with_pings() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        .set("CONCURRENCY__PING_INTERVAL_MS", 100)
        .set("GATEWAY__KEEPALIVE_INTERVAL_MS", 100)
        .resources(|all| all["accounts"][0]["concurrency"] = json!(1))
        .start()
        .await;
    let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
    for protocol in PROTOCOLS {
        let gate = Gate::new();
        // Three events that hold nothing of the answer.
        upstream.push(answer(true).gated(3, &gate));
        let mut first = Call::send(&gateway, protocol, &post(&body(true))).await;
        assert_eq!(first.head().await.unwrap().status, 200);
        let silent = first.read_until(ping, 2).await;
        // Another one waits for the account meanwhile.
        upstream.push(answer(true));
        let mut second = Call::send(&gateway, protocol, &post(&body(true))).await;
        assert_eq!(second.head().await.unwrap().status, 200);
        let waited = second.read_until(ping, 2).await;
        gate.open();
        for (mut call, begun) in [(first, silent), (second, waited)] {
            let (rest, end) = call.rest().await;
            end.unwrap();
            let whole = [begun, rest].concat();
            let whole = String::from_utf8(whole).unwrap();
            assert!(whole.starts_with(ping), "{whole}");
            let expected = String::from_utf8(message().stream().concat()).unwrap();
            assert_eq!(whole.replace(ping, ""), expected, "{protocol:?}");
        }
    }
    gateway
        .wait_records(4)
        .await
        .iter()
        .for_each(assert_charged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_lowers_max_tokens_to_what_can_be_paid() {
    let upstream = FakeUpstream::start().await;
    upstream.handle(|request: &Received| {
        let usage = Usage {
            input: request.body.len() as u64,
            // All it may: it must be payable to the last token.
            output: request.json()["max_tokens"].as_u64().unwrap(),
            cache_5m: 0,
            cache_1h: 0,
            cache_read: 0,
        };
        Answer::body(200, "application/json", message().usage(usage).json())
    });
    let gateway = setup(&[&upstream])
        .set("BILLING__RESERVATION", "strict")
        .resources(|all| all["users"][0]["balance"] = json!("0.01"))
        .start()
        .await;
    let mut asked = body(false);
    asked["max_tokens"] = json!(64000);
    let reply = send(&gateway, &post(&asked)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let sent = upstream.only_request().json();
    let told = sent["max_tokens"].as_u64().unwrap();
    // A cent is enough for 666, less the input.
    assert!((500..666).contains(&told), "{told}");
    let header = reply.header("x-tollgate-max-output-tokens");
    assert_eq!(header, Some(told.to_string().as_str()));
    asked["max_tokens"] = json!(told);
    assert_eq!(sent, asked);
    let record = gateway.only_record().await;
    assert_eq!(record["output_tokens"], told);
    assert!(!gateway.balance("alice").starts_with('-'));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_lowers_no_limit_below_what_may_be_thought() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        .set("BILLING__RESERVATION", "strict")
        .resources(|all| all["users"][0]["balance"] = json!("0.01"))
        .start()
        .await;
    let mut asked = body(false);
    asked["max_tokens"] = json!(64_000);
    asked["thinking"] = json!({ "type": "enabled", "budget_tokens": 1024 });
    let reply = send(&gateway, &post(&asked)).await;
    assert_eq!(reply.status, 403, "{}", reply.text());
    assert!(
        reply.text().contains("needed: at least 0.01"),
        "{}",
        reply.text()
    );
    assert!(upstream.requests().is_empty());
    // Without thinking a cent is enough for an answer.
    asked["thinking"] = json!({ "type": "disabled", "budget_tokens": 1024 });
    upstream.push(answer(false));
    assert_eq!(send(&gateway, &post(&asked)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_settles_what_it_had_sent() {
    let upstream = FakeUpstream::start().await;
    let mut gateway = setup(&[&upstream]).start().await;
    upstream.push(Answer::sse(message().cut(5)).then_stall());
    let mut call = Call::send(&gateway, Protocol::H1, &post(&body(true))).await;
    call.head().await.unwrap();
    call.read_until("text_delta", 2).await;
    gateway.kill();
    gateway.launch();
    let record = gateway.only_record().await;
    assert_eq!(
        (&record["outcome"], &record["usage_source"]),
        (&json!("interrupted"), &json!("estimated")),
        "{record:#}"
    );
    assert_eq!(
        (&record["platform"], &record["endpoint"]),
        (&json!("anthropic"), &json!("/v1/messages"))
    );
    assert_ne!(record["charge"], "0");
    // It serves on.
    upstream.push(answer(false));
    assert_eq!(send(&gateway, &post(&body(false))).await.status, 200);
    gateway.wait_records(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_stay_with_their_account() {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let gateway = setup(&[])
        .resources(|all| {
            all["accounts"] = (1..=4)
                .map(|n| json!({
                    "name": format!("a{n}"), "platform": "anthropic", "type": "api_key", "groups": ["main"],
                    "credentials": { "api_key": format!("sk-a{n}"), "base_url": url },
                }))
                .collect();
        })
        .start()
        .await;
    let session = |n: u32| format!("00000000-0000-4000-8000-{n:012}");
    let users: Vec<String> = (0..4)
        .map(|n| match n % 2 {
            0 => format!("user_{}_account__session_{}", "a".repeat(64), session(n)),
            _ => json!({ "device_id": "d", "account_uuid": "", "session_id": session(n) })
                .to_string(),
        })
        .collect();
    let mut home = vec![None; users.len()];
    for turn in 0..4 {
        for (user, home) in users.iter().zip(&mut home) {
            let mut asked = body(false);
            asked["metadata"] = json!({ "user_id": user });
            asked["messages"][0]["content"] = json!(format!("turn {turn}"));
            assert_eq!(send(&gateway, &post(&asked)).await.status, 200);
            let seen = upstream.only_request();
            let account = seen.credential().unwrap().to_owned();
            assert_eq!(home.get_or_insert(account.clone()), &account);
            upstream.forget();
        }
    }
    gateway.wait_records(16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_answers_in_the_other_form_is_understood() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream]).start().await;
    upstream.push(answer(true));
    let reply = send(&gateway, &post(&body(false))).await;
    let expected: Value = serde_json::from_slice(&message().json()).unwrap();
    assert_eq!((reply.status, reply.json()), (200, expected));
    assert_charged(&gateway.only_record().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_event_reaches_the_client_wherever_it_stands() {
    let upstream = FakeUpstream::start().await;
    let whole = message().stream().len();
    for events in 0..=whole {
        // One account, and a new server each: nobody else may be asked.
        let gateway = setup(&[&upstream]).start().await;
        let frames = message().failed(events, "api_error", "Internal server error");
        upstream.push(Answer::sse(frames.clone()));
        let reply = send(&gateway, &post(&body(true))).await;
        assert_eq!(reply.status, 200, "{events}");
        assert_eq!(reply.body, frames.concat(), "{events}: {}", reply.text());
        let record = gateway.only_record().await;
        // Behind the end it changes nothing; before, the message_delta has counted everything.
        let (outcome, source, output) = match events {
            0 => ("upstream_error", "none", 0),
            1..=3 => ("upstream_error", "estimated", 1),
            4 => ("upstream_error", "estimated", 1),
            5 | 6 => ("upstream_error", "estimated", 2),
            7 => ("upstream_error", "reported", 30),
            _ => ("ok", "reported", 30),
        };
        assert_eq!(record["outcome"], outcome, "{events}: {record:#}");
        assert_eq!(record["usage_source"], source, "{events}: {record:#}");
        assert_eq!(record["output_tokens"], output, "{events}: {record:#}");
        upstream.wait_idle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_has_waited_gets_whatever_comes_as_events() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        .set("CONCURRENCY__PING_INTERVAL_MS", 100)
        .resources(|all| {
            all["accounts"][0]["concurrency"] = json!(1);
            all["accounts"][0]["model_mapping"] = json!({ "fast": MODEL });
            all["error_passthrough_rules"] = json!([
                { "name": "other", "platforms": ["openai"], "error_codes": [422],
                  "passthrough_body": false, "custom_message": "not this one" },
                { "name": "ours", "platforms": ["anthropic"], "error_codes": [422],
                  "passthrough_body": false, "custom_message": "by a rule" },
            ]);
        })
        .start()
        .await;
    let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
    let mut asked = body(true);
    asked["model"] = json!("fast");
    for (answered, expected) in [
        (
            Answer::anthropic_error(400, "the words"),
            Some(("invalid_request_error", "the words")),
        ),
        (
            Answer::anthropic_error(422, "the words"),
            Some(("upstream_error", "by a rule")),
        ),
        (answer(false), None),
    ] {
        let gate = Gate::new();
        upstream.push(answer(true).gated(0, &gate));
        upstream.push(answered);
        let first = Call::send(&gateway, Protocol::H1, &post(&asked)).await;
        gate.wait_reached(1).await;
        let mut second = Call::send(&gateway, Protocol::H1, &post(&asked)).await;
        assert_eq!(second.head().await.unwrap().status, 200);
        second.read_until(ping, 1).await;
        gate.open();
        assert_eq!(first.answer().await.0, 200);
        let (rest, end) = second.rest().await;
        end.unwrap();
        let rest = String::from_utf8(rest.to_vec()).unwrap().replace(ping, "");
        let events = tollgate_test_support::sse::events(rest.as_bytes());
        match expected {
            Some(expected) => {
                assert_eq!(events.len(), 1, "{rest}");
                assert_eq!(events[0].name, "error");
                assert_eq!(error_of(&events[0].json()), expected);
            }
            None => {
                assert_eq!(events[0].json()["message"]["model"], "fast", "{rest}");
                assert_eq!(events[2].json()["delta"]["text"], "Hello", "{rest}");
                assert_eq!(events.last().unwrap().name, "message_stop", "{rest}");
            }
        }
    }
    let records = gateway.wait_records(6).await;
    let served = records.iter().filter(|record| record["outcome"] == "ok");
    assert_eq!(served.map(assert_charged).count(), 4);
}

// ---- what costs nothing

pub fn count(key: &str, model: &str) -> Request {
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }] });
    Request::post("/v1/messages/count_tokens", body.to_string()).header("x-api-key", key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_counted_without_slots_and_without_a_record() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        .resources(|all| {
            all["users"][0]["concurrency"] = json!(1);
            all["accounts"][0]["concurrency"] = json!(1);
            all["accounts"][0]["extra"] = json!({ "pool_mode": true });
            all["accounts"][0]["model_mapping"] = json!({ "fast": MODEL });
            let user = json!({ "name": "poor", "balance": "0" });
            all["users"].as_array_mut().unwrap().push(user);
            let poor = json!({ "name": "poor", "key": "tg-poor-0123456789", "user": "poor", "group": "main" });
            all["api_keys"].as_array_mut().unwrap().push(poor);
            let group = json!({ "name": "open", "platform": "openai" });
            all["groups"].as_array_mut().unwrap().push(group);
            let open = json!({ "name": "open", "key": "tg-open-0123456789", "user": "alice", "group": "open" });
            all["api_keys"].as_array_mut().unwrap().push(open);
        })
        .start()
        .await;
    // Every slot is taken by a request that goes on.
    let gate = Gate::new();
    upstream.push(answer(false).after(&gate));
    let mut asked = body(false);
    asked["model"] = json!("fast");
    let running = Call::send(&gateway, Protocol::H1, &post(&asked)).await;
    gate.wait_reached(1).await;
    let reply = send(&gateway, &count(KEY, "fast")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.json()["input_tokens"].as_u64().unwrap() > 10);
    assert!(reply.header("request-id").is_some());
    let seen = upstream.requests().pop().unwrap();
    assert_eq!(seen.target, "/v1/messages/count_tokens?beta=true");
    assert_eq!(seen.model(), MODEL);
    gate.open();
    assert_eq!(running.answer().await.0, 200);

    #[rustfmt::skip]
    let rows = [
        (Answer::anthropic_error(400, "the words"), 400, "invalid_request_error", "the words"),
        (Answer::anthropic_error(429, "the words"), 429, "rate_limit_error", "Rate limit exceeded"),
        (Answer::anthropic_error(529, "the words"), 529, "overloaded_error", "Service overloaded"),
        (Answer::anthropic_error(500, "the words"), 500, "upstream_error", "Upstream request failed"),
        (Answer::anthropic_error(401, "the words"), 401, "upstream_error", "Upstream request failed"),
    ];
    for (answer, status, kind, words) in rows {
        upstream.forget();
        upstream.push(answer);
        let reply = send(&gateway, &count(KEY, "fast")).await;
        let json = reply.json();
        assert_eq!((reply.status, error_of(&json)), (status, (kind, words)));
        upstream.only_request();
    }
    // A connection that has been used before proves nothing: as often as one may turn out dead, and once more.
    upstream.push_all([Answer::close(), Answer::close(), Answer::close()]);
    let reply = send(&gateway, &count(KEY, "fast")).await;
    assert_eq!(
        (reply.status, error_of(&reply.json())),
        (502, ("upstream_error", "Request failed"))
    );
    upstream.forget();
    // Whoever may not ask may not count; and other platforms do not.
    for (key, status, kind) in [
        ("tg-poor-0123456789", 403, "billing_error"),
        ("tg-open-0123456789", 404, "not_found_error"),
    ] {
        let reply = send(&gateway, &count(key, MODEL)).await;
        assert_eq!((reply.status, error_of(&reply.json()).0), (status, kind));
    }
    assert!(upstream.requests().is_empty());
    // Of all this only the message is on record.
    gateway.only_record().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_listed_in_the_form_that_the_headers_ask_for() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        .resources(|all| {
            all["accounts"][0]["model_mapping"] = json!({ "b": "x", "a": "x", "c*": "x" });
        })
        .start()
        .await;
    let list = || Request::get("/v1/models").header("x-api-key", KEY);
    let anthropics = send(&gateway, &list().header("anthropic-version", "2023-06-01")).await;
    let model = |id: &str| json!({ "type": "model", "id": id, "display_name": id, "created_at": "2024-01-01T00:00:00Z" });
    assert_eq!(
        anthropics.json(),
        json!({ "data": [model("a"), model("b")], "has_more": false, "first_id": "a", "last_id": "b" })
    );
    assert!(anthropics.header("request-id").is_some());
    let openais = send(&gateway, &list()).await;
    assert_eq!(openais.json()["object"], "list");
    assert_eq!(openais.json()["data"][1]["owned_by"], "anthropic");
    assert!(openais.header("request-id").is_none());
    let refused = Request::get("/v1/models").header("anthropic-version", "2023-06-01");
    let refused = send(&gateway, &refused).await;
    assert_eq!(
        (refused.status, error_of(&refused.json()).0),
        (401, "authentication_error")
    );
}
