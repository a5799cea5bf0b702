//! What upstream errors mean for an account: who serves the request in its place, what the client
//! hears, how the account is shown, what outlasts a restart, and what ends it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tollgate::domain::{Condition, ConditionKind, Conditions, Secret};
use tollgate::storage::{ConditionChanges, Store};
use tollgate_test_support::answer::Reply;
use tollgate_test_support::{
    Alpn, Answer, ClientReply, FakeUpstream, Gate, Request, TestCa, Usage, openai,
};

use crate::call::{Call, Protocol, apart};
use crate::harness::{Gateway, LIMIT, Setup, ask_anew, free_address, key_of};

const MODEL: &str = "gpt-5-mini";
const OTHER_MODEL: &str = "gpt-5";

/// What an account answers once, and what is to come of it. Another account could serve as well.
struct Row {
    name: &'static str,
    answer: Answer,
    /// The account's options.
    extra: Value,
    client: Client,
    /// The attempt in the record and the metrics.
    result: &'static str,
    leaves: Option<Leaves>,
}

/// What the client gets.
#[derive(Clone, Copy)]
enum Client {
    /// The other account's answer.
    Served,
    /// This status, and a message with this in it.
    Told(u16, &'static str),
}

/// The condition that stays.
#[derive(Clone)]
struct Leaves {
    kind: &'static str,
    lasts: Lasts,
    /// Only the model of the request is concerned.
    of_model: bool,
    reason: &'static str,
}

#[derive(Clone, Copy)]
enum Lasts {
    /// Until an operator says otherwise.
    Ever,
    Millis(i64),
    /// Until this Unix time in seconds, which the answer names.
    Until(u64),
}

const fn seconds(seconds: i64) -> Lasts {
    Lasts::Millis(seconds * 1000)
}

fn served(name: &'static str, answer: Answer, result: &'static str) -> Row {
    Row {
        name,
        answer,
        extra: json!({}),
        client: Client::Served,
        result,
        leaves: None,
    }
}

fn told(name: &'static str, answer: Answer, result: &'static str, client: Client) -> Row {
    Row {
        client,
        ..served(name, answer, result)
    }
}

impl Row {
    fn leaves(self, kind: &'static str, lasts: Lasts, reason: &'static str) -> Row {
        let leaves = Leaves {
            kind,
            lasts,
            of_model: false,
            reason,
        };
        Row {
            leaves: Some(leaves),
            ..self
        }
    }

    fn of_model(mut self) -> Row {
        if let Some(leaves) = &mut self.leaves {
            leaves.of_model = true;
        }
        self
    }

    fn with(self, extra: Value) -> Row {
        Row { extra, ..self }
    }

    /// The upstream's status, where it says that something is wrong.
    fn status(&self) -> Option<u16> {
        match &self.answer.reply {
            Reply::Response(response) => Some(response.status).filter(|status| *status != 200),
            _ => None,
        }
    }
}

/// An error object of OpenAI's.
fn error(status: u16, kind: &str, code: &str, message: &str) -> Answer {
    let body = json!({ "error": { "message": message, "type": kind, "code": code } });
    Answer::json(status, &body)
}

fn said(status: u16, message: &str) -> Answer {
    error(status, "some_error", "some_code", message)
}

fn limited(fields: &[(&str, &str)]) -> Answer {
    let answer = said(429, "Slow down");
    fields
        .iter()
        .fold(answer, |answer, (name, value)| answer.header(name, value))
}

/// A 429 with both of the subscription's windows: percent used and seconds left, of seven days and of
/// five hours.
fn windows(long: (&str, &str), short: (&str, &str)) -> Answer {
    limited(&[
        ("x-codex-primary-used-percent", long.0),
        ("x-codex-primary-reset-after-seconds", long.1),
        ("x-codex-primary-window-minutes", "10080"),
        ("x-codex-secondary-used-percent", short.0),
        ("x-codex-secondary-reset-after-seconds", short.1),
        ("x-codex-secondary-window-minutes", "300"),
    ])
}

/// A Unix time that is to come.
fn in_seconds(seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs() + seconds
}

fn rules(enabled: bool) -> Value {
    json!({
        "temp_unschedulable_enabled": enabled,
        "temp_unschedulable_rules": [
            { "error_code": 503, "keywords": ["nothing", "MAINTENANCE"], "duration_minutes": 15, "description": "planned work" },
            { "error_code": 503, "keywords": ["under"], "duration_minutes": 60 },
            { "error_code": 404, "keywords": ["no longer yours"], "duration_minutes": 20 },
            { "error_code": 401, "keywords": ["key"], "duration_minutes": 25 },
        ],
    })
}

fn codes(enabled: bool) -> Value {
    json!({ "custom_error_codes_enabled": enabled, "custom_error_codes": [429, 502] })
}

/// SPEC 7.5, 7.6, 7.8 for API keys of OpenAI's shape. Those that end soonest come last.
fn rows() -> Vec<Row> {
    use Lasts::{Ever, Until};
    let gateway_error = Client::Told(500, "Upstream gateway error");
    let own = |status, text| Client::Told(status, text);
    let (at, at_header) = (in_seconds(5_000), in_seconds(7_000));
    let resets_at = json!({ "error": { "type": "usage_limit_reached", "message": "m", "resets_at": at, "resets_in_seconds": 60 } });
    let resets_in = json!({ "error": { "type": "x", "code": "rate_limit_exceeded", "message": "m", "resets_in_seconds": 120 } });
    let of_another =
        json!({ "error": { "type": "other", "message": "m", "resets_in_seconds": 120 } });
    let of_model = "Rate limit reached for gpt-5-mini in organization org-x on requests per min.";
    let stream = |code: &str| {
        Answer::sse(openai::responses_failed(
            MODEL,
            "resp_bad",
            &[],
            code,
            "Sorry",
            None,
        ))
    };
    let limit = "rate_limited";
    #[rustfmt::skip]
    let rows = vec![
        // 400: the client's, unless the text means the account.
        told("a plain 400", said(400, "Bad thing"), "client_fault", own(400, "Bad thing")),
        served("organization disabled", said(400, "Your Organization has been disabled."), "bad_credential")
            .leaves("error", Ever, "Organization disabled (400): Your Organization has been disabled."),
        served("identity verification", said(400, "Identity verification is required to go on"), "bad_credential")
            .leaves("error", Ever, "Identity verification required (400): "),
        told("credit balance is Anthropic's", said(400, "Your credit balance is too low"), "client_fault", own(400, "credit balance")),
        told("the client's own words accuse nobody", said(400, "Invalid input: 'organization has been disabled'"), "client_fault", own(400, "Invalid input")),
        served("a transient 400", said(400, "An error occurred while processing your request."), "failed"),
        served("a transient 400 by its help", said(400, "Please retry, or contact us through help.openai.com with the request ID req_1"), "failed"),
        told("404", said(404, "No such thing"), "client_fault", own(404, "No such thing")),
        told("422", said(422, "No such thing"), "client_fault", own(422, "No such thing")),
        // 401.
        served("401", error(401, "authentication_error", "invalid_api_key", "Incorrect API key provided: sk-secret1234"), "bad_credential")
            .leaves("error", Ever, "Authentication failed (401): Incorrect API key provided: sk-***"),
        served("401 revoked", error(401, "x", "token_revoked", "Gone"), "bad_credential").leaves("error", Ever, "Token revoked (401): Gone"),
        served("401 invalidated", error(401, "token_invalidated", "x", "Gone"), "bad_credential").leaves("error", Ever, "Token revoked (401): Gone"),
        served("401 detail", Answer::json(401, &json!({ "detail": "Unauthorized" })), "bad_credential").leaves("error", Ever, "Unauthorized (401): Unauthorized"),
        served("401 without a body", Answer::empty(401), "bad_credential").leaves("error", Ever, "Authentication failed (401)"),
        // 402, 403, 529.
        served("402", said(402, "Pay first"), "bad_credential").leaves("error", Ever, "Payment required (402): Pay first"),
        served("402 deactivated", Answer::json(402, &json!({ "detail": { "code": "deactivated_workspace" } })), "bad_credential")
            .leaves("error", Ever, "Workspace deactivated (402)"),
        served("403", said(403, "Not you"), "bad_credential").leaves("temp_unschedulable", seconds(600), "Access forbidden (403): Not you"),
        served("529", said(529, "Busy"), "overloaded").leaves("overloaded", seconds(600), "overloaded"),
        // 429, by who says how long.
        served("both windows", windows(("100", "9000"), ("100", "500")), "limited").leaves(limit, seconds(9000), "limited, end by codex_7d"),
        served("the short window", windows(("99.9", "9000"), ("100", "500")), "limited").leaves(limit, seconds(500), "limited, end by codex_5h"),
        served("neither window", windows(("10", "9000"), ("20", "500")), "limited").leaves(limit, seconds(9000), "limited, end by codex_later"),
        served("a window by its moment", limited(&[("x-codex-primary-used-percent", "100"), ("x-codex-primary-reset-at", &at_header.to_string())]), "limited")
            .leaves(limit, Until(at_header), "limited, end by codex_7d"),
        served("windows before the body and the header", Answer::json(429, &resets_at).header("x-codex-primary-used-percent", "100")
            .header("x-codex-primary-reset-after-seconds", "700").header("retry-after", "80"), "limited").leaves(limit, seconds(700), "limited, end by codex_7d"),
        served("the body's moment", Answer::json(429, &resets_at).header("retry-after", "80"), "limited").leaves(limit, Until(at), "limited, end by body"),
        served("the body's seconds", Answer::json(429, &resets_in), "limited").leaves(limit, seconds(120), "limited, end by body"),
        served("retry-after", limited(&[("retry-after", "300")]), "limited").leaves(limit, seconds(300), "limited, end by retry_after"),
        served("retry-after-ms", limited(&[("retry-after-ms", "250500"), ("retry-after", "900")]), "limited")
            .leaves(limit, Lasts::Millis(250_500), "limited, end by retry_after"),
        served("a retry-after beyond belief", limited(&[("retry-after", "999999999")]), "limited").leaves(limit, seconds(8 * 86_400), "limited, end by retry_after"),
        served("a retry-after of nothing", limited(&[("retry-after", "0")]), "limited"),
        served("one model", error(429, "requests", "rate_limit_exceeded", of_model).header("retry-after", "400"), "limited")
            .leaves(limit, seconds(400), "limited, end by retry_after").of_model(),
        served("one model, but the windows say it", error(429, "requests", "rate_limit_exceeded", of_model).header("x-codex-primary-used-percent", "100")
            .header("x-codex-primary-reset-after-seconds", "450"), "limited").leaves(limit, seconds(450), "limited, end by codex_7d"),
        // Custom error codes.
        served("a listed status", said(502, "Down"), "failed").with(codes(true)).leaves("error", Ever, "Custom error code 502: Down"),
        served("a listed status of the table", limited(&[("retry-after", "350")]), "limited").with(codes(true)).leaves(limit, seconds(350), "limited, end by retry_after"),
        told("an unlisted status", said(503, "Down"), "unlisted", gateway_error).with(codes(true)),
        told("an unlisted 401", said(401, "Wrong key"), "unlisted", gateway_error).with(codes(true)),
        told("an unlisted 400", said(400, "Yours"), "unlisted", gateway_error).with(codes(true)),
        served("codes that are off", said(401, "Wrong"), "bad_credential").with(codes(false)).leaves("error", Ever, "Authentication failed (401): Wrong"),
        // Rules that take the account out for a while.
        served("a rule", said(503, "Under maintenance"), "failed").with(rules(true)).leaves("temp_unschedulable", seconds(900), "Rule for 503: planned work"),
        served("the next rule", said(503, "Under water"), "failed").with(rules(true)).leaves("temp_unschedulable", seconds(3600), "Rule for 503"),
        served("a rule on the client's fault", said(404, "It is NO LONGER yours"), "failed").with(rules(true)).leaves("temp_unschedulable", seconds(1200), "Rule for 404"),
        told("no keyword of the rule", said(404, "It is yours"), "client_fault", own(404, "It is yours")).with(rules(true)),
        served("rules are not asked about 401", said(401, "key"), "bad_credential").with(rules(true)).leaves("error", Ever, "Authentication failed (401): key"),
        told("rules that are off", said(404, "no longer yours"), "client_fault", own(404, "no longer")).with(rules(false)),
        // Pool mode: nothing is the account's fault.
        served("pool mode 401", said(401, "Wrong"), "bad_credential").with(json!({ "pool_mode": true, "pool_mode_retry_count": 0 })),
        served("pool mode 500", said(500, "Down"), "failed").with(json!({ "pool_mode": true })),
        served("pool mode 529", said(529, "Down"), "overloaded").with(json!({ "pool_mode": true })),
        served("pool mode with a listed status", said(502, "Down"), "failed")
            .with(json!({ "pool_mode": true, "custom_error_codes_enabled": true, "custom_error_codes": [502] })).leaves("error", Ever, "Custom error code 502: Down"),
        // A limit without any information.
        served("429 without more", limited(&[]), "limited").leaves(limit, seconds(30), "limited, end by setting"),
        served("seconds of another error", Answer::json(429, &of_another), "limited").leaves(limit, seconds(30), "limited, end by setting"),
        served("a stream that is limited", stream("rate_limit_exceeded"), "limited").leaves(limit, seconds(30), "limited, end by setting"),
    ];
    rows
}

fn bad(row: usize) -> String {
    format!("bad{row}")
}

fn request(row: usize, model: &str, stream: bool) -> Request {
    let key = key_of(&format!("g{row}"));
    Request::post("/v1/responses", ask_anew(model, stream).to_string()).bearer(&key)
}

async fn ask_row(gateway: &Gateway, row: usize, model: &str, stream: bool) -> ClientReply {
    let request = request(row, model, stream);
    gateway.h1().await.request(&request).await.unwrap()
}

/// Accounts asked, in order.
fn asked(upstream: &FakeUpstream) -> Vec<String> {
    let requests = upstream.requests();
    let name = |seen: &tollgate_test_support::Received| {
        let credential = seen.credential().unwrap_or_default();
        credential.trim_start_matches("sk-").to_owned()
    };
    requests.iter().map(name).collect()
}

/// Every account as shown, by name.
fn accounts(gateway: &Gateway) -> BTreeMap<String, Value> {
    let list = gateway.run_json(&["accounts", "list", "--json"]);
    let each = list.as_array().unwrap().iter();
    each.map(|account| {
        let name = account["name"].as_str().unwrap().to_owned();
        (name, account.clone())
    })
    .collect()
}

fn account(gateway: &Gateway, name: &str) -> Value {
    gateway.run_json(&["accounts", "show", name, "--json"])
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

/// How long a condition lasts in all, or leaves.
fn lasts(condition: &Value) -> TimeDelta {
    time(&condition["until"]) - time(&condition["since"])
}

fn check_shown(shown: &Value, row: &Row) {
    let name = row.name;
    let conditions = shown["conditions"].as_array().unwrap();
    let Some(leaves) = &row.leaves else {
        assert!(conditions.is_empty(), "{name}: {shown:#}");
        assert_eq!(shown["status"], "active", "{name}: {shown:#}");
        return;
    };
    assert_eq!(conditions.len(), 1, "{name}: {shown:#}");
    let condition = &conditions[0];
    assert_eq!(condition["kind"], leaves.kind, "{name}: {shown:#}");
    assert_eq!(
        condition["status"],
        json!(row.status()),
        "{name}: {shown:#}"
    );
    let reason = condition["reason"].as_str().unwrap();
    match leaves.reason.ends_with(": ") {
        true => assert!(reason.starts_with(leaves.reason), "{name}: {reason}"),
        false => assert_eq!(reason, leaves.reason, "{name}"),
    }
    assert!(time(&condition["since"]) <= Utc::now(), "{name}");
    match leaves.lasts {
        Lasts::Ever => assert_eq!(condition["until"], Value::Null, "{name}: {shown:#}"),
        Lasts::Millis(millis) => {
            assert_eq!(
                lasts(condition).num_milliseconds(),
                millis,
                "{name}: {shown:#}"
            );
        }
        Lasts::Until(at) => {
            // The distance is measured when the answer comes, the end a moment later.
            let late = time(&condition["until"]).timestamp() - i64::try_from(at).unwrap();
            assert!((-1..30).contains(&late), "{name}: {late} s late");
        }
    }
    let (status, until) = match leaves.of_model {
        true => ("active", &Value::Null),
        false => (leaves.kind, &condition["until"]),
    };
    assert_eq!(shown["status"], status, "{name}: {shown:#}");
    assert_eq!(shown["until"], *until, "{name}: {shown:#}");
    let model = leaves.of_model.then_some(MODEL);
    assert_eq!(condition["model"], json!(model), "{name}: {shown:#}");
}

/// A group for each row: an account that answers as the row says once, and one that always serves.
fn setup(upstream: &FakeUpstream, rows: &[Row]) -> Setup {
    let url = upstream.url();
    let mut setup = Setup::with(&[upstream]);
    for (index, row) in rows.iter().enumerate() {
        let good = format!("good{index}");
        setup = setup.group(&format!("g{index}"), &[(&bad(index), &url), (&good, &url)]);
        setup = setup.resources(|all| {
            let accounts = all["accounts"].as_array_mut().unwrap();
            let bad = accounts.len() - 2;
            accounts[bad]["extra"] = row.extra.clone();
        });
    }
    setup
}

/// Sends a request to each row's group: whether the account is asked again.
async fn check_asked(gateway: &Gateway, upstream: &FakeUpstream, rows: &[Row], what: &str) {
    for (index, row) in rows.iter().enumerate() {
        // Those that end within the test may have.
        if matches!(
            &row.leaves,
            Some(Leaves {
                lasts: Lasts::Millis(..=30_000),
                ..
            })
        ) {
            continue;
        }
        for model in [MODEL, OTHER_MODEL] {
            upstream.wait_idle().await;
            upstream.forget();
            let reply = ask_row(gateway, index, model, false).await;
            assert_eq!(reply.status, 200, "{what}, {}: {}", row.name, reply.text());
            let out = row
                .leaves
                .as_ref()
                .is_some_and(|leaves| !leaves.of_model || model == MODEL);
            let expected = if out {
                format!("good{index}")
            } else {
                bad(index)
            };
            assert_eq!(asked(upstream), [expected], "{what}, {}, {model}", row.name);
        }
    }
}

/// Waits until as many conditions are shown as rows leave, then looks at each.
async fn check_accounts(gateway: &Gateway, rows: &[Row]) {
    let count = rows.iter().filter(|row| row.leaves.is_some()).count();
    let mut shown = BTreeMap::new();
    gateway
        .wait("the conditions", || {
            shown = accounts(gateway);
            let conditions = shown
                .values()
                .map(|a| a["conditions"].as_array().unwrap().len());
            conditions.sum::<usize>() >= count
        })
        .await;
    for (index, row) in rows.iter().enumerate() {
        check_shown(&shown[&bad(index)], row);
        assert_eq!(
            shown[&format!("good{index}")]["status"],
            "active",
            "{}",
            row.name
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_each_answer_means_for_its_account() {
    let upstream = FakeUpstream::start().await;
    let rows = rows();
    let gateway = setup(&upstream, &rows).start().await;
    let mut ids = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        upstream.push_for(&format!("sk-{}", bad(index)), row.answer.clone());
        let stream = row.status().is_none();
        let reply = ask_row(&gateway, index, MODEL, stream).await;
        ids.push(reply.header("x-request-id").unwrap().to_owned());
        let accounts = asked(&upstream);
        match row.client {
            Client::Served => {
                assert_eq!(reply.status, 200, "{}: {}", row.name, reply.text());
                assert_eq!(
                    accounts,
                    [bad(index), format!("good{index}")],
                    "{}",
                    row.name
                );
            }
            Client::Told(status, text) => {
                assert_eq!(reply.status, status, "{}: {}", row.name, reply.text());
                let message = reply.json()["error"]["message"].clone();
                let message = message.as_str().unwrap();
                assert!(message.contains(text), "{}: {message}", row.name);
                assert_eq!(accounts, [bad(index)], "{}", row.name);
            }
        }
        upstream.wait_idle().await;
        upstream.forget();
    }
    check_accounts(&gateway, &rows).await;

    // The records.
    let records = gateway.wait_records(rows.len()).await;
    for (index, row) in rows.iter().enumerate() {
        let group = format!("g{index}");
        let record = records.iter().find(|r| r["group"] == group).unwrap();
        let trail = record["attempt_trail"].as_array().unwrap();
        match row.client {
            Client::Served => {
                let good = format!("good{index}");
                assert_eq!(record["account"], good, "{record:#}");
                assert_eq!(record["outcome"], "ok", "{record:#}");
                assert_eq!(
                    (&record["attempts"], &record["account_switches"]),
                    (&json!(2), &json!(1))
                );
                let told: Vec<_> = trail
                    .iter()
                    .map(|t| (&t["account"], &t["result"], &t["status"]))
                    .collect();
                let expected = [
                    (&json!(bad(index)), &json!(row.result), &json!(row.status())),
                    (&json!(good), &json!("answered"), &json!(200)),
                ];
                assert_eq!(told, expected, "{}", row.name);
            }
            Client::Told(status, _) => {
                assert_eq!(record["account"], bad(index), "{record:#}");
                assert_eq!(record["outcome"], "upstream_error", "{record:#}");
                assert_eq!(record["status"], status, "{record:#}");
                assert_eq!(
                    (&record["attempts"], &record["account_switches"]),
                    (&json!(1), &json!(0))
                );
                assert!(trail.is_empty(), "{record:#}");
            }
        }
    }
    // The log.
    let log = logged_of(&gateway, &ids).await;
    for (index, row) in rows.iter().enumerate() {
        let mut lines = log.lines().filter(|line| line.contains("tollgate::access"));
        let line = lines.find(|line| line.contains(&ids[index])).unwrap();
        let failed = format!(
            "{}:{}/{}/",
            bad(index),
            row.result,
            row.status().unwrap_or(0)
        );
        let answered = format!(" good{index}:answered/200/");
        let has_trail = matches!(row.client, Client::Served);
        assert_eq!(line.contains("trail="), has_trail, "{line}");
        assert_eq!(line.contains(&failed), has_trail, "{failed}: {line}");
        assert_eq!(line.contains(&answered), has_trail, "{answered}: {line}");
    }
    // The numbers.
    let mut numbers: BTreeMap<String, f64> = BTreeMap::new();
    for kind in ConditionKind::ALL {
        numbers.insert(conditions_of(kind.as_str()), 0.0);
    }
    let mut count = |name: String| *numbers.entry(name).or_default() += 1.0;
    for row in &rows {
        count(format!(
            "attempts_total{{platform=\"openai\",result=\"{}\"}}",
            row.result
        ));
        if let Some(leaves) = &row.leaves {
            count(conditions_of(leaves.kind));
        }
        if matches!(row.client, Client::Served) {
            count(format!(
                "failovers_total{{platform=\"openai\",reason=\"{}\"}}",
                row.result
            ));
        }
    }
    for (name, value) in numbers {
        assert_eq!(gateway.metric(&name), value, "{name}");
    }
    let conditions = rows.iter().filter(|row| row.leaves.is_some()).count();
    assert!(gateway.metric("conditions_written_total") >= conditions as f64);
    // A key is never shown, however it is repeated.
    assert!(!gateway.logged().contains("secret1234"));
    assert!(!json!(accounts(&gateway)).to_string().contains("secret1234"));
}

/// The metric of conditions of a kind.
fn conditions_of(kind: &str) -> String {
    format!("account_conditions_total{{kind=\"{kind}\",platform=\"openai\"}}")
}

/// The log, with the lines of these requests in it: it is written a moment later.
async fn logged_of(gateway: &Gateway, ids: &[String]) -> String {
    let mut log = String::new();
    let is_there = |log: &str, id: &String| {
        let mut lines = log.lines().filter(|line| line.contains("tollgate::access"));
        lines.any(|line| line.contains(id))
    };
    gateway
        .wait("the access log", || {
            log = gateway.logged();
            ids.iter().all(|id| is_there(&log, id))
        })
        .await;
    log
}

/// What stays long enough to be looked at again and again.
fn lasting_rows() -> Vec<Row> {
    const LASTING: [&str; 9] = [
        "a plain 400",
        "401",
        "402 deactivated",
        "403",
        "529",
        "the body's moment",
        "retry-after",
        "one model",
        "a rule",
    ];
    let rows: Vec<Row> = rows()
        .into_iter()
        .filter(|row| LASTING.contains(&row.name))
        .collect();
    assert_eq!(rows.len(), LASTING.len());
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_outlast_restarts_and_end_when_resumed() {
    let upstream = FakeUpstream::start().await;
    let rows = lasting_rows();
    let mut gateway = setup(&upstream, &rows).start().await;
    for (index, row) in rows.iter().enumerate() {
        upstream.push_for(&format!("sk-{}", bad(index)), row.answer.clone());
        ask_row(&gateway, index, MODEL, false).await;
    }
    check_asked(&gateway, &upstream, &rows, "at once").await;
    check_accounts(&gateway, &rows).await;
    let before = accounts(&gateway);

    gateway.stop();
    // Also while no server runs.
    assert_eq!(accounts(&gateway), before);
    gateway.launch();
    check_asked(&gateway, &upstream, &rows, "started again").await;
    assert_eq!(accounts(&gateway), before);

    gateway.kill();
    gateway.launch();
    check_asked(&gateway, &upstream, &rows, "after a crash").await;
    assert_eq!(accounts(&gateway), before);

    // One by name, then all.
    gateway.run(&["accounts", "resume", &bad(1)]);
    let shown = accounts(&gateway);
    assert_eq!(shown[&bad(1)]["status"], "active");
    assert_eq!(shown[&bad(1)]["conditions"], json!([]));
    assert_eq!(shown[&bad(2)], before[&bad(2)]);
    gateway.run(&["accounts", "resume", "--all"]);
    for (name, shown) in accounts(&gateway) {
        assert_eq!(shown["status"], "active", "{name}: {shown:#}");
        assert_eq!(shown["conditions"], json!([]), "{name}: {shown:#}");
    }
    let well: Vec<Row> = lasting_rows()
        .into_iter()
        .map(|row| Row {
            leaves: None,
            ..row
        })
        .collect();
    for (index, row) in well.iter().enumerate() {
        is_asked_again(
            &gateway,
            &upstream,
            || request(index, MODEL, false),
            &bad(index),
            row.name,
        )
        .await;
    }
    check_asked(&gateway, &upstream, &well, "resumed").await;
    // And it stays so.
    gateway.stop();
    gateway.launch();
    check_asked(&gateway, &upstream, &well, "resumed and started again").await;
}

/// Sends a request until it is served by this account.
async fn is_asked_again(
    gateway: &Gateway,
    upstream: &FakeUpstream,
    request: impl Fn() -> Request,
    name: &str,
    what: &str,
) {
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        upstream.wait_idle().await;
        upstream.forget();
        let reply = gateway.h1().await.request(&request()).await.unwrap();
        assert!(
            [200, 429, 503].contains(&reply.status),
            "{what}: {}",
            reply.text()
        );
        if asked(upstream) == [name] {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{what}: {name} stays away"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Changes what the store remembers of the accounts' conditions, as if time had passed. The server
/// must not run.
fn rewrite(data: PathBuf, change: impl Fn(&mut Vec<Condition>) + Send + 'static) {
    // Its own thread: a runtime cannot be started inside another.
    let rewriting = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let secret = Secret::new("the secret of these tests");
            let store = Store::open(&data, &secret).await.unwrap();
            let mut before = Conditions::default();
            for (account, condition) in store.load_conditions().await.unwrap() {
                before.0.entry(account).or_default().push(condition);
            }
            let mut after = before.clone();
            after.0.values_mut().for_each(change);
            let changes = ConditionChanges::between(&before, &after);
            store.save_conditions(&changes).await.unwrap();
            store.close().await.unwrap();
        });
    });
    rewriting.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_end_by_time() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream, &upstream]).start().await;
    // While the server runs …
    upstream.push_for("sk-a1", limited(&[("retry-after", "1")]));
    let reply = gateway.h1().await.request(&apart(MODEL)).await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(asked(&upstream), ["a1", "a2"]);
    is_asked_again(&gateway, &upstream, || apart(MODEL), "a1", "running").await;
    gateway
        .wait("it is shown no more", || {
            let shown = account(&gateway, "a1");
            shown["status"] == "active" && shown["conditions"] == json!([])
        })
        .await;
    // … and while it does not: ten minutes pass.
    let mut gateway = gateway;
    upstream.push_for("sk-a1", said(529, "Busy"));
    let reply = gateway.h1().await.request(&apart(MODEL)).await.unwrap();
    assert_eq!(reply.status, 200);
    gateway
        .wait("it is shown", || {
            account(&gateway, "a1")["status"] == "overloaded"
        })
        .await;
    gateway.stop();
    rewrite(gateway.data(), |conditions| {
        for condition in conditions {
            condition.since -= TimeDelta::minutes(10);
            condition.until = condition.until.map(|until| until - TimeDelta::minutes(10));
        }
    });
    assert_eq!(account(&gateway, "a1")["conditions"], json!([]));
    gateway.launch();
    upstream.forget();
    let reply = gateway.h1().await.request(&apart(MODEL)).await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(asked(&upstream), ["a1"]);
    assert_eq!(account(&gateway, "a1")["status"], "active");
}

/// Requests that are with `a1` at the same time; it answers them one by one.
async fn at_once(
    gateway: &Gateway,
    upstream: &FakeUpstream,
    answers: Vec<Answer>,
) -> Vec<(Gate, Call)> {
    let mut calls = Vec::new();
    for answer in answers {
        let gate = Gate::new();
        upstream.push_for("sk-a1", answer.after(&gate));
        let call = Call::send(gateway, Protocol::H1, &apart(MODEL)).await;
        gate.wait_reached(1).await;
        calls.push((gate, call));
    }
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_third_403_is_the_last() {
    let forbidden = || said(403, "Not you");
    let served = || {
        let json = openai::responses_json(MODEL, "resp_good", "fine", Usage::default());
        Answer::body(200, "application/json", json)
    };
    let out_for_a_while = ("temp_unschedulable", false);
    let out_for_good = ("error", true);
    let active = ("active", false);
    #[rustfmt::skip]
    let stories = [
        ("three", vec![(forbidden(), out_for_a_while), (forbidden(), out_for_a_while), (forbidden(), out_for_good)]),
        ("a success between", vec![(forbidden(), out_for_a_while), (forbidden(), out_for_a_while), (served(), out_for_a_while),
            (forbidden(), out_for_a_while), (forbidden(), out_for_a_while), (forbidden(), out_for_good)]),
        ("a client's fault is no success", vec![(forbidden(), out_for_a_while), (forbidden(), out_for_a_while), (said(404, "x"), out_for_a_while),
            (forbidden(), out_for_good)]),
        ("successes alone", vec![(served(), active), (served(), active)]),
    ];
    for (story, steps) in stories {
        let upstream = FakeUpstream::start().await;
        let gateway = Setup::with(&[&upstream, &upstream]).start().await;
        let (answers, expected): (Vec<_>, Vec<_>) = steps.into_iter().unzip();
        let calls = at_once(&gateway, &upstream, answers).await;
        for (step, ((gate, call), (status, for_good))) in
            calls.into_iter().zip(expected).enumerate()
        {
            gate.open();
            let (got, _) = call.answer().await;
            assert!([200, 404].contains(&got), "{story} {step}: {got}");
            let mut shown = Value::Null;
            gateway
                .wait(&format!("{story} {step}: {status}"), || {
                    shown = account(&gateway, "a1");
                    shown["status"] == status
                })
                .await;
            if status != "active" {
                let last = shown["conditions"].as_array().unwrap().iter();
                let last = last.clone().find(|c| c["kind"] == status).unwrap();
                assert_eq!(
                    last["reason"], "Access forbidden (403): Not you",
                    "{story} {step}"
                );
                assert_eq!(last["status"], 403, "{story} {step}");
                match for_good {
                    true => assert_eq!(last["until"], Value::Null, "{story} {step}"),
                    false => assert_eq!(lasts(last), TimeDelta::minutes(10), "{story} {step}"),
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strikes_outlast_restarts_but_not_a_resume() {
    for resumed in [false, true] {
        let upstream = FakeUpstream::start().await;
        let mut gateway = Setup::with(&[&upstream, &upstream]).start().await;
        let forbidden = || said(403, "Not you");
        for (gate, call) in at_once(&gateway, &upstream, vec![forbidden(), forbidden()]).await {
            gate.open();
            assert_eq!(call.answer().await.0, 200);
        }
        gateway
            .wait("it is out", || {
                account(&gateway, "a1")["status"] == "temp_unschedulable"
            })
            .await;
        if resumed {
            gateway.run(&["accounts", "resume", "a1"]);
            is_asked_again(&gateway, &upstream, || apart(MODEL), "a1", "resumed").await;
        }
        gateway.stop();
        // Ten minutes pass.
        rewrite(gateway.data(), Vec::clear);
        gateway.launch();
        upstream.push_for("sk-a1", forbidden());
        let reply = gateway.h1().await.request(&apart(MODEL)).await.unwrap();
        assert_eq!(reply.status, 200);
        let status = if resumed {
            "temp_unschedulable"
        } else {
            "error"
        };
        gateway
            .wait(status, || account(&gateway, "a1")["status"] == status)
            .await;
    }
}

/// The condition `failing` of an account, as soon as it is shown; its cause is repeated until then,
/// as it is only for seconds.
async fn failing(gateway: &Gateway, name: &str, cause: impl AsyncFn()) -> Value {
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        cause().await;
        let looked = std::time::Instant::now();
        while looked.elapsed() < Duration::from_secs(2) {
            let shown = account(gateway, name);
            if shown["status"] == "failing" {
                assert_eq!(
                    shown["conditions"].as_array().unwrap().len(),
                    1,
                    "{shown:#}"
                );
                assert_eq!(shown["until"], shown["conditions"][0]["until"]);
                return shown["conditions"][0].clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{name} is never failing"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_account_comes_last() {
    for status in [408, 500, 502, 503, 504, 520] {
        let upstream = FakeUpstream::start().await;
        let gateway = Setup::with(&[&upstream, &upstream]).start().await;
        let ask = async || gateway.h1().await.request(&apart(MODEL)).await.unwrap();
        let condition = failing(&gateway, "a1", async || {
            upstream.push_for("sk-a1", said(status, "Sorry"));
            // When the last one has ended it is asked at once, else when it has.
            assert_eq!(ask().await.status, 200);
        })
        .await;
        assert_eq!(condition["status"], status);
        assert_eq!(condition["reason"], "failed");
        assert_eq!(lasts(&condition), TimeDelta::seconds(5));
        upstream.wait_idle().await;
        upstream.forget();
        assert_eq!(ask().await.status, 200);
        if Utc::now() < time(&condition["until"]) {
            assert_eq!(asked(&upstream), ["a2"], "{status}");
        }
        // Both fail: then either is better than none.
        let both = async || {
            upstream.always_for("sk-a1", said(status, "Sorry"));
            upstream.always_for("sk-a2", said(status, "Sorry"));
            assert_eq!(ask().await.status, 502);
        };
        both().await;
        upstream.always_for("sk-a1", Answer::echo());
        upstream.always_for("sk-a2", Answer::echo());
        upstream.wait_idle().await;
        upstream.forget();
        assert_eq!(ask().await.status, 200);
        assert_eq!(asked(&upstream).len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_is_tried_again_then_left() {
    let upstream = FakeUpstream::start().await;
    let url = upstream.url();
    let transient = "An error occurred while processing your request.";
    // Status, message, options, times the account is asked.
    #[rustfmt::skip]
    let rows = [
        (429, "Slow down", json!({ "pool_mode": true, "pool_mode_retry_count": 2 }), 3),
        (401, "Wrong", json!({ "pool_mode": true, "pool_mode_retry_count": 1 }), 2),
        (403, "Not you", json!({ "pool_mode": true, "pool_mode_retry_count": 1 }), 2),
        (400, transient, json!({ "pool_mode": true, "pool_mode_retry_count": 1 }), 2),
        (429, "Slow down", json!({ "pool_mode": true, "pool_mode_retry_count": 0 }), 1),
        (429, "Slow down", json!({ "pool_mode": true }), 4),
        (500, "Sorry", json!({ "pool_mode": true }), 1),
        (402, "Pay", json!({ "pool_mode": true }), 1),
    ];
    let mut setup = Setup::with(&[&upstream]);
    for (row, (.., extra, _)) in rows.iter().enumerate() {
        let good = format!("good{row}");
        setup = setup
            .group(&format!("g{row}"), &[(&bad(row), &url), (&good, &url)])
            .resources(|all| {
                let accounts = all["accounts"].as_array_mut().unwrap();
                let bad = accounts.len() - 2;
                accounts[bad]["extra"] = extra.clone();
            });
    }
    let gateway = setup.start().await;
    let mut calls = Vec::new();
    for (row, (status, message, ..)) in rows.iter().enumerate() {
        upstream.always_for(&format!("sk-{}", bad(row)), said(*status, message));
        let request = request(row, MODEL, false);
        calls.push(Call::send(&gateway, Protocol::H1, &request).await);
    }
    for (call, row) in calls.into_iter().zip(&rows) {
        assert_eq!(call.answer().await.0, 200, "{row:?}");
    }
    let records = gateway.wait_records(rows.len()).await;
    let mut retries = 0.0;
    for (row, (status, _, _, times)) in rows.iter().enumerate() {
        let group = format!("g{row}");
        let record = records.iter().find(|r| r["group"] == group).unwrap();
        assert_eq!(record["attempts"], times + 1, "{record:#}");
        assert_eq!(record["account_switches"], 1, "{record:#}");
        let trail = record["attempt_trail"].as_array().unwrap();
        let accounts: Vec<_> = trail
            .iter()
            .map(|t| t["account"].as_str().unwrap())
            .collect();
        let (bad, good) = (bad(row), format!("good{row}"));
        let mut expected = vec![&*bad; *times];
        expected.push(&good);
        assert_eq!(accounts, expected, "{record:#}");
        assert!(
            trail[..*times].iter().all(|t| t["status"] == *status),
            "{record:#}"
        );
        // It is given time to find another of its own.
        let pauses = 500 * (*times as u64 - 1);
        assert!(
            record["duration_ms"].as_u64().unwrap() >= pauses,
            "{record:#}"
        );
        retries += *times as f64 - 1.0;
    }
    let of = |family: &str| -> f64 {
        let reasons = ["limited", "bad_credential", "failed"].iter();
        reasons
            .map(|reason| {
                gateway.metric(&format!(
                    "{family}{{platform=\"openai\",reason=\"{reason}\"}}"
                ))
            })
            .sum()
    };
    assert_eq!(of("retries_total"), retries);
    assert_eq!(of("failovers_total"), rows.len() as f64);
    // Nothing has become of any account.
    for (name, shown) in accounts(&gateway) {
        assert_eq!(shown["status"], "active", "{name}");
        assert_eq!(shown["conditions"], json!([]), "{name}");
    }
    for kind in ConditionKind::ALL {
        assert_eq!(
            gateway.metric(&conditions_of(kind.as_str())),
            0.0,
            "{kind:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_recovers_serves() {
    let upstream = FakeUpstream::start().await;
    let gateway = Setup::with(&[&upstream])
        .resources(|all| all["accounts"][0]["extra"] = json!({ "pool_mode": true }))
        .start()
        .await;
    // The only account there is.
    for status in [401, 403, 429] {
        upstream.push_for("sk-a1", said(status, "Not now"));
    }
    let reply = gateway.h1().await.request(&apart(MODEL)).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    let record = gateway.only_record().await;
    assert_eq!(record["attempts"], 4);
    assert_eq!(record["account_switches"], 0);
    assert_eq!(record["outcome"], "ok");
    // In the end the client hears of it.
    upstream.always_for("sk-a1", said(429, "Not now"));
    let reply = gateway.h1().await.request(&apart(MODEL)).await.unwrap();
    assert_eq!(reply.status, 429, "{}", reply.text());
    assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
    assert_eq!(upstream.total(), 8);
    // Who leaves during a pause is not served any more.
    let call = Call::send(&gateway, Protocol::H1, &apart(MODEL)).await;
    upstream
        .wait_for("it is asked", |_| upstream.total() == 9)
        .await;
    drop(call);
    gateway.wait_metric("requests_in_flight", 0.0).await;
    gateway
        .wait_metric("slots_held{slot=\"account\"}", 0.0)
        .await;
    assert!(upstream.total() < 12, "it was not tried to the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transport_errors_put_an_account_behind() {
    let upstream = FakeUpstream::start().await;
    let ca = TestCa::new();
    let tls = FakeUpstream::builder().tls(&ca, Alpn::Both).start().await;
    let tls = tls.unwrap();
    let url = upstream.url();
    let preamble = || Answer::sse(openai::preamble(MODEL, "resp_bad"));
    // Name, address, answer, result.
    let rows = [
        (
            "refused",
            format!("http://{}", free_address()),
            None,
            "connect",
        ),
        ("reset", url.clone(), Some(Answer::reset()), "reset"),
        ("closed", url.clone(), Some(Answer::close()), "reset"),
        ("TLS of an unknown authority", tls.url(), None, "tls"),
        (
            "no header in time",
            url.clone(),
            Some(Answer::never()),
            "response_header_timeout",
        ),
        (
            "silence",
            url.clone(),
            Some(preamble().then_stall()),
            "stream_timeout",
        ),
        (
            "broken off",
            url.clone(),
            Some(preamble().then_reset()),
            "reset",
        ),
        (
            "no such name",
            "http://does-not-exist.invalid".to_owned(),
            None,
            "resolve",
        ),
    ];
    let mut setup = Setup::with(&[&upstream])
        .set("GATEWAY__RESPONSE_HEADER_TIMEOUT_MS", 1000)
        .set("GATEWAY__STALL_TIMEOUT_MS", 1000);
    for (row, (_, address, ..)) in rows.iter().enumerate() {
        let good = format!("good{row}");
        setup = setup.group(&format!("g{row}"), &[(&bad(row), address), (&good, &url)]);
    }
    let gateway = setup.start().await;
    let credential = |row| format!("sk-{}", bad(row));
    for (row, (name, _, answer, result)) in rows.iter().enumerate() {
        let condition = failing(&gateway, &bad(row), async || {
            if let Some(answer) = answer {
                upstream.push_for(&credential(row), answer.clone());
            }
            let reply = ask_row(&gateway, row, MODEL, true).await;
            assert_eq!(reply.status, 200, "{name}: {}", reply.text());
        })
        .await;
        assert_eq!(condition["status"], Value::Null, "{name}");
        assert_eq!(condition["reason"], "transport error", "{name}");
        assert_eq!(lasts(&condition), TimeDelta::seconds(5), "{name}");
        let records = gateway.records();
        let group = format!("g{row}");
        let record = records
            .iter()
            .find(|r| r["group"] == group && !r["attempt_trail"].as_array().unwrap().is_empty());
        let record = record.unwrap_or_else(|| panic!("{name}: {records:#?}"));
        let trail = &record["attempt_trail"];
        assert_eq!(trail[0]["account"], bad(row), "{name}");
        assert_eq!(trail[0]["result"], *result, "{name}");
        assert_eq!(trail[0]["status"], Value::Null, "{name}");
        assert_eq!(trail[1]["account"], format!("good{row}"), "{name}");
        assert_eq!(record["account_switches"], 1, "{name}");
        let count = format!("attempts_total{{platform=\"openai\",result=\"{result}\"}}");
        assert!(gateway.metric(&count) >= 1.0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_opens_the_circuit_and_the_first_answer_closes_it() {
    let address = free_address();
    let gateway = Setup::new(&[format!("http://{address}")]).start().await;
    let ask = async || gateway.h1().await.request(&apart(MODEL)).await.unwrap();
    let shown = std::cell::RefCell::new(Value::Null);
    failing(&gateway, "a1", async || {
        for _ in 0..3 {
            // With nobody else left it is tried nevertheless.
            let reply = ask().await;
            assert_eq!(reply.status, 502, "{}", reply.text());
        }
        *shown.borrow_mut() = account(&gateway, "a1");
    })
    .await;
    gateway
        .wait("the circuit is open", || {
            let shown = account(&gateway, "a1");
            let reason = shown["conditions"][0]["reason"]
                .as_str()
                .unwrap_or_default();
            reason.starts_with("circuit open, time ")
                || gateway.logged().contains("circuit open, time 1")
        })
        .await;
    let upstream = FakeUpstream::builder().bind(address).start().await.unwrap();
    let reply = ask().await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    gateway
        .wait("it is well", || {
            account(&gateway, "a1")["conditions"] == json!([])
        })
        .await;
    assert_eq!(upstream.total(), 1);
    gateway.only_record().await;
}

/// Opens the circuit of `a1` and waits until it may be tried again.
async fn half_open(gateway: &Gateway, upstream: &FakeUpstream) {
    let answers = vec![Answer::reset(); 3];
    for (gate, call) in at_once(gateway, upstream, answers).await {
        gate.open();
        assert_eq!(call.answer().await.0, 200);
    }
    gateway
        .wait("the circuit is open", || {
            gateway.logged().contains("circuit open, time 1")
        })
        .await;
    let is_over = |line: &str| {
        let until = line
            .split("until=")
            .nth(1)?
            .split([' ', '"'])
            .find(|t| !t.is_empty())?;
        Some(until.parse::<DateTime<Utc>>().ok()? <= Utc::now())
    };
    gateway
        .wait("it is half open", || {
            let log = gateway.logged();
            let last = log
                .lines()
                .rfind(|line| line.contains("circuit open"))
                .unwrap();
            is_over(last).unwrap_or_else(|| panic!("{last}"))
        })
        .await;
    upstream.wait_idle().await;
    upstream.forget();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_at_a_time_tries_an_account_again() {
    let json = openai::responses_json(MODEL, "resp_good", "fine", Usage::default());
    // Whatever it answers, it answers: its connections work again.
    let rows = [
        ("served", Answer::body(200, "application/json", json), 200),
        ("the client's fault", said(400, "Yours"), 400),
        (
            "a refusal",
            said(400, "An error occurred while processing your request."),
            200,
        ),
    ];
    for (name, answer, status) in rows {
        let upstream = FakeUpstream::start().await;
        let gateway = Setup::with(&[&upstream, &upstream]).start().await;
        let ask = async || gateway.h1().await.request(&apart(MODEL)).await.unwrap();
        half_open(&gateway, &upstream).await;
        let mut trying = at_once(&gateway, &upstream, vec![answer]).await;
        for _ in 0..3 {
            assert_eq!(ask().await.status, 200, "{name}");
        }
        assert_eq!(asked(&upstream), ["a1", "a2", "a2", "a2"], "{name}");
        let (gate, call) = trying.remove(0);
        gate.open();
        assert_eq!(call.answer().await.0, status, "{name}");
        gateway.wait_metric("requests_in_flight", 0.0).await;
        upstream.wait_idle().await;
        upstream.forget();
        for _ in 0..2 {
            assert_eq!(ask().await.status, 200, "{name}");
        }
        assert_eq!(asked(&upstream), ["a1", "a1"], "{name}");
    }
}
