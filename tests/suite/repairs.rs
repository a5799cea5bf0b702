//! Requests of the Messages API that are refused for what no client can mend: mended, and sent once more.

use serde_json::{Value, json};
use tollgate_test_support::anthropic::error_event;
use tollgate_test_support::{Answer, FakeUpstream, Gate, Received, Request};

use crate::call::{Call, PROTOCOLS, Protocol};
use crate::harness::{Gateway, KEY, Setup};
use crate::messages::{
    CHARGE, MODEL, answer, assert_charged, error_of, message, post, send, setup,
};

const SIGNATURE: &str = "messages.1.content.0: Invalid `signature` in `thinking` block";
const BUDGET: &str = "`max_tokens` must be greater than `thinking.budget_tokens`";

/// A conversation that has been elsewhere, and one that asks for too little.
fn thought(stream: bool) -> Value {
    json!({
        "model": MODEL, "max_tokens": 1024, "stream": stream,
        "thinking": { "type": "enabled", "budget_tokens": 2048 },
        "messages": [
            { "role": "user", "content": "hi" },
            { "role": "assistant", "content": [
                { "type": "thinking", "thinking": "Hm.", "signature": "c2ln" },
                { "type": "text", "text": "Hello" },
            ]},
            { "role": "user", "content": "go on" },
        ],
    })
}

/// As it is sent after a repair of its thinking.
fn without_thinking(stream: bool) -> Value {
    let mut asked = thought(stream);
    asked.as_object_mut().unwrap().remove("thinking");
    asked["messages"][1]["content"][0] = json!({ "type": "text", "text": "Hm." });
    asked
}

/// As it is sent after one of its budget.
fn with_budget(stream: bool) -> Value {
    let mut asked = thought(stream);
    asked["thinking"]["budget_tokens"] = json!(32_000);
    asked["max_tokens"] = json!(64_000);
    asked
}

fn refused(words: &str) -> Answer {
    Answer::anthropic_error(400, words)
}

/// The same within a stream, behind so many events that hold nothing of an answer.
fn refused_in_stream(events: usize, words: &str) -> Answer {
    Answer::sse(message().failed(events, "invalid_request_error", words))
}

fn bodies(upstream: &FakeUpstream) -> Vec<Value> {
    upstream.requests().iter().map(Received::json).collect()
}

fn shown(gateway: &Gateway, account: &str) -> Value {
    gateway.run_json(&["accounts", "show", account, "--json"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_request_is_mended_and_sent_to_the_same_account_again() {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = setup(&[&first, &second]).start().await;
    let mut rows = Vec::new();
    for stream in [false, true] {
        rows.push((stream, refused(SIGNATURE), without_thinking(stream)));
        rows.push((stream, refused(BUDGET), with_budget(stream)));
    }
    for events in 0..=3 {
        let answer = refused_in_stream(events, SIGNATURE);
        rows.push((true, answer, without_thinking(true)));
    }
    rows.push((true, refused_in_stream(1, BUDGET), with_budget(true)));
    let count = rows.len();
    for (row, (stream, refusal, mended)) in rows.into_iter().enumerate() {
        for protocol in PROTOCOLS {
            first.forget();
            first.push_all([refusal.clone(), answer(stream)]);
            let call = Call::send(&gateway, protocol, &post(&thought(stream))).await;
            let (status, got) = call.answer().await;
            let expected = match stream {
                true => message().stream().concat(),
                false => message().json().to_vec(),
            };
            assert_eq!((status, got), (200, expected.into()), "{row} {protocol:?}");
            assert_eq!(bodies(&first), [thought(stream), mended.clone()], "{row}");
        }
    }
    assert!(second.requests().is_empty());
    for record in gateway.wait_records(2 * count).await {
        assert_charged(&record);
        assert_eq!(record["attempts"], 2, "{record:#}");
        assert_eq!(record["account_switches"], 0);
        let trail = record["attempt_trail"].as_array().unwrap();
        let results: Vec<&Value> = trail.iter().map(|attempt| &attempt["result"]).collect();
        assert_eq!(results, ["repaired", "answered"], "{record:#}");
    }
    let done = |kind: &str| gateway.metric(&format!("repairs_total{{kind=\"{kind}\"}}"));
    assert_eq!((done("signature"), done("budget")), (12.0, 6.0));
    // Nobody has failed, and nobody was left.
    assert_eq!(shown(&gateway, "a1")["conditions"], json!([]));
    for family in ["failovers_total", "retries_total"] {
        let (_, text) = gateway.get("/metrics").unwrap();
        let of_family = format!("\ntollgate_{family}{{");
        assert!(!text.contains(&of_family), "{family}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_repair_is_made_once_and_what_follows_is_the_answer() {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let both = with_budget(false);
    let asked = thought(false);
    let mut both_mended = both.clone();
    both_mended.as_object_mut().unwrap().remove("thinking");
    both_mended["messages"][1]["content"][0] = json!({ "type": "text", "text": "Hm." });
    // The limit was raised for the thinking that has gone.
    both_mended["max_tokens"] = asked["max_tokens"].clone();
    let failing = Answer::anthropic_error(500, "no");
    let good = || answer(false);
    // What the first account answers, what the second does, what was sent to each, and what the client gets.
    type Row = (
        &'static str,
        Vec<Answer>,
        Vec<Answer>,
        Vec<Value>,
        Vec<Value>,
        Result<(), (u16, &'static str)>,
    );
    let rows: Vec<Row> = vec![
        (
            "the second answer counts",
            vec![refused(SIGNATURE), refused("messages: odd")],
            vec![],
            vec![asked.clone(), without_thinking(false)],
            vec![],
            Err((400, "messages: odd")),
        ),
        (
            "the same again",
            vec![refused(SIGNATURE), refused(SIGNATURE)],
            vec![],
            vec![asked.clone(), without_thinking(false)],
            vec![],
            Err((400, SIGNATURE)),
        ),
        (
            "one of each",
            vec![refused(BUDGET), refused(SIGNATURE), good()],
            vec![],
            vec![asked.clone(), both.clone(), both_mended],
            vec![],
            Ok(()),
        ),
        (
            "the mended body goes elsewhere",
            vec![refused(SIGNATURE), failing.clone()],
            vec![good()],
            vec![asked.clone(), without_thinking(false)],
            vec![without_thinking(false)],
            Ok(()),
        ),
        (
            "elsewhere it is mended",
            vec![failing],
            vec![refused(SIGNATURE), good()],
            vec![asked.clone()],
            vec![asked.clone(), without_thinking(false)],
            Ok(()),
        ),
        (
            "another mistake",
            vec![refused("max_tokens: must be greater than 0")],
            vec![],
            vec![asked.clone()],
            vec![],
            Err((400, "max_tokens: must be greater than 0")),
        ),
    ];
    for (what, of_first, of_second, to_first, to_second, expected) in rows {
        let gateway = setup(&[&first, &second]).start().await;
        first.forget();
        second.forget();
        first.push_all(of_first);
        second.push_all(of_second);
        let reply = send(&gateway, &post(&asked)).await;
        match expected {
            Ok(()) => assert_eq!(
                (reply.status, &reply.body),
                (200, &message().json()),
                "{what}"
            ),
            Err((status, words)) => {
                assert_eq!(reply.status, status, "{what}");
                let json = reply.json();
                assert_eq!(error_of(&json), ("invalid_request_error", words), "{what}");
            }
        }
        assert_eq!(bodies(&first), to_first, "{what}");
        assert_eq!(bodies(&second), to_second, "{what}");
        let record = gateway.only_record().await;
        let attempts = to_first.len() + to_second.len();
        assert_eq!(record["attempts"], attempts, "{what}: {record:#}");
        match expected {
            Ok(()) => assert_charged(&record),
            Err(_) => assert_eq!(
                (&record["outcome"], &record["charge"]),
                (&json!("upstream_error"), &json!("0")),
                "{what}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repairs_are_switched_off_and_verbatim_accounts_have_none() {
    let upstream = FakeUpstream::start().await;
    let verbatim = |setup: Setup| {
        setup.resources(|all| {
            all["accounts"][0]["extra"] = json!({ "anthropic_passthrough": true });
        })
    };
    let plain = || setup(&[&upstream]);
    let off = |key: &str| plain().set(&format!("GATEWAY__REPAIRS__{key}"), false);
    for (what, setup, words, mended) in [
        ("signature off", off("SIGNATURE"), SIGNATURE, false),
        ("signature off", off("SIGNATURE"), BUDGET, true),
        ("budget off", off("BUDGET"), BUDGET, false),
        ("budget off", off("BUDGET"), SIGNATURE, true),
        ("verbatim", verbatim(plain()), SIGNATURE, false),
        ("verbatim", verbatim(plain()), BUDGET, false),
    ] {
        let gateway = setup.start().await;
        upstream.forget();
        upstream.push(refused(words));
        if mended {
            upstream.push(answer(false));
        }
        let reply = send(&gateway, &post(&thought(false))).await;
        let status = if mended { 200 } else { 400 };
        assert_eq!(reply.status, status, "{what} {words}: {}", reply.text());
        assert_eq!(
            bodies(&upstream).len(),
            1 + usize::from(mended),
            "{what} {words}"
        );
        gateway.only_record().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mended_request_keeps_its_slot_and_its_clients_names() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        .resources(|all| {
            all["accounts"][0]["concurrency"] = json!(1);
            all["accounts"][0]["model_mapping"] = json!({ "fast": MODEL });
        })
        .start()
        .await;
    let gate = Gate::new();
    upstream.push(refused(SIGNATURE).after(&gate));
    upstream.push(answer(false));
    // For the one that waits.
    upstream.push(answer(false));
    let mut asked = thought(false);
    asked["model"] = json!("fast");
    let first = Call::send(&gateway, Protocol::H1, &post(&asked)).await;
    gate.wait_reached(1).await;
    let mut other = crate::messages::body(false);
    other["model"] = json!("fast");
    let second = Call::send(&gateway, Protocol::H1, &post(&other)).await;
    let waits = || gateway.metric("requests_in_flight") == 2.0;
    gateway.wait("the second request to be there", waits).await;
    gate.open();
    assert_eq!(first.answer().await.0, 200);
    assert_eq!(second.answer().await.0, 200);
    let models: Vec<String> = upstream.requests().iter().map(Received::model).collect();
    assert_eq!(models, [MODEL, MODEL, MODEL]);
    assert_eq!(bodies(&upstream)[1], without_thinking(false));
    assert_eq!(upstream.most_in_flight(), 1);
    for record in gateway.wait_records(2).await {
        assert_charged(&record);
        assert_eq!(record["requested_model"], "fast");
    }
}

/// A balance, whether the budget of a request can be raised with it, and what is sent then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_raises_a_budget_only_where_it_can_be_paid() {
    let upstream = FakeUpstream::start().await;
    // 64,000 tokens of output cost 0.96 USD, 32,001 cost 0.480015; the body is some 300 bytes of input.
    for (balance, max_tokens) in [("10", Some(64_000)), ("0.6", None), ("0.4", Some(0))] {
        let gateway = setup(&[&upstream])
            .set("BILLING__RESERVATION", "strict")
            .resources(|all| all["users"][0]["balance"] = json!(balance))
            .start()
            .await;
        upstream.forget();
        upstream.push(refused(BUDGET));
        let is_paid = max_tokens != Some(0);
        if is_paid {
            upstream.push(answer(false));
        }
        let reply = send(&gateway, &post(&thought(false))).await;
        let sent = bodies(&upstream);
        if !is_paid {
            assert_eq!((reply.status, sent.len()), (400, 1), "{}", reply.text());
            assert_eq!(error_of(&reply.json()).1, BUDGET);
            assert_eq!(gateway.only_record().await["charge"], "0");
            assert_eq!(gateway.balance("alice"), balance);
            continue;
        }
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(sent[1]["thinking"]["budget_tokens"], 32_000);
        let told = sent[1]["max_tokens"].as_u64().unwrap();
        let header = reply.header("x-tollgate-max-output-tokens");
        match max_tokens {
            Some(expected) => assert_eq!((told, header), (expected, None)),
            None => {
                assert!((32_001..40_000).contains(&told), "{told}");
                assert_eq!(header, Some(told.to_string().as_str()));
            }
        }
        let record = gateway.only_record().await;
        assert_eq!(record["charge"], CHARGE);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_waits_for_no_money() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        .set("BILLING__RESERVATION", "strict")
        .resources(|all| all["users"][0]["balance"] = json!("1"))
        .start()
        .await;
    // Another request holds most of it: 0.75 USD for 50,000 tokens.
    let gate = Gate::new();
    upstream.push(answer(false).after(&gate));
    let mut long = crate::messages::body(false);
    long["max_tokens"] = json!(50_000);
    let running = Call::send(&gateway, Protocol::H1, &post(&long)).await;
    gate.wait_reached(1).await;
    upstream.push(refused(BUDGET));
    let reply = send(&gateway, &post(&thought(false))).await;
    assert_eq!(error_of(&reply.json()).1, BUDGET, "{}", reply.text());
    gate.open();
    assert_eq!(running.answer().await.0, 200);
    gateway.wait_records(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_tokens_are_counted_thinking_is_mended_once_too() {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let gateway = setup(&[&first, &second]).start().await;
    let request = || {
        Request::post("/v1/messages/count_tokens", thought(false).to_string())
            .header("x-api-key", KEY)
    };
    for (answers, status, sent) in [
        (
            vec![
                refused(SIGNATURE),
                Answer::json(200, &json!({ "input_tokens": 7 })),
            ],
            200,
            2,
        ),
        (vec![refused(SIGNATURE), refused(SIGNATURE)], 400, 2),
        (vec![refused(BUDGET)], 400, 1),
    ] {
        first.forget();
        first.push_all(answers);
        let reply = send(&gateway, &request()).await;
        assert_eq!(reply.status, status, "{}", reply.text());
        let expected = [thought(false), without_thinking(false)];
        assert_eq!(bodies(&first), expected[..sent]);
    }
    assert!(second.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_for_bodies_is_counted_right() {
    let upstream = FakeUpstream::start().await;
    let mut asked = thought(false);
    asked["messages"][0]["content"] = json!("x".repeat(40_000));
    let len = asked.to_string().len();
    // With room for one body and a mended copy of it, and without.
    for (room, mended) in [(3 * len, true), (len + len / 2, false)] {
        let gateway = setup(&[&upstream])
            .set("SERVER__MAX_BODY_BYTES", len)
            .set("SERVER__MAX_INFLIGHT_BODY_BYTES", room)
            .start()
            .await;
        let gate = Gate::new();
        upstream.forget();
        // Beside one that is held meanwhile: a body that is alone always has room.
        upstream.push(answer(false).after(&gate));
        let small = Call::send(&gateway, Protocol::H1, &post(&crate::messages::body(false))).await;
        gate.wait_reached(1).await;
        let held = gateway.metric("inflight_body_bytes");
        let second = Gate::new();
        upstream.push(refused(SIGNATURE));
        upstream.push(answer(false).after(&second));
        if !mended {
            second.open();
        }
        let large = Call::send(&gateway, Protocol::H1, &post(&asked)).await;
        if mended {
            second.wait_reached(1).await;
            let sent = upstream.requests().pop().unwrap();
            let now = gateway.metric("inflight_body_bytes");
            assert_eq!(now - held, sent.body.len() as f64);
            second.open();
        }
        let status = large.answer().await.0;
        assert_eq!(status, if mended { 200 } else { 400 });
        gate.open();
        assert_eq!(small.answer().await.0, 200);
        gateway.wait_records(2).await;
        let left = upstream.plans_left();
        assert_eq!(left, usize::from(!mended));
        if left > 0 {
            // Taken by nobody: it is not to be the next one's.
            send(&gateway, &post(&crate::messages::body(false))).await;
            gateway.wait_records(3).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_content_is_the_answer() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream]).start().await;
    upstream.push(refused_in_stream(4, SIGNATURE));
    let reply = send(&gateway, &post(&thought(true))).await;
    let expected = [
        message().cut(4).concat(),
        error_event("invalid_request_error", SIGNATURE).to_vec(),
    ]
    .concat();
    assert_eq!(reply.body, expected);
    upstream.only_request();
    assert_eq!(gateway.only_record().await["outcome"], "upstream_error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_made_room_for_thinking_goes_with_it() {
    for mode in ["available", "strict"] {
        let upstream = FakeUpstream::start().await;
        let gateway = setup(&[&upstream])
            .set("BILLING__RESERVATION", mode)
            .start()
            .await;
        upstream.push_all([refused(BUDGET), refused(SIGNATURE), answer(false)]);
        let reply = send(&gateway, &post(&thought(false))).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let sent = bodies(&upstream);
        assert_eq!(sent.len(), 3);
        assert_eq!(sent[1], with_budget(false));
        assert_eq!(sent[2], without_thinking(false), "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_is_raised_no_further_than_the_model_writes() {
    let upstream = FakeUpstream::start().await;
    let gateway = setup(&[&upstream])
        .resources(|all| {
            let known = |most: u64| json!({ "input_cost_per_token": 0.000003, "output_cost_per_token": 0.000015, "max_output_tokens": most });
            all["prices"] = json!({ "claude-short": known(32_000), "claude-middle": known(40_000) });
        })
        .start()
        .await;
    let asked = |model: &str| {
        let mut asked = thought(false);
        asked["model"] = json!(model);
        asked
    };
    // It could not write an answer behind so much thinking.
    upstream.push(refused(BUDGET));
    let reply = send(&gateway, &post(&asked("claude-short"))).await;
    assert_eq!((reply.status, error_of(&reply.json()).1), (400, BUDGET));
    assert_eq!(bodies(&upstream), [asked("claude-short")]);
    upstream.forget();
    upstream.push_all([refused(BUDGET), answer(false)]);
    let reply = send(&gateway, &post(&asked("claude-middle"))).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let sent = bodies(&upstream);
    assert_eq!(sent[1]["thinking"]["budget_tokens"], 32_000);
    assert_eq!(sent[1]["max_tokens"], 40_000);
    // It is not what can be paid for that bounds it.
    assert_eq!(reply.header("x-tollgate-max-output-tokens"), None);
    // A limit of the client's own that has room for it stays.
    upstream.forget();
    upstream.push_all([refused(BUDGET), answer(false)]);
    let mut long = asked("claude-middle");
    long["max_tokens"] = json!(50_000);
    let reply = send(&gateway, &post(&long)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(bodies(&upstream)[1]["max_tokens"], 50_000);
}
