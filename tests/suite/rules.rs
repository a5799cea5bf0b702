//! Error passthrough rules: what of an upstream's error reaches the client when the operator has a
//! word to say about it.

use serde_json::{Value, json};
use tollgate_test_support::{Answer, ClientReply, FakeUpstream, Gate, Request, sse};

use crate::call::{Call, Protocol, apart};
use crate::dialect::{Dialect, in_each_dialect};
use crate::harness::{Gateway, KEY, Setup, key_of};

const MODEL: &str = "gpt-5-mini";

/// The rules of these tests. Each has a status or a word of its own, so that all can be asked at once.
fn rules(dialect: Dialect) -> Value {
    let other = match dialect {
        Dialect::Responses => "anthropic",
        Dialect::Messages => "openai",
    };
    json!([
        { "name": "by-code", "error_codes": [451] },
        { "name": "by-keyword", "keywords": ["Quota Exceeded"] },
        { "name": "own-words", "error_codes": [452], "passthrough_body": false, "custom_message": "Our words" },
        { "name": "own-code", "error_codes": [453], "passthrough_code": false, "response_code": 503 },
        { "name": "both-own", "error_codes": [454], "passthrough_code": false, "response_code": 418,
          "passthrough_body": false, "custom_message": "A teapot" },
        { "name": "all", "error_codes": [455], "keywords": ["both"], "match_mode": "all",
          "passthrough_body": false, "custom_message": "All of it" },
        { "name": "any", "error_codes": [457], "keywords": ["either"],
          "passthrough_body": false, "custom_message": "Any of it" },
        { "name": "later", "priority": 5, "error_codes": [459], "passthrough_body": false, "custom_message": "Later" },
        { "name": "sooner", "priority": -5, "error_codes": [459], "passthrough_body": false, "custom_message": "Sooner" },
        { "name": "off", "enabled": false, "priority": -9, "error_codes": [460, 459], "passthrough_body": false, "custom_message": "Off" },
        { "name": "elsewhere", "priority": -9, "platforms": [other], "error_codes": [461, 459],
          "passthrough_body": false, "custom_message": "Elsewhere" },
        { "name": "here-too", "platforms": ["anthropic", "openai"], "error_codes": [462],
          "passthrough_body": false, "custom_message": "Here too" },
        { "name": "deep", "keywords": ["needle"], "passthrough_body": false, "custom_message": "Found" },
        { "name": "quiet", "error_codes": [463], "skip_monitoring": true },
        { "name": "before-codes", "error_codes": [464], "passthrough_body": false, "custom_message": "Before codes" },
        { "name": "redirects", "error_codes": [302], "passthrough_body": false, "custom_message": "Moved" },
        { "name": "busy", "error_codes": [529], "passthrough_code": false, "response_code": 503,
          "passthrough_body": false, "custom_message": "Busy, please retry" },
        { "name": "spent", "error_codes": [429], "keywords": ["insufficient_quota"], "match_mode": "all" },
        { "name": "broken", "error_codes": [500] },
        { "name": "quiet-and-broken", "error_codes": [504], "skip_monitoring": true },
    ])
}

fn said(status: u16, message: &str) -> Answer {
    // An error in either dialect.
    let error = json!({ "message": message, "type": "t", "code": "c" });
    Answer::json(status, &json!({ "type": "error", "error": error }))
}

/// An error whose body has the word `needle` from this byte on.
fn needle_at(status: u16, at: usize) -> Answer {
    let head = r#"{"type":"error","error":{"message":"No","type":""#;
    let body = format!("{head}{}needle\"}}}}", "x".repeat(at - head.len()));
    Answer::body(status, "application/json", body)
}

async fn send(gateway: &Gateway, request: &Request) -> ClientReply {
    gateway.h1().await.request(request).await.unwrap()
}

fn in_group(dialect: Dialect, group: &str, stream: bool) -> Request {
    let body = dialect.ask_anew(dialect.model(), stream);
    dialect.post(body.to_string(), &key_of(group))
}

/// Status and message of an error that a rule has made.
fn by_rule(status: u16, error: &Value, expected: (u16, &str), what: &str) {
    let (code, message) = expected;
    assert_eq!(status, code, "{what}: {error}");
    assert_eq!(error["message"], message, "{what}");
    assert_eq!(error["type"], "upstream_error", "{what}: {error}");
}

/// What an upstream answers, and what a rule makes of it: status and message. `None` = there is no
/// rule for it, the client gets it word for word.
type Row = (&'static str, Answer, Option<(u16, &'static str)>);

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    vec![
        ("by code", said(451, "Not here"), Some((451, "Not here"))),
        ("no code of any", said(450, "Not here"), None),
        ("by keyword, whatever its case", said(409, "the QUOTA exceeded today"), Some((409, "the QUOTA exceeded today"))),
        ("by keyword anywhere in the body", Answer::json(404, &json!({ "error": { "message": "m", "type": "quota exceeded" } })), Some((404, "m"))),
        ("half a keyword", said(409, "the quota"), None),
        ("own words", said(452, "Theirs"), Some((452, "Our words"))),
        ("own code", said(453, "Theirs"), Some((503, "Theirs"))),
        ("both own", said(454, "Theirs"), Some((418, "A teapot"))),
        ("all: both", said(455, "BOTH of them"), Some((455, "All of it"))),
        ("all: the code alone", said(455, "one"), None),
        ("all: the keyword alone", said(456, "both"), None),
        ("any: the code alone", said(457, "one"), Some((457, "Any of it"))),
        ("any: the keyword alone", said(458, "Either"), Some((458, "Any of it"))),
        ("any: both", said(457, "either"), Some((457, "Any of it"))),
        ("the first by priority", said(459, "x"), Some((459, "Sooner"))),
        ("one that is off", said(460, "x"), None),
        ("of another platform", said(461, "x"), None),
        ("of this platform too", said(462, "x"), Some((462, "Here too"))),
        // The first 8 KiB of a body are looked through.
        ("a word in time", needle_at(404, 8192 - 6), Some((404, "Found"))),
        ("a word cut off", needle_at(404, 8192 - 5), None),
        ("a word too late", needle_at(404, 8192), None),
        // Their message, wherever it stands; without secrets.
        ("a message in a message", said(451, r#"{"error":{"message":"inner"}}"#), Some((451, "inner"))),
        ("detail", Answer::json(451, &json!({ "detail": "In detail" })), Some((451, "In detail"))),
        ("message", Answer::json(451, &json!({ "message": "Plainly" })), Some((451, "Plainly"))),
        ("no message", Answer::body(451, "text/plain", "what"), Some((451, "Upstream request failed"))),
        ("a secret", said(451, "See https://x/y?key=abc123 or sk-live12345678"), Some((451, "See https://x/y?key=*** or sk-***"))),
        ("no error of a status", Answer::empty(302).header("location", "/x"), Some((502, "Moved"))),
    ]
}

in_each_dialect!(what_rules_make_of_an_error);
async fn what_rules_make_of_an_error(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .speaking(dialect)
        .resources(|all| all["error_passthrough_rules"] = rules(dialect))
        .start()
        .await;
    let mut count = 0;
    for (name, answer, expected) in rows() {
        for stream in [false, true] {
            let what = format!("{name}, stream {stream}");
            upstream.push(answer.clone());
            let body = dialect.ask_anew(dialect.model(), stream);
            let request = dialect.post(body.to_string(), KEY);
            let reply = send(&gateway, &request).await;
            match expected {
                Some(expected) => {
                    by_rule(reply.status, &reply.json()["error"], expected, &what);
                    dialect.refusal(&reply.json());
                    assert_eq!(reply.header("content-type"), Some("application/json"));
                    assert!(reply.header("location").is_none(), "{what}");
                }
                None => {
                    let whole = answer.clone();
                    let tollgate_test_support::Reply::Response(theirs) = whole.reply else {
                        panic!("{what}: a response");
                    };
                    assert_eq!(reply.status, theirs.status, "{what}");
                    assert_eq!(reply.body, theirs.pieces.concat(), "{what}");
                }
            }
            assert!(reply.header("x-request-id").is_some(), "{what}");
            count += 1;
            assert_eq!(upstream.total(), count, "{what}");
        }
    }
    for record in gateway.wait_records(usize::try_from(count).unwrap()).await {
        assert_eq!(record["outcome"], "upstream_error", "{record:#}");
        assert_eq!(record["charge"], "0", "{record:#}");
    }
}

/// What two accounts answer, one after the other, and what the client hears in the end: status,
/// message, type.
type Exhausted = (&'static str, [Answer; 2], (u16, &'static str, &'static str));

#[rustfmt::skip]
fn exhausted() -> Vec<Exhausted> {
    let ours = |status, message| (status, message, "upstream_error");
    let spent = || Answer::json(429, &json!({ "error": { "message": "Spent", "code": "insufficient_quota" } }));
    vec![
        ("the last one counts", [said(500, "First"), said(529, "Last")], ours(503, "Busy, please retry")),
        ("its status and words", [said(529, "First"), said(500, "Last")], ours(500, "Last")),
        ("a limit's own word", [said(500, "First"), spent()], ours(429, "Spent")),
        ("a limit without it", [spent(), said(429, "Slow")], (429, "Upstream rate limit exceeded, please retry later", "rate_limit_error")),
        ("no rule for the last", [said(529, "First"), said(503, "Last")], ours(502, "Upstream service temporarily unavailable")),
        ("not for transport errors", [said(529, "needle"), Answer::close()], ours(502, "Upstream request failed")),
        ("the client's fault after all", [said(500, "First"), said(451, "Yours")], ours(451, "Yours")),
    ]
}

fn two_accounts(
    dialect: Dialect,
    upstream: &FakeUpstream,
    groups: impl Iterator<Item = String>,
) -> Setup {
    let url = upstream.url();
    let mut setup =
        Setup::with(&[upstream]).resources(|all| all["error_passthrough_rules"] = rules(dialect));
    for group in groups {
        let (first, last) = (format!("first-{group}"), format!("last-{group}"));
        setup = setup.group(&group, &[(&first, &url), (&last, &url)]);
    }
    setup.speaking(dialect)
}

fn answer_in(upstream: &FakeUpstream, group: &str, answers: &[Answer; 2]) {
    upstream.push_for(&format!("sk-first-{group}"), answers[0].clone());
    upstream.push_for(&format!("sk-last-{group}"), answers[1].clone());
}

in_each_dialect!(rules_speak_when_every_account_has_failed);
async fn rules_speak_when_every_account_has_failed(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let rows = exhausted();
    let groups = (0..2 * rows.len()).map(|row| format!("g{row}"));
    let gateway = two_accounts(dialect, &upstream, groups).start().await;
    for (row, (name, answers, (status, message, kind))) in rows.iter().enumerate() {
        for (group, stream) in [(2 * row, false), (2 * row + 1, true)] {
            let group = format!("g{group}");
            answer_in(&upstream, &group, answers);
            let reply = send(&gateway, &in_group(dialect, &group, stream)).await;
            let error = reply.json();
            assert_eq!(reply.status, *status, "{name}: {error}");
            assert_eq!(dialect.refusal(&error), (*kind, *message), "{name}");
        }
    }
    for record in gateway.wait_records(2 * rows.len()).await {
        assert_eq!(record["attempts"], 2, "{record:#}");
        assert_eq!(record["account_switches"], 1, "{record:#}");
        assert_eq!(record["outcome"], "upstream_error", "{record:#}");
    }
}

in_each_dialect!(after_a_ping_a_rule_speaks_in_an_event);
async fn after_a_ping_a_rule_speaks_in_an_event(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let rows = [
        (
            "does-not-fail-over",
            [said(451, "Yours"), said(500, "Not asked")],
            "Yours",
        ),
        (
            "own-words",
            [said(452, "Theirs"), said(500, "Not asked")],
            "Our words",
        ),
        (
            "exhausted",
            [said(500, "First"), said(529, "Last")],
            "Busy, please retry",
        ),
    ];
    let gateway = two_accounts(
        dialect,
        &upstream,
        rows.iter().map(|(group, ..)| (*group).to_owned()),
    )
    .resources(|all| all["users"][0]["concurrency"] = json!(1))
    .set("CONCURRENCY__PING_INTERVAL_MS", 100)
    .start()
    .await;
    for (group, answers, message) in rows {
        answer_in(&upstream, group, &answers);
        // Another request has the user's slot.
        let gate = Gate::new();
        upstream.push_for("sk-a1", Answer::echo().after(&gate));
        let held = dialect.apart(dialect.model());
        let held = Call::send(&gateway, Protocol::H1, &held).await;
        gate.wait_reached(1).await;
        let mut call = Call::send(&gateway, Protocol::H1, &in_group(dialect, group, true)).await;
        assert_eq!(call.head().await.unwrap().status, 200);
        call.read_until(dialect.ping(), 1).await;
        gate.open();
        assert_eq!(held.answer().await.0, 200);
        let (body, end) = call.rest().await;
        end.unwrap();
        let events = sse::events(dialect.without_pings(&body).as_bytes());
        assert_eq!(events.len(), 1, "{group}: {body:?}");
        assert_eq!(events[0].name, "error", "{group}");
        let event = events[0].json();
        by_rule(200, &event["error"], (200, message), group);
    }
    gateway.wait_records(2 * 3).await;
}

in_each_dialect!(a_rule_changes_nothing_for_the_account);
async fn a_rule_changes_nothing_for_the_account(dialect: Dialect) {
    let upstream = FakeUpstream::start().await;
    let own_words = |code: u16| json!([{ "name": "r", "error_codes": [code], "passthrough_body": false, "custom_message": "Words" }]);
    let codes = json!({ "custom_error_codes_enabled": true, "custom_error_codes": [500] });
    // Status, the account's options, what is said of the account afterwards.
    let rows = [
        (401, json!({}), "error"),
        (529, json!({}), "overloaded"),
        (404, json!({}), "active"),
        // A rule comes before the account's custom codes, which come before all else.
        (464, codes.clone(), "active"),
        (401, codes, "active"),
    ];
    for (code, extra, status) in rows {
        let gateway = Setup::with(&[&upstream])
            .speaking(dialect)
            .set("GATEWAY__INNER_RETRIES", "off")
            .resources(|all| {
                all["error_passthrough_rules"] = own_words(code);
                all["accounts"][0]["extra"] = extra;
            })
            .start()
            .await;
        upstream.push(said(code, "Theirs"));
        let reply = send(&gateway, &dialect.apart(dialect.model())).await;
        by_rule(
            reply.status,
            &reply.json()["error"],
            (code, "Words"),
            status,
        );
        gateway
            .wait(status, || {
                gateway.run_json(&["accounts", "show", "a1", "--json"])["status"] == status
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_monitored_is_recorded_all_the_same() {
    let upstream = FakeUpstream::start().await;
    let groups = ["loud", "quiet", "quiet-and-broken"];
    let dialect = Dialect::Responses;
    let gateway = two_accounts(dialect, &upstream, groups.iter().map(|g| (*g).to_owned()))
        .start()
        .await;
    let rows = [
        ("quiet", [said(463, "x"), said(500, "Not asked")], 463),
        ("quiet-and-broken", [said(500, "x"), said(504, "y")], 504),
        ("loud", [said(451, "x"), said(500, "Not asked")], 451),
    ];
    let mut ids = Vec::new();
    for (group, answers, status) in rows {
        answer_in(&upstream, group, &answers);
        let reply = send(&gateway, &in_group(dialect, group, false)).await;
        assert_eq!(reply.status, status, "{group}");
        ids.push(reply.header("x-request-id").unwrap().to_owned());
    }
    for record in gateway.wait_records(3).await {
        assert_eq!(record["outcome"], "upstream_error", "{record:#}");
        assert!(ids.contains(&record["request_id"].as_str().unwrap().to_owned()));
    }
    // Lines are written in the order of the requests: the last is the only one.
    let is_logged = |id: &String| {
        let log = gateway.logged();
        let mut lines = log.lines().filter(|line| line.contains("tollgate::access"));
        lines.any(|line| line.contains(id))
    };
    gateway.wait("the line", || is_logged(&ids[2])).await;
    assert_eq!(
        ids.iter().map(is_logged).collect::<Vec<_>>(),
        [false, false, true]
    );
    let ended = |status: &str, outcome: &str| {
        gateway.metric(&format!(
            "requests_total{{endpoint=\"responses\",outcome=\"{outcome}\",status=\"{status}\"}}"
        ))
    };
    assert_eq!(ended("4xx", "upstream_error"), 1.0);
    assert_eq!(ended("4xx", "unmonitored"), 1.0);
    assert_eq!(ended("5xx", "unmonitored"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_follows_and_the_rules_are_shown() {
    let upstream = FakeUpstream::start().await;
    upstream.otherwise(said(451, "Theirs"));
    let gateway = Setup::with(&[&upstream]).start().await;
    let message = async || {
        let reply = send(&gateway, &apart(MODEL)).await;
        assert_eq!(reply.status, 451, "{}", reply.text());
        let error = reply.json()["error"].clone();
        (
            error["message"].as_str().unwrap().to_owned(),
            error["type"] == "upstream_error",
        )
    };
    let words = |words: &str| {
        json!({ "error_passthrough_rules": [
            { "name": "r", "priority": 7, "error_codes": [451], "platforms": ["openai"], "passthrough_body": false,
              "custom_message": words, "skip_monitoring": true, "description": "why" },
        ] })
    };
    let follows = async |resources: &Value, expected: (&str, bool)| {
        let before = gateway.metric("directory_reloads_total");
        gateway.apply(resources);
        gateway
            .wait("the server follows", || {
                gateway.metric("directory_reloads_total") > before
            })
            .await;
        let (message, of_ours) = message().await;
        assert_eq!((&*message, of_ours), expected);
    };
    assert_eq!(message().await, ("Theirs".to_owned(), false));
    assert_eq!(gateway.run_json(&["rules", "list", "--json"]), json!([]));
    follows(&words("One"), ("One", true)).await;
    follows(&words("Two"), ("Two", true)).await;

    let shown = gateway.run_json(&["rules", "show", "r", "--json"]);
    for (field, value) in [
        ("name", json!("r")),
        ("enabled", json!(true)),
        ("priority", json!(7)),
        ("error_codes", json!([451])),
        ("keywords", json!([])),
        ("match_mode", json!("any")),
        ("platforms", json!(["openai"])),
        ("passthrough_code", json!(true)),
        ("response_code", Value::Null),
        ("passthrough_body", json!(false)),
        ("custom_message", json!("Two")),
        ("skip_monitoring", json!(true)),
        ("description", json!("why")),
    ] {
        assert_eq!(shown[field], value, "{field}: {shown:#}");
    }
    let output = gateway.try_run(&["rules", "show", "q"], "");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("there is no rule \"q\""), "{told}");

    // Another comes first; the list is in the order in which they are asked.
    let mut both = words("Two");
    let sooner = json!({ "name": "z", "priority": 1, "keywords": ["THEIRS"], "match_mode": "all" });
    both["error_passthrough_rules"]
        .as_array_mut()
        .unwrap()
        .push(sooner);
    follows(&both, ("Theirs", true)).await;
    let list = gateway.run_json(&["rules", "list", "--json"]);
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["z", "r"]);
    let table = gateway.run(&["rules", "list"]);
    assert!(
        table.starts_with("NAME") && table.contains("THEIRS"),
        "{table}"
    );

    // Off, one by one.
    both["error_passthrough_rules"][1]["enabled"] = json!(false);
    follows(&both, ("Two", true)).await;
    both["error_passthrough_rules"][0]["enabled"] = json!(false);
    follows(&both, ("Theirs", false)).await;
    assert_eq!(
        gateway.run_json(&["rules", "show", "r", "--json"])["enabled"],
        json!(false)
    );

    // One that could never match, and others that cannot be: nothing is applied.
    let wrong = json!({ "error_passthrough_rules": [
        { "name": "a" },
        { "name": "b", "error_codes": [400], "passthrough_code": false },
        { "name": "c", "error_codes": [400], "passthrough_body": false },
        { "name": "d", "error_codes": [99] },
        { "name": "r", "error_codes": [451], "enabled": true, "match_mode": "some" },
    ] });
    let output = gateway.try_run(&["apply", "-f", "-"], &wrong.to_string());
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    for text in [
        "error_codes",
        "response_code",
        "custom_message",
        "99",
        "match_mode",
    ] {
        assert!(told.contains(text), "{text}: {told}");
    }
    assert_eq!(
        gateway
            .run_json(&["rules", "list", "--json"])
            .as_array()
            .unwrap()
            .len(),
        2
    );
}
