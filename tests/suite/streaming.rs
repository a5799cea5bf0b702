//! An answer on its way to the client: its bytes, when they come, what is read from them, and how
//! it ends when the provider does not end it.

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use tollgate_test_support::anthropic::{Block, Message};
use tollgate_test_support::{Answer, FakeUpstream, Gate, H1Client, Request, Usage, openai};

use crate::call::{Call, PROTOCOLS, Protocol};
use crate::dialect::{CACHED, DIALECTS, Dialect, INPUT, OUTPUT, in_each_dialect};
use crate::harness::{Gateway, KEY, Setup};

/// A whole stream short enough to be cut everywhere: a comment, a character of two bytes, an
/// unknown event, and something after the end.
fn short(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Responses => SHORT_RESPONSE,
        Dialect::Messages => SHORT_MESSAGE,
    }
}

const SHORT_RESPONSE: &str = "event: response.created\n\
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

/// Its usage comes in two parts, the first in another order than usual; the texts look like a name of the model.
const SHORT_MESSAGE: &str = "event: message_start\n\
data: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-sonnet-4-5\",\"usage\":\
{\"output_tokens\":1,\"cache_read_input_tokens\":4,\"input_tokens\":5}}}\n\
\n\
: a comment\n\
\n\
data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\
\"text\":\"\\\"claude-sonnet-4-5\\\" ü\"}}\n\
\n\
event: x\n\
data: 1\n\
data: 2\n\
\n\
data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":2}}\n\
\n\
event: message_stop\n\
data: {\"type\":\"message_stop\"}\n\
\n\
data: late\n\
\n";

/// A stream as a client sees it that calls the model `fast`.
fn renamed(dialect: Dialect, stream: &str) -> String {
    let name = format!("\"model\":\"{}\"", dialect.model());
    stream.replace(&name, "\"model\":\"fast\"")
}

/// Accounts that know the model as `fast` as well.
fn with_mapping(dialect: Dialect, setup: Setup) -> Setup {
    let model = dialect.model();
    setup.speaking(dialect).resources(|all| {
        for account in all["accounts"].as_array_mut().unwrap() {
            account["model_mapping"] = json!({ "fast": model, model: model });
        }
    })
}

/// Frames up to the first delta.
fn deltas(dialect: Dialect, frames: &[Bytes]) -> usize {
    let event = format!("{}\n", dialect.delta());
    let is_delta = |f: &Bytes| String::from_utf8_lossy(f).contains(&event);
    frames.iter().position(is_delta).expect("a delta") + 1
}

/// Asks for each answer in turn and compares what the client gets with `expected`.
async fn expect_bytes(
    dialect: Dialect,
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
        let reply = client.request(&dialect.streamed(model)).await.unwrap();
        assert_eq!(reply.status, 200);
        assert_eq!(reply.text(), expected, "{what}");
        count += 1;
    }
    count
}

/// The usage of every whole answer that is not written out here.
fn assert_whole(record: &Value) {
    assert_usage(record, INPUT, CACHED, OUTPUT);
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

in_each_dialect!(a_stream_passes_unchanged_wherever_it_is_cut);
async fn a_stream_passes_unchanged_wherever_it_is_cut(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(dialect, Setup::with(&[&upstream]))
        .start()
        .await;
    let mut client = gateway.h1().await;
    let short = short(dialect);
    let crlf = short.replace('\n', "\r\n");
    let cr = short.replace('\n', "\r");
    // The end of the connection ends the last event as well as a blank line does.
    let (unended, _) = short.trim_end().rsplit_once("data: ").unwrap();
    let unended = unended.trim_end();
    let mut count = 0;
    for stream in [short, &crlf, &cr, unended] {
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
        count += expect_bytes(
            dialect,
            &upstream,
            &mut client,
            dialect.model(),
            stream,
            answers,
        )
        .await;
    }
    for record in gateway.wait_records(count).await {
        assert_usage(&record, 5, 4, 2);
        assert_eq!(record["outcome"], "ok", "{record:#}");
    }
}

in_each_dialect!(a_mapped_model_is_put_back_wherever_the_stream_is_cut);
async fn a_mapped_model_is_put_back_wherever_the_stream_is_cut(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(dialect, Setup::with(&[&upstream]))
        .start()
        .await;
    let mut client = gateway.h1().await;
    let short = short(dialect);
    let crlf = short.replace('\n', "\r\n");
    let mut count = 0;
    for stream in [short, &crlf] {
        let whole = || Answer::sse(vec![Bytes::from(stream.to_owned())]);
        let answers = [1, 2, 3, 7, 64]
            .into_iter()
            .map(|size| whole().split_every(size))
            .chain((1..stream.len()).step_by(3).map(|at| whole().split(&[at])));
        let expected = renamed(dialect, stream);
        count += expect_bytes(dialect, &upstream, &mut client, "fast", &expected, answers).await;
    }
    for record in gateway.wait_records(count).await {
        assert_usage(&record, 5, 4, 2);
        assert_eq!(record["requested_model"], "fast");
        assert_eq!(record["upstream_model"], dialect.model());
        let chain = format!("fast→{}", dialect.model());
        assert_eq!(record["model_mapping_chain"], chain);
    }
    assert!(
        upstream
            .requests()
            .iter()
            .all(|seen| seen.model() == dialect.model())
    );
}

/// Streams of all kinds of events, in all kinds of lines, cut anywhere.
#[test]
fn any_stream_cut_anywhere_is_relayed_byte_for_byte() {
    for dialect in DIALECTS {
        any_stream_of(dialect);
    }
}

fn any_stream_of(dialect: Dialect) {
    let line_end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
    let text = "[a-zäß🦀\":{} \\\\]{0,12}";
    let event = (0..6u8, text, line_end.clone()).prop_map(move |(kind, text, end)| {
        let text = Value::from(text).to_string();
        match (kind, dialect) {
            (0, _) => format!(": {text}{end}{end}"),
            (1, Dialect::Responses) => format!("event: response.in_progress{end}data: {{\"type\":\"response.in_progress\"}}{end}{end}"),
            (1, Dialect::Messages) => format!("event: content_block_start{end}data: {{\"type\":\"content_block_start\",\"index\":0,\"content_block\":{{\"type\":\"text\",\"text\":{text}}}}}{end}{end}"),
            (2, Dialect::Responses) => format!("data:{{\"type\":\"response.output_text.delta\",\"delta\":{text}}}{end}{end}"),
            (2, Dialect::Messages) => format!("data:{{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":{text}}}}}{end}{end}"),
            (3, _) => format!("id: 7{end}retry: 1{end}event: new.kind{end}data: {text}{end}data{end}{end}"),
            (4, _) => end.to_owned(),
            (_, Dialect::Responses) => format!("event:keepalive{end}data: {{}}{end}{end}"),
            (_, Dialect::Messages) => format!("event:ping{end}data: {{\"type\":\"ping\"}}{end}{end}"),
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
        let setup = Setup::with(&[&upstream]).speaking(dialect);
        (upstream, setup.start().await)
    });
    let mut runner = TestRunner::new(Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    });
    let seen = std::cell::RefCell::new(Vec::new());
    runner
        .run(&stream, |(bom, events, end, tokens, cuts)| {
            let (fresh, cached, output) = tokens;
            let (first, last) = usage_events(dialect, tokens, end);
            let bom = if bom { "\u{feff}" } else { "" };
            let body = format!("{bom}{first}{}{last}", events.concat());
            let answer = Answer::sse(vec![Bytes::from(body.clone())]).split(&cuts);
            upstream.push(answer);
            let reply = runtime.block_on(async {
                let mut client = gateway.h1().await;
                client.request(&dialect.streamed(dialect.model())).await
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

/// What stands at the beginning and at the end of a stream that uses so many tokens: fresh, cached, output.
fn usage_events(dialect: Dialect, tokens: (u64, u64, u64), end: &str) -> (String, String) {
    let (fresh, cached, output) = tokens;
    match dialect {
        Dialect::Responses => {
            let last = format!(
                "data: {{\"type\":\"response.completed\",\"response\":{{\"id\":\"r\",\"usage\":{{\"input_tokens\":{},\
                 \"input_tokens_details\":{{\"cached_tokens\":{cached}}},\"output_tokens\":{output}}}}}}}{end}{end}",
                fresh + cached
            );
            (String::new(), last)
        }
        Dialect::Messages => {
            let first = format!(
                "event: message_start{end}data: {{\"type\":\"message_start\",\"message\":{{\"id\":\"r\",\"usage\":{{\
                 \"input_tokens\":{fresh},\"cache_read_input_tokens\":{cached},\"output_tokens\":1}}}}}}{end}{end}"
            );
            let last = format!(
                "data: {{\"type\":\"message_delta\",\"delta\":{{}},\"usage\":{{\"output_tokens\":{output}}}}}{end}{end}\
                 event:message_stop{end}data: {{\"type\":\"message_stop\"}}{end}{end}"
            );
            (first, last)
        }
    }
}

in_each_dialect!(frames_arrive_as_they_come);
async fn frames_arrive_as_they_come(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .speaking(dialect)
        .set("SERVER__H2C", true)
        .start()
        .await;
    for protocol in PROTOCOLS {
        let gate = Gate::new();
        let frames = dialect.stream("r", &["one", "two"]);
        let first = deltas(dialect, &frames);
        upstream.push(Answer::sse(frames.clone()).gated(first, &gate));
        let request = dialect.streamed(dialect.model());
        let mut call = Call::send(&gateway, protocol, &request).await;
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
        assert_whole(&record);
    }
}

in_each_dialect!(the_first_token_is_the_first_output);
async fn the_first_token_is_the_first_output(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let gateway = setup.start().await;
    let gate = Gate::new();
    let preamble = dialect.preamble("r").len();
    upstream.push(dialect.sse("r", &["one"]).gated(preamble, &gate));
    let request = dialect.streamed(dialect.model());
    let call = Call::send(&gateway, Protocol::H1, &request).await;
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

in_each_dialect!(every_end_of_a_stream_is_recorded_as_it_was);
async fn every_end_of_a_stream_is_recorded_as_it_was(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let gateway = setup.start().await;
    let rows = match dialect {
        Dialect::Responses => ends_of_responses(),
        Dialect::Messages => ends_of_messages(),
    };
    for (name, frames, outcome, source, output) in rows {
        let body = Bytes::from(frames.concat());
        upstream.push(Answer::sse(frames));
        let mut client = gateway.h1().await;
        let request = dialect.streamed(dialect.model());
        let reply = client.request(&request).await.unwrap();
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

/// A stream and what is recorded of it: its name, what the provider sends, the outcome, where usage comes from, output
/// tokens.
type Ended = (&'static str, Vec<Bytes>, &'static str, &'static str, u64);

fn ends_of_responses() -> Vec<Ended> {
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
    vec![
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
    ]
}

fn ends_of_messages() -> Vec<Ended> {
    const BLOCKS: &[Block<'static>] = &[Block::Text(&["Hello wide world"])];
    let message = Message::new(Dialect::Messages.model(), "r", BLOCKS);
    let whole = message.stream().len();
    // All of it but `message_delta` and `message_stop`, then `message_delta` as well.
    let (unsaid, unstopped) = (message.cut(whole - 2), message.cut(whole - 1));
    let failed = |events| message.failed(events, "api_error", "no");
    let mut rows = vec![
        ("no end", unsaid, "interrupted", "estimated", 4),
        ("no stop", unstopped, "interrupted", "reported", OUTPUT),
        (
            "failed",
            failed(whole - 2),
            "upstream_error",
            "estimated",
            4,
        ),
        (
            "failed, and said how much",
            failed(whole - 1),
            "upstream_error",
            "reported",
            OUTPUT,
        ),
        (
            "more after the end",
            failed(whole),
            "ok",
            "reported",
            OUTPUT,
        ),
    ];
    let reasons = [
        "end_turn",
        "max_tokens",
        "stop_sequence",
        "tool_use",
        "refusal",
        "pause_turn",
        "new_reason",
    ];
    rows.extend(reasons.map(|reason| {
        let frames = message.stop_reason(reason).stream();
        (reason, frames, "ok", "reported", OUTPUT)
    }));
    rows
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

in_each_dialect!(the_clients_name_of_the_model_comes_back);
async fn the_clients_name_of_the_model_comes_back(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(dialect, Setup::with(&[&upstream]))
        .start()
        .await;
    // Only `model` of the response is a name of the model: texts that look like it are not.
    let text = format!("\"model\":\"{}\"", dialect.model());
    let json = dialect.json("r", &text);
    let back = |body: &[u8]| renamed(dialect, &String::from_utf8_lossy(body));
    for sizes in [vec![], vec![1, 2, 3, 100]] {
        upstream
            .push(Answer::body(200, "application/json; charset=utf-8", json.clone()).split(&sizes));
        let reply = gateway
            .h1()
            .await
            .request(&dialect.plain("fast"))
            .await
            .unwrap();
        assert_eq!(reply.text(), back(&json));
        assert_eq!(reply.json()["model"], "fast");
    }
    // What is compressed passes as it is, unread.
    upstream
        .push(Answer::body(200, "application/json", "no JSON").header("content-encoding", "br"));
    let reply = gateway
        .h1()
        .await
        .request(&dialect.plain("fast"))
        .await
        .unwrap();
    assert_eq!(
        (reply.text().as_str(), reply.header("content-encoding")),
        ("no JSON", Some("br"))
    );
    let frames = dialect.stream("r", &[&text]).concat();
    upstream.push(Answer::sse(vec![frames.clone().into()]).split_every(11));
    let reply = gateway
        .h1()
        .await
        .request(&dialect.streamed("fast"))
        .await
        .unwrap();
    assert_eq!(reply.text(), back(&frames));
    for seen in upstream.requests() {
        assert_eq!(seen.model(), dialect.model());
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
        .request(&dialect.plain(dialect.model()))
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

in_each_dialect!(the_other_shape_of_answer_is_understood);
async fn the_other_shape_of_answer_is_understood(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(dialect, Setup::with(&[&upstream]))
        .start()
        .await;
    for model in [dialect.model(), "fast"] {
        // JSON for a stream: the client sees by the content type what it has.
        upstream.push(dialect.body("r", "Hello"));
        let mut client = gateway.h1().await;
        let reply = client.request(&dialect.streamed(model)).await.unwrap();
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.json()["model"], model);
        assert_eq!(reply.json()["usage"]["output_tokens"], OUTPUT);
        // A stream for JSON: folded.
        upstream.push(dialect.sse("r", &["Hel", "lo"]).split_every(50));
        let mut client = gateway.h1().await;
        let reply = client.request(&dialect.plain(model)).await.unwrap();
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (200, Some("application/json"))
        );
        let body = reply.json();
        assert_eq!(body["model"], model);
        assert_eq!(dialect.text(&body), "Hello");
        assert_eq!(body["usage"]["output_tokens"], OUTPUT);
    }
    for record in gateway.wait_records(4).await {
        assert_whole(&record);
        assert_eq!(record["outcome"], "ok");
    }
}

in_each_dialect!(a_stream_without_an_end_is_no_json);
async fn a_stream_without_an_end_is_no_json(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let gateway = setup.start().await;
    upstream.push(Answer::sse(dialect.cut("r", &["Hello"])));
    let reply = gateway
        .h1()
        .await
        .request(&dialect.plain(dialect.model()))
        .await
        .unwrap();
    assert_eq!(reply.status, 502);
    assert_eq!(dialect.refusal(&reply.json()).0, "upstream_error");
    let record = gateway.only_record().await;
    assert_eq!(record["outcome"], "upstream_error");
}

in_each_dialect!(silence_is_filled_with_comments_between_frames);
async fn silence_is_filled_with_comments_between_frames(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(dialect, Setup::with(&[&upstream]))
        .set("SERVER__H2C", true)
        .set("GATEWAY__KEEPALIVE_INTERVAL_MS", 100)
        .start()
        .await;
    let frames = dialect.stream("r", &["one", "two"]);
    let whole = Bytes::from(frames.concat());
    let mut count = 0;
    for protocol in PROTOCOLS {
        for model in [dialect.model(), "fast"] {
            // Before the first frame, in the preamble, after it, after output, at the end.
            for free in [0, 1, 2, deltas(dialect, &frames), frames.len()] {
                let gate = Gate::new();
                upstream.push(Answer::sse(frames.clone()).gated(free, &gate));
                let mut call = Call::send(&gateway, protocol, &dialect.streamed(model)).await;
                let head = call.head().await.unwrap();
                assert_eq!(head.status, 200);
                assert!(head.content_type.starts_with("text/event-stream"));
                let mut got = call.read_until(dialect.ping(), 2).await.to_vec();
                gate.open();
                let (rest, end) = call.rest().await;
                end.unwrap();
                got.extend_from_slice(&rest);
                let mut expected = String::from_utf8_lossy(&whole).into_owned();
                if model == "fast" {
                    expected = renamed(dialect, &expected);
                }
                assert_eq!(
                    dialect.without_pings(&got),
                    expected,
                    "{protocol:?} {model} {free}"
                );
                count += 1;
            }
        }
    }
    for record in gateway.wait_records(count).await {
        assert_whole(&record);
        assert_eq!(record["outcome"], "ok");
    }
}

in_each_dialect!(no_comment_within_a_frame);
async fn no_comment_within_a_frame(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(dialect, Setup::with(&[&upstream]))
        .set("SERVER__H2C", true)
        .set("GATEWAY__KEEPALIVE_INTERVAL_MS", 100)
        .start()
        .await;
    let frames = dialect.stream("r", &["one", "two"]);
    let whole = Bytes::from(frames.concat());
    let first = deltas(dialect, &frames);
    let middle = frames[..first].concat().len() + frames[first].len() / 2;
    for protocol in PROTOCOLS {
        let gate = Gate::new();
        upstream.push(
            Answer::sse(vec![whole.clone()])
                .split(&[middle])
                .gated(1, &gate),
        );
        let request = dialect.streamed(dialect.model());
        let mut call = Call::send(&gateway, protocol, &request).await;
        assert_eq!(call.head().await.unwrap().status, 200);
        let mut got = call.read_until("\"one\"", 1).await.to_vec();
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
        let mut call = Call::send(&gateway, protocol, &dialect.streamed("fast")).await;
        assert_eq!(call.head().await.unwrap().status, 200);
        let mut got = call.read_until(dialect.ping(), 2).await.to_vec();
        gate.open();
        let (rest, end) = call.rest().await;
        end.unwrap();
        got.extend_from_slice(&rest);
        let expected = renamed(dialect, &String::from_utf8_lossy(&whole));
        assert_eq!(dialect.without_pings(&got), expected, "{protocol:?}");
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

in_each_dialect!(a_stream_that_breaks_off_ends_with_an_error_event);
async fn a_stream_that_breaks_off_ends_with_an_error_event(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    // Each row finds an account that has not failed yet.
    let gateway = with_mapping(dialect, Setup::new(&vec![upstream.url(); 36]))
        .set("SERVER__H2C", true)
        .set("GATEWAY__STALL_TIMEOUT_MS", 500)
        .start()
        .await;
    let text = "Hello wide world";
    let whole = Bytes::from(dialect.cut("r", &[text]).concat());
    let crlf = Bytes::from(String::from_utf8_lossy(&whole).replace('\n', "\r\n"));
    // A whole delta, then the half of another frame.
    let half = |whole: &Bytes| {
        let mut bytes = whole.to_vec();
        let half = format!("event: {}\ndata: {{\"type\":\"", dialect.delta());
        bytes.extend_from_slice(half.as_bytes());
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
        for model in [dialect.model(), "fast"] {
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
        let mut call = Call::send(&gateway, protocol, &dialect.streamed(model)).await;
        let head = call.head().await.unwrap();
        let (body, ended) = call.rest().await;
        ended.unwrap_or_else(|error| panic!("{what}: {error}"));
        let begun = String::from_utf8_lossy(&whole[..60]).into_owned();
        let begun = begun.lines().next().unwrap();
        let event = our_end(&body, begun);
        let (kind, message) = dialect.refusal(&event);
        assert_eq!(kind, "upstream_error", "{what}");
        match dialect {
            Dialect::Responses => assert_eq!(event["code"], code, "{what}"),
            Dialect::Messages => assert_eq!(message, code, "{what}"),
        }
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

in_each_dialect!(cut_json_is_no_complete_answer);
async fn cut_json_is_no_complete_answer(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let json = dialect.json("r", "Hello wide world");
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
                .speaking(dialect)
                .set("SERVER__H2C", true)
                .start()
                .await;
            let what = format!("{protocol:?} {answer:?}");
            upstream.push(answer);
            let request = dialect.plain(dialect.model());
            let mut call = Call::send(&gateway, protocol, &request).await;
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

in_each_dialect!(events_of_many_megabytes_pass);
async fn events_of_many_megabytes_pass(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = with_mapping(dialect, Setup::with(&[&upstream]))
        .set("SERVER__H2C", true)
        .start()
        .await;
    let large = "x".repeat(3 << 20);
    let with_output = dialect.stream("r", &[&large, "y"]);
    // A preamble larger than what is held back: it repeats the client's instructions, or has a long id.
    let mut with_preamble = dialect.stream("r", &["y"]);
    let first = String::from_utf8_lossy(&with_preamble[0]).into_owned();
    let (short, long) = match dialect {
        Dialect::Responses => ("\"instructions\":null", "\"instructions\":\"LONG\""),
        Dialect::Messages => ("\"id\":\"r\"", "\"id\":\"LONG\""),
    };
    let long = long.replace("LONG", &large);
    with_preamble[0] = first.replace(short, &long).into();
    assert!(with_preamble[0].len() > large.len());
    let mut count = 0;
    for frames in [with_output, with_preamble] {
        let whole = String::from_utf8(frames.concat()).unwrap();
        for (protocol, model) in [
            (Protocol::H1, dialect.model()),
            (Protocol::H1, "fast"),
            (Protocol::H2, dialect.model()),
            (Protocol::H2, "fast"),
        ] {
            upstream.push(Answer::sse(frames.clone()).split_every(100_000));
            let call = Call::send(&gateway, protocol, &dialect.streamed(model)).await;
            let (status, body) = call.answer().await;
            assert_eq!(status, 200);
            let expected = if model == "fast" {
                renamed(dialect, &whole)
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
        assert_whole(&record);
    }
}

in_each_dialect!(a_connection_serves_one_stream_after_another);
async fn a_connection_serves_one_stream_after_another(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let setup = Setup::with(&[&upstream]).speaking(dialect);
    let gateway = setup.start().await;
    let mut client = gateway.h1().await;
    for model in ["fake-text", "fake-incomplete", "fake-400", "fake-text"] {
        for stream in [true, false] {
            let request = dialect.request(model, stream, KEY);
            let reply = client.request(&request).await.unwrap();
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
