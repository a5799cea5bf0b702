//! An answer on its way to the client: its bytes, when they come, what is read from them, and how
//! it ends when the provider does not end it.

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use tollgate_test_support::{Answer, FakeUpstream, Gate, H1Client, Request, Usage, openai};

use crate::call::{Call, PROTOCOLS, Protocol, plain, request, streamed};
use crate::harness::{Gateway, KEY, Setup};

/// A whole stream short enough to be cut everywhere: a comment, a character of two bytes, an
/// unknown event, and something after the end.
const SHORT: &str = "event: response.created\n\
data: {\"type\":\"response.created\",\"response\":{\"id\":\"r\",\"model\":\"gpt-5-mini\"}}\n\
\n\
: a comment\n\
\n\
data: {\"type\":\"response.output_text.delta\",\"delta\":\"\\\"gpt-5-mini\\\" ü\"}\n\
\n\
event: x\n\
data: 1\n\
data: 2\n\
\n\
event: response.completed\n\
data: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"model\":\"gpt-5-mini\",\
\"usage\":{\"input_tokens\":9,\"input_tokens_details\":{\"cached_tokens\":4},\"output_tokens\":2}}}\n\
\n\
data: [DONE]\n\
\n";

/// As [`SHORT`], seen by a client that calls the model `fast`.
fn renamed(stream: &str) -> String {
    stream.replace("\"model\":\"gpt-5-mini\"", "\"model\":\"fast\"")
}

/// An account that calls `fast` what others call `gpt-5-mini`.
fn with_mapping(setup: Setup) -> Setup {
    setup.resources(|all| {
        all["accounts"][0]["model_mapping"] =
            json!({ "fast": "gpt-5-mini", "gpt-5-mini": "gpt-5-mini" });
    })
}

fn deltas(frames: &[Bytes]) -> usize {
    let is_delta = |f: &Bytes| String::from_utf8_lossy(f).contains("response.output_text.delta\n");
    frames.iter().position(is_delta).expect("a delta") + 1
}

fn without_comments(body: &[u8]) -> String {
    String::from_utf8_lossy(body).replace(":\n\n", "")
}

/// Asks for each answer in turn and compares what the client gets with `expected`.
async fn expect_bytes(
    upstream: &FakeUpstream,
    client: &mut H1Client,
    model: &str,
    expected: &str,
    answers: impl IntoIterator<Item = Answer>,
) -> usize {
    let mut count = 0;
    for answer in answers {
        let what = format!("{answer:?}");
        upstream.push(answer);
        let reply = client.request(&streamed(model)).await.unwrap();
        assert_eq!(reply.status, 200);
        assert_eq!(reply.text(), expected, "{what}");
        count += 1;
    }
    count
}

fn assert_usage(record: &Value, input: u64, cached: u64, output: u64) {
    assert_eq!(
        (
            &record["usage_source"],
            &record["input_tokens"],
            &record["cache_read_tokens"],
            &record["output_tokens"],
        ),
        (
            &json!("reported"),
            &json!(input),
            &json!(cached),
            &json!(output)
        ),
        "{record:#}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_passes_unchanged_wherever_it_is_cut() {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(Setup::with(&[&upstream])).start().await;
    let mut client = gateway.h1().await;
    let crlf = SHORT.replace('\n', "\r\n");
    let cr = SHORT.replace('\n', "\r");
    // The end of the connection ends the last event as well as a blank line does.
    let unended = SHORT.trim_end().trim_end_matches("data: [DONE]").trim_end();
    let mut count = 0;
    for stream in [SHORT, &crlf, &cr, unended] {
        let whole = || Answer::sse(vec![Bytes::from(stream.to_owned())]);
        let mut answers: Vec<Answer> = [1, 2, 3, 7, 64]
            .map(|size| whole().split_every(size))
            .into();
        answers.push(whole().close_delimited());
        answers.push(Answer::body(200, "Text/Event-Stream", stream.to_owned()));
        let everywhere = (1..stream.len()).map(|at| whole().split(&[at]));
        if stream.len() < crlf.len() {
            answers.extend(everywhere);
        } else {
            // Around the ends of lines is where it differs.
            answers.extend(everywhere.enumerate().filter_map(|(at, answer)| {
                stream.as_bytes()[at.saturating_sub(1)..=at + 1]
                    .contains(&b'\r')
                    .then_some(answer)
            }));
        }
        count += expect_bytes(&upstream, &mut client, "gpt-5-mini", stream, answers).await;
    }
    for record in gateway.wait_records(count).await {
        assert_usage(&record, 5, 4, 2);
        assert_eq!(record["outcome"], "ok", "{record:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_model_is_put_back_wherever_the_stream_is_cut() {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(Setup::with(&[&upstream])).start().await;
    let mut client = gateway.h1().await;
    let crlf = SHORT.replace('\n', "\r\n");
    let mut count = 0;
    for stream in [SHORT, &crlf] {
        let whole = || Answer::sse(vec![Bytes::from(stream.to_owned())]);
        let answers = [1, 2, 3, 7, 64]
            .into_iter()
            .map(|size| whole().split_every(size))
            .chain((1..stream.len()).step_by(3).map(|at| whole().split(&[at])));
        count += expect_bytes(&upstream, &mut client, "fast", &renamed(stream), answers).await;
    }
    for record in gateway.wait_records(count).await {
        assert_usage(&record, 5, 4, 2);
        assert_eq!(record["requested_model"], "fast");
        assert_eq!(record["upstream_model"], "gpt-5-mini");
        assert_eq!(record["model_mapping_chain"], "fast→gpt-5-mini");
    }
    assert!(
        upstream
            .requests()
            .iter()
            .all(|seen| seen.model() == "gpt-5-mini")
    );
}

/// Streams of all kinds of events, in all kinds of lines, cut anywhere.
#[test]
fn any_stream_cut_anywhere_is_relayed_byte_for_byte() {
    let line_end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
    let text = "[a-zäß🦀\":{} \\\\]{0,12}";
    let event = (0..6u8, text, line_end.clone()).prop_map(|(kind, text, end)| {
        let text = Value::from(text).to_string();
        match kind {
            0 => format!(": {text}{end}{end}"),
            1 => format!("event: response.in_progress{end}data: {{\"type\":\"response.in_progress\"}}{end}{end}"),
            2 => format!("data:{{\"type\":\"response.output_text.delta\",\"delta\":{text}}}{end}{end}"),
            3 => format!("id: 7{end}retry: 1{end}event: new.kind{end}data: {text}{end}data{end}{end}"),
            4 => end.to_owned(),
            _ => format!("event:keepalive{end}data: {{}}{end}{end}"),
        }
    });
    let stream = (
        any::<bool>(),
        proptest::collection::vec(event, 0..12),
        line_end,
        (1..1000u64, 0..1000u64, 1..1000u64),
        proptest::collection::vec(1..40usize, 0..60),
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (upstream, gateway) = runtime.block_on(async {
        let upstream = FakeUpstream::start().await;
        let gateway = Setup::with(&[&upstream]).start().await;
        (upstream, gateway)
    });
    let mut runner = TestRunner::new(Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    });
    let seen = std::cell::RefCell::new(Vec::new());
    runner
        .run(&stream, |(bom, events, end, (fresh, cached, output), cuts)| {
            let terminal = format!(
                "data: {{\"type\":\"response.completed\",\"response\":{{\"id\":\"r\",\"usage\":{{\"input_tokens\":{},\
                 \"input_tokens_details\":{{\"cached_tokens\":{cached}}},\"output_tokens\":{output}}}}}}}{end}{end}",
                fresh + cached
            );
            let bom = if bom { "\u{feff}" } else { "" };
            let body = format!("{bom}{}{terminal}", events.concat());
            let answer = Answer::sse(vec![Bytes::from(body.clone())]).split(&cuts);
            upstream.push(answer);
            let reply = runtime.block_on(async {
                gateway.h1().await.request(&streamed("gpt-5-mini")).await
            });
            let reply = reply.unwrap();
            prop_assert_eq!(reply.text(), body);
            let id = reply.header("x-request-id").unwrap().to_owned();
            seen.borrow_mut().push((id, fresh, cached, output));
            Ok(())
        })
        .unwrap();
    let seen = seen.into_inner();
    let records = runtime.block_on(gateway.wait_records(seen.len()));
    for (id, fresh, cached, output) in seen {
        let record = records.iter().find(|r| r["request_id"] == id.as_str());
        assert_usage(record.unwrap(), fresh, cached, output);
    }
    drop(gateway);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_arrive_as_they_come() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .set("SERVER__H2C", true)
        .start()
        .await;
    for protocol in PROTOCOLS {
        let gate = Gate::new();
        let frames = openai::responses_stream("gpt-5-mini", "r", &["one", "two"], Usage::default());
        let first = deltas(&frames);
        upstream.push(Answer::sse(frames.clone()).gated(first, &gate));
        let mut call = Call::send(&gateway, protocol, &streamed("gpt-5-mini")).await;
        let head = call.head().await.unwrap();
        assert_eq!(
            (head.status, head.content_type.as_str()),
            (200, "text/event-stream; charset=utf-8")
        );
        let mut got = call.read_until("\"one\"", 1).await.to_vec();
        // The provider has not got past the gate: what follows comes one by one.
        for frame in &frames[first..] {
            gate.release(1);
            while !got.ends_with(frame) {
                got.extend_from_slice(&call.chunk().await.unwrap().unwrap());
            }
        }
        let (rest, end) = call.rest().await;
        end.unwrap();
        got.extend_from_slice(&rest);
        assert_eq!(Bytes::from(got), frames.concat(), "{protocol:?}");
    }
    for record in gateway.wait_records(2).await {
        assert_usage(&record, 100, 20, 30);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_token_is_the_first_output() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let frames = openai::responses_stream("gpt-5-mini", "r", &["one"], Usage::default());
    let gate = Gate::new();
    let preamble = openai::preamble("gpt-5-mini", "r").len();
    upstream.push(Answer::sse(frames).gated(preamble, &gate));
    let call = Call::send(&gateway, Protocol::H1, &streamed("gpt-5-mini")).await;
    gate.wait_reached(1).await;
    // The preamble has been sent; whatever is counted from here is a wait for the first output.
    let pause = std::time::Duration::from_millis(60);
    tokio::time::sleep(pause).await;
    gate.open();
    assert_eq!(call.answer().await.0, 200);
    let record = gateway.only_record().await;
    let (first, all) = (
        record["first_token_ms"].as_u64(),
        record["duration_ms"].as_u64(),
    );
    assert!(first >= Some(60) && first <= all, "{record:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_end_of_a_stream_is_recorded_as_it_was() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let usage = Usage::default();
    let completed = || openai::responses_stream("m", "r", &["Hello wide world"], usage);
    let renamed = |name: &str| -> Vec<Bytes> {
        let text = String::from_utf8(completed().concat()).unwrap();
        let text = text.replace("response.completed", name);
        let status = name.trim_start_matches("response.");
        let (before, last) = text.rsplit_once("event: ").unwrap();
        let last = last.replacen(
            "\"status\":\"completed\"",
            &format!("\"status\":\"{status}\""),
            1,
        );
        vec![Bytes::from(format!("{before}event: {last}"))]
    };
    let cut = || openai::responses_cut("m", "r", &["Hello wide world"]);
    let with = |mut frames: Vec<Bytes>, more: Bytes| {
        frames.push(more);
        frames
    };
    let failed = |usage| {
        openai::responses_failed("m", "r", &["Hello wide world"], "server_error", "no", usage)
    };
    let error = openai::error_event("server_error", "no");
    // What the provider sends, outcome, where usage comes from, output tokens.
    let rows: Vec<(&str, Vec<Bytes>, &str, &str, u64)> = vec![
        ("completed", completed(), "ok", "reported", 30),
        ("done", renamed("response.done"), "ok", "reported", 30),
        (
            "cancelled",
            renamed("response.cancelled"),
            "ok",
            "reported",
            30,
        ),
        (
            "incomplete",
            openai::responses_incomplete("m", "r", &["Hello"], "max_output_tokens", usage),
            "ok",
            "reported",
            30,
        ),
        (
            "failed",
            failed(Some(usage)),
            "upstream_error",
            "reported",
            30,
        ),
        (
            "failed, no usage",
            failed(None),
            "upstream_error",
            "estimated",
            4,
        ),
        (
            "error event",
            with(cut(), error),
            "upstream_error",
            "estimated",
            4,
        ),
        (
            "[DONE] alone",
            with(cut(), Bytes::from("data: [DONE]\n\n")),
            "ok",
            "estimated",
            4,
        ),
        ("no end", cut(), "interrupted", "estimated", 4),
        (
            "more after the end",
            with(completed(), openai::error_event("late", "nobody minds")),
            "ok",
            "reported",
            30,
        ),
    ];
    for (name, frames, outcome, source, output) in rows {
        let body = Bytes::from(frames.concat());
        upstream.push(Answer::sse(frames));
        let mut client = gateway.h1().await;
        let reply = client.request(&streamed("gpt-5-mini")).await.unwrap();
        assert_eq!(reply.body, body, "{name}");
        let id = reply.header("x-request-id").unwrap();
        let record = record_of(&gateway, id).await;
        assert_eq!(
            (
                &record["outcome"],
                &record["usage_source"],
                &record["output_tokens"],
                &record["status"]
            ),
            (&json!(outcome), &json!(source), &json!(output), &json!(200)),
            "{name}: {record:#}"
        );
    }
}

/// The record of a request.
async fn record_of(gateway: &Gateway, id: &str) -> Value {
    let mut found = None;
    gateway
        .wait(&format!("the record of {id}"), || {
            found = gateway
                .records()
                .into_iter()
                .find(|record| record["request_id"] == id);
            found.is_some()
        })
        .await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_name_of_the_model_comes_back() {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(Setup::with(&[&upstream])).start().await;
    let usage = Usage::default();
    // Only `model` of the response is a name of the model: texts that look like it are not.
    let text = "\"model\":\"gpt-5-mini\"";
    let json = openai::responses_json("gpt-5-mini", "r", text, usage);
    let back = |body: &[u8]| renamed(&String::from_utf8_lossy(body));
    for sizes in [vec![], vec![1, 2, 3, 100]] {
        upstream
            .push(Answer::body(200, "application/json; charset=utf-8", json.clone()).split(&sizes));
        let reply = gateway.h1().await.request(&plain("fast")).await.unwrap();
        assert_eq!(reply.text(), back(&json));
        assert_eq!(reply.json()["model"], "fast");
    }
    // What is compressed passes as it is, unread.
    upstream
        .push(Answer::body(200, "application/json", "no JSON").header("content-encoding", "br"));
    let reply = gateway.h1().await.request(&plain("fast")).await.unwrap();
    assert_eq!(
        (reply.text().as_str(), reply.header("content-encoding")),
        ("no JSON", Some("br"))
    );
    let frames = openai::responses_stream("gpt-5-mini", "r", &[text], usage).concat();
    upstream.push(Answer::sse(vec![frames.clone().into()]).split_every(11));
    let reply = gateway.h1().await.request(&streamed("fast")).await.unwrap();
    assert_eq!(reply.text(), back(&frames));
    for seen in upstream.requests() {
        assert_eq!(seen.model(), "gpt-5-mini");
        assert_eq!(
            seen.header("content-length"),
            Some(seen.body.len().to_string().as_str())
        );
    }
    // A model that is called alike everywhere is not touched.
    upstream.push(Answer::body(200, "application/json", json.clone()));
    let reply = gateway
        .h1()
        .await
        .request(&plain("gpt-5-mini"))
        .await
        .unwrap();
    assert_eq!(reply.body, json);
    let records = gateway.wait_records(5).await;
    assert_eq!(
        records
            .iter()
            .filter(|r| r["usage_source"] == "reported")
            .count(),
        4
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_shape_of_answer_is_understood() {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(Setup::with(&[&upstream])).start().await;
    let usage = Usage::default();
    for model in ["gpt-5-mini", "fast"] {
        // JSON for a stream: the client sees by the content type what it has.
        let json = openai::responses_json("gpt-5-mini", "r", "Hello", usage);
        upstream.push(Answer::body(200, "application/json", json.clone()));
        let reply = gateway.h1().await.request(&streamed(model)).await.unwrap();
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.json()["model"], model);
        assert_eq!(reply.json()["usage"]["output_tokens"], 30);
        // A stream for JSON: folded.
        let frames = openai::responses_stream("gpt-5-mini", "r", &["Hel", "lo"], usage);
        upstream.push(Answer::sse(frames).split_every(50));
        let reply = gateway.h1().await.request(&plain(model)).await.unwrap();
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (200, Some("application/json"))
        );
        let body = reply.json();
        assert_eq!(body["model"], model);
        assert_eq!(body["output"][0]["content"][0]["text"], "Hello");
        assert_eq!(body["usage"]["output_tokens"], 30);
    }
    for record in gateway.wait_records(4).await {
        assert_usage(&record, 100, 20, 30);
        assert_eq!(record["outcome"], "ok");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_an_end_is_no_json() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    upstream.push(Answer::sse(openai::responses_cut("m", "r", &["Hello"])));
    let reply = gateway
        .h1()
        .await
        .request(&plain("gpt-5-mini"))
        .await
        .unwrap();
    assert_eq!(reply.status, 502);
    assert_eq!(reply.json()["error"]["type"], "upstream_error");
    let record = gateway.only_record().await;
    assert_eq!(record["outcome"], "upstream_error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_filled_with_comments_between_frames() {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(Setup::with(&[&upstream]))
        .set("SERVER__H2C", true)
        .set("GATEWAY__KEEPALIVE_INTERVAL_MS", 100)
        .start()
        .await;
    let frames = openai::responses_stream("gpt-5-mini", "r", &["one", "two"], Usage::default());
    let whole = Bytes::from(frames.concat());
    let mut count = 0;
    for protocol in PROTOCOLS {
        for model in ["gpt-5-mini", "fast"] {
            // Before the first frame, in the preamble, after it, after output, at the end.
            for free in [0, 1, 2, deltas(&frames), frames.len()] {
                let gate = Gate::new();
                upstream.push(Answer::sse(frames.clone()).gated(free, &gate));
                let mut call = Call::send(&gateway, protocol, &streamed(model)).await;
                let head = call.head().await.unwrap();
                assert_eq!(head.status, 200);
                assert!(head.content_type.starts_with("text/event-stream"));
                let mut got = call.read_until(":\n\n", 2).await.to_vec();
                gate.open();
                let (rest, end) = call.rest().await;
                end.unwrap();
                got.extend_from_slice(&rest);
                let mut expected = String::from_utf8_lossy(&whole).into_owned();
                if model == "fast" {
                    expected = renamed(&expected);
                }
                assert_eq!(
                    without_comments(&got),
                    expected,
                    "{protocol:?} {model} {free}"
                );
                count += 1;
            }
        }
    }
    for record in gateway.wait_records(count).await {
        assert_usage(&record, 100, 20, 30);
        assert_eq!(record["outcome"], "ok");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_comment_within_a_frame() {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(Setup::with(&[&upstream]))
        .set("SERVER__H2C", true)
        .set("GATEWAY__KEEPALIVE_INTERVAL_MS", 100)
        .start()
        .await;
    let frames = openai::responses_stream("gpt-5-mini", "r", &["one", "two"], Usage::default());
    let whole = Bytes::from(frames.concat());
    let middle = frames[..deltas(&frames)].concat().len() + frames[deltas(&frames)].len() / 2;
    for protocol in PROTOCOLS {
        let gate = Gate::new();
        upstream.push(
            Answer::sse(vec![whole.clone()])
                .split(&[middle])
                .gated(1, &gate),
        );
        let mut call = Call::send(&gateway, protocol, &streamed("gpt-5-mini")).await;
        assert_eq!(call.head().await.unwrap().status, 200);
        let mut got = call.read_until("sequence_number\":4", 1).await.to_vec();
        while got.len() < middle {
            got.extend_from_slice(&call.chunk().await.unwrap().unwrap());
        }
        gate.wait_reached(1).await;
        // That nothing is written shows in nothing but time.
        tokio::time::sleep(std::time::Duration::from_millis(350)).await;
        gate.open();
        let (rest, end) = call.rest().await;
        end.unwrap();
        got.extend_from_slice(&rest);
        assert_eq!(Bytes::from(got), whole, "{protocol:?}");
        // Where frames are held to be rewritten, the client stands between two of them.
        let gate = Gate::new();
        upstream.push(
            Answer::sse(vec![whole.clone()])
                .split(&[middle])
                .gated(1, &gate),
        );
        let mut call = Call::send(&gateway, protocol, &streamed("fast")).await;
        assert_eq!(call.head().await.unwrap().status, 200);
        let mut got = call.read_until(":\n\n", 2).await.to_vec();
        gate.open();
        let (rest, end) = call.rest().await;
        end.unwrap();
        got.extend_from_slice(&rest);
        let expected = renamed(&String::from_utf8_lossy(&whole));
        assert_eq!(without_comments(&got), expected, "{protocol:?}");
    }
    gateway.wait_records(4).await;
}

/// The last event of a stream that we ended, which must be a frame of its own.
fn our_end(body: &[u8], begun_with: &str) -> Value {
    let text = String::from_utf8_lossy(body);
    let (before, event) = text.rsplit_once("event: error\ndata: ").expect("our event");
    assert!(before.starts_with(begun_with), "{before:?}");
    assert!(
        before.is_empty() || before.ends_with("\n\n") || before.ends_with("\r\n\r\n"),
        "glued to {before:?}"
    );
    assert!(event.ends_with("\n\n"));
    serde_json::from_str(event.trim_end()).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_off_ends_with_an_error_event() {
    let upstream = FakeUpstream::start().await;
    // Each row finds an account that has not failed yet.
    let gateway = Setup::new(&vec![upstream.url(); 36])
        .resources(|all| {
            for account in all["accounts"].as_array_mut().unwrap() {
                account["model_mapping"] =
                    json!({ "fast": "gpt-5-mini", "gpt-5-mini": "gpt-5-mini" });
            }
        })
        .set("SERVER__H2C", true)
        .set("GATEWAY__STALL_TIMEOUT_MS", 500)
        .start()
        .await;
    let text = "Hello wide world";
    let whole = Bytes::from(openai::responses_cut("gpt-5-mini", "r", &[text]).concat());
    let crlf = Bytes::from(String::from_utf8_lossy(&whole).replace('\n', "\r\n"));
    // A whole delta, then the half of another frame.
    let half = |whole: &Bytes| {
        let mut bytes = whole.to_vec();
        bytes.extend_from_slice(b"event: response.output_text.delta\ndata: {\"type\":\"resp");
        Bytes::from(bytes)
    };
    type End = fn(Answer) -> Answer;
    let ends: [(&str, End, &str); 3] = [
        ("reset", Answer::then_reset, "stream_read_error"),
        ("closed", Answer::then_hang_up, "stream_read_error"),
        ("stalled", Answer::then_stall, "stream_timeout"),
    ];
    let mut rows = Vec::new();
    for protocol in PROTOCOLS {
        for model in ["gpt-5-mini", "fast"] {
            for (name, end, code) in ends {
                for sent in [whole.clone(), half(&whole), crlf.clone()] {
                    rows.push((protocol, model, name, end, code, sent));
                }
            }
        }
    }
    for (protocol, model, name, end, code, sent) in rows {
        let what = format!(
            "{protocol:?} {model} {name} {}",
            String::from_utf8_lossy(&sent)
        );
        upstream.push(end(Answer::sse(vec![sent.clone()])));
        let mut call = Call::send(&gateway, protocol, &streamed(model)).await;
        let head = call.head().await.unwrap();
        let (body, ended) = call.rest().await;
        ended.unwrap_or_else(|error| panic!("{what}: {error}"));
        let begun = String::from_utf8_lossy(&whole[..60]).into_owned();
        let begun = begun.lines().next().unwrap();
        let event = our_end(&body, begun);
        assert_eq!(event["code"], code, "{what}");
        assert_eq!(event["error"]["type"], "upstream_error", "{what}");
        assert!(
            String::from_utf8_lossy(&body).contains(text),
            "what had come is not taken back: {what}"
        );
        let record = record_of(&gateway, &head.request_id).await;
        assert_eq!(record["outcome"], "interrupted", "{what}");
        assert_eq!(record["usage_source"], "estimated", "{what}");
        assert_eq!(record["output_tokens"], 4, "{what}");
        assert_eq!(record["account_switches"], 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_json_is_no_complete_answer() {
    let upstream = FakeUpstream::start().await;
    let json = openai::responses_json("gpt-5-mini", "r", "Hello wide world", Usage::default());
    let rows = || {
        let chunked = || Answer::body(200, "application/json", json.clone()).chunked(&[100, 100]);
        vec![
            Answer::body(200, "application/json", json.clone()).truncated(200),
            chunked().then_hang_up(),
            chunked().then_reset(),
        ]
    };
    for protocol in PROTOCOLS {
        for answer in rows() {
            let gateway = Setup::with(&[&upstream])
                .set("SERVER__H2C", true)
                .start()
                .await;
            let what = format!("{protocol:?} {answer:?}");
            upstream.push(answer);
            let mut call = Call::send(&gateway, protocol, &plain("gpt-5-mini")).await;
            // On HTTP/2 the reset may overtake the header.
            if let Ok(head) = call.head().await {
                assert_eq!(head.status, 200);
                let (body, end) = call.rest().await;
                assert!(end.is_err(), "{what}: a complete answer of {}", body.len());
                assert!(json.starts_with(&body));
            }
            let record = gateway.only_record().await;
            assert_eq!(record["outcome"], "interrupted", "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_many_megabytes_pass() {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(Setup::with(&[&upstream]))
        .set("SERVER__H2C", true)
        .start()
        .await;
    let large = "x".repeat(3 << 20);
    let with_output = openai::responses_stream("gpt-5-mini", "r", &[&large, "y"], Usage::default());
    // A preamble larger than what is held back: it repeats the client's instructions.
    let mut with_preamble = openai::responses_stream("gpt-5-mini", "r", &["y"], Usage::default());
    let first = String::from_utf8_lossy(&with_preamble[0]).into_owned();
    with_preamble[0] = first
        .replace(
            "\"instructions\":null",
            &format!("\"instructions\":\"{large}\""),
        )
        .into();
    let mut count = 0;
    for frames in [with_output, with_preamble] {
        let whole = String::from_utf8(frames.concat()).unwrap();
        for (protocol, model) in [
            (Protocol::H1, "gpt-5-mini"),
            (Protocol::H1, "fast"),
            (Protocol::H2, "gpt-5-mini"),
            (Protocol::H2, "fast"),
        ] {
            upstream.push(Answer::sse(frames.clone()).split_every(100_000));
            let call = Call::send(&gateway, protocol, &streamed(model)).await;
            let (status, body) = call.answer().await;
            assert_eq!(status, 200);
            let expected = if model == "fast" {
                renamed(&whole)
            } else {
                whole.clone()
            };
            assert!(
                body == expected,
                "{protocol:?} {model}: {} bytes",
                body.len()
            );
            count += 1;
        }
    }
    for record in gateway.wait_records(count).await {
        assert_usage(&record, 100, 20, 30);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_serves_one_stream_after_another() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream]).start().await;
    let mut client = gateway.h1().await;
    for model in ["fake-text", "fake-incomplete", "fake-400", "fake-text"] {
        for stream in [true, false] {
            let reply = client.request(&request(model, stream, KEY)).await.unwrap();
            assert!(
                [200, 400].contains(&reply.status),
                "{model} {}",
                reply.text()
            );
        }
    }
    let reply = client
        .request(&Request::get("/v1/models").bearer(KEY))
        .await
        .unwrap();
    assert_eq!(reply.status, 200);
    // The provider's connection is used again as well.
    assert!(upstream.connections() <= 3, "{}", upstream.connections());
    gateway.wait_records(8).await;
}
