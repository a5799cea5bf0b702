//! The fakes against each other: what a test scripts is what a client sees, and what a client
//! sends is what a test finds recorded.

use std::io::ErrorKind;

use bytes::Bytes;
use serde_json::json;
use tollgate_test_support::{
    Alpn, Answer, Early, FakeUpstream, Gate, H1Client, H2Client, Received, Request, TestCa, Usage,
    openai, post_json,
};

const PATH: &str = "/v1/responses";

fn big() -> Bytes {
    let bytes: Vec<u8> = (0..1_048_577u32).map(|i| (i * 31 % 251) as u8).collect();
    bytes.into()
}

#[tokio::test]
async fn records_every_framing_byte_for_byte() {
    let ca = TestCa::new();
    let plain = FakeUpstream::start().await;
    let secure = FakeUpstream::start_tls(&ca).await;
    plain.otherwise(Answer::empty(200));
    secure.otherwise(Answer::empty(200));
    let requests = [
        Request::post(PATH, big()).bearer("k"),
        Request::post(PATH, big()).bearer("k").chunked(10_000),
        Request::post(PATH, "x").bearer("k").chunked(1),
        Request::post(PATH, "").bearer("k"),
    ];
    let mut h1 = H1Client::connect(plain.address()).await.expect("connected");
    let mut tls = H1Client::connect_tls(secure.address(), &ca)
        .await
        .expect("connected");
    let mut h2 = H2Client::connect_tls(secure.address(), &ca)
        .await
        .expect("connected");
    for request in &requests {
        assert_eq!(h1.request(request).await.expect("answered").status, 200);
        assert_eq!(tls.request(request).await.expect("answered").status, 200);
        assert_eq!(h2.request(request).await.expect("answered").status, 200);
    }
    let sent = [big(), big(), Bytes::from("x"), Bytes::new()];
    let got: Vec<_> = plain.requests().into_iter().map(|r| r.body).collect();
    assert!(got == sent, "plain bodies differ");
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        let of_version = secure
            .requests()
            .into_iter()
            .filter(|r| r.version == version);
        let got: Vec<_> = of_version.map(|r| r.body).collect();
        assert!(got == sent, "{version:?} bodies differ");
    }
    assert_eq!(plain.connections(), 1, "keep-alive");
    let first = &plain.requests()[0];
    assert!(first.complete);
    assert_eq!(first.credential(), Some("k"));
    assert_eq!(first.headers("content-length"), [big().len().to_string()]);
    assert!(
        first
            .raw_head
            .starts_with(b"POST /v1/responses HTTP/1.1\r\n")
    );
}

#[tokio::test]
async fn answers_in_every_framing() {
    let upstream = FakeUpstream::start().await;
    let body = Answer::body(429, "text/plain", "0123456789");
    let mut client = H1Client::connect(upstream.address())
        .await
        .expect("connected");
    upstream.push_all([
        body.clone(),
        body.clone().chunked(&[1, 4]),
        body.clone().split(&[3]),
        Answer::empty(503),
        body.clone().close_delimited(),
    ]);
    for expected in ["0123456789", "0123456789", "0123456789", "", "0123456789"] {
        let reply = client
            .request(&Request::post(PATH, "{}"))
            .await
            .expect("answered");
        assert_eq!(reply.text(), expected);
    }
    assert!(client.closed_by_peer().await.expect("in time"));
    assert_eq!(upstream.plans_left(), 0);

    upstream.push_all([
        body.clone().truncated(4),
        body.clone().chunked(&[4]).then_hang_up(),
    ]);
    for expected in ["0123", "0123456789"] {
        let mut client = H1Client::connect(upstream.address())
            .await
            .expect("connected");
        client
            .send_request(&Request::post(PATH, "{}"))
            .await
            .expect("sent");
        client.final_head().await.expect("a head");
        let (seen, end) = client.body_so_far().await;
        assert_eq!(seen, expected);
        assert_eq!(end.expect_err("cut").kind(), ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn breaks_connections_as_told() {
    let ca = TestCa::new();
    let plain = FakeUpstream::start().await;
    let secure = FakeUpstream::builder()
        .tls(&ca, Alpn::Http2)
        .start()
        .await
        .expect("a port");
    let frames = || openai::responses_cut("m", "resp_1", &["a", "b"]);
    for (answer, kind) in [
        (Answer::close(), ErrorKind::UnexpectedEof),
        (Answer::reset(), ErrorKind::ConnectionReset),
        (
            Answer::sse(frames()).then_reset(),
            ErrorKind::ConnectionReset,
        ),
        (
            Answer::sse(frames()).then_hang_up(),
            ErrorKind::UnexpectedEof,
        ),
    ] {
        plain.push(answer.clone());
        let error = post_json(plain.address(), PATH, "k", &json!({})).await;
        assert_eq!(error.expect_err("broken").kind(), kind, "{answer:?}");
        secure.push(answer.clone());
        let mut client = H2Client::connect_tls(secure.address(), &ca)
            .await
            .expect("connected");
        let error = client.request(&Request::post(PATH, "{}")).await;
        assert!(error.is_err(), "{answer:?}");
    }
    plain.wait_idle().await;
    secure.wait_idle().await;
    assert!(plain.requests().iter().all(|r| r.complete && r.answered));
}

#[tokio::test]
async fn answers_before_reading() {
    let upstream = FakeUpstream::start().await;
    for early in [Early::Drain, Early::Hold, Early::Close] {
        upstream.push(Answer::error(401, "no").early(early));
        let mut client = H1Client::connect(upstream.address())
            .await
            .expect("connected");
        let request = Request::post(PATH, big());
        client.send(&request.head_bytes()).await.expect("sent");
        let reply = client.reply().await.expect("answered");
        assert_eq!(reply.status, 401);
        match early {
            Early::Drain => client.send(&big()).await.expect("sent"),
            Early::Hold => client.reset(),
            Early::Close => assert!(client.closed_by_peer().await.expect("in time")),
        }
    }
    upstream.wait_idle().await;
    let seen = upstream.requests();
    assert_eq!(seen[0].body, big());
    assert_eq!(
        [seen[0].complete, seen[1].complete, seen[2].complete],
        [true, false, false]
    );
    assert_eq!(
        [seen[0].peer_left, seen[1].peer_left, seen[2].peer_left],
        [false, true, false]
    );
}

#[tokio::test]
async fn gates_hold_answers_and_frames() {
    let ca = TestCa::new();
    for tls in [false, true] {
        let upstream = match tls {
            false => FakeUpstream::start().await,
            true => FakeUpstream::start_tls(&ca).await,
        };
        let (head, frames) = (Gate::new(), Gate::new());
        let stream = openai::responses_stream("m", "resp_1", &["Hel", "lo"], Usage::default());
        let all = stream.concat();
        let start = stream[..3].concat();
        upstream.push(Answer::sse(stream).after(&head).gated(3, &frames));
        let request = Request::post(PATH, "{}");
        let text = if tls {
            let mut client = H2Client::connect_tls(upstream.address(), &ca)
                .await
                .expect("there");
            let mut answer = client.send_request(&request).await.expect("sent");
            head.wait_reached(1).await;
            assert_eq!(upstream.in_flight(), 1);
            head.open();
            let mut text = Vec::new();
            while text.len() < start.len() {
                text.extend_from_slice(&answer.chunk().await.expect("data").expect("more"));
            }
            assert_eq!(text, start, "held back");
            frames.wait_reached(1).await;
            frames.open();
            [text, answer.reply().await.expect("an end").body.to_vec()].concat()
        } else {
            let mut client = H1Client::connect(upstream.address()).await.expect("there");
            client.send_request(&request).await.expect("sent");
            head.wait_reached(1).await;
            head.open();
            assert_eq!(client.final_head().await.expect("a head").status, 200);
            let text = client
                .read_until("output_item.added\",")
                .await
                .expect("three")
                .to_vec();
            frames.wait_reached(1).await;
            frames.open();
            [text, client.body().await.expect("an end").to_vec()].concat()
        };
        assert_eq!(text, all);
        upstream.wait_idle().await;
    }
}

#[tokio::test]
async fn notices_a_peer_that_leaves() {
    let ca = TestCa::new();
    let upstream = FakeUpstream::start_tls(&ca).await;
    let stalled = || Answer::sse(openai::preamble("m", "resp_1")).then_stall();
    upstream.push_all([Answer::never(), stalled(), Answer::never(), stalled()]);
    let request = Request::post(PATH, "{}");
    for count in 1..3 {
        let mut client = H1Client::connect_tls(upstream.address(), &ca)
            .await
            .expect("there");
        client.send_request(&request).await.expect("sent");
        upstream.wait_complete(count).await;
        client.reset();
        upstream.wait_idle().await;
    }
    let mut client = H2Client::connect_tls(upstream.address(), &ca)
        .await
        .expect("there");
    for count in 3..5 {
        let stream = client.send_request(&request).await.expect("sent");
        upstream.wait_complete(count).await;
        stream.reset();
        upstream.wait_idle().await;
    }
    let seen = upstream.requests();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|r| r.peer_left && !r.answered), "{seen:?}");
}

#[tokio::test]
async fn counts_what_is_in_flight() {
    let upstream = FakeUpstream::start().await;
    let gate = Gate::new();
    upstream.otherwise(Answer::empty(200).after(&gate));
    let clients = ["a", "a", "b"].map(|key| {
        let address = upstream.address();
        tokio::spawn(async move { post_json(address, PATH, key, &json!({})).await })
    });
    gate.wait_reached(3).await;
    assert_eq!((upstream.in_flight(), upstream.in_flight_of("a")), (3, 2));
    gate.open();
    for client in clients {
        assert_eq!(
            client.await.expect("no panic").expect("answered").status,
            200
        );
    }
    upstream.wait_idle().await;
    assert_eq!(
        (upstream.most_in_flight(), upstream.most_in_flight_of("b")),
        (3, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_to_a_limit_is_never_seen_beyond_it() {
    let upstream = FakeUpstream::start().await;
    let long = Answer::body(200, "text/plain", "x".repeat(5_000));
    let request = Request::post(PATH, "{}").bearer("k");
    for round in 0..100 {
        // Over as soon as its last byte is read, or its connection is closed.
        let answer = match round % 4 {
            0 => long.clone().split_every(1_000),
            1 => long.clone().chunked(&[4_000]),
            2 => Answer::never(),
            _ => long.clone().chunked(&[1_000]).then_stall(),
        };
        upstream.push(answer);
        let mut client = H1Client::connect(upstream.address()).await.unwrap();
        client.send_request(&request).await.unwrap();
        match round % 4 {
            0 | 1 => assert_eq!(client.reply().await.unwrap().status, 200),
            2 => {
                let seen = |seen: &[Received]| seen.len() == round + 1;
                upstream.wait_for("it is there", seen).await;
                // A client that left before its answer was chosen would leave that to the next one.
                while upstream.plans_left() > 0 {
                    tokio::task::yield_now().await;
                }
            }
            _ => assert_eq!(client.head().await.unwrap().status, 200),
        }
        match round % 8 {
            0..4 => drop(client),
            _ => client.reset(),
        }
    }
    upstream.wait_idle().await;
    assert_eq!(upstream.most_in_flight_of("k"), 1);
}

#[tokio::test]
async fn echoes_what_suits_the_request() {
    let upstream = FakeUpstream::start().await;
    let ask = |body: serde_json::Value| {
        let address = upstream.address();
        async move {
            post_json(address, PATH, "k", &body)
                .await
                .expect("answered")
        }
    };
    let tool = json!([{"type": "function", "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]);
    let text = ask(json!({"model": "gpt-x", "input": "hi"})).await.json();
    assert_eq!(
        (&text["model"], &text["status"]),
        (&json!("gpt-x"), &json!("completed"))
    );
    let call = ask(json!({"model": "gpt-x", "tools": tool})).await.json();
    assert_eq!(call["output"][0]["name"], "weather");
    assert_eq!(call["output"][0]["arguments"], "{\"city\":\"example\"}");
    let stream = ask(json!({"model": "fake-deltas-5", "stream": true})).await;
    let deltas = stream
        .event_types()
        .iter()
        .filter(|t| t.ends_with("text.delta"))
        .count();
    assert_eq!(deltas, 5);
    let last = stream.events().pop().expect("an event").json();
    assert_eq!(last["response"]["model"], "fake-deltas-5");
    let limited = ask(json!({"model": "fake-429"})).await;
    assert_eq!(
        (limited.status, limited.header("retry-after")),
        (429, Some("1"))
    );
}

#[tokio::test]
async fn echoes_both_dialects_on_one_port() {
    const MESSAGES: &str = "/v1/messages";
    let upstream = FakeUpstream::start().await;
    let ask = |path: &'static str, body: serde_json::Value| {
        let address = upstream.address();
        async move {
            let request = Request::post(path, body.to_string()).header("x-api-key", "k");
            let mut client = H1Client::connect(address).await.expect("connected");
            client.request(&request).await.expect("answered")
        }
    };
    let said = json!([{"role": "user", "content": "hi"}]);
    let plain = ask(MESSAGES, json!({"model": "claude-x", "messages": said})).await;
    assert_eq!(plain.json()["model"], "claude-x");
    assert_eq!(plain.json()["content"][0]["type"], "text");
    assert_eq!(plain.json()["usage"]["cache_creation_input_tokens"], 47);
    assert_eq!(plain.header("anthropic-organization-id"), Some("org-fake"));
    assert!(plain.header("request-id").is_some());

    let tools = json!([{"type": "web_search_20250305", "name": "web_search"},
        {"name": "weather", "input_schema": {"type": "object"}},
        {"name": "Bash", "input_schema": {"type": "object", "required": ["command"],
            "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}}}}]);
    let thinking = json!({"type": "adaptive"});
    let call = ask(
        MESSAGES,
        json!({"model": "claude-x", "messages": said, "tools": tools, "thinking": thinking}),
    );
    let call = call.await.json();
    assert_eq!(call["content"][0]["type"], "thinking");
    assert_eq!(call["content"][1]["name"], "Bash");
    assert_eq!(
        call["content"][1]["input"],
        json!({"command": "echo example"})
    );
    assert_eq!(call["stop_reason"], "tool_use");
    let result = json!([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_fake"}]}]);
    let done = ask(
        MESSAGES,
        json!({"model": "claude-x", "messages": result, "tools": tools}),
    );
    assert_eq!(done.await.json()["stop_reason"], "end_turn");

    let stream = ask(MESSAGES, json!({"model": "fake-deltas-3", "stream": true})).await;
    let types = stream.event_types();
    let deltas = types.iter().filter(|kind| *kind == "content_block_delta");
    assert_eq!(deltas.count(), 3);
    assert_eq!(types.last().map(String::as_str), Some("message_stop"));
    for (model, events) in [("fake-failed", 2), ("fake-error-0", 1), ("fake-error-4", 5)] {
        let types = ask(MESSAGES, json!({"model": model, "stream": true}))
            .await
            .event_types();
        assert_eq!(types.len(), events, "{model}");
        assert_eq!(types.last().map(String::as_str), Some("error"), "{model}");
    }

    let body = json!({"model": "claude-x", "messages": said});
    let length = body.to_string().len();
    let counted = ask("/v1/messages/count_tokens", body).await;
    assert_eq!(counted.json(), json!({"input_tokens": length}));
    for path in [MESSAGES, "/v1/messages/count_tokens"] {
        let busy = ask(path, json!({"model": "fake-529"})).await;
        assert_eq!(busy.status, 529);
        assert_eq!(busy.json()["error"]["type"], "overloaded_error");
    }
    let lost = ask("/v1/messages/batches", json!({})).await;
    assert_eq!(
        (lost.status, &lost.json()["error"]["type"]),
        (404, &json!("not_found_error"))
    );

    // The models in the dialect that is asked for, and plans for a key of either kind.
    let models = |header: Option<&'static str>| {
        let mut request = Request::get("/v1/models");
        if let Some(version) = header {
            request = request.header("anthropic-version", version);
        }
        let address = upstream.address();
        async move {
            let mut client = H1Client::connect(address).await.expect("connected");
            client.request(&request).await.expect("answered").json()
        }
    };
    assert_eq!(models(Some("2023-06-01")).await["data"][0]["type"], "model");
    assert_eq!(models(None).await["data"][0]["object"], "model");
    upstream.push_for("k", Answer::anthropic_error(400, "prompt is too long"));
    let planned = ask(MESSAGES, json!({"model": "claude-x"})).await;
    assert_eq!(
        (planned.status, &planned.json()["error"]["message"]),
        (400, &json!("prompt is too long"))
    );
    let seen = upstream.requests();
    assert_eq!(seen.last().and_then(Received::credential), Some("k"));
}

#[tokio::test]
async fn says_continue_when_asked() {
    let upstream = FakeUpstream::start().await;
    let mut client = H1Client::connect(upstream.address())
        .await
        .expect("connected");
    let request = Request::post(PATH, "{\"model\":\"m\"}").header("expect", "100-continue");
    client.send(&request.head_bytes()).await.expect("sent");
    assert_eq!(client.head().await.expect("a head").status, 100);
    client.send(&request.body_bytes()).await.expect("sent");
    assert_eq!(client.reply().await.expect("answered").status, 200);
}
