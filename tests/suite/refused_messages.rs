//! What refusals of Anthropic's mean for the account that was refused (SPEC 7.1, 7.6, 7.8), by the kind of its
//! credential; what is tried once more because it may pass (7.4); and errors at every point of a stream.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Request};

use crate::call::{Call, Protocol};
use crate::harness::{Gateway, Setup, free_address, key_of};
use crate::messages::{answer, assert_charged, body, error_of, message, post, send, setup};

/// What is to come of an answer.
#[derive(Clone, Copy)]
enum Client {
    /// The other account's answer.
    Served,
    /// This status, this type of error and this text.
    Told(u16, &'static str, &'static str),
}

#[derive(Clone, Copy)]
enum Lasts {
    Ever,
    Seconds(i64),
    /// Until this Unix time in seconds, which the answer names.
    Until(u64),
}

struct Row {
    name: &'static str,
    /// The account's type.
    kind: &'static str,
    answer: Answer,
    client: Client,
    /// The attempt's result.
    result: &'static str,
    /// The condition that stays: its kind and the beginning of its reason.
    leaves: Option<(&'static str, Lasts, &'static str)>,
}

fn in_seconds(seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs() + seconds
}

fn said(status: u16, words: &str) -> Answer {
    Answer::anthropic_error(status, words)
}

/// A 429 with unified headers, each named without what all of them begin with.
fn limited(headers: &[(&str, String)]) -> Answer {
    let answer = said(429, "This request would exceed your rate limit");
    headers.iter().fold(answer, |answer, (name, value)| {
        answer.header(&format!("anthropic-ratelimit-unified-{name}"), value)
    })
}

fn rows() -> Vec<Row> {
    use Client::{Served, Told};
    use Lasts::{Ever, Seconds, Until};
    let (soon, late, plain) = (in_seconds(5_000), in_seconds(90_000), in_seconds(7_000));
    let windows = |short: &str, long: &str| {
        limited(&[
            ("5h-reset", soon.to_string()),
            ("7d-reset", late.to_string()),
            ("5h-utilization", short.to_owned()),
            ("7d-utilization", long.to_owned()),
            ("reset", plain.to_string()),
        ])
    };
    let surpassed = limited(&[
        ("5h-reset", soon.to_string()),
        ("7d-reset", late.to_string()),
        ("7d-surpassed-threshold", "true".to_owned()),
    ]);
    let own = |status, kind| Told(status, kind, "the words");
    let limit = |until, reason| Some(("rate_limited", until, reason));
    let mut rows = Vec::new();
    let mut row = |name, kind, answer, client, result, leaves| {
        rows.push(Row {
            name,
            kind,
            answer,
            client,
            result,
            leaves,
        });
    };
    let error = |reason| Some(("error", Ever, reason));
    let credit = "Your credit balance is too low to access the Anthropic API";
    for kind in ["api_key", "oauth"] {
        // 400: the client's, unless its words mean the account.
        row(
            "400",
            kind,
            said(400, "the words"),
            own(400, "invalid_request_error"),
            "client_fault",
            None,
        );
        row(
            "credit",
            kind,
            said(400, credit),
            Served,
            "bad_credential",
            error("Credit balance exhausted (400)"),
        );
        row(
            "organization",
            kind,
            said(400, "This organization has been disabled."),
            Served,
            "bad_credential",
            error("Organization disabled (400)"),
        );
        row(
            "identity",
            kind,
            said(400, "Identity verification is required to go on"),
            Served,
            "bad_credential",
            error("Identity verification required (400)"),
        );
        row(
            "402",
            kind,
            said(402, "the words"),
            Served,
            "bad_credential",
            error("Payment required (402)"),
        );
        row(
            "403",
            kind,
            said(403, "the words"),
            Served,
            "bad_credential",
            error("Access forbidden (403)"),
        );
        row(
            "404",
            kind,
            said(404, "the words"),
            own(404, "not_found_error"),
            "client_fault",
            None,
        );
        row(
            "413",
            kind,
            said(413, "the words"),
            own(413, "request_too_large"),
            "client_fault",
            None,
        );
        row(
            "422",
            kind,
            said(422, "the words"),
            own(422, "invalid_request_error"),
            "client_fault",
            None,
        );
        // 429: until the window that is used up begins anew.
        row(
            "5h",
            kind,
            windows("1.0", "0.5"),
            Served,
            "limited",
            limit(Until(soon), "limited, end by anthropic_5h"),
        );
        row(
            "7d",
            kind,
            windows("0.5", "1.2"),
            Served,
            "limited",
            limit(Until(late), "limited, end by anthropic_7d"),
        );
        row(
            "both",
            kind,
            windows("1.0", "1.0"),
            Served,
            "limited",
            limit(Until(late), "limited, end by anthropic_7d"),
        );
        row(
            "neither",
            kind,
            windows("0.5", "0.5"),
            Served,
            "limited",
            limit(Until(soon), "limited, end by anthropic_5h"),
        );
        row(
            "surpassed",
            kind,
            surpassed.clone(),
            Served,
            "limited",
            limit(Until(late), "limited, end by anthropic_7d"),
        );
        row(
            "reset only",
            kind,
            limited(&[("reset", plain.to_string())]),
            Served,
            "limited",
            limit(Until(plain), "limited, end by anthropic_reset"),
        );
        row(
            "retry-after",
            kind,
            said(429, "the words").header("retry-after", "900"),
            Served,
            "limited",
            limit(Seconds(900), "limited, end by retry_after"),
        );
        row(
            "429 alone",
            kind,
            said(429, "the words"),
            Served,
            "limited",
            None,
        );
        // The provider's.
        row(
            "529",
            kind,
            said(529, "the words"),
            Served,
            "overloaded",
            Some(("overloaded", Seconds(600), "overloaded")),
        );
        row(
            "500",
            kind,
            said(500, "the words"),
            Served,
            "failed",
            Some(("failing", Seconds(5), "failed")),
        );
        row(
            "503",
            kind,
            said(503, "the words"),
            Served,
            "failed",
            Some(("failing", Seconds(5), "failed")),
        );
    }
    row(
        "401",
        "api_key",
        said(401, "the words"),
        Served,
        "bad_credential",
        error("Authentication failed (401)"),
    );
    for kind in ["oauth", "setup_token"] {
        row(
            "401",
            kind,
            said(401, "the words"),
            Served,
            "bad_credential",
            Some(("temp_unschedulable", Seconds(600), "Token refused (401)")),
        );
    }
    rows
}

fn credentials(kind: &str, name: &str, url: &str) -> Value {
    match kind {
        "api_key" => json!({ "api_key": format!("sk-{name}"), "base_url": url }),
        _ => json!({ "access_token": format!("sk-{name}"), "base_url": url }),
    }
}

fn anthropics(all: &mut Value) {
    for kind in ["groups", "accounts"] {
        for object in all[kind].as_array_mut().unwrap() {
            object["platform"] = json!("anthropic");
        }
    }
}

/// A group for each row: an account that answers as the row says once, and one that always serves.
fn setup_rows(upstream: &FakeUpstream, rows: &[Row]) -> Setup {
    let url = upstream.url();
    let mut setup = Setup::with(&[upstream]);
    for (index, row) in rows.iter().enumerate() {
        let (bad, good) = (format!("bad{index}"), format!("good{index}"));
        setup = setup.group(&format!("g{index}"), &[(&bad, &url), (&good, &url)]);
        setup = setup.resources(|all| {
            let accounts = all["accounts"].as_array_mut().unwrap();
            let account = accounts.len() - 2;
            accounts[account]["type"] = json!(row.kind);
            accounts[account]["credentials"] = credentials(row.kind, &bad, &url);
        });
    }
    setup.resources(anthropics)
}

fn asked(upstream: &FakeUpstream) -> Vec<String> {
    let requests = upstream.requests();
    let name = |seen: &tollgate_test_support::Received| {
        let credential = seen.credential().unwrap_or_default();
        credential.trim_start_matches("sk-").to_owned()
    };
    requests.iter().map(name).collect()
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

fn check_conditions(name: &str, shown: &Value, leaves: Option<(&str, Lasts, &str)>) {
    let conditions = shown["conditions"].as_array().unwrap();
    let Some((kind, lasts, reason)) = leaves else {
        assert!(conditions.is_empty(), "{name}: {shown:#}");
        return;
    };
    assert_eq!(conditions.len(), 1, "{name}: {shown:#}");
    let condition = &conditions[0];
    assert_eq!(condition["kind"], kind, "{name}: {shown:#}");
    let why = condition["reason"].as_str().unwrap();
    assert!(why.starts_with(reason), "{name}: {why}");
    assert_eq!(condition["model"], Value::Null, "{name}");
    match lasts {
        Lasts::Ever => assert_eq!(condition["until"], Value::Null, "{name}: {shown:#}"),
        Lasts::Seconds(seconds) => {
            let lasts = time(&condition["until"]) - time(&condition["since"]);
            assert_eq!(
                lasts.num_milliseconds(),
                1000 * seconds,
                "{name}: {shown:#}"
            );
        }
        Lasts::Until(at) => {
            // The distance is measured when the answer comes, the end a moment later.
            let late = time(&condition["until"]).timestamp() - i64::try_from(at).unwrap();
            assert!((-1..30).contains(&late), "{name}: {late} s late");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_each_refusal_means_for_its_account() {
    let upstream = FakeUpstream::start().await;
    let rows = rows();
    let gateway = setup_rows(&upstream, &rows).start().await;
    for (index, row) in rows.iter().enumerate() {
        let name = format!("{} of {}", row.name, row.kind);
        let (bad, good) = (format!("bad{index}"), format!("good{index}"));
        upstream.push_for(&format!("sk-{bad}"), row.answer.clone());
        let request = Request::post("/v1/messages", body(false).to_string())
            .bearer(&key_of(&format!("g{index}")));
        let reply = send(&gateway, &request).await;
        match row.client {
            Client::Served => {
                assert_eq!(reply.status, 200, "{name}: {}", reply.text());
                assert_eq!(asked(&upstream), [bad, good], "{name}");
            }
            Client::Told(status, kind, words) => {
                let json = reply.json();
                assert_eq!(
                    (reply.status, error_of(&json)),
                    (status, (kind, words)),
                    "{name}"
                );
                assert_eq!(asked(&upstream), [bad], "{name}");
            }
        }
        upstream.forget();
    }
    let records = gateway.wait_records(rows.len()).await;
    for record in &records {
        if let Some(trail) = record["attempt_trail"].as_array().filter(|t| !t.is_empty()) {
            let account = trail[0]["account"].as_str().unwrap();
            let index: usize = account.trim_start_matches("bad").parse().unwrap();
            assert_eq!(
                trail[0]["result"], rows[index].result,
                "{}",
                rows[index].name
            );
        }
    }
    let results = |result: &str| rows.iter().filter(|row| row.result == result).count() as f64;
    for result in [
        "client_fault",
        "bad_credential",
        "limited",
        "overloaded",
        "failed",
    ] {
        let name = format!("attempts_total{{platform=\"anthropic\",result=\"{result}\"}}");
        assert_eq!(gateway.metric(&name), results(result), "{result}");
    }
    // What each leaves, as the store has it.
    let wanted = rows.iter().filter(|row| row.leaves.is_some()).count();
    let mut shown: BTreeMap<String, Value> = BTreeMap::new();
    gateway
        .wait("the conditions", || {
            let list = gateway.run_json(&["accounts", "list", "--json"]);
            let named = |account: &Value| {
                (
                    account["name"].as_str().unwrap().to_owned(),
                    account.clone(),
                )
            };
            shown = list.as_array().unwrap().iter().map(named).collect();
            let count = |account: &Value| account["conditions"].as_array().unwrap().len();
            shown.values().map(count).sum::<usize>() >= wanted
        })
        .await;
    for (index, row) in rows.iter().enumerate() {
        let name = format!("{} of {}", row.name, row.kind);
        check_conditions(&name, &shown[&format!("bad{index}")], row.leaves);
        check_conditions(&name, &shown[&format!("good{index}")], None);
    }
}

// ---- what may pass

fn oauth(upstreams: &[&FakeUpstream]) -> Setup {
    setup(upstreams).resources(|all| {
        for account in all["accounts"].as_array_mut().unwrap() {
            let url = account["credentials"]["base_url"]
                .as_str()
                .unwrap()
                .to_owned();
            let name = account["name"].as_str().unwrap().to_owned();
            account["type"] = json!("oauth");
            account["credentials"] = credentials("oauth", &name, &url);
        }
    })
}

fn relay(upstreams: &[&FakeUpstream]) -> Setup {
    setup(upstreams).resources(|all| {
        let codes = json!({ "custom_error_codes_enabled": true, "custom_error_codes": [429] });
        all["accounts"][0]["extra"] = codes;
    })
}

fn conditions(gateway: &Gateway, account: &str) -> Value {
    gateway.run_json(&["accounts", "show", account, "--json"])["conditions"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_passes_is_waited_out() {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let forbidden = || said(403, "Access denied");
    let broken = || said(503, "no");
    let always = |setup: Setup| setup.set("GATEWAY__INNER_RETRIES", "always");
    let off = |setup: Setup| setup.set("GATEWAY__INNER_RETRIES", "off");
    let (one, two): (&[_], &[_]) = (&[&first], &[&first, &second]);
    // How it is set up, what the first account answers, how often it and the other are asked, what the client gets.
    let rows = [
        ("a token alone", oauth(one), forbidden(), (2, 0), 200),
        ("a token with others", oauth(two), forbidden(), (1, 1), 200),
        (
            "a token before others",
            always(oauth(two)),
            forbidden(),
            (2, 0),
            200,
        ),
        ("a token, never", off(oauth(one)), forbidden(), (1, 0), 502),
        ("an API key", setup(one), forbidden(), (1, 0), 502),
        (
            "a token, another status",
            oauth(one),
            said(401, "no"),
            (1, 0),
            502,
        ),
        ("a relay alone", relay(one), broken(), (2, 0), 200),
        // No other account is asked for a status that is not on the list.
        ("a relay with others", relay(two), broken(), (2, 0), 200),
        ("a relay, never", off(relay(two)), broken(), (1, 0), 500),
        (
            "a relay, a status on the list",
            relay(two),
            said(429, "no"),
            (1, 1),
            200,
        ),
        (
            "a relay, the client's mistake",
            relay(two),
            said(400, "no"),
            (1, 0),
            400,
        ),
    ];
    for (what, setup, refusal, (of_first, of_second), status) in rows {
        let gateway = setup.start().await;
        first.forget();
        second.forget();
        first.push(refusal);
        if of_first == 2 {
            first.push(answer(false));
        }
        if of_second == 1 {
            second.push(answer(false));
        }
        let reply = send(&gateway, &post(&body(false))).await;
        assert_eq!(reply.status, status, "{what}: {}", reply.text());
        let counts = (first.requests().len(), second.requests().len());
        assert_eq!(counts, (of_first, of_second), "{what}");
        let record = gateway.only_record().await;
        assert_eq!(
            record["attempts"],
            of_first + of_second,
            "{what}: {record:#}"
        );
        assert_eq!(record["account_switches"], of_second, "{what}");
        if status == 200 {
            assert_charged(&record);
        }
        if of_first == 2 {
            // It has passed: nothing is left of it.
            assert_eq!(conditions(&gateway, "a1"), json!([]), "{what}");
            let (_, text) = gateway.get("/metrics").unwrap();
            assert!(
                !text.contains("tollgate_account_conditions_total{"),
                "{what}"
            );
            let reason = if what.contains("token") {
                "bad_credential"
            } else {
                "unlisted"
            };
            let name = format!("retries_total{{platform=\"anthropic\",reason=\"{reason}\"}}");
            assert_eq!(gateway.metric(&name), 1.0, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_pass_counts_after_five_attempts() {
    let upstream = FakeUpstream::start().await;
    let one: &[_] = &[&upstream];
    for (what, setup, status, told, condition) in [
        (
            "a token",
            oauth(one),
            403,
            (502, "upstream_error"),
            Some("error"),
        ),
        ("a relay", relay(one), 503, (500, "upstream_error"), None),
    ] {
        let gateway = setup.start().await;
        upstream.forget();
        upstream.push_all((0..5).map(|_| said(status, "no")));
        let reply = send(&gateway, &post(&body(true))).await;
        let json = reply.json();
        assert_eq!((reply.status, error_of(&json).0), told, "{what}: {json}");
        assert_eq!(upstream.requests().len(), 5, "{what}");
        let record = gateway.only_record().await;
        assert_eq!(
            (&record["attempts"], &record["charge"]),
            (&json!(5), &json!("0"))
        );
        // Counted as set once: the four before did not.
        let set = format!(
            "account_conditions_total{{kind=\"{}\",platform=\"anthropic\"}}",
            condition.unwrap_or("error")
        );
        assert_eq!(
            gateway.metric(&set),
            f64::from(u8::from(condition.is_some())),
            "{what}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_it_is_waited_for_no_slot_is_held_and_the_client_is_watched() {
    let upstream = FakeUpstream::start().await;
    let gateway = oauth(&[&upstream])
        .set("CONCURRENCY__PING_INTERVAL_MS", 100)
        .start()
        .await;
    // Pauses of 0.3, 0.6 and 1.2 s follow.
    upstream.push_all((0..3).map(|_| said(403, "no")));
    let mut call = Call::send(&gateway, Protocol::H1, &post(&body(true))).await;
    assert_eq!(call.head().await.unwrap().status, 200);
    call.read_until("event: ping", 2).await;
    let (free, held) = ("slots_held{slot=\"account\"}", "slots_held{slot=\"user\"}");
    gateway.wait_metric(free, 0.0).await;
    assert_eq!(gateway.metric(held), 1.0);
    upstream.wait_complete(3).await;
    drop(call);
    let record = gateway.only_record().await;
    assert_eq!(record["outcome"], "client_gone", "{record:#}");
    assert_eq!(
        (&record["attempts"], &record["charge"]),
        (&json!(3), &json!("0"))
    );
    assert_eq!(upstream.requests().len(), 3);
    // The question whether it passes was not asked to its end.
    assert_eq!(conditions(&gateway, "a1"), json!([]));
}

// ---- errors within a stream

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_at_any_point_of_a_stream_is_charged_right() {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let frames = message().stream();
    for (kind, words) in [
        ("overloaded_error", "Overloaded"),
        ("api_error", "Internal server error"),
    ] {
        for events in 0..=frames.len() {
            let gateway = setup(&[&first, &second]).start().await;
            first.forget();
            second.forget();
            let failed = message().failed(events, kind, words);
            first.push(Answer::sse(failed.clone()));
            // Nothing of an answer is in message_start, the start of an empty block and a ping.
            let fails_over = events <= 3;
            if fails_over {
                second.push(answer(true));
            }
            let reply = send(&gateway, &post(&body(true))).await;
            assert_eq!(reply.status, 200, "{events}");
            let record = gateway.only_record().await;
            let told = (
                record["account"].as_str().unwrap(),
                record["outcome"].as_str().unwrap(),
                record["usage_source"].as_str().unwrap(),
                record["output_tokens"].as_u64().unwrap(),
                record["charge"].as_str().unwrap(),
            );
            if fails_over {
                // What the first account told of its input is charged to nobody.
                assert_eq!(reply.body, frames.concat(), "{events}");
                assert_charged(&record);
                assert_eq!((told.0, &record["attempts"]), ("a2", &json!(2)));
                continue;
            }
            assert_eq!(reply.body, failed.concat(), "{events}");
            assert!(second.requests().is_empty(), "{events}");
            // 948 − 30 × 15 for the input, and 15 for each token of output.
            let expected = match events {
                4 => ("a1", "upstream_error", "estimated", 1, "0.000513"),
                5 | 6 => ("a1", "upstream_error", "estimated", 2, "0.000528"),
                7 => ("a1", "upstream_error", "reported", 30, "0.000948"),
                _ => ("a1", "ok", "reported", 30, "0.000948"),
            };
            assert_eq!(told, expected, "{events}: {record:#}");
            assert_eq!(record["attempts"], 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gets_nothing_of_an_answer_pays_nothing() {
    let (first, second) = (FakeUpstream::start().await, FakeUpstream::start().await);
    let failed = |events| Answer::sse(message().failed(events, "overloaded_error", "Overloaded"));
    let cut = |events| Answer::sse(message().cut(events)).then_reset();
    let nobody = format!("http://{}", free_address());
    let url = |upstream: &FakeUpstream| upstream.url();
    // Where the accounts are, what they answer, what the client gets and pays.
    let rows = [
        ("cut", vec![url(&first)], vec![cut(3)], vec![], 502, "0"),
        (
            "all cut",
            vec![url(&first), url(&second)],
            vec![cut(1)],
            vec![cut(3)],
            502,
            "0",
        ),
        (
            "then nobody there",
            vec![url(&first), nobody.clone()],
            vec![failed(3)],
            vec![],
            502,
            "0",
        ),
        (
            "then refused",
            vec![url(&first), url(&second)],
            vec![failed(3)],
            vec![said(529, "no")],
            503,
            "0",
        ),
        (
            "then the client's mistake",
            vec![url(&first), url(&second)],
            vec![failed(3)],
            vec![said(400, "no")],
            400,
            "0",
        ),
        // The last one's own words reach the client, as a stream, and it had read the prompt: what it reported counts.
        (
            "all failed",
            vec![url(&first), url(&second)],
            vec![failed(3)],
            vec![failed(2)],
            200,
            "0.000513",
        ),
    ];
    for (what, urls, of_first, of_second, status, charge) in rows {
        let gateway = Setup::new(&urls).resources(anthropics).start().await;
        first.push_all(of_first);
        second.push_all(of_second);
        let reply = send(&gateway, &post(&body(true))).await;
        assert_eq!(reply.status, status, "{what}: {}", reply.text());
        let record = gateway.only_record().await;
        assert_eq!(record["outcome"], "upstream_error", "{what}: {record:#}");
        assert_eq!(record["charge"], charge, "{what}: {record:#}");
        assert_eq!(record["attempts"], urls.len(), "{what}");
    }
}
