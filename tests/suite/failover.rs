//! When an attempt fails: which other account is asked, which is not, and what the client hears
//! when there is none.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Value, json};
use tollgate_test_support::{
    Alpn, Answer, ClientReply, FakeUpstream, Gate, Request, TestCa, Usage, anthropic, openai,
    post_json,
};

use crate::call::{Call, Protocol, plain, request};
use crate::dialect::{Dialect, OUTPUT, Trouble, in_each_dialect};
use crate::harness::{Gateway, KEY, Setup, ask, free_address, key_of};

fn stream(dialect: Dialect, text: &str) -> Answer {
    dialect.sse("resp_good", &[text])
}

fn json_answer(dialect: Dialect, text: &str) -> Answer {
    dialect.body("resp_good", text)
}

fn failed(dialect: Dialect, trouble: Trouble, message: &str) -> Answer {
    Answer::sse(dialect.failed("resp_bad", &[], trouble, message))
}

fn preamble(dialect: Dialect) -> Answer {
    Answer::sse(dialect.preamble("resp_bad"))
}

/// Accounts asked, by credential, in order.
fn asked(upstream: &FakeUpstream) -> Vec<String> {
    let credential =
        |seen: &tollgate_test_support::Received| seen.credential().unwrap_or_default().to_owned();
    upstream.requests().iter().map(credential).collect()
}

/// What the first account answers, under a name.
fn failures(dialect: Dialect, is_stream: bool) -> Vec<(String, Answer)> {
    let mut rows: Vec<(String, Answer)> = [401, 402, 403, 408, 429, 500, 502, 503, 504, 529]
        .iter()
        .map(|status| (status.to_string(), dialect.error(*status, "some_code")))
        .collect();
    let transient = "An error occurred while processing your request.";
    let transient = json!({ "error": { "message": transient, "type": "server_error" } });
    let error = || dialect.error(500, "server_error");
    rows.extend(
        [
            ("closed before the header", Answer::close()),
            ("reset before the header", Answer::reset()),
            ("an error without a body", Answer::empty(503)),
            ("an error in chunks", error().chunked(&[1, 2, 3])),
            (
                "an error until the end of the connection",
                error().close_delimited(),
            ),
            ("an error cut short", error().truncated(20)),
            (
                "a redirect",
                Answer::empty(302).header("location", "/elsewhere"),
            ),
            (
                "a header alone",
                Answer::body(200, "application/json", "x").truncated(0),
            ),
        ]
        .map(|(name, answer)| (name.to_owned(), answer)),
    );
    if dialect == Dialect::Responses {
        rows.push(("a transient 400".to_owned(), Answer::json(400, &transient)));
    }
    if is_stream {
        rows.extend(
            [
                ("an empty stream", Answer::sse(vec![])),
                ("a preamble without more", preamble(dialect)),
                ("a preamble, then closed", preamble(dialect).then_hang_up()),
                ("a preamble, then reset", preamble(dialect).then_reset()),
                (
                    "failed before output",
                    failed(dialect, Trouble::Server, "The server had an error"),
                ),
                (
                    "limited before output",
                    failed(dialect, Trouble::Limited, "Slow down"),
                ),
                (
                    "an error event before output",
                    Answer::sse(vec![dialect.error_event(Trouble::Server, "no")]),
                ),
                (
                    "a preamble in bytes, then failed",
                    failed(dialect, Trouble::Server, "The server had an error").split_every(10),
                ),
            ]
            .map(|(name, answer)| (name.to_owned(), answer)),
        );
    }
    rows
}

in_each_dialect!(a_failure_before_the_first_output_leads_to_the_next_account);
async fn a_failure_before_the_first_output_leads_to_the_next_account(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let rows: Vec<(bool, String, Answer)> = [true, false]
        .into_iter()
        .flat_map(|is_stream| {
            let rows = failures(dialect, is_stream).into_iter();
            rows.map(move |(name, answer)| (is_stream, name, answer))
        })
        .collect();
    let mut setup = Setup::with(&[&upstream]);
    for row in 0..rows.len() {
        let (bad, good) = (format!("bad{row}"), format!("good{row}"));
        setup = setup.group(&format!("g{row}"), &[(&bad, &url), (&good, &url)]);
    }
    let gateway = setup.speaking(dialect).start().await;
    for (row, (is_stream, name, answer)) in rows.iter().enumerate() {
        upstream.push_for(&format!("sk-bad{row}"), answer.clone());
        let good = if *is_stream {
            stream(dialect, "fine")
        } else {
            json_answer(dialect, "fine")
        };
        upstream.push_for(&format!("sk-good{row}"), good);
        let request = dialect.request(dialect.model(), *is_stream, &key_of(&format!("g{row}")));
        let reply = gateway.h1().await.request(&request).await.unwrap();
        let what = format!("{name}, stream {is_stream}");
        assert_eq!(reply.status, 200, "{what}: {}", reply.text());
        assert!(reply.text().contains("fine"), "{what}");
        assert!(!reply.text().contains("resp_bad"), "{what}: taken back");
        let seen = upstream.requests();
        assert_eq!(
            asked(&upstream),
            [format!("sk-bad{row}"), format!("sk-good{row}")],
            "{what}"
        );
        assert_eq!(seen[0].body, seen[1].body, "{what}");
        upstream.wait_idle().await;
        upstream.forget();
    }
    for record in gateway.wait_records(rows.len()).await {
        assert_eq!(
            (
                &record["outcome"],
                &record["attempts"],
                &record["account_switches"],
                &record["output_tokens"]
            ),
            (&json!("ok"), &json!(2), &json!(1), &json!(OUTPUT)),
            "{record:#}"
        );
        assert!(record["account"].as_str().unwrap().starts_with("good"));
    }
}

in_each_dialect!(a_connection_that_cannot_be_made_leads_to_the_next_account);
async fn a_connection_that_cannot_be_made_leads_to_the_next_account(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let ca = TestCa::new();
    let tls = FakeUpstream::builder().tls(&ca, Alpn::Both).start().await;
    let tls = tls.unwrap();
    let nobody = format!("http://{}", free_address());
    let rows = [
        ("refused", nobody.clone()),
        ("refused TLS", nobody.replace("http", "https")),
        (
            "plain in place of TLS",
            upstream.url().replace("http", "https"),
        ),
        ("TLS of an unknown authority", tls.url()),
        ("TLS in place of plain", tls.url().replace("https", "http")),
        ("no such name", "http://does-not-exist.invalid".to_owned()),
    ];
    let mut setup = Setup::with(&[&upstream]);
    for (row, (_, url)) in rows.iter().enumerate() {
        let (bad, good) = (format!("bad{row}"), format!("good{row}"));
        setup = setup.group(&format!("g{row}"), &[(&bad, url), (&good, &upstream.url())]);
    }
    let gateway = setup.speaking(dialect).start().await;
    for (row, (name, _)) in rows.iter().enumerate() {
        let request = dialect.request("fake-text", true, &key_of(&format!("g{row}")));
        let reply = gateway.h1().await.request(&request).await.unwrap();
        assert_eq!(reply.status, 200, "{name}: {}", reply.text());
    }
    for record in gateway.wait_records(rows.len()).await {
        assert_eq!(record["outcome"], "ok", "{record:#}");
        assert_eq!(record["account_switches"], 1, "{record:#}");
    }
    assert_eq!(upstream.total(), rows.len() as u64);
}

in_each_dialect!(time_limits_lead_to_the_next_account);
async fn time_limits_lead_to_the_next_account(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let gateway = Setup::with(&[&upstream])
        .group("header", &[("slow", &url), ("quick", &url)])
        .group("stall", &[("stalling", &url), ("steady", &url)])
        .group("alone", &[("lonely", &url)])
        .speaking(dialect)
        .set("GATEWAY__RESPONSE_HEADER_TIMEOUT_MS", 1000)
        .set("GATEWAY__STALL_TIMEOUT_MS", 1000)
        .start()
        .await;
    upstream.push_for("sk-slow", Answer::never());
    upstream.push_for("sk-stalling", preamble(dialect).then_stall());
    upstream.push_for("sk-lonely", Answer::never());
    let ask_group = async |group: &str, is_stream: bool| {
        let request = dialect.request("fake-text", is_stream, &key_of(group));
        gateway.h1().await.request(&request).await.unwrap()
    };
    let (header, stall, alone) = tokio::join!(
        ask_group("header", false),
        ask_group("stall", true),
        ask_group("alone", true),
    );
    assert_eq!((header.status, stall.status), (200, 200));
    assert!(!stall.text().contains("resp_bad"));
    assert_eq!(alone.status, 502);
    let records = gateway.wait_records(3).await;
    let of = |account: &str| records.iter().find(|r| r["account"] == account).unwrap();
    assert_eq!(of("quick")["account_switches"], 1);
    assert_eq!(of("steady")["account_switches"], 1);
    assert_eq!(of("lonely")["outcome"], "upstream_error");
    assert_eq!(of("lonely")["usage_source"], "none");
    // The attempts given up are not left running at the provider.
    upstream
        .wait_for("all given up", |seen| {
            seen.iter().filter(|r| r.peer_left).count() == 3
        })
        .await;
}

in_each_dialect!(nothing_fails_over_after_the_first_output);
async fn nothing_fails_over_after_the_first_output(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let deltas = || Answer::sse(dialect.cut("r", &["one"]));
    let rows = [
        ("reset", true, deltas().then_reset()),
        ("closed", true, deltas().then_hang_up()),
        ("cut JSON", false, json_answer(dialect, "one").truncated(50)),
    ];
    let mut setup = Setup::with(&[&upstream]);
    for row in 0..rows.len() {
        let (bad, good) = (format!("bad{row}"), format!("good{row}"));
        setup = setup.group(&format!("g{row}"), &[(&bad, &url), (&good, &url)]);
    }
    let gateway = setup.speaking(dialect).start().await;
    for (row, (name, is_stream, answer)) in rows.into_iter().enumerate() {
        upstream.push_for(&format!("sk-bad{row}"), answer);
        let request = dialect.request(dialect.model(), is_stream, &key_of(&format!("g{row}")));
        let mut call = Call::send(&gateway, Protocol::H1, &request).await;
        assert_eq!(call.head().await.unwrap().status, 200, "{name}");
        let _ = call.rest().await;
        gateway.wait_records(row + 1).await;
        assert_eq!(asked(&upstream).len(), row + 1, "{name}");
    }
    for record in gateway.records() {
        assert_eq!(record["outcome"], "interrupted", "{record:#}");
        assert_eq!(record["account_switches"], 0);
    }
}

/// Streams that fail before any output, because the request is at fault.
fn faults_within(dialect: Dialect) -> Vec<Vec<Bytes>> {
    let rows: &[(&str, &str)] = match dialect {
        Dialect::Responses => &[
            ("invalid_prompt", "Your prompt was refused"),
            ("server_error", "This is an invalid_request of yours"),
            ("content_policy_violation", "Not that"),
        ],
        Dialect::Messages => &[
            ("invalid_request_error", "messages: not that"),
            ("request_too_large", "It exceeds the maximum size"),
            ("not_found_error", "model: nobody"),
        ],
    };
    let failed = |(kind, text): &(&str, &str)| match dialect {
        Dialect::Responses => {
            openai::responses_failed(dialect.model(), "resp_bad", &[], kind, text, None)
        }
        // In place of `message_start`, which would have said what is to be paid for.
        Dialect::Messages => vec![anthropic::error_event(kind, text)],
    };
    rows.iter().map(failed).collect()
}

in_each_dialect!(the_clients_own_mistakes_are_passed_on);
async fn the_clients_own_mistakes_are_passed_on(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream, &upstream]).speaking(dialect);
    let gateway = setup.start().await;
    for status in [400, 404, 405, 409, 413, 415, 422] {
        for is_stream in [true, false] {
            upstream.push(dialect.error(status, "bad_thing"));
            let request = dialect.request(dialect.model(), is_stream, KEY);
            let reply = gateway.h1().await.request(&request).await.unwrap();
            assert_eq!(reply.status, status);
            assert_eq!(
                reply.body,
                dialect.error_body(status, "bad_thing"),
                "word for word"
            );
        }
    }
    // Within a stream: its text says that the request is at fault.
    let rows = faults_within(dialect);
    for frames in &rows {
        upstream.push(Answer::sse(frames.clone()));
        let mut client = gateway.h1().await;
        let reply = client.request(&dialect.streamed(dialect.model())).await;
        assert_eq!(reply.unwrap().body, frames.concat());
    }
    assert!(asked(&upstream).iter().all(|account| account == "sk-a1"));
    for record in gateway.wait_records(14 + rows.len()).await {
        assert_eq!(record["outcome"], "upstream_error", "{record:#}");
        assert_eq!(record["charge"], "0");
    }
}

in_each_dialect!(the_number_of_switches_is_limited);
async fn the_number_of_switches_is_limited(dialect: Dialect) {
    for (limit, tried) in [(0, 1), (2, 3), (10, 5)] {
        let upstream = FakeUpstream::start().await;
        upstream.otherwise(dialect.error(500, "server_error"));
        let gateway = Setup::new(&vec![upstream.url(); 5])
            .speaking(dialect)
            .set("GATEWAY__MAX_ACCOUNT_SWITCHES", limit)
            .start()
            .await;
        let reply = gateway
            .h1()
            .await
            .request(&dialect.plain(dialect.model()))
            .await
            .unwrap();
        assert_eq!(reply.status, 502, "{limit}");
        let accounts: Vec<String> = (1..=tried).map(|n| format!("sk-a{n}")).collect();
        assert_eq!(asked(&upstream), accounts, "{limit}");
        let record = gateway.only_record().await;
        assert_eq!(record["attempts"], tried);
        assert_eq!(record["account_switches"], tried - 1);
        assert_eq!(record["outcome"], "upstream_error");
        assert_eq!(record["status"], 502);
    }
}

/// The last word for each status of the last account (SPEC 8.5).
const LAST_WORDS: [(u16, u16, &str, &str); 10] = [
    (
        401,
        502,
        "upstream_error",
        "Upstream authentication failed, please contact administrator",
    ),
    (402, 502, "upstream_error", "Upstream request failed"),
    (
        403,
        502,
        "upstream_error",
        "Upstream access forbidden, please contact administrator",
    ),
    (
        429,
        429,
        "rate_limit_error",
        "Upstream rate limit exceeded, please retry later",
    ),
    (
        500,
        502,
        "upstream_error",
        "Upstream service temporarily unavailable",
    ),
    (
        502,
        502,
        "upstream_error",
        "Upstream service temporarily unavailable",
    ),
    (
        503,
        502,
        "upstream_error",
        "Upstream service temporarily unavailable",
    ),
    (
        504,
        502,
        "upstream_error",
        "Upstream service temporarily unavailable",
    ),
    (
        529,
        503,
        "upstream_error",
        "Upstream service overloaded, please retry later",
    ),
    (599, 502, "upstream_error", "Upstream request failed"),
];

in_each_dialect!(the_last_failure_is_told_in_our_words);
async fn the_last_failure_is_told_in_our_words(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    // One account fails with something else first; in the second half pings went before.
    let mut setup = Setup::with(&[&upstream]).set("CONCURRENCY__PING_INTERVAL_MS", 100);
    for (status, ..) in LAST_WORDS {
        for kind in ["plain", "event"] {
            let (first, last) = (
                format!("first-{kind}-{status}"),
                format!("last-{kind}-{status}"),
            );
            setup = setup.group(
                &format!("{kind}-{status}"),
                &[(&first, &url), (&last, &url)],
            );
        }
    }
    let gateway = setup
        .speaking(dialect)
        .resources(|all| all["users"][0]["concurrency"] = json!(1))
        .start()
        .await;
    let check = |error: &Value, row: (u16, u16, &str, &str)| {
        let kind = match (dialect, row.0) {
            (Dialect::Messages, 529) => "overloaded_error",
            _ => row.2,
        };
        assert_eq!(dialect.refusal(error), (kind, row.3), "{row:?}");
    };
    let mut count = 0;
    for row in LAST_WORDS {
        let (status, expected, ..) = row;
        for (kind, is_stream) in [("plain", false), ("event", true)] {
            upstream.push_for(&format!("sk-first-{kind}-{status}"), Answer::close());
            upstream.push_for(
                &format!("sk-last-{kind}-{status}"),
                dialect.error(status, "secret_code"),
            );
            let key = key_of(&format!("{kind}-{status}"));
            let request = dialect.request(dialect.model(), is_stream, &key);
            if !is_stream {
                let reply = gateway.h1().await.request(&request).await.unwrap();
                assert_eq!(reply.status, expected, "{row:?}");
                check(&reply.json(), row);
                assert!(reply.header("x-request-id").is_some());
                count += 1;
                continue;
            }
            // Another request has the user's slot.
            let gate = Gate::new();
            upstream.push_for("sk-a1", json_answer(dialect, "held").after(&gate));
            let held = dialect.plain(dialect.model());
            let held = Call::send(&gateway, Protocol::H1, &held).await;
            gate.wait_reached(1).await;
            let mut call = Call::send(&gateway, Protocol::H1, &request).await;
            assert_eq!(call.head().await.unwrap().status, 200);
            call.read_until(dialect.ping(), 1).await;
            gate.open();
            assert_eq!(held.answer().await.0, 200);
            let (body, end) = call.rest().await;
            end.unwrap();
            let text = dialect.without_pings(&body);
            let data = text
                .strip_prefix("event: error\ndata: ")
                .unwrap_or_else(|| panic!("{text:?}"));
            let event: Value = serde_json::from_str(data.trim_end()).unwrap();
            assert_eq!(event["type"], "error");
            check(&event, row);
            count += 2;
        }
    }
    let records = gateway.wait_records(count).await;
    let failed = records.iter().filter(|r| r["outcome"] == "upstream_error");
    assert_eq!(failed.count(), 2 * LAST_WORDS.len());
}

in_each_dialect!(nobody_there_is_told_as_such);
async fn nobody_there_is_told_as_such(dialect: Dialect) {
    let nobody = format!("http://{}", free_address());
    let gateway = Setup::new(&[nobody.clone(), nobody])
        .speaking(dialect)
        .set("GATEWAY__KEEPALIVE_INTERVAL_MS", 100)
        .start()
        .await;
    let reply = gateway
        .h1()
        .await
        .request(&dialect.streamed(dialect.model()))
        .await
        .unwrap();
    assert_eq!(reply.status, 502);
    let said = ("upstream_error", "Upstream request failed");
    assert_eq!(dialect.refusal(&reply.json()), said);
    assert!(gateway.records().is_empty(), "nothing was sent upstream");
    // No account has the model.
    let gateway = Setup::new(&["http://127.0.0.1:1".to_owned()])
        .speaking(dialect)
        .resources(|all| all["accounts"][0]["model_mapping"] = json!({ "a": "b" }))
        .start()
        .await;
    let mut client = gateway.h1().await;
    let reply = client.request(&dialect.streamed("c")).await.unwrap();
    assert_eq!(reply.status, 503);
    assert_eq!(dialect.refusal(&reply.json()).0, "api_error");
}

in_each_dialect!(comments_in_a_preamble_do_not_forbid_another_account);
async fn comments_in_a_preamble_do_not_forbid_another_account(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let gateway = Setup::with(&[&upstream])
        .group("g0", &[("bad0", &url), ("good0", &url)])
        .group("g1", &[("bad1", &url), ("good1", &url)])
        .speaking(dialect)
        .set("SERVER__H2C", true)
        .set("GATEWAY__KEEPALIVE_INTERVAL_MS", 100)
        .start()
        .await;
    for (row, protocol) in crate::call::PROTOCOLS.into_iter().enumerate() {
        let gate = Gate::new();
        upstream.push_for(
            &format!("sk-bad{row}"),
            preamble(dialect)
                .gated(dialect.preamble("x").len(), &gate)
                .then_reset(),
        );
        upstream.push_for(&format!("sk-good{row}"), stream(dialect, "fine"));
        let request = dialect.request(dialect.model(), true, &key_of(&format!("g{row}")));
        let mut call = Call::send(&gateway, protocol, &request).await;
        assert_eq!(call.head().await.unwrap().status, 200);
        call.read_until(dialect.ping(), 1).await;
        gate.open();
        let (body, end) = call.rest().await;
        end.unwrap();
        let text = dialect.without_pings(&body);
        let begins = format!("event: {}", dialect.begins());
        assert!(text.starts_with(&begins), "{text}");
        assert!(!text.contains("resp_bad"));
        assert!(text.contains("fine"));
        gateway.wait_records(row + 1).await;
    }
}

/// Lifts an account's cool-down and waits until it is asked again.
async fn resume(dialect: Dialect, gateway: &Gateway, upstream: &FakeUpstream, account: &str) {
    gateway.run(&["accounts", "resume", account]);
    let deadline = std::time::Instant::now() + crate::harness::LIMIT;
    loop {
        upstream.wait_idle().await;
        upstream.forget();
        let reply = gateway
            .h1()
            .await
            .request(&dialect.apart("fake-text"))
            .await
            .unwrap();
        assert!([200, 429, 503].contains(&reply.status), "{}", reply.text());
        if asked(upstream) == [format!("sk-{account}")] {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{account} stays away");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

in_each_dialect!(a_failed_account_is_left_alone_until_it_is_resumed);
async fn a_failed_account_is_left_alone_until_it_is_resumed(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream, &upstream]).speaking(dialect);
    let gateway = setup.start().await;
    let ok = |reply: ClientReply| assert_eq!(reply.status, 200, "{}", reply.text());
    // A bad credential keeps an account away for minutes: nothing here depends on the time.
    upstream.push_for("sk-a1", dialect.error(401, "invalid_api_key"));
    ok(gateway
        .h1()
        .await
        .request(&dialect.apart("fake-text"))
        .await
        .unwrap());
    for _ in 0..3 {
        ok(gateway
            .h1()
            .await
            .request(&dialect.apart("fake-text"))
            .await
            .unwrap());
    }
    assert_eq!(
        asked(&upstream),
        ["sk-a1", "sk-a2", "sk-a2", "sk-a2", "sk-a2"]
    );
    resume(dialect, &gateway, &upstream, "a1").await;
    assert!(gateway.logged().contains("reason=bad_credential"));
}

in_each_dialect!(a_limited_account_says_when_to_come_back);
async fn a_limited_account_says_when_to_come_back(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream, &upstream]).speaking(dialect);
    let gateway = setup.start().await;
    let limited = |after| {
        let error = dialect.error(429, "rate_limit_exceeded");
        error.header("retry-after", after)
    };
    upstream.push_for("sk-a1", limited("100"));
    upstream.push_for("sk-a2", limited("200"));
    let reply = gateway
        .h1()
        .await
        .request(&dialect.plain("fake-text"))
        .await
        .unwrap();
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (429, Some("200"))
    );
    // What the last one said is noted when the client has its answer.
    gateway
        .wait("limited", || {
            gateway.run_json(&["accounts", "show", "a2", "--json"])["status"] == "rate_limited"
        })
        .await;
    // All cool down: the first to come back counts, and none is asked.
    for is_stream in [true, false] {
        let request = dialect.request("fake-text", is_stream, KEY);
        let reply = gateway.h1().await.request(&request).await.unwrap();
        // Told what the request that met the limit was told.
        assert_eq!(reply.status, 429);
        assert_eq!(dialect.refusal(&reply.json()).0, "rate_limit_error");
        let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((60..=100).contains(&seconds), "{seconds}");
    }
    assert_eq!(upstream.total(), 2);
    gateway.only_record().await;
    resume(dialect, &gateway, &upstream, "a2").await;
}

in_each_dialect!(a_kept_connection_that_died_is_nobodys_failure);
async fn a_kept_connection_that_died_is_nobodys_failure(dialect: Dialect) {
    for death in [Answer::close(), Answer::reset()] {
        let upstream = FakeUpstream::start().await;
        let setup = Setup::with(&[&upstream, &upstream]).speaking(dialect);
        let gateway = setup.start().await;
        upstream.push_all([
            json_answer(dialect, "one"),
            death,
            json_answer(dialect, "two"),
        ]);
        for text in ["one", "two"] {
            let reply = gateway
                .h1()
                .await
                .request(&dialect.plain(dialect.model()))
                .await
                .unwrap();
            assert!(reply.text().contains(text), "{}", reply.text());
        }
        let seen = upstream.requests();
        assert_eq!(asked(&upstream), ["sk-a1", "sk-a1", "sk-a1"]);
        assert_eq!(seen[0].connection, seen[1].connection, "it was used again");
        assert_ne!(seen[1].connection, seen[2].connection);
        for record in gateway.wait_records(2).await {
            assert_eq!(record["outcome"], "ok");
            assert_eq!(record["account_switches"], 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_stays_with_its_account() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::new(&vec![upstream.url(); 3])
        .resources(|all| {
            for account in all["accounts"].as_array_mut().unwrap() {
                account["priority"] = json!(1);
            }
        })
        .start()
        .await;
    let with_key = |id: &str| {
        let mut body = ask("fake-text", false);
        body["prompt_cache_key"] = json!(id);
        Request::post("/v1/responses", body.to_string()).bearer(KEY)
    };
    type Make<'a> = Box<dyn Fn(&str) -> Request + 'a>;
    let named = |name: &'static str| -> Make<'_> {
        Box::new(move |id| plain("fake-text").header(name, id))
    };
    let rows: [Make<'_>; 5] = [
        named("session_id"),
        named("Session-Id"),
        named("conversation_id"),
        Box::new(with_key),
        // The header counts before the body.
        Box::new(|id| with_key("changing").header("session_id", id)),
    ];
    let mut firsts = BTreeSet::new();
    let mut count = 0;
    for (row, make) in rows.iter().enumerate() {
        for conversation in 0..3 {
            let id = format!("conversation {row} {conversation}");
            for _ in 0..4 {
                let reply = gateway.h1().await.request(&make(&id)).await.unwrap();
                assert_eq!(reply.status, 200);
                count += 1;
            }
            let accounts = asked(&upstream);
            assert_eq!(
                BTreeSet::from_iter(&accounts).len(),
                1,
                "{row}: {accounts:?}"
            );
            firsts.insert(accounts[0].clone());
            upstream.wait_idle().await;
            upstream.forget();
        }
    }
    assert_eq!(firsts.len(), 3, "conversations are spread");
    gateway.wait_records(count).await;
}

/// Two accounts of one tier with one slot each; a conversation `s` is bound to the one returned.
async fn bound(upstream: &FakeUpstream, sticky_wait: u64) -> (Gateway, String, String) {
    let gateway = Setup::with(&[upstream, upstream])
        .resources(|all| {
            for account in all["accounts"].as_array_mut().unwrap() {
                account["priority"] = json!(1);
                account["concurrency"] = json!(1);
            }
        })
        .set("CONCURRENCY__STICKY_WAIT_MS", sticky_wait)
        .start()
        .await;
    let reply = gateway.h1().await.request(&of_s()).await.unwrap();
    assert_eq!(reply.status, 200);
    let home = asked(upstream).remove(0);
    let other = if home == "sk-a1" { "sk-a2" } else { "sk-a1" };
    gateway.wait_metric("requests_in_flight", 0.0).await;
    (gateway, home, other.to_owned())
}

fn of_s() -> Request {
    plain("fake-text").header("session_id", "s")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_home_is_waited_for_then_left_for_once() {
    let upstream = FakeUpstream::start().await;
    let (gateway, home, other) = bound(&upstream, 100).await;
    let gate = Gate::new();
    upstream.push_for(&home, json_answer(Dialect::Responses, "held").after(&gate));
    let held = Call::send(&gateway, Protocol::H1, &of_s()).await;
    gate.wait_reached(1).await;
    let spilled = gateway.h1().await.request(&of_s()).await.unwrap();
    assert_eq!(spilled.status, 200);
    gate.open();
    assert_eq!(held.answer().await.0, 200);
    gateway.wait_metric("requests_in_flight", 0.0).await;
    let back = gateway.h1().await.request(&of_s()).await.unwrap();
    assert_eq!(back.status, 200);
    assert_eq!(asked(&upstream), [&*home, &*home, &*other, &*home]);
    let waited = gateway.metric("waits_total{end=\"timeout\",slot=\"account\"}");
    assert_eq!(waited, 1.0);
    gateway.wait_records(4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_home_that_frees_in_time_is_not_left() {
    let upstream = FakeUpstream::start().await;
    let (gateway, home, _) = bound(&upstream, 30_000).await;
    let gate = Gate::new();
    upstream.push_for(&home, json_answer(Dialect::Responses, "held").after(&gate));
    let held = Call::send(&gateway, Protocol::H1, &of_s()).await;
    gate.wait_reached(1).await;
    let waiting = Call::send(&gateway, Protocol::H1, &of_s()).await;
    gateway.wait_metric("requests_in_flight", 2.0).await;
    gate.open();
    assert_eq!(held.answer().await.0, 200);
    assert_eq!(waiting.answer().await.0, 200);
    assert_eq!(asked(&upstream), [&*home; 3]);
    gateway.wait_records(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_fails_is_a_home_no_more() {
    let upstream = FakeUpstream::start().await;
    let (gateway, home, other) = bound(&upstream, 100).await;
    upstream.push_for(&home, Answer::error(401, "invalid_api_key"));
    for _ in 0..2 {
        let reply = gateway.h1().await.request(&of_s()).await.unwrap();
        assert_eq!(reply.status, 200);
    }
    assert_eq!(asked(&upstream), [&*home, &*home, &*other, &*other]);
    resume(
        Dialect::Responses,
        &gateway,
        &upstream,
        home.trim_start_matches("sk-"),
    )
    .await;
    upstream.wait_idle().await;
    upstream.forget();
    for _ in 0..4 {
        let reply = gateway.h1().await.request(&of_s()).await.unwrap();
        assert_eq!(reply.status, 200);
    }
    assert_eq!(asked(&upstream), [&*other; 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiers_first_then_wherever_there_is_room() {
    let upstream = FakeUpstream::start().await;
    // a1 is the better tier with room for one; a2 and a3 share the next, a3 with twice the room.
    let gateway = Setup::new(&vec![upstream.url(); 3])
        .resources(|all| {
            for (index, (priority, slots)) in [(1, 1), (2, 2), (2, 4)].iter().enumerate() {
                all["accounts"][index]["priority"] = json!(priority);
                all["accounts"][index]["concurrency"] = json!(slots);
            }
        })
        .start()
        .await;
    let gate = Gate::new();
    upstream.otherwise(json_answer(Dialect::Responses, "held").after(&gate));
    let mut calls = Vec::new();
    for count in 1..=7 {
        calls.push(Call::send(&gateway, Protocol::H1, &plain("gpt-5-mini")).await);
        gate.wait_reached(count).await;
    }
    let mut accounts = asked(&upstream);
    assert_eq!(accounts[0], "sk-a1");
    // Inside a tier chance decides among the best; in the end all the room is used.
    let share = |accounts: &[String]| {
        ["sk-a2", "sk-a3"].map(|name| accounts.iter().filter(|a| *a == name).count())
    };
    assert_eq!(share(&accounts[1..7]), [2, 4], "{accounts:?}");
    gate.open();
    for call in calls.drain(..) {
        assert_eq!(call.answer().await.0, 200);
    }
    accounts.clear();
    gateway.wait_records(7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_never_has_more_than_its_slots() {
    const REQUESTS: usize = 100;
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream, &upstream])
        .resources(|all| {
            all["users"][0]["concurrency"] = json!(0);
            all["accounts"][0]["concurrency"] = json!(3);
            all["accounts"][1]["concurrency"] = json!(5);
        })
        // A user alone gets three quarters of an account's line.
        .set("CONCURRENCY__MAX_WAITING_PER_ACCOUNT", 2 * REQUESTS)
        .start()
        .await;
    let gates = [("sk-a1", 3, Gate::new()), ("sk-a2", 5, Gate::new())];
    for (account, _, gate) in &gates {
        upstream.always_for(account, json_answer(Dialect::Responses, "held").after(gate));
    }
    let address = gateway.address;
    let calls: Vec<_> = (0..REQUESTS)
        .map(|_| {
            tokio::spawn(async move {
                post_json(address, "/v1/responses", KEY, &ask("gpt-5-mini", false)).await
            })
        })
        .collect();
    for (_, slots, gate) in &gates {
        gate.wait_reached(*slots).await;
    }
    // What has come to a gate and was not let through holds a slot, however slow the rest.
    let mut released = [0, 0];
    let deadline = std::time::Instant::now() + crate::harness::LIMIT;
    while gates.iter().map(|(.., gate)| gate.reached()).sum::<usize>() < REQUESTS {
        for (released, (account, slots, gate)) in released.iter_mut().zip(&gates) {
            let reached = gate.reached();
            assert!(
                reached <= *released + slots,
                "{account}: {reached} with {released} released"
            );
            if reached > *released {
                gate.release(1);
                *released += 1;
            }
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{released:?} of {REQUESTS}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    gates.iter().for_each(|(.., gate)| gate.open());
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status, 200);
    }
    let records = gateway.wait_records(REQUESTS).await;
    assert!(records.iter().all(|record| record["outcome"] == "ok"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_on_from_a_response_goes_to_the_account_that_made_it() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream, &upstream, &upstream])
        .resources(|r| {
            for account in r["accounts"].as_array_mut().unwrap() {
                account["priority"] = json!(1);
            }
        })
        .start()
        .await;
    for (round, stream) in [(0, false), (1, true)] {
        let id = format!("resp_{round}");
        upstream.push(if stream {
            Answer::sse(openai::responses_stream(
                "gpt-5-mini",
                &id,
                &["one"],
                Usage::default(),
            ))
        } else {
            Answer::body(
                200,
                "application/json",
                openai::responses_json("gpt-5-mini", &id, "one", Usage::default()),
            )
        });
        upstream.forget();
        let first = request("gpt-5-mini", stream, KEY);
        gateway.h1().await.request(&first).await.unwrap();
        let home = asked(&upstream);
        let next = |id: &str| {
            let body = json!({ "model": "gpt-5-mini", "input": "on", "previous_response_id": id });
            Request::post("/v1/responses", body.to_string()).bearer(KEY)
        };
        // It is remembered when the request has ended, which the record tells.
        gateway.wait_records(round * 7 + 1).await;
        for _ in 0..5 {
            upstream.forget();
            let reply = gateway.h1().await.request(&next(&id)).await.unwrap();
            assert_eq!(reply.status, 200);
            assert_eq!(asked(&upstream), home);
        }
        // Its failure is final: no other account knows the response.
        upstream.push(Answer::error(500, "x"));
        upstream.forget();
        let reply = gateway.h1().await.request(&next(&id)).await.unwrap();
        assert_eq!(reply.status, 502);
        assert_eq!(asked(&upstream), home);
        gateway.wait_records(round * 7 + 7).await;
    }
}
