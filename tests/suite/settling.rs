//! When and by what a request is settled: its record is in the journal before the client has the end of
//! its answer, whatever follows; and what accounts have cost outlives a restart.

use bytes::Bytes;
use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Gate, Usage, openai, post_json};

use crate::call::streamed;
use crate::dialect::{Dialect, OUTPUT, in_each_dialect};
use crate::harness::{Gateway, KEY, Setup, ask};

const MODEL: &str = "gpt-5-mini";

fn usage() -> Usage {
    Usage {
        input: 1000,
        cached: 0,
        output: 500,
        reasoning: 0,
    }
}

/// What [`usage`] costs at the prices of [`MODEL`].
const COST: &str = "0.00125";

fn told(record: &Value) -> (&str, &str, &str) {
    let text = |field: &str| record[field].as_str().unwrap();
    (text("outcome"), text("usage_source"), text("charge"))
}

in_each_dialect!(an_answer_that_was_read_to_its_end_is_settled_whatever_follows);
async fn an_answer_that_was_read_to_its_end_is_settled_whatever_follows(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let mut gateway = setup.start().await;
    let stream = || dialect.stream("r", &["Hello"]);
    let json = || dialect.json("r", "Hello");
    let whole = stream().concat();
    let answers = [
        // The terminal event and the end of the connection arrive together.
        Answer::sse(vec![Bytes::from(whole.clone())]).then_hang_up(),
        Answer::sse(stream()).then_reset(),
        Answer::sse(stream()),
        Answer::body(200, "application/json", json()),
        Answer::body(200, "application/json", json()).chunked(&[40]),
    ];
    let count = answers.len();
    for (row, answer) in answers.into_iter().enumerate() {
        upstream.push(answer);
        let request = dialect.request(dialect.model(), row < 3, KEY);
        let reply = gateway.h1().await.request(&request).await.unwrap();
        assert_eq!(reply.status, 200, "{row}");
        if row < 3 {
            assert_eq!(reply.body, whole, "nothing follows the answer, {row}");
        }
        // The client has its answer; whatever becomes of the server now, the record is exact.
        gateway.kill();
        gateway.launch();
    }
    for record in gateway.wait_records(count).await {
        let expected = ("ok", "reported", dialect.charge());
        assert_eq!(told(&record), expected, "{record:#}");
    }
}

/// What a message has cost is known from its beginning and its last but one event: a killed server has it from the
/// journal, whatever of the stream had come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_cut_off_by_the_servers_death_is_settled_by_what_had_come() {
    let dialect = Dialect::Messages;
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let mut gateway = setup.start().await;
    let whole = dialect.stream("r", &["Hello"]);
    let begun = dialect.cut("r", &["Hello"]).len();
    // Nothing; text; all but `message_stop`.
    let rows = [
        (0, "nothing"),
        (begun, "Hello"),
        (whole.len() - 1, "message_delta\n"),
    ];
    for (count, (events, last)) in rows.into_iter().enumerate() {
        let gate = Gate::new();
        upstream.push(Answer::sse(whole.clone()).gated(events, &gate));
        let mut client = gateway.h1().await;
        client
            .send_request(&dialect.streamed(dialect.model()))
            .await
            .unwrap();
        if events == 0 {
            gate.wait_reached(1).await;
        } else {
            assert_eq!(client.final_head().await.unwrap().status, 200);
            client.read_until(last).await.unwrap();
        }
        gateway.kill();
        gateway.launch();
        let records = gateway.wait_records(count + 1).await;
        for record in records {
            assert_eq!(record["outcome"], "interrupted", "{last}: {record:#}");
            assert_eq!(record["endpoint"], "/v1/messages", "{last}: {record:#}");
            // Never by the bound: that would be the 1024 tokens that were asked for.
            let output = record["output_tokens"].as_u64().unwrap();
            assert!(output <= OUTPUT, "{last}: {record:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_that_follows_an_error_in_the_stream_counts() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let failed =
        openai::responses_failed(MODEL, "r", &["Hello"], "server_error", "oh", Some(usage()));
    let mut frames = failed;
    let last = frames.len() - 1;
    frames.insert(last, openai::error_event("server_error", "oh"));
    let gate = Gate::new();
    upstream.push(Answer::sse(frames).gated(last + 1, &gate));
    let mut client = gateway.h1().await;
    let reply = tokio::spawn(async move { client.request(&streamed(MODEL)).await });
    gate.wait_reached(1).await;
    gate.open();
    assert_eq!(reply.await.unwrap().unwrap().status, 200);
    let record = gateway.only_record().await;
    assert_eq!(
        told(&record),
        ("upstream_error", "reported", COST),
        "{record:#}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_is_no_text_is_not_free_when_it_is_cut_off() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    // An item has begun, no text has come.
    let frames = openai::responses_stream(MODEL, "r", &["Hello"], usage());
    let begun = openai::preamble(MODEL, "r").len() + 1;
    upstream.push(Answer::sse(frames[..begun].to_vec()).then_reset());
    let reply = gateway.h1().await.request(&streamed(MODEL)).await;
    drop(reply);
    let record = gateway.only_record().await;
    let (_, source, charge) = told(&record);
    assert_eq!(source, "estimated", "{record:#}");
    assert_ne!(charge, "0");
    assert_eq!(record["output_tokens"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_made_later_are_refused() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let mut body = ask(MODEL, false);
    body["background"] = json!(true);
    let reply = post_json(gateway.address, "/v1/responses", KEY, &body);
    let reply = reply.await.unwrap();
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("background"), "{}", reply.text());
    assert_eq!(upstream.requests().len(), 0);
}

async fn status(gateway: &Gateway) -> u16 {
    let body = ask(MODEL, false);
    let reply = post_json(gateway.address, "/v1/responses", KEY, &body);
    reply.await.unwrap().status
}

/// Waits until the store says that of the account.
async fn is_shown(gateway: &Gateway, status: &str) {
    gateway
        .wait(&format!("the account to be {status}"), || {
            let shown = gateway.run_json(&["accounts", "show", "a1", "--json"]);
            shown["status"] == status
        })
        .await;
}

/// Sets or takes away the account's quota.
fn with_quota(setup: &Value, limit: Option<&str>) -> Value {
    let mut resources = setup.clone();
    resources["accounts"][0]["extra"] = match limit {
        Some(limit) => json!({ "quota_limit": limit }),
        None => json!({}),
    };
    resources
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_accounts_have_cost_counts_over_restarts() {
    let upstream = FakeUpstream::start().await;
    let json = openai::responses_json(MODEL, "r", "Hello", usage());
    upstream.otherwise(Answer::body(200, "application/json", json));
    let setup = Setup::with(&[&upstream]);
    let resources = setup.resources.clone();
    let mut gateway = setup.start().await;
    assert_eq!(status(&gateway).await, 200);
    gateway.wait_records(1).await;

    // A quota that is used up already when the server starts.
    gateway.stop();
    gateway.apply(&with_quota(&resources, Some("0.001")));
    gateway.launch();
    assert_eq!(status(&gateway).await, 503);
    is_shown(&gateway, "quota_exhausted").await;

    // One that was raised while the server was down.
    gateway.stop();
    gateway.apply(&with_quota(&resources, Some("0.002")));
    gateway.launch();
    assert_eq!(status(&gateway).await, 200);
    // That used it up: the account rests as soon as it is known, and comes back without a quota.
    gateway
        .wait("the higher quota to be used up", || {
            let shown = gateway.run_json(&["accounts", "show", "a1", "--json"]);
            shown["conditions"].to_string().contains("0.002")
        })
        .await;
    assert_eq!(status(&gateway).await, 503);
    gateway.apply(&with_quota(&resources, None));
    is_shown(&gateway, "active").await;
    assert_eq!(status(&gateway).await, 200);
}
