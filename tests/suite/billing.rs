//! What a request costs, through the whole path: from what the provider reports to the ledger.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Request, Usage, openai, post_json};

use crate::call::{plain, request, streamed};
use crate::harness::{Gateway, KEY, Setup, ask, key_of};

/// Nano-dollars of a decimal string.
fn nanos(value: &Value) -> i128 {
    let text = value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no decimal string"));
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    assert!(part.len() <= 9, "{text}");
    let part: i128 = format!("{part:0<9}").parse().unwrap();
    sign * (whole.parse::<i128>().unwrap() * 1_000_000_000 + part)
}

fn usage(input: u64, cached: u64, output: u64) -> Usage {
    Usage {
        input,
        cached,
        output,
        reasoning: 0,
    }
}

fn answer(usage: Usage, is_stream: bool) -> Answer {
    if is_stream {
        Answer::sse(openai::responses_stream("m", "r", &["Hello"], usage))
    } else {
        Answer::body(
            200,
            "application/json",
            openai::responses_json("m", "r", "Hello", usage),
        )
    }
}

fn assert_sum(gateway: &Gateway, opening: i128) {
    let spent: i128 = gateway.records().iter().map(|r| nanos(&r["charge"])).sum();
    let balance = nanos(&json!(gateway.balance("alice")));
    assert_eq!(balance, opening - spent, "opening − charges");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_worked_numbers() {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let gateway = Setup::with(&[&upstream])
        .group("double", &[("double", &url)])
        .group("own", &[("own", &url)])
        .group("free", &[("free", &url)])
        .resources(|all| {
            for group in all["groups"].as_array_mut().unwrap() {
                let multiplier = match group["name"].as_str().unwrap() {
                    "double" | "own" => "2",
                    "free" => "0",
                    _ => continue,
                };
                group["rate_multiplier"] = json!(multiplier);
            }
            all["users"][0]["balance"] = json!("100");
            // The user's own multiplier counts in place of the group's.
            all["users"][0]["group_multipliers"] = json!({ "own": "0.333333" });
        })
        .start()
        .await;
    let long = usage(300_000, 100_000, 1000);
    // Group, model, tier asked for, reported, cost, charge.
    #[rustfmt::skip]
    let rows = [
        // Appendix C.
        ("", "gpt-5.4", "", long, "1.0475", "1.0475"),
        ("", "gpt-5.4", "", usage(272_000, 100_000, 1000), "0.47", "0.47"),
        ("", "gpt-5.4", "", usage(272_001, 100_000, 1000), "0.907505", "0.907505"),
        // Tiers: priority prices where the model has them, else twice; half for flex.
        ("", "gpt-5-mini", "", usage(1_000_000, 0, 0), "0.25", "0.25"),
        ("", "gpt-5-mini", "priority", usage(1_000_000, 0, 0), "0.45", "0.45"),
        ("", "gpt-5-mini", "fast", usage(1_000_000, 0, 0), "0.45", "0.45"),
        ("", "gpt-5-mini", "flex", usage(1_000_000, 0, 0), "0.125", "0.125"),
        ("", "gpt-5-mini", "auto", usage(1_000_000, 0, 0), "0.25", "0.25"),
        ("", "o3-mini", "priority", usage(100_000, 0, 0), "0.22", "0.22"),
        ("", "o3-mini", "flex", usage(100_000, 0, 0), "0.055", "0.055"),
        // Each class at its own price.
        ("", "gpt-5-mini", "", usage(1, 0, 0), "0.00000025", "0.00000025"),
        ("", "gpt-5-mini", "", usage(1, 1, 0), "0.000000025", "0.000000025"),
        ("", "gpt-5-mini", "", usage(1, 1, 1), "0.000002025", "0.000002025"),
        // Rounded once, to the nano-dollar, half up: 25 × 0.333333 = 8.33 n, 250 × … = 83.3 n.
        ("own", "gpt-5-mini", "", usage(1, 1, 0), "0.000000025", "0.000000008"),
        ("own", "gpt-5-mini", "", usage(1, 0, 0), "0.00000025", "0.000000083"),
        ("own", "gpt-5.4", "", long, "1.0475", "0.349166318"),
        ("double", "gpt-5.4", "", long, "1.0475", "2.095"),
        ("double", "gpt-5-mini", "flex", usage(1_000_000, 0, 0), "0.125", "0.25"),
        ("free", "gpt-5.4", "", long, "1.0475", "0"),
        // Nobody knows a price.
        ("", "somebody-elses-model", "", long, "0", "0"),
    ];
    let opening = nanos(&json!("100"));
    for (row, (group, model, tier, usage, cost, charge)) in rows.into_iter().enumerate() {
        let is_stream = row % 2 == 0;
        upstream.push(answer(usage, is_stream));
        let mut body = ask(model, is_stream);
        if !tier.is_empty() {
            body["service_tier"] = json!(tier);
        }
        let key = if group.is_empty() {
            KEY.to_owned()
        } else {
            key_of(group)
        };
        let reply = post_json(gateway.address, "/v1/responses", &key, &body);
        let reply = reply.await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        let records = gateway.wait_records(row + 1).await;
        let id = reply.header("x-request-id").unwrap();
        let record = records.iter().find(|r| r["request_id"] == id).unwrap();
        assert_eq!(
            (&record["cost"], &record["charge"], &record["billing_type"]),
            (&json!(cost), &json!(charge), &json!("balance")),
            "{group} {model} {tier} {usage:?}"
        );
        assert_eq!(record["input_tokens"], usage.input - usage.cached);
        assert_eq!(record["cache_read_tokens"], usage.cached);
        assert_eq!(record["output_tokens"], usage.output);
    }
    assert_sum(&gateway, opening);
    assert_eq!(gateway.metric("unpriced_records_total"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simple_mode_records_and_charges_nothing() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .resources(|all| all["users"][0]["balance"] = json!("0"))
        .set("BILLING__MODE", "simple")
        .start()
        .await;
    upstream.push(answer(usage(300_000, 100_000, 1000), true));
    let reply = gateway
        .h1()
        .await
        .request(&streamed("gpt-5.4"))
        .await
        .unwrap();
    assert_eq!(reply.status, 200);
    let record = gateway.only_record().await;
    assert_eq!(
        (&record["cost"], &record["charge"], &record["billing_type"]),
        (&json!("1.0475"), &json!("0"), &json!("none"))
    );
    assert_eq!(nanos(&json!(gateway.balance("alice"))), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_up_balance_ends_it() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .resources(|all| all["users"][0]["balance"] = json!("1"))
        .start()
        .await;
    let mut client = gateway.h1().await;
    upstream.push(answer(usage(300_000, 100_000, 1000), false));
    assert_eq!(client.request(&plain("gpt-5.4")).await.unwrap().status, 200);
    // No waiting for the database: what was charged counts for the next request.
    let reply = client.request(&plain("gpt-5.4")).await.unwrap();
    assert_eq!(reply.status, 403);
    assert_eq!(reply.json()["error"]["type"], "billing_error");
    gateway.only_record().await;
    assert_eq!(gateway.balance("alice"), "-0.0475");
    gateway.run(&["users", "credit", "alice", "1"]);
    let mut last = 0;
    let deadline = std::time::Instant::now() + crate::harness::LIMIT;
    while last != 200 {
        assert!(
            std::time::Instant::now() < deadline,
            "the credit does not count"
        );
        let mut client = gateway.h1().await;
        last = client.request(&plain("fake-text")).await.unwrap().status;
    }
    gateway.wait_records(2).await;
    assert_eq!(gateway.balance("alice"), "0.9525");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_requests_and_a_credit_are_each_counted_once() {
    const REQUESTS: usize = 100;
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .resources(|all| {
            all["users"][0]["concurrency"] = json!(0);
            all["users"][0]["balance"] = json!("5.123456789");
            all["accounts"][0]["concurrency"] = json!(0);
        })
        .start()
        .await;
    upstream.handle(|seen| {
        // Each request names its own usage.
        let number = seen.json()["input"].as_str().and_then(|n| n.parse().ok());
        let number: u64 = number.unwrap_or_default();
        let is_stream = seen.json()["stream"].as_bool().unwrap_or_default();
        answer(usage(1000 + number, number, 1 + number * 7), is_stream)
    });
    let address = gateway.address;
    let start = |range: std::ops::Range<usize>| -> Vec<_> {
        range
            .map(|number| {
                let mut body = ask("gpt-5-mini", number % 2 == 0);
                body["input"] = json!(number.to_string());
                tokio::spawn(async move {
                    let reply = post_json(address, "/v1/responses", KEY, &body)
                        .await
                        .unwrap();
                    assert_eq!(reply.status, 200);
                    reply.header("x-request-id").unwrap().to_owned()
                })
            })
            .collect()
    };
    let mut calls = start(0..REQUESTS / 2);
    gateway.run(&["users", "credit", "alice", "2.5"]);
    calls.extend(start(REQUESTS / 2..REQUESTS));
    let mut ids = BTreeSet::new();
    for call in calls {
        ids.insert(call.await.unwrap());
    }
    assert_eq!(ids.len(), REQUESTS, "every request has an id of its own");
    let records = gateway.wait_records(REQUESTS).await;
    let recorded: BTreeSet<_> = records
        .iter()
        .map(|record| record["request_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(recorded, ids);
    let expected: i128 = (0..REQUESTS as i128)
        .map(|n| 1000 * 250 + n * 25 + (1 + n * 7) * 2000)
        .sum();
    let charged: i128 = records.iter().map(|r| nanos(&r["charge"])).sum();
    assert_eq!(charged, expected);
    assert_sum(&gateway, nanos(&json!("7.623456789")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_reported_is_estimated_from_what_was_sent() {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let gateway = Setup::with(&[&upstream])
        .group("g", &[("b", &url)])
        .start()
        .await;
    let without_usage = |text: &str| {
        let whole = openai::responses_json("m", "r", text, Usage::default());
        let mut whole: Value = serde_json::from_slice(&whole).unwrap();
        whole["usage"] = Value::Null;
        whole
    };
    let done = |deltas: &[&str]| {
        let mut frames = openai::responses_cut("m", "r", deltas);
        let response =
            json!({ "type": "response.completed", "response": { "id": "r", "usage": null } });
        frames.push(format!("event: response.completed\ndata: {response}\n\n").into());
        frames
    };
    // 16 bytes of text, and two characters of four bytes each.
    let text = ["Hello wide ", "world 🦀"];
    let rows: Vec<(&str, &str, bool, Answer, &str, u64)> = vec![
        (
            "stream",
            KEY,
            true,
            Answer::sse(done(&text)),
            "estimated",
            6,
        ),
        (
            "JSON",
            KEY,
            false,
            Answer::json(200, &without_usage("Hello wide world")),
            "estimated",
            4,
        ),
        (
            "stream without output",
            KEY,
            true,
            Answer::sse(done(&[])),
            "none",
            0,
        ),
        (
            "JSON without output",
            KEY,
            false,
            Answer::json(200, &without_usage("")),
            "none",
            0,
        ),
        ("an error", KEY, false, Answer::error(400, "no"), "none", 0),
    ];
    for (row, (name, key, is_stream, answer, source, output)) in rows.into_iter().enumerate() {
        upstream.push(answer);
        let request: Request = request("gpt-5-mini", is_stream, key);
        let reply = gateway.h1().await.request(&request).await.unwrap();
        let records = gateway.wait_records(row + 1).await;
        let id = reply.header("x-request-id").unwrap();
        let record = records.iter().find(|r| r["request_id"] == id).unwrap();
        assert_eq!(record["usage_source"], source, "{name}: {record:#}");
        assert_eq!(record["output_tokens"], output, "{name}");
        // The body's bytes, four to a token.
        let body = ask("gpt-5-mini", is_stream).to_string().len() as u64;
        let input = if source == "none" {
            0
        } else {
            body.div_ceil(4)
        };
        assert_eq!(record["input_tokens"], input, "{name}");
        let expected = i128::from(input) * 250 + i128::from(output) * 2000;
        assert_eq!(nanos(&record["charge"]), expected, "{name}");
    }
    assert_sum(&gateway, nanos(&json!("10")));
}
